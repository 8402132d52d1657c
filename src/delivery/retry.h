/*-------------------------------------------------------------------------
 *
 * retry.h
 *		Attempts to handle events that failed, or that may end the process.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_RETRY_H
#define PNE_RETRY_H

#include "delivery/handler_run.h"

extern BatchOutcome retry_record_failure(HandlerRun *run, Event *event, int64 next, ErrorData *error);
extern BatchOutcome retry_run_fresh(HandlerRun *run, EventIdentity event, int64 next);
extern void retry_run_due(HandlerRun *run);
extern bool retry_first_attempt_open(const Handler *handler, const EventSnapshot *upto);

#endif							/* PNE_RETRY_H */
