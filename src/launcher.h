/*-------------------------------------------------------------------------
 *
 * launcher.h
 *		The process that starts all others.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_LAUNCHER_H
#define PNE_LAUNCHER_H

#include "fmgr.h"

extern void launcher_register(void);

extern PGDLLEXPORT void pne_launcher_main(Datum main_arg);

#endif							/* PNE_LAUNCHER_H */
