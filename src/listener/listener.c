/*-------------------------------------------------------------------------
 *
 * listener.c
 *		The process that listens in a database.  There is one for each database with
 *		the extension.
 *
 * All its transactions are short, because a process in a transaction cannot read the
 * notification queue, and one listener that does not read lets the queue grow for the
 * whole cluster.  Handlers run elsewhere, in executors.
 *
 * Whenever the listener is woken,
 *
 *	- it reads the notification queue, counts, and has the executors look;
 *	  notifications on event channels become events (ingest.c);
 *	- it follows the log with a snapshot cursor of its own, counts the events that
 *	  have become visible, announces those that are left to it (announcer.c), and
 *	  wakes the sessions that wait for some (consumers);
 *	- it asks for an executor for each owner that has work and no executor: events
 *	  in the log behind the stored position of a handler, or a retry that is due.
 *
 * Without a wake-up it looks at the log once per naptime.  Once a second it checks
 * whether a session wants the database to itself (DROP, RENAME, a copy), or has
 * changed the database's settings.  Then the listener stops, and so do the executors.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "catalog/pg_type.h"
#include "commands/async.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "base/catalog.h"
#include "base/compat.h"
#include "base/fault.h"
#include "base/loglimit.h"
#include "base/notify_queue.h"
#include "base/settings.h"
#include "base/throttle.h"
#include "base/worker.h"
#include "handler/handler.h"
#include "handler/handler_counters.h"
#include "handler/retry_table.h"
#include "listener/announcer.h"
#include "listener/ingest.h"
#include "listener/listener.h"
#include "listener/unserved.h"
#include "log/window.h"

/* how long the cursor may be ahead before it is stored, in ms */
#define LAZY_STORE_MS 10000

/* an extension that has been incomplete for so long, in ms, is not being created */
#define INCOMPLETE_MS 1000

/* how often the counters of dropped handlers are removed at most, in ms */
#define FORGET_DROPPED_MS 10000

/* wake-ups that are less than this apart, in ms, become one */
#define WAKEUP_SLACK_MS 100

static DatabaseSlot *my_slot = NULL;
static bool stopping_cleanly = false;

/* lives longer than one cycle */
static MemoryContext listener_context = NULL;
static char *channel = NULL;
static char *database_settings = NULL;	/* the settings when the process started */

/* tasks that can fail while the others work */
static WorkerTask following = {0};
static WorkerTask storing = {0};
static WorkerTask looking_after_owners = {0};
static WorkerTask forgetting_dropped = {0};
static WorkerTask *const tasks[] = {
	&following, &storing, &looking_after_owners, &forgetting_dropped
};

/* owners of handlers that may run, as of definitions_seen */
static MemoryContext owners_context = NULL;
static List *owners = NIL;
static bool owners_valid = false;
static uint32 definitions_seen = 0;

/* deadlines */
static Instant next_look;
static Instant next_yield_check;
static Instant next_retry;

/* ----------
 * The process
 * ----------
 */

static void
listener_on_exit(int code, Datum arg)
{
	doorbell_detach(&my_slot->bells[LISTENER_BELL]);
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	worker_went_away(&my_slot->listener, stopping_cleanly);
	if (stopping_cleanly)
		my_slot->listener.not_before = instant_in(YIELD_CHECK_MS);
	LWLockRelease(shared->lock);
	doorbell_ring_launcher();
}

static void
listener_attach(const WorkerStart *start)
{
	DatabaseSlot *slot = &shared->databases[start->slot];

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	if (pg_atomic_read_u32(&slot->dboid) != start->dboid || slot->generation != start->generation ||
		slot->listener.phase != WORKER_STARTING)
	{
		LWLockRelease(shared->lock);
		proc_exit(0);
	}
	worker_is_alive(&slot->listener);
	if (pg_atomic_read_u32(&slot->bells_used) <= LISTENER_BELL)
		pg_atomic_write_u32(&slot->bells_used, LISTENER_BELL + 1);
	my_slot = slot;
	doorbell_attach(&slot->bells[LISTENER_BELL]);
	LWLockRelease(shared->lock);

	before_shmem_exit(listener_on_exit, (Datum) 0);
}

/*
 * How often CREATE EXTENSION has committed here.
 */
static uint32
count_installs(void)
{
	uint32		installs;

	LWLockAcquire(shared->lock, LW_SHARED);
	installs = my_slot->installs;
	LWLockRelease(shared->lock);
	return installs;
}

/*
 * Note whether the database has the extension.  It was checked after installs were
 * counted; if another one has committed since, the check has to be repeated.
 */
static void
set_presence(ExtensionPresence presence, uint32 installs)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	if (presence == EXTENSION_PRESENT || my_slot->installs == installs)
		my_slot->extension = presence;
	else
		my_slot->extension = EXTENSION_UNKNOWN;
	LWLockRelease(shared->lock);
}

/*
 * Whether there is a reason to leave the database for a moment.
 *
 * Either a session waits until the database is empty.  DDL on a database holds a lock
 * on it while it waits for its sessions to end, so a lock that the listener cannot get
 * tells.  Or the database's settings were changed, which takes a new session.
 */
static bool
should_stop(void)
{
	LOCKTAG		tag;
	bool		result;
	char	   *settings;

	worker_start_short_transaction();
	SET_LOCKTAG_OBJECT(tag, InvalidOid, DatabaseRelationId, MyDatabaseId, 0);
	result = (LockAcquire(&tag, RowExclusiveLock, false, true) == LOCKACQUIRE_NOT_AVAIL);
	if (!result)
	{
		settings = settings_of_database();
		if (database_settings == NULL)
			database_settings = MemoryContextStrdup(listener_context, settings);
		result = strcmp(settings, database_settings) != 0;
	}
	worker_commit_short_transaction();
	return result;
}

/*
 * Stop, and have the executors stop: the database is wanted, or is not to be served,
 * or has no extension.
 */
static void
listener_stop(void)
{
	ingest_stop(my_slot);
	loglimit_report(true);

	/* otherwise the next listener would announce and count the same events again */
	if (announcer_is_ahead(0))
		(void) worker_perform(&my_slot->listener, &storing, announcer_store);

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	shared_dismiss_executors(MyDatabaseId);
	LWLockRelease(shared->lock);
	doorbell_ring_database(MyDatabaseId);
	stopping_cleanly = true;
	proc_exit(0);
}

/* ----------
 * Owners
 * ----------
 */

/*
 * Definitions changed: find out again which owners have handlers.
 */
static void
forget_owners(uint32 definitions)
{
	owners = NIL;
	MemoryContextReset(owners_context);
	owners_valid = false;
	definitions_seen = definitions;
}

/*
 * Whether an owner has an executor, or waits for one.
 */
static bool
owner_is_served(Oid owner)
{
	ExecutorSlot *slot;
	bool		served;

	LWLockAcquire(shared->lock, LW_SHARED);
	slot = shared_find_executor(MyDatabaseId, owner);
	served = slot != NULL && slot->worker.phase != WORKER_BACKING_OFF;
	/* an executor that backs off is there */
	served = served || (slot != NULL && slot->worker.pid != 0);
	LWLockRelease(shared->lock);
	return served;
}

/*
 * Whether a handler without an executor has work.  If it has none yet, note the
 * deadline at which it will.
 */
static bool
handler_has_work(const Handler *handler, Relation log, Snapshot snapshot, const EventSnapshot *upto)
{
	HandlerProblem problem;
	Instant		due;
	Instant		next_trial_at;
	int			failed_trials;

	if (handler->paused)
		return false;
	if (handler->dormant)
	{
		if (unserved_complaint_is_news(handler, "dormant") && loglimit_allows(LOG_TOPIC_HANDLERS))
			ereport(WARNING,
					(errcode(ERRCODE_WARNING),
					 errmsg("event handler \"%s\" is dormant", handler->name),
					 errdetail("It was made in another database, or restored."),
					 errhint("A superuser wakes it with activate_events().")));
		return false;
	}
	if (!handler_check(handler, &problem))
	{
		if (unserved_complaint_is_news(handler, problem.message) && loglimit_allows(LOG_TOPIC_HANDLERS))
			ereport(LOG,
					(errcode(problem.sqlstate),
					 errmsg("event handler \"%s\" is suspended: %s", handler->name, problem.message),
					 errhint("%s", problem.hint)));
		return false;
	}
	unserved_can_run(handler);

	handler_counters_read_backoff(handler, &failed_trials, &next_trial_at);
	if (next_trial_at > instant_now())
	{
		next_retry = Min(next_retry, next_trial_at);
		return false;
	}

	due = instant_of_time(retry_earliest(handler));
	if (due <= instant_now())
		return true;
	next_retry = Min(next_retry, due);
	if (handler->ordered && due != INSTANT_NEVER)
		return false;
	return !unserved_is_quiet(handler, log, snapshot, upto);
}

/*
 * Ask for executors for the owners that have work and no executor.
 */
static void
consider_owners(Relation log, Snapshot snapshot, const EventSnapshot *upto)
{
	List	   *handlers;
	List	   *wanted = NIL;
	ListCell   *lc;
	bool		news = false;

	handlers = handler_load_without_filters(InvalidOid, CurrentMemoryContext);
	unserved_begin();
	foreach(lc, handlers)
	{
		Handler    *handler = lfirst(lc);

		unserved_see(handler);
		if (!owners_valid && !handler->paused && !handler->dormant)
		{
			MemoryContext old = MemoryContextSwitchTo(owners_context);

			owners = list_append_unique_oid(owners, handler->owner);
			MemoryContextSwitchTo(old);
		}
		if (list_member_oid(wanted, handler->owner))
			continue;
		if (owner_is_served(handler->owner))
		{
			unserved_can_run(handler);
			continue;
		}
		if (handler_has_work(handler, log, snapshot, upto))
			wanted = lappend_oid(wanted, handler->owner);
	}
	owners_valid = true;
	unserved_end();

	foreach(lc, wanted)
		news = shared_want_executor(MyDatabaseId, lfirst_oid(lc)) || news;
	if (news)
		doorbell_ring_launcher();
}

/*
 * Whether every owner that may have work has an executor.
 */
static bool
all_owners_are_served(void)
{
	ListCell   *lc;

	if (!owners_valid)
		return false;
	foreach(lc, owners)
	{
		if (!owner_is_served(lfirst_oid(lc)))
			return false;
	}
	return true;
}

/*
 * Make sure that every owner that has work gets an executor.
 */
static void
look_after_owners(void)
{
	Relation	log;
	Snapshot	snapshot;

	/* executors keep their own deadlines */
	next_retry = INSTANT_NEVER;
	if (all_owners_are_served())
		return;

	worker_start_short_transaction();
	log = catalog_open_log();
	if (log != NULL)
	{
		SPI_connect();
		PushActiveSnapshot(GetTransactionSnapshot());
		snapshot = GetActiveSnapshot();
		consider_owners(log, snapshot, event_snapshot_build(snapshot));
		PopActiveSnapshot();
		SPI_finish();
		table_close(log, NoLock);
	}
	worker_commit_short_transaction();
}

/*
 * Remove the counters of handlers that are not defined any more, if any definition has
 * changed.  Nobody sees them, so this can wait.
 */
static void
forget_dropped_handlers(void)
{
	static uint32 definitions_looked_at = 0;
	static Instant looked_at = 0;
	uint32		definitions = pg_atomic_read_u32(&my_slot->definitions);
	Instant		now = instant_now();
	List	   *listed;

	if (looked_at != 0 && (definitions == definitions_looked_at ||
						   !instant_passed(looked_at, now, FORGET_DROPPED_MS)))
		return;

	/* before the snapshot */
	listed = handler_counters_list();
	if (listed != NIL)
	{
		Relation	log;

		worker_start_short_transaction();
		log = catalog_open_log();
		if (log != NULL)
		{
			SPI_connect();
			PushActiveSnapshot(GetTransactionSnapshot());
			handler_counters_forget_dropped(listed);
			PopActiveSnapshot();
			SPI_finish();
			table_close(log, NoLock);
		}
		worker_commit_short_transaction();
	}
	definitions_looked_at = definitions;
	looked_at = now;
}

/* ----------
 * The loop
 * ----------
 */

/*
 * Look at the log: count and announce what has become visible.
 */
static void
follow_log(void)
{
	static Instant incomplete_since = 0;
	bool		found;
	int			announced;
	uint32		installs = count_installs();
	Relation	log;

	worker_start_short_transaction();
	log = catalog_open_log();
	if (log == NULL)
	{
		bool		exists = catalog_extension_exists();

		/*
		 * The extension may be under construction: look again.  If it stays
		 * incomplete, an error tells what is missing.
		 */
		if (exists && incomplete_since == 0)
			incomplete_since = instant_now();
		else if (exists && instant_passed(incomplete_since, instant_now(), INCOMPLETE_MS))
			(void) catalog_lookup(false);
		worker_commit_short_transaction();
		if (exists)
			return;
		set_presence(EXTENSION_ABSENT, installs);
		listener_stop();
		return;					/* not reached */
	}
	incomplete_since = 0;
	SPI_connect();
	PushActiveSnapshot(GetTransactionSnapshot());
	found = announcer_read(log, GetActiveSnapshot());
	announcer_announce(log, GetActiveSnapshot(), channel);
	PopActiveSnapshot();
	SPI_finish();
	table_close(log, NoLock);
	FAULT_POINT("before-announce");
	worker_commit_short_transaction();
	FAULT_POINT("after-announce");
	announced = announcer_announced();
	pg_atomic_fetch_add_u64(&my_slot->listener.events_announced, announced);

	/*
	 * The committing backend has woken the workers, so this may be the second time.
	 * But if an event was ever committed without a wake-up, nobody else would notice.
	 */
	if (found)
	{
		doorbell_ring_executors(my_slot);
		doorbell_ring_waiters(my_slot);
	}
}

/*
 * Look at the log and the handlers.
 */
static void
look(void)
{
	uint32		definitions = pg_atomic_read_u32(&my_slot->definitions);

	if (definitions != definitions_seen)
		forget_owners(definitions);
	next_look = instant_in(pne_naptime);

	(void) worker_perform(&my_slot->listener, &following, follow_log);
	if (!worker_perform(&my_slot->listener, &looking_after_owners, look_after_owners))
	{
		forget_owners(definitions);
		next_retry = INSTANT_NEVER;	/* the task has its own deadline */
	}
	if (announcer_is_ahead(LAZY_STORE_MS))
		(void) worker_perform(&my_slot->listener, &storing, announcer_store);
	(void) worker_perform(&my_slot->listener, &forgetting_dropped, forget_dropped_handlers);
	FAULT_POINT("after-look");
}

/*
 * Read the queue.  Any notification on the channel has the executors look.
 */
static void
read_queue(void)
{
	int			received = notify_queue_read();

	if (received > 0)
	{
		pg_atomic_fetch_add_u64(&my_slot->listener.notifications_received, received);
		doorbell_ring_executors(my_slot);
	}
}

/*
 * Take the channel's name from the configuration.
 */
static void
follow_channel(void)
{
	char	   *previous;

	if (channel != NULL && strcmp(channel, pne_channel) == 0)
		return;
	notify_queue_listen(pne_channel);
	previous = channel;
	channel = MemoryContextStrdup(listener_context, pne_channel);
	if (previous != NULL)
		pfree(previous);
}

/*
 * Whether the next chunk can be announced at once.
 */
static bool
has_more_to_announce(void)
{
	return announcer_has_more() && following.backoff == 0;
}

/*
 * When to look if there is no wake-up.
 */
static Instant
next_thing_due(void)
{
	Instant		due = Min(next_look, next_retry);

	for (int i = 0; i < (int) lengthof(tasks); i++)
	{
		if (tasks[i]->backoff != 0)
			due = Min(due, tasks[i]->not_before);
	}
	return due;
}

/*
 * Show whether the process does all of its work.
 */
static void
show_phase(void)
{
	WorkerPhase phase = WORKER_LISTENING;

	for (int i = 0; i < (int) lengthof(tasks); i++)
	{
		if (tasks[i]->backoff != 0)
			phase = WORKER_BACKING_OFF;
	}
	if (my_slot->listener.phase != phase)
		worker_enter_phase(&my_slot->listener, phase,
						   phase == WORKER_LISTENING ? "listening" : "listening, backing off in part after an error");
}

static void
listener_cycle(MemoryContext cycle_context)
{
	Bell	   *bell = &my_slot->bells[LISTENER_BELL];
	bool		rung;
	bool		looked = false;
	Instant		now;
	Instant		until;

	MemoryContextReset(cycle_context);
	MemoryContextSwitchTo(cycle_context);

	rung = doorbell_answer(bell);
	CHECK_FOR_INTERRUPTS();
	pg_atomic_fetch_add_u64(&my_slot->listener.wakeups, 1);
	if (worker_reload_config())
		follow_channel();
	if (pg_atomic_read_u32(&my_slot->stop_requested) != 0)
		listener_stop();

	read_queue();
	ingest_work(my_slot);
	loglimit_report(false);

	/* what is due in a moment is done now, so that one wake-up serves both */
	now = instant_in(WAKEUP_SLACK_MS);
	if (now >= next_yield_check)
	{
		if (should_stop())
			listener_stop();
		next_yield_check = instant_after(now, YIELD_CHECK_MS);
	}
	if (channel == NULL || my_slot->listener.not_before > now)
		next_look = Max(my_slot->listener.not_before, now); /* backing off */
	else if (rung || has_more_to_announce() || now >= next_thing_due())
	{
		look();
		looked = true;
		worker_recovered(&my_slot->listener);
		show_phase();
	}

	until = Min(next_yield_check, ingest_due());
	if (my_slot->listener.not_before <= now)
		until = Min(until, next_thing_due());
	if (looked && !has_more_to_announce())
		worker_pause(throttle_round(0));
	if (!notifyInterruptPending && !doorbell_is_rung(bell) && !has_more_to_announce())
	{
		pgstat_report_stat(true);
		worker_sleep(bell, until);
	}
	else
		pgstat_report_stat(false);
}

/*
 * Entry point.
 */
void
pne_listener_main(Datum main_arg)
{
	WorkerStart start;
	MemoryContext cycle_context;
	uint32		installs;
	bool		installed;

	memcpy(&start, MyBgworkerEntry->bgw_extra, sizeof(start));
	worker_signals();
	listener_attach(&start);
	worker_connect(start.dboid, InvalidOid);

	/* a process that waits for a standby reads no queue, which fills for the whole cluster */
	SetConfigOption("synchronous_commit", "local", PGC_USERSET, PGC_S_OVERRIDE);

	installs = count_installs();
	StartTransactionCommand();
	installed = catalog_extension_exists();
	CommitTransactionCommand();
	set_presence(installed ? EXTENSION_PRESENT : EXTENSION_ABSENT, installs);
	if (!installed)
		listener_stop();
	doorbell_ring_launcher();	/* the launcher may wait for this to look into further databases */

	announcer_init();
	listener_context = AllocSetContextCreate(TopMemoryContext, "listener", ALLOCSET_DEFAULT_SIZES);
	owners_context = AllocSetContextCreate(TopMemoryContext, "handler owners", ALLOCSET_DEFAULT_SIZES);
	cycle_context = AllocSetContextCreate(TopMemoryContext, "listener cycle", ALLOCSET_DEFAULT_SIZES);

	next_look = next_yield_check = instant_now();
	next_retry = INSTANT_NEVER;

	for (;;)
	{
		PG_TRY();
		{
			/* LISTEN first, then look: what comes in between is seen twice, not never */
			if ((channel == NULL || my_slot->listener.phase != WORKER_LISTENING) &&
				my_slot->listener.not_before <= instant_now())
			{
				follow_channel();
				show_phase();
			}
			listener_cycle(cycle_context);
		}
		PG_CATCH();
		{
			MemoryContextSwitchTo(cycle_context);
			worker_recover(&my_slot->listener);
			forget_owners(definitions_seen);
		}
		PG_END_TRY();
	}
}
