/*-------------------------------------------------------------------------
 *
 * event_counters.c
 *		What is counted per event name, in shared memory.
 *
 * The counters start from zero with the server.  What must be exact, across crashes
 * too, is in tables.  The names are in a hash table of fixed size under one lock.
 * Only workers write it, once per batch.  Names without room count as "(other)".
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "commands/dbcommands.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/shmem.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/rls.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "base/catalog.h"
#include "base/compat.h"
#include "base/foreign_text.h"
#include "base/shared.h"
#include "handler/event_counters.h"

/* entries in shared memory */
#define MAX_EVENT_ENTRIES 1024

#define OTHER_EVENTS "(other)"

/* how many events are counted before the lock is released for others */
#define EVENTS_PER_LOCK 256

/* what the listener has noted for one name since the last flush */
typedef struct NotedEntry
{
	char		name[EVENT_NAME_SIZE];
	int64		emitted;
	int64		announced;
	TimestampTz last_emitted_at;
} NotedEntry;

static LWLock *counters_lock = NULL;
static HTAB *event_entries = NULL;
static HTAB *noted_entries = NULL;

/* ----------
 * Shared memory
 * ----------
 */

Size
event_counters_shmem_size(void)
{
	return hash_estimate_size(MAX_EVENT_ENTRIES, sizeof(EventCounters));
}

/*
 * Called once per process, while the server starts.
 */
void
event_counters_shmem_startup(LWLock *lock)
{
	HASHCTL		info;

	counters_lock = lock;

	memset(&info, 0, sizeof(info));
	info.keysize = sizeof(EventKey);
	info.entrysize = sizeof(EventCounters);
	event_entries = pne_shmem_init_hash("pg_notify_events names", MAX_EVENT_ENTRIES, &info,
										HASH_ELEM | HASH_BLOBS);
}

/*
 * The entry of an event name; that of all other names if no room is left; NULL if
 * there is not even room for that.  The caller holds the lock.
 */
static EventCounters *
event_entry(const char *name)
{
	EventKey	key;
	EventCounters *entry;
	bool		found;
	bool		full = hash_get_num_entries(event_entries) >= MAX_EVENT_ENTRIES - MAX_DATABASES;

	memset(&key, 0, sizeof(key));
	key.dboid = MyDatabaseId;
	strlcpy(key.name, name, EVENT_NAME_SIZE);
	entry = hash_search(event_entries, &key, full ? HASH_FIND : HASH_ENTER_NULL, &found);
	if (entry == NULL)
	{
		memset(&key, 0, sizeof(key));
		key.dboid = MyDatabaseId;
		strlcpy(key.name, OTHER_EVENTS, EVENT_NAME_SIZE);
		full = hash_get_num_entries(event_entries) >= MAX_EVENT_ENTRIES;
		entry = hash_search(event_entries, &key, full ? HASH_FIND : HASH_ENTER_NULL, &found);
	}
	if (entry != NULL && !found)
	{
		entry->emitted = entry->announced = entry->delivered = entry->failed = 0;
		entry->last_emitted_at = 0;
	}
	return entry;
}

/* ----------
 * Counting
 * ----------
 */

static int
compare_names(const void *a, const void *b)
{
	return strcmp((*(Event *const *) a)->name, (*(Event *const *) b)->name);
}

/*
 * Count events that have been handled.  Their transaction is committed.  Sorts them by
 * name.
 */
void
event_counters_delivered(Event **events, int nevents)
{
	int			end;

	qsort(events, nevents, sizeof(Event *), compare_names);
	for (int i = 0; i < nevents; i = end)
	{
		end = Min(nevents - i, EVENTS_PER_LOCK) + i;
		LWLockAcquire(counters_lock, LW_EXCLUSIVE);
		for (int next = i; i < end; i = next)
		{
			EventCounters *event = event_entry(events[i]->name);

			while (next < end && strcmp(events[next]->name, events[i]->name) == 0)
				next++;
			if (event != NULL)
				event->delivered += next - i;
		}
		LWLockRelease(counters_lock);
	}
}

/*
 * Count a failed attempt to handle an event.
 */
void
event_counters_failed(const char *event_name)
{
	EventCounters *event;

	LWLockAcquire(counters_lock, LW_EXCLUSIVE);
	event = event_entry(event_name);
	if (event != NULL)
		event->failed++;
	LWLockRelease(counters_lock);
}

/*
 * What the listener has noted for a name until the next flush.
 */
static NotedEntry *
noted_entry(const char *event_name)
{
	char		name[EVENT_NAME_SIZE] = {0};
	NotedEntry *entry;
	bool		found;

	if (noted_entries != NULL && hash_get_num_entries(noted_entries) >= MAX_EVENT_ENTRIES)
		event_counters_flush_noted();
	if (noted_entries == NULL)
	{
		HASHCTL		info;

		memset(&info, 0, sizeof(info));
		info.keysize = EVENT_NAME_SIZE;
		info.entrysize = sizeof(NotedEntry);
		info.hcxt = TopMemoryContext;
		noted_entries = hash_create("noted events", MAX_EVENT_ENTRIES, &info,
									HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}

	strlcpy(name, event_name, EVENT_NAME_SIZE);
	entry = hash_search(noted_entries, name, HASH_ENTER, &found);
	if (!found)
	{
		entry->emitted = entry->announced = 0;
		entry->last_emitted_at = 0;
	}
	return entry;
}

/*
 * Note that the listener has seen a new event; it is counted at the next flush.
 */
void
event_counters_emitted(const char *event_name, TimestampTz when)
{
	NotedEntry *entry = noted_entry(event_name);

	entry->emitted++;
	entry->last_emitted_at = Max(entry->last_emitted_at, when);
}

/*
 * Note that the listener has announced an event; it is counted at the next flush.
 */
void
event_counters_announced(const char *event_name)
{
	noted_entry(event_name)->announced++;
}

/*
 * Count what the listener has noted.
 */
void
event_counters_flush_noted(void)
{
	HASH_SEQ_STATUS status;
	NotedEntry *noted;

	if (noted_entries == NULL)
		return;

	LWLockAcquire(counters_lock, LW_EXCLUSIVE);
	hash_seq_init(&status, noted_entries);
	while ((noted = hash_seq_search(&status)) != NULL)
	{
		EventCounters *event = event_entry(noted->name);

		if (event != NULL)
		{
			event->emitted += noted->emitted;
			event->announced += noted->announced;
			event->last_emitted_at = Max(event->last_emitted_at, noted->last_emitted_at);
		}
	}
	LWLockRelease(counters_lock);
	event_counters_discard_noted();
}

/*
 * Forget what was noted since the last flush: the listener will see it again.
 */
void
event_counters_discard_noted(void)
{
	if (noted_entries != NULL)
		hash_destroy(noted_entries);
	noted_entries = NULL;
}

/* ----------
 * Forgetting
 * ----------
 */

/*
 * Remove the counters of a database's event names.  Does not throw.
 */
void
event_counters_forget_database(Oid dboid)
{
	HASH_SEQ_STATUS status;
	EventCounters *event;

	LWLockAcquire(counters_lock, LW_EXCLUSIVE);
	hash_seq_init(&status, event_entries);
	while ((event = hash_seq_search(&status)) != NULL)
	{
		if (event->key.dboid == dboid)
			hash_search(event_entries, &event->key, HASH_REMOVE, NULL);
	}
	LWLockRelease(counters_lock);
}

/* ----------
 * Looking
 * ----------
 */

/*
 * Copies of the entries of this database; *count tells how many.
 */
EventCounters *
event_counters_copy(int *count)
{
	EventCounters *entries = palloc(sizeof(EventCounters) * MAX_EVENT_ENTRIES);
	HASH_SEQ_STATUS status;
	EventCounters *event;

	*count = 0;
	LWLockAcquire(counters_lock, LW_SHARED);
	hash_seq_init(&status, event_entries);
	while ((event = hash_seq_search(&status)) != NULL)
	{
		if (event->key.dboid == MyDatabaseId && *count < MAX_EVENT_ENTRIES)
			entries[(*count)++] = *event;
	}
	LWLockRelease(counters_lock);
	return entries;
}
