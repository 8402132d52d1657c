/*-------------------------------------------------------------------------
 *
 * handler_counters.h
 *		What is counted per handler, in shared memory.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_HANDLER_COUNTERS_H
#define PNE_HANDLER_COUNTERS_H

#include "handler/handler.h"

/* latencies from 2^-5 ms, in eighths of octaves, up to more than a day */
#define LATENCY_BUCKETS 256

/* what a batch measures, to be counted after its commit */
typedef struct BatchCounters
{
	int			nevents;		/* that the handler was called for */
	Event	  **events;
	double	   *latencies;		/* ms from created_at to the call, of each */
	int64		calls;
	double		total_time;		/* ms */
	double		max_time;		/* ms */
	Instant		now;			/* when the present call began, or the last one ended */
	TimestampTz time_ahead;		/* how far the time of day was ahead of it at the first call */
} BatchCounters;

/* what is counted of a handler since the server started, or since a reset */
typedef struct HandlerCounters
{
	int64		calls;
	int64		batches;
	double		total_time;		/* ms */
	double		max_time;		/* ms */
	uint64		latencies[LATENCY_BUCKETS];
} HandlerCounters;

extern Size handler_counters_shmem_size(void);
extern void handler_counters_shmem_startup(int tranche);

extern void handler_counters_batch_begins(BatchCounters *counters, int nevents);
extern void handler_counters_call_begins(BatchCounters *counters, Event **events, int nevents);
extern void handler_counters_call_ends(BatchCounters *counters);
extern void handler_counters_batch_committed(const Handler *handler, const BatchCounters *counters);
extern void handler_counters_note_backoff(const Handler *handler, int failed_trials, Instant next_trial_at);
extern void handler_counters_read_backoff(const Handler *handler, int *failed_trials, Instant *next_trial_at);

extern bool handler_counters_read(const Handler *handler, HandlerCounters *counters);
extern bool handler_counters_percentile(const HandlerCounters *counters, double share, double *ms);
extern List *handler_counters_list(void);
extern void handler_counters_forget_dropped(List *keys);
extern void handler_counters_forget_database(Oid dboid);
extern void handler_counters_reset(void);

#endif							/* PNE_HANDLER_COUNTERS_H */
