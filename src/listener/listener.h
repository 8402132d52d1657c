/*-------------------------------------------------------------------------
 *
 * listener.h
 *		The process that listens in a database.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_LISTENER_H
#define PNE_LISTENER_H

#include "fmgr.h"

extern PGDLLEXPORT void pne_listener_main(Datum main_arg);

#endif							/* PNE_LISTENER_H */
