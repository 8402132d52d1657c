/*-------------------------------------------------------------------------
 *
 * handler_counters.h
 *		Figures of handlers, in shared memory.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_HANDLER_COUNTERS_H
#define PNE_HANDLER_COUNTERS_H

#include "handler/handler.h"

/* latencies from 2^-5 ms, in eighths of octaves, up to more than a day */
#define LATENCY_BUCKETS 256

/* what a batch measures, to be counted when it has committed */
typedef struct BatchFigures
{
	int			nevents;		/* that the handler was called for */
	Event	  **events;
	double	   *latencies;		/* ms from created_at to the call, of each */
	int64		calls;
	double		total_time;		/* ms */
	double		max_time;		/* ms */
	Instant		now;			/* when the present call began, or the last one ended */
	TimestampTz time_ahead;		/* what the time of day was ahead of that at the first call */
} BatchFigures;

/* what is counted of a handler since the server started, or since a reset */
typedef struct HandlerFigures
{
	int64		calls;
	int64		batches;
	double		total_time;		/* ms */
	double		max_time;		/* ms */
	uint64		latencies[LATENCY_BUCKETS];
} HandlerFigures;

extern Size handler_figures_shmem_size(void);
extern void handler_figures_shmem_startup(int tranche);

extern void stats_batch_begins(BatchFigures *figures, int nevents);
extern void stats_call_begins(BatchFigures *figures, Event **events, int nevents);
extern void stats_call_ends(BatchFigures *figures);
extern void stats_batch_committed(const Handler *handler, const BatchFigures *figures);
extern void stats_note_outage(const Handler *handler, int probes, Instant probe_at);
extern void stats_read_outage(const Handler *handler, int *probes, Instant *probe_at);

extern bool handler_figures_read(const Handler *handler, HandlerFigures *figures);
extern bool handler_figures_percentile(const HandlerFigures *figures, double share, double *ms);
extern List *handler_figures_list(void);
extern void handler_figures_forget_dropped(List *keys);
extern void handler_figures_forget_database(Oid dboid);
extern void handler_figures_reset(void);

#endif							/* PNE_HANDLER_COUNTERS_H */
