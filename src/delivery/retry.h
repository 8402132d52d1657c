/*-------------------------------------------------------------------------
 *
 * retry.h
 *		Events that failed.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_RETRY_H
#define PNE_RETRY_H

#include "delivery/batch.h"

extern BatchOutcome retry_record_failure(HandlerRun *run, Event *event, int64 next, ErrorData *error);
extern BatchOutcome retry_run_fresh(HandlerRun *run, EventIdentity event, int64 next);
extern void retry_run_due(HandlerRun *run);
extern void retry_recover_attempts(HandlerRun *run);
extern void retry_give_back_attempts(HandlerRun *run);
extern bool retry_attempt_is_under_way(void);
extern void retry_forget_attempt(void);
extern void retry_give_back_attempt(void);
extern void retry_charge_parked(HandlerRun *run, EventIdentity event, int attempts);
extern void retry_read_deadline(HandlerRun *run);
extern bool retry_first_attempt_open(const Handler *handler, const EventSnapshot *upto);
extern TimestampTz retry_earliest(const Handler *handler);
extern TimestampTz retry_due_after(const Handler *handler, int attempts);

#endif							/* PNE_RETRY_H */
