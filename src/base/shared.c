/*-------------------------------------------------------------------------
 *
 * shared.c
 *		Shared memory of pg_notify_events: slots for databases and executors.
 *
 * Everything has a fixed size and is in one segment, which the postmaster
 * creates while it preloads the library.  The counters of events
 * (event_counters.c), of handlers (handler_counters.c) and of channels
 * (channel.c) have their own segments.  A crash of the server creates all of
 * them anew, so whatever must survive a crash is in a table.
 *
 * Who writes what, always under shared->lock:
 *	- a database slot is claimed by the launcher, or by the backend that commits
 *	  CREATE EXTENSION, and released only by the launcher;
 *	- an executor slot is claimed by a listener (shared_want_executor), given a
 *	  process by the launcher, and freed by the executor when it exits, or by
 *	  the launcher if the start has failed;
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
 * Returns the size of the segment in bytes.
 */
Size
shared_shmem_size(void)
{
	return MAXALIGN(sizeof(SharedState));
}

/*
 * Initialize a bell that wakes no process.
 */
static void
bell_init(Bell *bell)
{
	pg_atomic_init_u32(&bell->procno, BELL_UNUSED);
	pg_atomic_init_u32(&bell->rung, 0);
}

/*
 * Initialize a Worker that has no process.
 */
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
 * Create the segment, or attach to it.  Called once per process while the
 * server starts, with AddinShmemInitLock held.  lock is the lock of the
 * segment.
 */
void
shared_shmem_startup(LWLock *lock)
{
	bool		found;

	Assert(LWLockHeldByMeInMode(AddinShmemInitLock, LW_EXCLUSIVE));

	/* after a crash restart there is a new segment */
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
 * Raise an error if the library was not preloaded.  what says what needs the
 * workers, for the message.
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
 * Returns the slot of a database, or NULL.  With InvalidOid, returns a slot
 * that was used before and is free.
 *
 * Takes no lock.  A slot that was found is the database's as long as
 * slot->dboid says so.  NULL says nothing about later: a slot may be claimed at
 * any time.  Each commit with an event calls this, without a result if the
 * database is not served.
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
 * Returns whether another database could get a slot at this moment.
 */
bool
shared_has_room(void)
{
	return shared != NULL && (pg_atomic_read_u32(&shared->databases_used) < MAX_DATABASES ||
							  shared_find_database(InvalidOid) != NULL);
}

/*
 * Returns a free slot, or NULL.  The caller must hold shared->lock exclusively.
 */
static DatabaseSlot *
free_database_slot(void)
{
	DatabaseSlot *slot = shared_find_database(InvalidOid);
	uint32		used = pg_atomic_read_u32(&shared->databases_used);

	Assert(LWLockHeldByMeInMode(shared->lock, LW_EXCLUSIVE));

	if (slot == NULL && used < MAX_DATABASES)
	{
		slot = &shared->databases[used];
		pg_atomic_write_u32(&shared->databases_used, used + 1);
	}
	return slot;
}

/*
 * Returns the slot of a database.  Claims one if the database has none.
 * Returns NULL if all slots are taken.  The caller must hold shared->lock
 * exclusively.
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
 * Returns the slot of a database.  Claims one if the database has none.
 * Returns NULL if all slots are taken.
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
 * Note that CREATE EXTENSION has committed in a database, so that a listener
 * looks there (again).  The slot is found and marked under one lock, because
 * the launcher could release it in between.  Does not throw.
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
 * Release a database's slot.  Its listener and its executors must have exited.
 * The caller must hold shared->lock exclusively.
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
 * Returns the slot in which an owner has an executor or waits for one, or NULL.
 * The caller must hold shared->lock.
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
 * Request an executor for an owner.  Returns true if the request is new; then
 * the caller must ring the launcher's bell.  If all slots are taken, nothing
 * happens: the listener asks again the next time it looks.
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
 * Returns the index in owner_definitions of the counter of an owner's changes.
 */
int
shared_owner_group(Oid owner)
{
	return (int) (murmurhash32((uint32) owner) % OWNER_GROUPS);
}

/*
 * Returns the counter of changes of an owner's handlers.  Owners of the same
 * group share it.
 */
uint32
shared_definitions_of(DatabaseSlot *slot, Oid owner)
{
	return pg_atomic_read_u32(&slot->owner_definitions[shared_owner_group(owner)]);
}

/*
 * Returns whether the executor with this owner token is alive.
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
 * Note that the executor with this owner token ends regularly, even if a
 * handler's row still has the token.
 */
void
shared_release_token(int64 token)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	shared->released_tokens[shared->nreleased_tokens++ % MAX_RELEASED_TOKENS] = token;
	LWLockRelease(shared->lock);
}

/*
 * Returns whether the executor with this owner token has ended regularly.  Old
 * tokens are forgotten.
 */
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
 * Ask the executors of a database to exit, and free the slots of owners that
 * wait for one.  The caller must hold shared->lock exclusively, and ring the
 * database's bells afterwards.
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
 * Have the calls of a handler end: the current one, and each that begins before
 * shared_let_calls_be().  Calls of this process are not affected.  Returns the
 * index of the note in ended_calls, or -1 if there is no room; then the calls
 * end when they end.
 *
 * Nothing is signalled.  The executor that makes the call looks from time to
 * time (call_timeout.c).
 */
int
shared_end_calls(DatabaseSlot *database, const char *handler)
{
	int			entry = -1;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < MAX_ENDED_CALLS && entry < 0; i++)
	{
		if (database->ended_calls[i][0] == '\0')
			entry = i;
	}
	if (entry >= 0)
	{
		strlcpy(database->ended_calls[entry], handler, HANDLER_NAME_SIZE);
		for (int i = 0; i < MAX_EXECUTOR_SLOTS; i++)
		{
			ExecutorSlot *slot = &shared->executors[i];

			if (slot->in_use && slot->dboid == MyDatabaseId && slot->worker.pid != MyProcPid &&
				strcmp(slot->handler, handler) == 0)
				pg_atomic_write_u32(&slot->unwanted, 1);
		}
	}
	LWLockRelease(shared->lock);
	return entry;
}

/*
 * End shared_end_calls().  entry is the index that it has returned.  Does not
 * throw.
 */
void
shared_let_calls_be(DatabaseSlot *database, int entry)
{
	if (entry < 0)
		return;
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	database->ended_calls[entry][0] = '\0';
	LWLockRelease(shared->lock);
}

/*
 * Returns whether calls of the handler are to end.  The caller must hold
 * shared->lock.
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
 * Enter a phase.  The caller must hold shared->lock exclusively.
 */
void
worker_set_phase(Worker *worker, WorkerPhase phase)
{
	Assert(LWLockHeldByMeInMode(shared->lock, LW_EXCLUSIVE));

	worker->phase = phase;
	worker->phase_since = instant_now();
}

/*
 * Store a worker's error, which event_worker_stats shows.  message is in the
 * encoding of this database.
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
