/*-------------------------------------------------------------------------
 *
 * event_counters.h
 *		What is counted per event name, in shared memory.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_EVENT_COUNTERS_H
#define PNE_EVENT_COUNTERS_H

#include "datatype/timestamp.h"
#include "mb/pg_wchar.h"
#include "storage/lwlock.h"

#include "base/arguments.h"
#include "log/event.h"

/* with its terminator */
#define EVENT_NAME_SIZE (EVENT_NAME_MAX_CHARS * MAX_MULTIBYTE_CHAR_LEN + 1)

typedef struct EventKey
{
	Oid			dboid;
	char		name[EVENT_NAME_SIZE];	/* zero-padded */
} EventKey;

typedef struct EventCounters
{
	EventKey	key;
	int64		emitted;
	int64		announced;		/* by the listener */
	int64		delivered;
	int64		failed;
	TimestampTz last_emitted_at;
} EventCounters;

extern Size event_counters_shmem_size(void);
extern void event_counters_shmem_startup(LWLock *lock);

extern void event_counters_delivered(Event **events, int nevents);
extern void event_counters_failed(const char *event_name);
extern void event_counters_emitted(const char *event_name, TimestampTz when);
extern void event_counters_announced(const char *event_name);
extern void event_counters_flush_noted(void);
extern void event_counters_discard_noted(void);
extern void event_counters_forget_database(Oid dboid);
extern EventCounters *event_counters_copy(int *count);

#endif							/* PNE_EVENT_COUNTERS_H */
