/*-------------------------------------------------------------------------
 *
 * batch.h
 *		One batch: match, call, progress, commit; and what to do if it fails.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_BATCH_H
#define PNE_BATCH_H

#include "delivery/handler_run.h"

extern void batch_turn(HandlerRun *run);

#endif							/* PNE_BATCH_H */
