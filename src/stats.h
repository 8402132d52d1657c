/*-------------------------------------------------------------------------
 *
 * stats.h
 *		Figures in shared memory, and the SQL functions that show them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_STATS_H
#define PNE_STATS_H

#include "storage/lwlock.h"

#include "handler.h"

/* what a batch measures, to be counted when it has committed */
typedef struct BatchFigures
{
	int			nevents;		/* that the handler was called for */
	Event	  **events;
	double	   *latencies;		/* ms from created_at to the call, of each */
	int64		calls;
	double		total_time;		/* ms */
	double		max_time;		/* ms */
	TimestampTz now;			/* when the present call began, or the last one ended */
} BatchFigures;

extern Size stats_shmem_size(void);
extern void stats_shmem_startup(LWLock *lock);

extern void stats_batch_begins(BatchFigures *figures, int nevents);
extern void stats_call_begins(BatchFigures *figures, Event **events, int nevents);
extern void stats_call_ends(BatchFigures *figures);
extern void stats_batch_committed(const Handler *handler, const BatchFigures *figures);
extern void stats_event_failed(const char *event_name);
extern void stats_note_outage(const Handler *handler, int probes, TimestampTz probe_at);
extern void stats_read_outage(const Handler *handler, int *probes, TimestampTz *probe_at);
extern void stats_event_emitted(const char *event_name, TimestampTz when);
extern void stats_event_announced(const char *event_name);
extern void stats_flush_noted(void);
extern void stats_discard_noted(void);
extern void stats_forget_handler_at_commit(const Handler *handler);
extern void stats_forget_database(Oid dboid, bool keep_states);

#endif							/* PNE_STATS_H */
