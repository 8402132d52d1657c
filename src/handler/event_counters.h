/*-------------------------------------------------------------------------
 *
 * event_counters.h
 *		Figures per event name in shared memory, and the SQL functions that show
 *		all figures.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_EVENT_COUNTERS_H
#define PNE_EVENT_COUNTERS_H

#include "datatype/timestamp.h"
#include "storage/lwlock.h"

#include "handler/handler.h"
#include "log/event.h"

extern Size stats_shmem_size(void);
extern void stats_shmem_startup(LWLock *lock);

extern void stats_events_delivered(Event **events, int nevents);
extern void stats_event_failed(const char *event_name);
extern void stats_event_emitted(const char *event_name, TimestampTz when);
extern void stats_event_announced(const char *event_name);
extern void stats_flush_noted(void);
extern void stats_discard_noted(void);
extern void stats_forget_database(Oid dboid, bool keep_states);

extern const char *stats_handler_state(const Handler *handler, char **reason);

#endif							/* PNE_EVENT_COUNTERS_H */
