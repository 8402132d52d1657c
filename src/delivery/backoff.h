/*-------------------------------------------------------------------------
 *
 * backoff.h
 *		Failures that are not the events' fault.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_BACKOFF_H
#define PNE_BACKOFF_H

#include "delivery/handler_run.h"

extern void backoff_load(HandlerRun *run);
extern bool backoff_is_to_blame(const HandlerRun *run, const ErrorData *error);
extern TimestampTz backoff_next_trial(const HandlerRun *run);
extern void backoff_event_deferred(HandlerRun *run, int64 event_id, TimestampTz next_trial,
								   const ErrorData *error);
extern void backoff_event_charged(HandlerRun *run, TimestampTz due, bool first, const ErrorData *error);
extern void backoff_charge_deferred(HandlerRun *run);
extern void backoff_over(HandlerRun *run);

#endif							/* PNE_BACKOFF_H */
