/*-------------------------------------------------------------------------
 *
 * handler_counters.c
 *		What is counted per handler, in shared memory that grows.
 *
 * There is one entry per handler that was called since the server started.  It holds
 * times and latencies for event_handler_stats, and the state of a back-off for the
 * next executor.  Executors write it once per batch.  Latencies go into a histogram
 * whose buckets widen by an eighth of an octave, so a percentile is off by 5 % at
 * most.
 *
 * The entries are in a dshash table.  Its area begins in the main segment, which has
 * room for some hundred handlers.  For more handlers it takes dynamic shared memory,
 * up to a limit.  If none is left, the table throws, at a moment when nothing may
 * throw: the batch is already committed.  Therefore all access goes through
 * use_table(), which catches every error.  The counters of a handler that could not be
 * counted are shown as null.  An error can leave a half-made segment, which the end of
 * a transaction would clean up.  So the segments have their own resource owner, and
 * after an error all of them are detached.
 *
 * An entry belongs to a definition, not to a name: created_at is part of its key.  So
 * dropping a handler need not remove the entry, and need not know how its transaction
 * ends.  The listener removes the entry later, according to what is committed
 * (handler_counters_forget_dropped).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "lib/dshash.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/shmem.h"
#include "utils/dsa.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

#include "base/catalog.h"
#include "base/compat.h"
#include "base/internal_sql.h"
#include "handler/event_counters.h"
#include "handler/handler_counters.h"

/* the first latency bucket, and how the buckets widen */
#define BUCKETS_PER_OCTAVE 8
#define FIRST_OCTAVE (-5)

/* the part of the area in the main segment, and the limit of the whole area */
#define AREA_IN_PLACE ((Size) 1024 * 1024)
#define AREA_LIMIT ((Size) 64 * 1024 * 1024)

/* created_at tells a handler from an earlier one of the same name */
typedef struct HandlerKey
{
	Oid			dboid;
	char		name[HANDLER_NAME_SIZE];	/* zero-padded */
	TimestampTz created_at;
} HandlerKey;

typedef struct HandlerEntry
{
	HandlerKey	key;
	HandlerCounters counters;
	/* no counters: kept when the counters are reset (backoff.c) */
	int			failed_trials;
	Instant		next_trial_at;
	int64		tried_version; /* of the definition */
} HandlerEntry;

/* what processes have to know about the table */
typedef struct SharedTable
{
	dshash_table_handle handle;
	pg_atomic_uint32 incomplete;	/* 1: some handler could not be counted */
} SharedTable;

#define AREA_OF(table) ((char *) (table) + MAXALIGN(sizeof(SharedTable)))

static dshash_parameters table_parameters = {
	sizeof(HandlerKey), sizeof(HandlerEntry), PNE_DSHASH_BINARY_KEY, 0
};

static SharedTable *shared_table = NULL;
static dsa_area *area = NULL;
static dshash_table *entries = NULL;
static ResourceOwner segments_owner = NULL;

/* ----------
 * The table
 * ----------
 */

Size
handler_counters_shmem_size(void)
{
	return MAXALIGN(sizeof(SharedTable)) + AREA_IN_PLACE;
}

/*
 * Called once per process while the server starts.  tranche is the one of the table's
 * locks.
 */
void
handler_counters_shmem_startup(int tranche)
{
	bool		found;
	dsa_area   *new_area;
	dshash_table *new_entries;

	table_parameters.tranche_id = tranche;
	area = NULL;
	entries = NULL;
	shared_table = ShmemInitStruct("pg_notify_events handlers", handler_counters_shmem_size(), &found);
	if (found)
		return;

	/* The postmaster cannot create a dynamic segment, and must never have one mapped. */
	new_area = dsa_create_in_place(AREA_OF(shared_table), AREA_IN_PLACE, tranche, NULL);
	dsa_pin(new_area);
	dsa_set_size_limit(new_area, AREA_IN_PLACE);
	new_entries = dshash_create(new_area, &table_parameters, NULL);
	dsa_set_size_limit(new_area, AREA_LIMIT);
	shared_table->handle = dshash_get_hash_table_handle(new_entries);
	pg_atomic_init_u32(&shared_table->incomplete, 0);
	dshash_detach(new_entries);
	dsa_detach(new_area);
}

/*
 * The process ends.  Its segments are detached already.
 */
static void
release_at_exit(int code, Datum arg)
{
	if (area != NULL)
		dsa_release_in_place(AREA_OF(shared_table));
}

/*
 * Open the table, unless this process has done so.  Segments that are created or
 * attached from here on belong to our resource owner, which is the current one.
 */
static void
attach(void)
{
	static bool exit_registered = false;
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

	if (!exit_registered)
		on_shmem_exit(release_at_exit, (Datum) 0);
	exit_registered = true;
	if (segments_owner == NULL)
		segments_owner = ResourceOwnerCreate(NULL, "pg_notify_events counters");
	CurrentResourceOwner = segments_owner;
	if (area == NULL)
		area = dsa_attach_in_place(AREA_OF(shared_table), NULL);
	if (entries == NULL)
		entries = dshash_attach(area, &table_parameters, shared_table->handle, NULL);
	MemoryContextSwitchTo(old);
}

/*
 * Close the table, with anything that an error has left half done.  The caller holds
 * no lock of it.
 */
static void
detach(void)
{
	if (entries != NULL)
		dshash_detach(entries);
	entries = NULL;
	if (area != NULL)
	{
		dsa_detach(area);
		dsa_release_in_place(AREA_OF(shared_table));
	}
	area = NULL;
	if (segments_owner != NULL)
	{
		ResourceOwnerRelease(segments_owner, RESOURCE_RELEASE_BEFORE_LOCKS, false, false);
		ResourceOwnerRelease(segments_owner, RESOURCE_RELEASE_LOCKS, false, false);
		ResourceOwnerRelease(segments_owner, RESOURCE_RELEASE_AFTER_LOCKS, false, false);
		ResourceOwnerDelete(segments_owner);
	}
	segments_owner = NULL;
}

/*
 * Run a function on the table.  Returns false if that failed for lack of memory; the
 * log says so once per process.  Afterwards no lock of the table is held, and nothing
 * that an error resets has changed: a caller that holds off cancels still does.
 */
static bool
use_table(void (*use) (void *arg), void *arg)
{
	static bool complained = false;
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	uint32		interrupts_held = InterruptHoldoffCount;
	uint32		cancels_held = QueryCancelHoldoffCount;
	volatile bool done = false;

	if (shared_table == NULL)
		return false;
	PG_TRY();
	{
		attach();
		use(arg);
		done = true;
	}
	PG_CATCH();
	{
		ErrorData  *error;

		/* The caller holds no lock, so all locks are the table's. */
		LWLockReleaseAll();
		CurrentResourceOwner = owner;
		detach();
		MemoryContextSwitchTo(context);
		InterruptHoldoffCount = interrupts_held;
		QueryCancelHoldoffCount = cancels_held;
		error = CopyErrorData();
		FlushErrorState();
		if (!complained)
			ereport(LOG,
					(errcode(error->sqlerrcode),
					 errmsg("statistics of event handlers are incomplete: %s", error->message ? error->message : ""),
					 errdetail("They are in dynamic shared memory.")));
		complained = true;
		FreeErrorData(error);
	}
	PG_END_TRY();
	CurrentResourceOwner = owner;
	return done;
}

static HandlerKey
handler_key(const char *name, TimestampTz created_at)
{
	HandlerKey	key;

	memset(&key, 0, sizeof(key));
	key.dboid = MyDatabaseId;
	strlcpy(key.name, name, HANDLER_NAME_SIZE);
	key.created_at = created_at;
	return key;
}

/*
 * The entry of a handler, created if it does not exist, and locked.
 */
static HandlerEntry *
lock_entry(const Handler *handler)
{
	HandlerKey	key = handler_key(handler->name, handler->created_at);
	bool		found;
	HandlerEntry *entry = dshash_find_or_insert(entries, &key, &found);

	if (!found)
		memset((char *) entry + sizeof(HandlerKey), 0, sizeof(HandlerEntry) - sizeof(HandlerKey));
	return entry;
}

/* a handler, and what to add to its entry, or a copy of the entry */
typedef struct EntryUse
{
	const Handler *handler;
	const HandlerCounters *add;
	HandlerEntry copy;
	bool		found;
} EntryUse;

static void
copy_entry(void *arg)
{
	EntryUse   *use = (EntryUse *) arg;
	HandlerKey	key = handler_key(use->handler->name, use->handler->created_at);
	HandlerEntry *entry = dshash_find(entries, &key, false);

	use->found = (entry != NULL);
	if (entry == NULL)
		return;
	use->copy = *entry;
	dshash_release_lock(entries, entry);
}

/* ----------
 * Counting
 * ----------
 */

static int
latency_bucket(double ms)
{
	double		bucket;

	if (ms <= 0)
		return 0;
	bucket = floor((log2(ms) - FIRST_OCTAVE) * BUCKETS_PER_OCTAVE);
	return (int) Max(0, Min(bucket, LATENCY_BUCKETS - 1));
}

/*
 * Start to measure a batch of at most nevents.
 */
void
handler_counters_batch_begins(BatchCounters *counters, int nevents)
{
	memset(counters, 0, sizeof(BatchCounters));
	counters->events = palloc(sizeof(Event *) * nevents);
	counters->latencies = palloc(sizeof(double) * nevents);
}

/*
 * The handler is about to be called with these events.  If it was called before in the
 * same batch, the end of that call is taken as the present time: reading the clock is
 * a good part of the cost of a call.
 */
void
handler_counters_call_begins(BatchCounters *counters, Event **events, int nevents)
{
	if (counters->calls == 0)
	{
		counters->now = instant_now();
		counters->time_ahead = GetCurrentTimestamp() - counters->now;
	}
	for (int i = 0; i < nevents; i++)
	{
		counters->events[counters->nevents] = events[i];
		/* an event without a timestamp has no latency */
		counters->latencies[counters->nevents++] = TIMESTAMP_NOT_FINITE(events[i]->created_at) ? NAN :
			((double) (counters->time_ahead + counters->now) - (double) events[i]->created_at) / 1000.0;
	}
}

/*
 * That call has returned.
 */
void
handler_counters_call_ends(BatchCounters *counters)
{
	Instant		now = instant_now();
	double		ms = (double) (now - counters->now) / 1000.0;

	counters->now = now;
	counters->calls++;
	counters->total_time += ms;
	counters->max_time = Max(counters->max_time, ms);
}

static void
add_to_entry(void *arg)
{
	EntryUse   *use = (EntryUse *) arg;
	HandlerEntry *entry = lock_entry(use->handler);
	HandlerCounters *counters = &entry->counters;

	counters->calls += use->add->calls;
	counters->batches += use->add->batches;
	counters->total_time += use->add->total_time;
	counters->max_time = Max(counters->max_time, use->add->max_time);
	for (int i = 0; i < LATENCY_BUCKETS; i++)
		counters->latencies[i] += use->add->latencies[i];
	dshash_release_lock(entries, entry);
}

/*
 * The batch is committed: count it.  Does not throw.
 */
void
handler_counters_batch_committed(const Handler *handler, const BatchCounters *batch)
{
	HandlerCounters counters = {
		.calls = batch->calls,
		.batches = 1,
		.total_time = batch->total_time,
		.max_time = batch->max_time,
	};
	EntryUse	use = {.handler = handler, .add = &counters};

	for (int i = 0; i < batch->nevents; i++)
	{
		if (!isnan(batch->latencies[i]))
			counters.latencies[latency_bucket(batch->latencies[i])]++;
	}
	if (!use_table(add_to_entry, &use))
		pg_atomic_write_u32(&shared_table->incomplete, 1);
	event_counters_delivered(batch->events, batch->nevents);
}

/* ----------
 * Outages
 * ----------
 */

static void
set_backoff(void *arg)
{
	EntryUse   *use = (EntryUse *) arg;
	HandlerEntry *entry = lock_entry(use->handler);

	entry->failed_trials = use->copy.failed_trials;
	entry->next_trial_at = use->copy.next_trial_at;
	entry->tried_version = use->handler->version;
	dshash_release_lock(entries, entry);
}

/*
 * Note that a handler backs off and that its next trial is due at next_trial_at.
 * failed_trials = 0 means that it does not back off any more.  If there is no room for
 * the entry, the next executor tries too early.
 */
void
handler_counters_note_backoff(const Handler *handler, int failed_trials, Instant next_trial_at)
{
	EntryUse	use = {.handler = handler};

	use.copy.failed_trials = failed_trials;
	use.copy.next_trial_at = next_trial_at;
	(void) use_table(set_backoff, &use);
}

/*
 * Read what was noted last.  Another definition need not wait for the trial.
 */
void
handler_counters_read_backoff(const Handler *handler, int *failed_trials, Instant *next_trial_at)
{
	EntryUse	use = {.handler = handler};

	*failed_trials = 0;
	*next_trial_at = 0;
	if (!use_table(copy_entry, &use) || !use.found)
		return;
	*failed_trials = use.copy.failed_trials;
	if (use.copy.tried_version == handler->version)
		*next_trial_at = use.copy.next_trial_at;
}

/* ----------
 * Looking
 * ----------
 */

/*
 * Read the counters of a handler; zeroes if it was not called yet.  Returns false if
 * they are not known.
 */
bool
handler_counters_read(const Handler *handler, HandlerCounters *counters)
{
	EntryUse	use = {.handler = handler};

	memset(counters, 0, sizeof(HandlerCounters));
	if (shared_table == NULL)
		return true;
	if (!use_table(copy_entry, &use))
		return false;
	if (use.found)
		*counters = use.copy.counters;
	return use.found || pg_atomic_read_u32(&shared_table->incomplete) == 0;
}

/*
 * The latency, in ms, that the given share of the events has not exceeded: the middle
 * of its bucket.  Returns false if there are none.
 */
bool
handler_counters_percentile(const HandlerCounters *counters, double share, double *ms)
{
	uint64		total = 0;
	uint64		seen = 0;

	for (int i = 0; i < LATENCY_BUCKETS; i++)
		total += counters->latencies[i];
	for (int i = 0; i < LATENCY_BUCKETS && total > 0; i++)
	{
		seen += counters->latencies[i];
		if ((double) seen >= share * (double) total)
		{
			*ms = pow(2.0, (i + 0.5) / BUCKETS_PER_OCTAVE + FIRST_OCTAVE);
			return true;
		}
	}
	return false;
}

/* ----------
 * Forgetting
 * ----------
 */

static void
list_keys(void *arg)
{
	List	  **keys = (List **) arg;
	dshash_seq_status status;
	HandlerEntry *entry;

	dshash_seq_init(&status, entries, false);
	while ((entry = dshash_seq_next(&status)) != NULL)
	{
		if (entry->key.dboid == MyDatabaseId)
		{
			HandlerKey *key = palloc(sizeof(HandlerKey));

			*key = entry->key;
			*keys = lappend(*keys, key);
		}
	}
	dshash_seq_term(&status);
}

/*
 * The handlers of this database that have entries, for
 * handler_counters_forget_dropped().
 */
List *
handler_counters_list(void)
{
	List	   *keys = NIL;

	(void) use_table(list_keys, &keys);
	return keys;
}

static void
remove_keys(void *arg)
{
	ListCell   *lc;

	foreach(lc, (List *) arg)
		(void) dshash_delete_key(entries, lfirst(lc));
}

/*
 * Remove the entries of those listed handlers that are not defined any more.  The
 * caller is connected to SPI, and its active snapshot is younger than the list.  The
 * process that created an entry saw the definition, so a definition that the snapshot
 * does not see was dropped.
 */
void
handler_counters_forget_dropped(List *keys)
{
	static InternalStatement select_handlers = {
		.sql = "SELECT h.name, h.created_at FROM @s._event_handlers AS h",
		.target = TABLE_NONE,
	};
	HASHCTL		info = {.keysize = sizeof(HandlerKey), .entrysize = sizeof(HandlerKey)};
	HTAB	   *defined;
	List	   *dropped = NIL;
	ListCell   *lc;
	int			count = internal_execute(&select_handlers, NULL, NULL, 0);

	info.hcxt = CurrentMemoryContext;
	defined = hash_create("defined handlers", count + 1, &info, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	for (int row = 0; row < count; row++)
	{
		bool		isnull;
		HandlerKey	key = handler_key(internal_text(row, 1), DatumGetTimestampTz(internal_value(row, 2, &isnull)));

		(void) hash_search(defined, &key, HASH_ENTER, NULL);
	}
	foreach(lc, keys)
	{
		if (hash_search(defined, lfirst(lc), HASH_FIND, NULL) == NULL)
			dropped = lappend(dropped, lfirst(lc));
	}
	hash_destroy(defined);
	if (dropped != NIL && use_table(remove_keys, dropped))
		elog(DEBUG1, "removed counters of %d dropped event handlers", list_length(dropped));
}

static void
remove_database(void *arg)
{
	Oid			dboid = *(Oid *) arg;
	dshash_seq_status status;
	HandlerEntry *entry;
	int			removed = 0;

	dshash_seq_init(&status, entries, true);
	while ((entry = dshash_seq_next(&status)) != NULL)
	{
		if (entry->key.dboid == dboid)
		{
			dshash_delete_current(&status);
			removed++;
		}
	}
	dshash_seq_term(&status);
	elog(DEBUG1, "removed counters of %d event handlers of database %u", removed, dboid);
}

/*
 * Remove all entries of a database.  Does not throw.
 */
void
handler_counters_forget_database(Oid dboid)
{
	(void) use_table(remove_database, &dboid);
}

static void
reset_counters(void *arg)
{
	dshash_seq_status status;
	HandlerEntry *entry;

	dshash_seq_init(&status, entries, true);
	while ((entry = dshash_seq_next(&status)) != NULL)
	{
		if (entry->key.dboid == MyDatabaseId)
			memset(&entry->counters, 0, sizeof(HandlerCounters));
	}
	dshash_seq_term(&status);
}

/*
 * Set the counters of this database to zero, but keep the state of back-offs.
 */
void
handler_counters_reset(void)
{
	(void) use_table(reset_counters, NULL);
}
