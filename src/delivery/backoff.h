/*-------------------------------------------------------------------------
 *
 * backoff.h
 *		Failures that are not the events' fault.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_BACKOFF_H
#define PNE_BACKOFF_H

#include "delivery/batch.h"

extern void outage_load(HandlerRun *run);
extern bool outage_is_to_blame(const HandlerRun *run, const ErrorData *error);
extern TimestampTz outage_next_probe(const HandlerRun *run);
extern void outage_event_parked(HandlerRun *run, int64 event_id, TimestampTz next_probe, const ErrorData *error);
extern void outage_event_charged(HandlerRun *run, TimestampTz due, bool first, const ErrorData *error);
extern void outage_charge_parked(HandlerRun *run);
extern void outage_over(HandlerRun *run);

#endif							/* PNE_BACKOFF_H */
