/*-------------------------------------------------------------------------
 *
 * progress.h
 *		A handler's stored position.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_PROGRESS_H
#define PNE_PROGRESS_H

#include "delivery/handler_run.h"

/* what a transaction adds to the stored counters of a handler */
typedef struct ProgressCounters
{
	int64		delivered;
	int64		retried;
	int64		last_event_id;	/* if any was delivered */
} ProgressCounters;

extern bool progress_lock(HandlerRun *run);
extern void progress_store(HandlerRun *run, int64 next, const ProgressCounters *counters);
extern void progress_stored(HandlerRun *run, int64 next);
extern bool progress_record_group(HandlerRun *run, int64 group_end);
extern void progress_flush(HandlerRun *run, bool durable);

#endif							/* PNE_PROGRESS_H */
