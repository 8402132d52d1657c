/*-------------------------------------------------------------------------
 *
 * launcher.c
 *		The process that starts all other workers; one per cluster.
 *
 * The launcher is level-triggered.  Whenever it wakes up, it compares what
 * should run with what does, and has the postmaster start what is missing.
 * Everything becomes right in the end without any event; bells only make it
 * soon.
 *
 * Listeners: there is one for each database that is served and has the
 * extension.  Only a process inside the database can see whether it has the
 * extension.  So a listener starts once in each database to look: when the
 * server starts, when a database is new, and when CREATE EXTENSION commits
 * there.  The launcher remembers the databases without the extension.
 *
 * Executors: owners that have work wait in the slots that their listeners have
 * claimed.  They get an executor in the order in which they began to wait.  If
 * as many executors run as max_executors allows, an idle one is asked to exit,
 * or else, after a while, a busy one.
 *
 * The workers are registered with BGW_NEVER_RESTART.  The launcher decides which
 * of them start again, and when.  The postmaster would go on trying to start a
 * worker in a dropped database.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "storage/lock.h"
#include "utils/memutils.h"

#include "base/fault.h"
#include "base/served_databases.h"
#include "base/settings.h"
#include "base/worker.h"
#include "handler/event_counters.h"
#include "handler/handler_counters.h"
#include "launcher.h"
#include "listener/channel.h"

#define LIBRARY "pg_notify_events"

/* look at everything at least this often, in ms */
#define MAX_SLEEP_MS 60000

/*
 * Maximum number of listeners that look at the same time whether a database has
 * the extension.
 */
#define MAX_FIRST_LOOKS 2

/* a start is given up if the process is not alive after this, in ms */
#define START_EXPIRES_MS 60000

/* how long an owner waits before a busy executor must exit, in ms */
#define BUSY_GRACE_MS 5000

/*
 * An executor that was asked to exit and has not done so after this, in ms, may
 * never exit.
 */
#define STOP_GRACE_MS 5000

/*
 * Check after this, in ms, whether an executor that was asked to exit has done
 * so.
 */
#define STOP_RETRY_MS 1000

/* try again after this, in ms, if the postmaster has no free slot */
#define NO_SLOT_RETRY_MS 5000

/* how long a failed executor is remembered after its back-off, in ms */
#define FORGET_FAILED_MS 60000

/* handles of the workers that were started; lost when the launcher restarts */
static BackgroundWorkerHandle *listener_handles[MAX_DATABASES];
static BackgroundWorkerHandle *executor_handles[MAX_EXECUTOR_SLOTS];

/* databases without the extension, as found since the launcher started */
static List *without_extension = NIL;

/* since when an executor is known to have been asked to exit; 0: it was not */
static Instant stopping_since[MAX_EXECUTOR_SLOTS];

static bool out_of_slots_logged = false;

/* when to wake up next */
static Instant next_wakeup;

/*
 * Wake up at this instant at the latest.
 */
static void
wake_up_at(Instant when)
{
	next_wakeup = Min(next_wakeup, when);
}

/*
 * Wake up after so many ms at the latest.
 */
static void
wake_up_in(int ms)
{
	wake_up_at(instant_in(ms));
}

/*
 * Register the launcher with the postmaster.  Called while the library is
 * preloaded.
 */
void
launcher_register(void)
{
	BackgroundWorker worker;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = 1;
	snprintf(worker.bgw_library_name, sizeof(worker.bgw_library_name), LIBRARY);
	snprintf(worker.bgw_function_name, sizeof(worker.bgw_function_name), "pne_launcher_main");
	snprintf(worker.bgw_name, BGW_MAXLEN, "pg_notify_events launcher");
	snprintf(worker.bgw_type, BGW_MAXLEN, "pg_notify_events launcher");
	RegisterBackgroundWorker(&worker);
}

/*
 * Ask the postmaster to start a worker.  kind is "listener" or "executor".
 * Sets *handle.  Returns false if the postmaster has no free slot; then the
 * launcher wakes up later to try again.
 */
static bool
start_worker(const char *kind, const char *function, const WorkerStart *start,
			 BackgroundWorkerHandle **handle)
{
	BackgroundWorker worker;
	MemoryContext old;
	bool		registered;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	worker.bgw_notify_pid = MyProcPid;
	snprintf(worker.bgw_library_name, sizeof(worker.bgw_library_name), LIBRARY);
	snprintf(worker.bgw_function_name, sizeof(worker.bgw_function_name), "%s", function);
	snprintf(worker.bgw_name, BGW_MAXLEN, "pg_notify_events %s for database %u", kind, start->dboid);
	snprintf(worker.bgw_type, BGW_MAXLEN, "pg_notify_events %s", kind);
	memcpy(worker.bgw_extra, start, sizeof(WorkerStart));

	if (*handle != NULL)
	{
		pfree(*handle);
		*handle = NULL;
	}
	old = MemoryContextSwitchTo(TopMemoryContext);
	registered = RegisterDynamicBackgroundWorker(&worker, handle);
	MemoryContextSwitchTo(old);

	if (registered)
		out_of_slots_logged = false;
	else
	{
		if (!out_of_slots_logged)
			ereport(LOG,
					(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
					 errmsg("out of background worker slots for %s of pg_notify_events",
							strcmp(kind, "executor") == 0 ? "an executor" : "a listener"),
					 errhint("Increase \"max_worker_processes\": one for the launcher, one for each database with the extension, and \"pg_notify_events.max_executors\". Until then the start is tried again, and events wait.")));
		out_of_slots_logged = true;
		wake_up_in(NO_SLOT_RETRY_MS);
	}
	return registered;
}

/*
 * Returns whether an executor that was asked to exit will do so soon, so that
 * no other one has to.  An executor that runs a batch was woken or will check
 * after the batch, but that may take long.  So may whatever else keeps an
 * executor from exiting. *since is set to when this was first asked for.
 */
static bool
stops_soon(const ExecutorSlot *slot, Instant *since)
{
	Instant		now = instant_now();

	if (*since == 0)
		*since = now;
	return slot->worker.phase != WORKER_RUNNING &&
		!instant_passed(*since, now, STOP_GRACE_MS);
}

/*
 * Returns the executor that must exit for an owner that waits since
 * waiting_since, or NULL if none has to or one exits already.  The caller must
 * hold shared->lock.
 *
 * That is the executor that has been idle or backing off for the longest time.
 * If there is none, it is the executor that has been alive for the longest
 * time, once both this time and the owner's wait exceed BUSY_GRACE_MS.
 */
static ExecutorSlot *
choose_to_stop(Instant waiting_since)
{
	ExecutorSlot *idle = NULL;
	ExecutorSlot *busy = NULL;
	bool		stopping = false;
	Instant		give_way_at;

	Assert(LWLockHeldByMe(shared->lock));

	for (int i = 0; i < MAX_EXECUTOR_SLOTS; i++)
	{
		ExecutorSlot *slot = &shared->executors[i];

		if (!slot->in_use || slot->worker.pid == 0 || slot->stuck)
		{
			stopping_since[i] = 0;
			continue;
		}
		if (pg_atomic_read_u32(&slot->stop_requested) != 0)
		{
			stopping = stops_soon(slot, &stopping_since[i]) || stopping;
			continue;
		}
		stopping_since[i] = 0;
		if (slot->worker.phase == WORKER_IDLE || slot->worker.phase == WORKER_BACKING_OFF)
		{
			if (idle == NULL || slot->worker.phase_since < idle->worker.phase_since)
				idle = slot;
		}
		else if (busy == NULL || slot->worker.alive_since < busy->worker.alive_since)
			busy = slot;
	}
	if (stopping)
	{
		wake_up_in(STOP_RETRY_MS);
		return NULL;
	}
	if (idle != NULL)
		return idle;
	if (busy == NULL)
		return NULL;
	give_way_at = instant_after(Max(waiting_since, busy->worker.alive_since), BUSY_GRACE_MS);
	if (instant_now() >= give_way_at)
		return busy;
	wake_up_at(give_way_at);
	return NULL;
}

/*
 * The postmaster has no free slot for a worker: ask an idle executor to exit,
 * or a busy one after a while.  The caller must hold shared->lock.
 */
static void
make_room(void)
{
	ExecutorSlot *stopping = choose_to_stop(instant_now());

	if (stopping != NULL)
	{
		pg_atomic_write_u32(&stopping->stop_requested, 1);
		doorbell_ring_database(stopping->dboid);
	}
}

/*
 * Returns whether a start has failed.  handle may be NULL.  The caller must
 * hold shared->lock.
 */
static bool
start_failed(const Worker *worker, BackgroundWorkerHandle *handle)
{
	pid_t		pid;

	Assert(LWLockHeldByMe(shared->lock));

	if (worker->phase != WORKER_STARTING || worker->pid != 0)
		return false;
	if (handle != NULL)
		return GetBackgroundWorkerPid(handle, &pid) == BGWH_STOPPED;

	/* an earlier launcher process has started it */
	return instant_passed(worker->phase_since, instant_now(), START_EXPIRES_MS);
}

/* ----------
 * Listeners
 * ----------
 */

/*
 * Release the slot of a database whose listener has exited.  Its executors use
 * the slot, too.  So if some still run, ask them to exit; then the slot is
 * released a later time.  Adds the database to *released if its slot was
 * released.  The caller must hold shared->lock exclusively.
 */
static void
release_database(DatabaseSlot *slot, List **released)
{
	Oid			dboid = pg_atomic_read_u32(&slot->dboid);

	shared_dismiss_executors(dboid);
	doorbell_ring_database(dboid);
	for (int i = 0; i < MAX_EXECUTOR_SLOTS; i++)
	{
		/* it rings when it exits */
		if (shared->executors[i].in_use && shared->executors[i].dboid == dboid)
			return;
	}
	shared_release_database(slot);
	*released = lappend_oid(*released, dboid);
}

/*
 * Note which listeners have failed to start, and stop the listeners of
 * databases that are not, or no longer, to be served.  Returns how many
 * listeners are about to look whether a database has the extension.
 */
static int
review_listeners(List *served)
{
	List	   *released = NIL;
	ListCell   *lc;
	int			first_looks = 0;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < MAX_DATABASES; i++)
	{
		DatabaseSlot *slot = &shared->databases[i];
		Worker	   *worker = &slot->listener;
		Oid			dboid = pg_atomic_read_u32(&slot->dboid);

		if (dboid == InvalidOid)
			continue;
		if (start_failed(worker, listener_handles[i]))
		{
			slot->generation++;
			worker_went_away(worker, false);
		}
		if (served_databases_find(served, dboid) == NULL)
		{
			if (worker->pid != 0)
			{
				pg_atomic_write_u32(&slot->stop_requested, 1);
				doorbell_ring(&slot->bells[LISTENER_BELL]);
			}
			else if (worker->phase != WORKER_STARTING)
				release_database(slot, &released);
		}
		else if (slot->extension == EXTENSION_ABSENT && worker->pid == 0)
		{
			MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

			without_extension = list_append_unique_oid(without_extension, dboid);
			MemoryContextSwitchTo(old);
			release_database(slot, &released);
		}
		else if (slot->extension == EXTENSION_UNKNOWN)
		{
			/*
			 * CREATE EXTENSION has claimed the slot, perhaps after we had
			 * looked
			 */
			without_extension = list_delete_oid(without_extension, dboid);
			if (worker->phase == WORKER_STARTING || worker->pid != 0)
				first_looks++;
		}
	}
	LWLockRelease(shared->lock);

	foreach(lc, released)
	{
		event_counters_forget_database(lfirst_oid(lc));
		channel_forget_database(lfirst_oid(lc), false);
		handler_counters_forget_database(lfirst_oid(lc));
	}
	return first_looks;
}

/*
 * Start the listener of a database if it should run and does not.  first_looks is
 * the number of listeners that are about to look whether a database has the
 * extension.  Returns whether this is another one of them.
 */
static bool
start_listener(const ServedDatabase *database, int first_looks)
{
	DatabaseSlot *slot;
	Worker	   *worker;
	WorkerStart start = {0};
	bool		first_look;

	/* one of these listeners rings when it has looked */
	if (first_looks >= MAX_FIRST_LOOKS && shared_find_database(database->oid) == NULL)
		return false;

	slot = shared_claim_database(database->oid);
	if (slot == NULL)
	{
		static bool logged = false;

		if (!logged)
			ereport(LOG,
					(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
					 errmsg("pg_notify_events cannot serve more than %d databases at once", MAX_DATABASES),
					 errhint("Name those to be served in \"pg_notify_events.databases\".")));
		logged = true;
		return false;
	}

	worker = &slot->listener;
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	first_look = (slot->extension == EXTENSION_UNKNOWN);
	if (worker->pid != 0 || worker->phase == WORKER_STARTING)
	{
		LWLockRelease(shared->lock);
		return false;
	}
	if (worker->not_before > instant_now() || (first_look && first_looks >= MAX_FIRST_LOOKS) ||
		!database->available)
	{
		if (worker->not_before > instant_now())
			wake_up_at(worker->not_before);
		if (!database->available)
			wake_up_in(YIELD_CHECK_MS);
		LWLockRelease(shared->lock);
		return false;
	}
	start.slot = (int) (slot - shared->databases);
	start.generation = slot->generation;
	start.dboid = database->oid;
	pg_atomic_write_u32(&slot->stop_requested, 0);
	worker_set_phase(worker, WORKER_STARTING);
	LWLockRelease(shared->lock);

	if (start_worker("listener", "pne_listener_main", &start, &listener_handles[start.slot]))
		return first_look;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	worker_set_phase(worker, WORKER_NONE);
	make_room();
	LWLockRelease(shared->lock);
	return false;
}

/*
 * Start and stop listeners as needed.
 */
static void
manage_listeners(void)
{
	static uint32 lost_installs_seen = 0;
	uint32		lost_installs = pg_atomic_read_u32(&shared->lost_installs);
	List	   *served = served_databases_read();
	int			first_looks = review_listeners(served);
	ListCell   *lc;

	if (lost_installs != lost_installs_seen)
	{
		list_free(without_extension);
		without_extension = NIL;
		lost_installs_seen = lost_installs;
	}

	foreach(lc, served)
	{
		ServedDatabase *database = lfirst(lc);

		if (list_member_oid(without_extension, database->oid))
			continue;
		if (start_listener(database, first_looks))
			first_looks++;
	}

	/* forget databases that no longer exist: their oids may be used again */
	foreach(lc, without_extension)
	{
		if (served_databases_find(served, lfirst_oid(lc)) == NULL)
			without_extension = foreach_delete_current(without_extension, lc);
	}
}

/* ----------
 * Executors
 * ----------
 */

/*
 * Note which executors have failed to start, let failed ones be started again
 * after their back-off, and forget old ones.  Returns how many executors count
 * against max_executors.  The caller must hold shared->lock exclusively.
 */
static int
review_executors(void)
{
	int			places = 0;
	Instant		now = instant_now();

	Assert(LWLockHeldByMeInMode(shared->lock, LW_EXCLUSIVE));

	for (int i = 0; i < MAX_EXECUTOR_SLOTS; i++)
	{
		ExecutorSlot *slot = &shared->executors[i];

		if (!slot->in_use)
			continue;
		if (start_failed(&slot->worker, executor_handles[i]))
		{
			slot->generation++;
			worker_went_away(&slot->worker, false);
		}
		if (slot->worker.phase == WORKER_BACKING_OFF && slot->worker.pid == 0)
		{
			if (slot->worker.not_before > now)
				wake_up_at(slot->worker.not_before);
			else if (slot->wanted)
				worker_set_phase(&slot->worker, WORKER_WAITING);
			else if (instant_passed(slot->worker.not_before, now, FORGET_FAILED_MS))
				slot->in_use = false;
		}
		if (slot->in_use && !slot->stuck &&
			(slot->worker.pid != 0 || slot->worker.phase == WORKER_STARTING))
			places++;
	}
	return places;
}

/*
 * Returns the slot of the owner that has waited longest, or NULL.
 */
static ExecutorSlot *
longest_waiting(void)
{
	ExecutorSlot *result = NULL;

	for (int i = 0; i < MAX_EXECUTOR_SLOTS; i++)
	{
		ExecutorSlot *slot = &shared->executors[i];

		if (slot->in_use && slot->worker.phase == WORKER_WAITING &&
			(result == NULL || slot->wanted_since < result->wanted_since))
			result = slot;
	}
	return result;
}

/*
 * Start executors for owners that wait, in the order of waiting, as far as
 * max_executors allows.
 */
static void
manage_executors(void)
{
	int			places;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	places = review_executors();
	pg_atomic_write_u32(&shared->slot_wanted, 0);
	for (;;)
	{
		ExecutorSlot *slot = longest_waiting();
		WorkerStart start = {0};
		bool		started;

		if (slot == NULL)
			break;
		if (places >= pne_max_executors)
		{
			ExecutorSlot *stopping;

			/*
			 * Set it before looking for an idle executor: one could become idle
			 * in between.
			 */
			pg_atomic_write_u32(&shared->slot_wanted, 1);
			stopping = choose_to_stop(slot->wanted_since);
			if (stopping != NULL)
			{
				pg_atomic_write_u32(&stopping->stop_requested, 1);
				doorbell_ring_database(stopping->dboid);
			}
			break;
		}

		start.slot = (int) (slot - shared->executors);
		start.generation = slot->generation;
		start.dboid = slot->dboid;
		start.owner = slot->owner;
		slot->wanted = false;
		slot->stuck = false;
		pg_atomic_write_u32(&slot->stop_requested, 0);
		stopping_since[start.slot] = 0;
		worker_set_phase(&slot->worker, WORKER_STARTING);
		LWLockRelease(shared->lock);

		FAULT_POINT("before-start");
		started = start_worker("executor", "pne_executor_main", &start, &executor_handles[start.slot]);

		LWLockAcquire(shared->lock, LW_EXCLUSIVE);
		if (!started)
		{
			slot->wanted = true;
			worker_set_phase(&slot->worker, WORKER_WAITING);
			make_room();
			break;
		}
		places++;
	}
	LWLockRelease(shared->lock);
}

/* ----------
 * The process
 * ----------
 */

/*
 * Called when the process exits.
 */
static void
launcher_on_exit(int code, Datum arg)
{
	doorbell_detach(&shared->launcher_bell);
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	worker_went_away(&shared->launcher, code == 0);
	LWLockRelease(shared->lock);
}

/*
 * Compare once what should run with what does, and sleep.
 */
static void
launcher_cycle(MemoryContext context)
{
	(void) doorbell_answer(&shared->launcher_bell);
	CHECK_FOR_INTERRUPTS();
	if (shared->launcher.not_before > instant_now())
	{
		worker_sleep(&shared->launcher_bell, shared->launcher.not_before);
		return;
	}
	pg_atomic_fetch_add_u64(&shared->launcher.wakeups, 1);
	(void) worker_reload_config();

	next_wakeup = INSTANT_NEVER;
	wake_up_in(MAX_SLEEP_MS);
	MemoryContextSwitchTo(context);
	MemoryContextReset(context);
	worker_enter_phase(&shared->launcher, WORKER_RUNNING, "looking at databases and executors");
	manage_listeners();
	manage_executors();
	worker_recovered(&shared->launcher);

	worker_enter_phase(&shared->launcher, WORKER_IDLE, "waiting for something to start");
	pgstat_report_stat(true);
	worker_sleep(&shared->launcher_bell, next_wakeup);
}

/*
 * Entry point of the launcher.  Does not return.
 */
void
pne_launcher_main(Datum main_arg)
{
	MemoryContext context;

	worker_signals();
	doorbell_attach(&shared->launcher_bell);
	before_shmem_exit(launcher_on_exit, (Datum) 0);
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	worker_is_alive(&shared->launcher);
	worker_set_phase(&shared->launcher, WORKER_STARTING);
	LWLockRelease(shared->lock);
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	if (pg_atomic_read_u64(&shared->start_xid) == 0)
		pg_atomic_write_u64(&shared->start_xid, U64FromFullTransactionId(ReadNextFullTransactionId()));

	context = AllocSetContextCreate(TopMemoryContext, "launcher cycle", ALLOCSET_DEFAULT_SIZES);
	for (;;)
	{
		PG_TRY();
		{
			launcher_cycle(context);
		}
		PG_CATCH();
		{
			MemoryContextSwitchTo(context);
			worker_recover(&shared->launcher);
		}
		PG_END_TRY();
	}
}
