/*-------------------------------------------------------------------------
 *
 * shared.c
 *		Shared memory of pg_notify_events: slots for databases and executors.
 *
 * Everything has a fixed size and lives in one segment that the postmaster
 * makes while it preloads the library; the figures of events (event_counters.c), of
 * handlers (handler_counters.c) and of channels (channel.c) have segments of their
 * own.  A crash of the server makes all of them anew, so whatever has to outlast
 * one is in a table.
 *
 * Who writes what, always under shared->lock:
 *	- a database slot is claimed by the launcher, or by the backend that commits
 *	  CREATE EXTENSION, and released by the launcher only;
 *	- an executor slot is claimed by a listener (shared_want_executor), given a
 *	  process by the launcher, and freed by the executor when it leaves or by
 *	  the launcher when the start failed;
 *	- a Worker's fields are written by its process while that is alive, else by
 *	  the launcher.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/shmem.h"
#include "utils/timestamp.h"

#include "base/foreign_text.h"
#include "base/shared.h"

SharedState *shared = NULL;

/*
 * How much of the main segment is asked for.
 */
Size
shared_shmem_size(void)
{
	return MAXALIGN(sizeof(SharedState));
}

static void
bell_init(Bell *bell)
{
	pg_atomic_init_u32(&bell->procno, BELL_UNUSED);
	pg_atomic_init_u32(&bell->rung, 0);
}

static void
worker_init(Worker *worker)
{
	memset(worker, 0, sizeof(Worker));
	pg_atomic_init_u64(&worker->wakeups, 0);
	pg_atomic_init_u64(&worker->notifications_received, 0);
	pg_atomic_init_u64(&worker->events_announced, 0);
	pg_atomic_init_u64(&worker->events_handled, 0);
}

/*
 * Find the slots, or make them: called once per process while the server starts,
 * with AddinShmemInitLock held.
 */
void
shared_shmem_startup(LWLock *lock)
{
	bool		found;

	/* a crash restart maps a new segment: forget the old one */
	shared = NULL;
	shared = ShmemInitStruct("pg_notify_events", sizeof(SharedState), &found);
	if (!found)
	{
		memset(shared, 0, sizeof(SharedState));
		shared->lock = lock;
		pg_atomic_init_u32(&shared->lost_installs, 0);
		pg_atomic_init_u64(&shared->start_xid, 0);
		pg_atomic_init_u32(&shared->slot_wanted, 0);
		pg_atomic_init_u32(&shared->databases_used, 0);
		worker_init(&shared->launcher);
		bell_init(&shared->launcher_bell);

		for (int i = 0; i < MAX_DATABASES; i++)
		{
			DatabaseSlot *slot = &shared->databases[i];

			pg_atomic_init_u32(&slot->dboid, InvalidOid);
			worker_init(&slot->listener);
			pg_atomic_init_u32(&slot->stop_requested, 0);
			pg_atomic_init_u32(&slot->definitions, 0);
			pg_atomic_init_u32(&slot->channel_definitions, 0);
			for (int j = 0; j < OWNER_GROUPS; j++)
				pg_atomic_init_u32(&slot->owner_definitions[j], 0);
			pg_atomic_init_u32(&slot->persist_requests, 0);
			ConditionVariableInit(&slot->progress);
			ConditionVariableInit(&slot->news);
			pg_atomic_init_u32(&slot->bells_used, 0);
			for (int j = 0; j < DATABASE_BELLS; j++)
				bell_init(&slot->bells[j]);
		}
		for (int i = 0; i < MAX_EXECUTOR_SLOTS; i++)
		{
			worker_init(&shared->executors[i].worker);
			pg_atomic_init_u32(&shared->executors[i].unwanted, 0);
			pg_atomic_init_u32(&shared->executors[i].stop_requested, 0);
			pg_atomic_init_u32(&shared->executors[i].persisted, 0);
		}
	}
}

/*
 * Complain where something needs workers and the library was not preloaded.
 */
void
shared_require_preload(const char *what)
{
	if (shared == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("%s needs the background workers of pg_notify_events, which are not loaded", what),
				 errhint("Add pg_notify_events to \"shared_preload_libraries\" and restart the server.")));
}

/*
 * The slot of a database, or NULL; with InvalidOid one that was used and is
 * free.  Takes no lock: a hit is good for as long as slot->dboid says so, a miss
 * is good for nothing but this moment.  Each commit with an event comes here, in
 * vain where the database is not served.
 */
DatabaseSlot *
shared_find_database(Oid dboid)
{
	static int	last_hit = 0;
	int			used;

	if (shared == NULL)
		return NULL;
	used = (int) pg_atomic_read_u32(&shared->databases_used);
	if (last_hit < used && pg_atomic_read_u32(&shared->databases[last_hit].dboid) == dboid)
		return &shared->databases[last_hit];

	for (int i = 0; i < used; i++)
	{
		if (pg_atomic_read_u32(&shared->databases[i].dboid) == dboid)
		{
			last_hit = i;
			return &shared->databases[i];
		}
	}
	return NULL;
}

/*
 * Whether one more database could get a slot, at this moment.
 */
bool
shared_has_room(void)
{
	return shared != NULL && (pg_atomic_read_u32(&shared->databases_used) < MAX_DATABASES ||
							  shared_find_database(InvalidOid) != NULL);
}

/*
 * A slot that is free, or NULL.  The caller holds the lock.
 */
static DatabaseSlot *
free_database_slot(void)
{
	DatabaseSlot *slot = shared_find_database(InvalidOid);
	uint32		used = pg_atomic_read_u32(&shared->databases_used);

	if (slot == NULL && used < MAX_DATABASES)
	{
		slot = &shared->databases[used];
		pg_atomic_write_u32(&shared->databases_used, used + 1);
	}
	return slot;
}

/*
 * The slot of a database, claimed now if it has none; NULL if all are taken.
 * The caller holds the lock.
 */
static DatabaseSlot *
claim_database(Oid dboid)
{
	DatabaseSlot *slot;

	slot = shared_find_database(dboid);
	if (slot == NULL)
	{
		slot = free_database_slot();
		if (slot != NULL)
		{
			slot->generation++;
			slot->extension = EXTENSION_UNKNOWN;
			worker_init(&slot->listener);
			pg_atomic_write_u32(&slot->dboid, dboid);
		}
	}
	return slot;
}

/*
 * The same for the launcher.
 */
DatabaseSlot *
shared_claim_database(Oid dboid)
{
	DatabaseSlot *slot;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	slot = claim_database(dboid);
	LWLockRelease(shared->lock);
	return slot;
}

/*
 * CREATE EXTENSION has committed in a database: somebody has to look there
 * (again).  In one step, or the launcher could release the slot in between.
 * Does not throw.
 */
void
shared_note_install(Oid dboid)
{
	DatabaseSlot *slot;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	slot = claim_database(dboid);
	if (slot != NULL)
	{
		slot->extension = EXTENSION_UNKNOWN;
		slot->installs++;
	}
	else
		pg_atomic_fetch_add_u32(&shared->lost_installs, 1);
	LWLockRelease(shared->lock);
}

/*
 * Give a database's slot back.  Its listener and its executors are gone.
 */
void
shared_release_database(DatabaseSlot *slot)
{
	Assert(LWLockHeldByMeInMode(shared->lock, LW_EXCLUSIVE));
	Assert(slot->listener.pid == 0);

	slot->generation++;
	pg_atomic_write_u32(&slot->dboid, InvalidOid);
}

/*
 * The slot in which an owner has or awaits an executor, or NULL.
 */
ExecutorSlot *
shared_find_executor(Oid dboid, Oid owner)
{
	Assert(LWLockHeldByMe(shared->lock));

	for (int i = 0; i < MAX_EXECUTOR_SLOTS; i++)
	{
		ExecutorSlot *slot = &shared->executors[i];

		if (slot->in_use && slot->dboid == dboid && slot->owner == owner)
			return slot;
	}
	return NULL;
}

/*
 * Ask the launcher for an executor.  True if that is news to it, so that the
 * launcher's bell has to be rung.  Where all slots are taken nothing happens:
 * the listener asks again at its next look.
 */
bool
shared_want_executor(Oid dboid, Oid owner)
{
	ExecutorSlot *slot;
	bool		news = false;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	slot = shared_find_executor(dboid, owner);
	if (slot == NULL)
	{
		for (int i = 0; i < MAX_EXECUTOR_SLOTS && slot == NULL; i++)
		{
			if (!shared->executors[i].in_use)
				slot = &shared->executors[i];
		}
		if (slot != NULL)
		{
			slot->in_use = true;
			slot->generation++;
			slot->dboid = dboid;
			slot->owner = owner;
			slot->handler[0] = '\0';
			slot->wanted = true;
			slot->stuck = false;
			slot->wanted_since = instant_now();
			worker_init(&slot->worker);
			worker_set_phase(&slot->worker, WORKER_WAITING);
			pg_atomic_write_u32(&slot->stop_requested, 0);
			pg_atomic_write_u32(&slot->persisted, 0);
			news = true;
		}
	}
	else if (slot->worker.phase == WORKER_BACKING_OFF && !slot->wanted)
	{
		slot->wanted = true;
		slot->wanted_since = instant_now();
		news = true;
	}
	LWLockRelease(shared->lock);
	return news;
}

/*
 * Which counter of changes is an owner's.
 */
int
shared_owner_group(Oid owner)
{
	return (int) (murmurhash32((uint32) owner) % OWNER_GROUPS);
}

/*
 * Counts changes of an owner's handlers, and of some others.
 */
uint32
shared_definitions_of(DatabaseSlot *slot, Oid owner)
{
	return pg_atomic_read_u32(&slot->owner_definitions[shared_owner_group(owner)]);
}

/*
 * Whether the executor that leaves this mark is there.
 */
bool
shared_executor_lives(int64 token)
{
	bool		lives = false;

	LWLockAcquire(shared->lock, LW_SHARED);
	for (int i = 0; i < MAX_EXECUTOR_SLOTS && !lives; i++)
	{
		ExecutorSlot *slot = &shared->executors[i];

		lives = slot->in_use && slot->worker.pid != 0 && slot->token == token;
	}
	LWLockRelease(shared->lock);
	return lives;
}

/*
 * The executor that leaves this mark ends in good order, whatever handler's row
 * the mark is still found in.
 */
void
shared_release_token(int64 token)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	shared->released_tokens[shared->nreleased_tokens++ % MAX_RELEASED_TOKENS] = token;
	LWLockRelease(shared->lock);
}

bool
shared_token_is_released(int64 token)
{
	bool		released = false;

	LWLockAcquire(shared->lock, LW_SHARED);
	for (int i = 0; i < MAX_RELEASED_TOKENS && !released; i++)
		released = (shared->released_tokens[i] == token);
	LWLockRelease(shared->lock);
	return released;
}

/*
 * Have the executors of a database leave, and forget who waits for one.  The
 * caller holds the lock, and rings the database afterwards.
 */
void
shared_dismiss_executors(Oid dboid)
{
	Assert(LWLockHeldByMeInMode(shared->lock, LW_EXCLUSIVE));

	for (int i = 0; i < MAX_EXECUTOR_SLOTS; i++)
	{
		ExecutorSlot *slot = &shared->executors[i];

		if (!slot->in_use || slot->dboid != dboid)
			continue;
		if (slot->worker.pid != 0 || slot->worker.phase == WORKER_STARTING)
			pg_atomic_write_u32(&slot->stop_requested, 1);
		else
			slot->in_use = false;
	}
}

/*
 * Have the call of a handler end that is at hand, and each that is to begin, but
 * one of this process.  Returns the place where that is noted, or -1 where no
 * place is left: then calls end when they end.  Nobody is signalled: who calls
 * looks from time to time (crash_guard.c).
 */
int
shared_end_calls(DatabaseSlot *database, const char *handler)
{
	int			place = -1;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < MAX_ENDED_CALLS && place < 0; i++)
	{
		if (database->ended_calls[i][0] == '\0')
			place = i;
	}
	if (place >= 0)
	{
		strlcpy(database->ended_calls[place], handler, HANDLER_NAME_SIZE);
		for (int i = 0; i < MAX_EXECUTOR_SLOTS; i++)
		{
			ExecutorSlot *slot = &shared->executors[i];

			if (slot->in_use && slot->dboid == MyDatabaseId && slot->worker.pid != MyProcPid &&
				strcmp(slot->handler, handler) == 0)
				pg_atomic_write_u32(&slot->unwanted, 1);
		}
	}
	LWLockRelease(shared->lock);
	return place;
}

/*
 * And let further ones be.  Does not throw.
 */
void
shared_let_calls_be(DatabaseSlot *database, int place)
{
	if (place < 0)
		return;
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	database->ended_calls[place][0] = '\0';
	LWLockRelease(shared->lock);
}

/*
 * Whether calls of the handler are to end.  The caller holds the lock.
 */
bool
shared_calls_are_to_end(const DatabaseSlot *database, const char *handler)
{
	Assert(LWLockHeldByMe(shared->lock));

	for (int i = 0; i < MAX_ENDED_CALLS; i++)
	{
		if (strcmp(database->ended_calls[i], handler) == 0)
			return true;
	}
	return false;
}

/*
 * Enter a phase.  The caller holds the lock.
 */
void
worker_set_phase(Worker *worker, WorkerPhase phase)
{
	Assert(LWLockHeldByMeInMode(shared->lock, LW_EXCLUSIVE));

	worker->phase = phase;
	worker->phase_since = instant_now();
}

/*
 * Keep a worker's error for event_worker_stats.
 */
void
worker_report_error(Worker *worker, const char *message)
{
	char		error[WORKER_ERROR_SIZE];

	text_cut(error, message, sizeof(error));
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	strlcpy(worker->last_error, error, WORKER_ERROR_SIZE);
	worker->last_error_encoding = GetDatabaseEncoding();
	worker->last_error_at = GetCurrentTimestamp();
	LWLockRelease(shared->lock);
}
