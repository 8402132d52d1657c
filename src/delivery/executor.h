/*-------------------------------------------------------------------------
 *
 * executor.h
 *		The process that runs the handlers of one owner.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_EXECUTOR_H
#define PNE_EXECUTOR_H

#include "fmgr.h"

extern PGDLLEXPORT void pne_executor_main(Datum main_arg);

#endif							/* PNE_EXECUTOR_H */
