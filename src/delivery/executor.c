/*-------------------------------------------------------------------------
 *
 * executor.c
 *		The process that runs the handlers of one owner.
 *
 * Its session user is the owner: what a handler does, it does in an ordinary
 * session of that role, and nothing needs to be taken back from it.
 *
 * Work goes in rounds.  A round begins with one short transaction that locks
 * the log, takes a snapshot and reads which events lie between it and the
 * handlers' positions; handlers that stand at the same position share what is
 * read.  Then each handler that has something in its window has a turn of one
 * batch (batch.c), whose rows it reads.  A slow handler falls behind alone: it
 * keeps its window, the others take new ones.
 *
 * An executor sleeps until its bell is rung or a retry of its handlers is due.
 * It leaves when the launcher wants its place for another owner, when the
 * listener wants the database empty, or with nothing left to do for long.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>
#include <unistd.h>

#include "access/table.h"
#include "access/xact.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/condition_variable.h"
#include "storage/ipc.h"
#include "storage/lmgr.h"
#include "storage/pmsignal.h"
#include "tcop/tcopprot.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "base/catalog.h"
#include "base/compat.h"
#include "base/fault.h"
#include "base/loglimit.h"
#include "base/settings.h"
#include "base/throttle.h"
#include "base/worker.h"
#include "delivery/backoff.h"
#include "delivery/batch.h"
#include "delivery/call_timeout.h"
#include "delivery/crash_guard.h"
#include "delivery/executor.h"
#include "delivery/executor_slot.h"
#include "delivery/owner.h"
#include "delivery/progress.h"
#include "delivery/retry.h"
#include "delivery/runs.h"
#include "delivery/transaction.h"

/* what is done at leaving may take so long each, in ms */
#define STOP_TIMEOUT_MS 1000

/*
 * Handlers that are taken up in one transaction.  It has locks of each, and the
 * server room for 64 locks of each of its sessions.
 */
#define CLAIM_AT_ONCE 50

/* a position that passed only events of others is stored after this, in ms */
#define LAZY_STORE_MS 5000

static bool stopping_cleanly = false;

static uint32 persist_requests_seen = 0;

/*
 * Who is asked to leave does so soon, by itself: no handler's code runs, and
 * none of ours that could wait for long.
 */
static volatile sig_atomic_t stops_soon = false;

/* when there was work last */
static Instant worked_at = 0;

/* ----------
 * The process
 * ----------
 */

/*
 * Leave: unregister first, then ring, so that whoever looks finds no executor
 * and whatever came meanwhile is looked at.
 */
static void
executor_on_exit(int code, Datum arg)
{
	if (my_bell != NULL)
		doorbell_detach(my_bell);

	if (!stopping_cleanly && my_slot->handler[0] != '\0')
	{
		char		message[WORKER_ERROR_SIZE];

		snprintf(message, sizeof(message),
				 !call_timeout_overran() ? "ended while it ran event handler \"%s\"" :
				 executor_call_is_unwanted() ? "a call of event handler \"%s\", which is dropped, did not end" :
				 "a call of event handler \"%s\" did not end at its timeout",
				 my_slot->handler);
		if (call_timeout_overran())
			ereport(LOG,
					(errmsg_internal("%s", message),
					 executor_call_is_unwanted() ?
					 errhint("It may catch query_canceled. Its executor is ended.") :
					 errhint("It may catch query_canceled. Its executor is ended, and the event is tried again under guard.")));
		worker_report_error(&my_slot->worker, message);
	}

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	worker_went_away(&my_slot->worker, stopping_cleanly);
	my_slot->handler[0] = '\0';
	my_slot->wanted = false;
	if (stopping_cleanly)
		my_slot->in_use = false;
	LWLockRelease(shared->lock);

	ConditionVariableBroadcast(&my_database->progress);
	doorbell_ring(&my_database->bells[LISTENER_BELL]);
	doorbell_ring_launcher();
}

/*
 * Before that, as long as there can be transactions: what an executor that was
 * terminated leaves behind.
 */
static void
executor_release_on_exit(int code, Datum arg)
{
	if (!stopping_cleanly && PostmasterIsAlive())
		crash_guard_release_at_exit(*runs_states());
}

/*
 * Take the slot that the launcher has given us, unless it is somebody else's
 * by now, and a bell.
 */
static void
executor_attach(const WorkerStart *start)
{
	ExecutorSlot *slot = &shared->executors[start->slot];
	DatabaseSlot *database = shared_find_database(start->dboid);

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	if (database == NULL || pg_atomic_read_u32(&database->dboid) != start->dboid || !slot->in_use || slot->generation != start->generation ||
		slot->worker.phase != WORKER_STARTING)
	{
		LWLockRelease(shared->lock);
		proc_exit(0);
	}
	for (uint32 i = LISTENER_BELL + 1; i < DATABASE_BELLS && my_bell == NULL; i++)
	{
		if (pg_atomic_read_u32(&database->bells[i].procno) != BELL_UNUSED)
			continue;
		my_bell = &database->bells[i];
		if (pg_atomic_read_u32(&database->bells_used) <= i)
			pg_atomic_write_u32(&database->bells_used, i + 1);
		doorbell_attach(my_bell);
	}
	my_slot = slot;
	my_database = database;
	slot->token = 0;
	worker_is_alive(&slot->worker);
	LWLockRelease(shared->lock);

	before_shmem_exit(executor_on_exit, (Datum) 0);
	if (my_bell == NULL)
		ereport(FATAL,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("no doorbell left for an executor"),
				 errhint("Lower \"pg_notify_events.max_executors\".")));
}

/*
 * SIGTERM; at a shutdown it may come twice.  Where nothing is being done there
 * is nothing to interrupt, and the executor leaves in good order, as it does
 * where it is about to leave anyway; else it dies at the next opportunity, and is
 * taken for lost only if that was during a call, or an attempt that is counted,
 * and not because the server stops (crash_guard_release_at_exit).  Who sent it tells:
 * a call that has its own process terminated is like one that crashes.
 */
static void
executor_terminate(PNE_SIGNAL_INFO_ARGS)
{
	int			save_errno = errno;

	/* a child of a call, which does not run its program yet */
	if (MyProcPid != (int) getpid())
	{
		signal(SIGTERM, SIG_DFL);
		raise(SIGTERM);
		return;
	}
	if (!ProcDiePending && PNE_SIGNAL_SENDER == (int) PostmasterPid)
		executor_note_server_stop();
	if (stops_soon)
	{
		pg_atomic_write_u32(&my_slot->stop_requested, 1);
		SetLatch(MyLatch);
	}
	else
		die(PNE_PASS_SIGNAL_ARGS);
	errno = save_errno;
}

/*
 * Store positions that are ahead of what is stored: all of them, or those that
 * have been for long.
 */
static void
store_positions(bool all)
{
	ListCell   *lc;
	Instant		now = instant_now();

	foreach(lc, runs_all())
	{
		HandlerRun *run = lfirst(lc);

		if (run->ahead_since != 0 && !run->stale && run->not_before <= now &&
			(all || instant_passed(run->ahead_since, now, LAZY_STORE_MS)))
			progress_flush(run, false);
	}
}

static void
executor_exit(void)
{
	stopping_cleanly = true;
	proc_exit(0);
}

/*
 * Whether the extension is there, and whether its log can be had at once.
 */
static bool
extension_is_there(bool *log_is_free)
{
	const EventCatalog *where;

	StartTransactionCommand();
	where = catalog_lookup(true);
	*log_is_free = where != NULL && ConditionalLockRelationOid(where->log, AccessShareLock);
	CommitTransactionCommand();
	return where != NULL;
}

static void
store_all_positions(void)
{
	bool		log_is_free;

	FAULT_POINT("before-store");
	if (extension_is_there(&log_is_free) && log_is_free)
		store_positions(true);
}

static void
release_tokens(void)
{
	bool		unused;

	if (extension_is_there(&unused))
		crash_guard_release(*runs_states());
}

/*
 * A part of leaving, which has a time of its own: where it fails, or there is too
 * much to do, the successor has a little more to do.
 */
static void
try_stop_step(void (*part) (void))
{
	MemoryContext context = CurrentMemoryContext;

	PG_TRY();
	{
		call_timeout_arm(STOP_TIMEOUT_MS);
		transaction_never_wait(STOP_TIMEOUT_MS);
		part();
		call_timeout_disarm();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		call_timeout_disarm();
		worker_recover(&my_slot->worker);
	}
	PG_END_TRY();
}

/*
 * Leave in good order: nothing that was called is in doubt.  Whoever waits for
 * us to leave shall not wait for a lock or a standby.
 */
static void
executor_stop(void)
{
	stops_soon = true;
	loglimit_report(true);
	try_stop_step(store_all_positions);
	try_stop_step(release_tokens);
	crash_guard_disown_tokens(*runs_states());
	executor_exit();
}

/* ----------
 * A round
 * ----------
 */

/*
 * Have the handler stand at an event that concerns it: in its window, or where
 * nothing is left in that one, in the next.  False if there is none, or if a part
 * of a large window has none: the next part is read in the next round, by all who
 * have come so far.
 */
static bool
find_work(HandlerRun *run, Relation log, Snapshot snapshot, const EventSnapshot *upto)
{
	do
	{
		if (run->window == NULL)
			runs_take_window(run, log, snapshot, upto);
		if (run->window != NULL && handler_run_seek(run))
			return true;
	} while (!handler_run_is_inside_window(run) && !event_snapshot_equal(run->position.cursor, upto));
	return false;
}

/*
 * First step of a round: read what there is to do.  True if there is.
 */
static bool
read_windows(void)
{
	const EventCatalog *where;
	Relation	log;
	Snapshot	snapshot;
	EventSnapshot *upto;
	ListCell   *lc;
	bool		work = false;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	where = catalog_lookup(true);
	if (where != NULL)
		worker_lock_table(where->log);
	log = catalog_open_log();
	if (log == NULL)
	{
		bool		exists = catalog_extension_exists();

		/* it has all that we know, but for a table or index: an error tells, and we wait */
		if (exists)
			(void) catalog_lookup(false);
		CommitTransactionCommand();
		if (!exists)
			executor_exit();
		doorbell_ring(my_bell);
		return false;
	}
	SPI_connect();
	(void) executor_stop_requested();	/* one whose owner was changed looks here */

	/*
	 * Positions first: a snapshot that is older than a position would give the
	 * handler an empty window, and by that take it back to before what another
	 * executor has done.
	 */
	runs_release_windows();
	runs_follow(my_database, my_slot->owner);

	PushActiveSnapshot(GetTransactionSnapshot());
	snapshot = GetActiveSnapshot();
	upto = event_snapshot_build(snapshot);

	foreach(lc, runs_all())
	{
		HandlerRun *run = lfirst(lc);

		if (!handler_run_may_run(run))
			continue;
		if (run->next_retry_at <= GetCurrentTimestamp())
			work = true;
		if (handler_run_is_held(run))
			continue;
		if (find_work(run, log, snapshot, upto) || handler_run_is_inside_window(run))
			work = true;
		else if (run->state->failed_trials > 0 && run->next_retry_at == DT_NOEND)
			backoff_over(run);	/* nothing is left to probe with */
	}

	runs_release_windows();
	throttle_look(log);
	PopActiveSnapshot();
	SPI_finish();
	table_close(log, NoLock);
	CommitTransactionCommand();
	FAULT_POINT("after-window-read");
	return work;
}

/*
 * Whether the handler may have a batch: it stands in its window at an event that
 * concerns it.
 */
static bool
has_batch(const HandlerRun *run)
{
	return handler_run_may_run(run) && run->window != NULL && !handler_run_is_held(run);
}

/*
 * Whether it has one, or may have one as soon as more of its window is read.
 */
static bool
has_more(const HandlerRun *run)
{
	return has_batch(run) ||
		(handler_run_is_inside_window(run) && handler_run_may_run(run) && !handler_run_is_held(run));
}

/*
 * Second step of a round: take up the handlers that have work for the first
 * time, as many at once as their locks allow.
 */
static void
claim_handlers(void)
{
	List	   *fresh = NIL;
	ListCell   *lc;

	foreach(lc, runs_all())
	{
		HandlerRun *run = lfirst(lc);

		if (has_batch(run) && !run->state->claimed)
			fresh = lappend(fresh, run);
		if (list_length(fresh) == CLAIM_AT_ONCE || (fresh != NIL && lnext(runs_all(), lc) == NULL))
		{
			crash_guard_claim(fresh);
			fresh = NIL;
		}
	}
}

/*
 * A handler's turn: what of its retries is due, and a batch of its window.  In
 * an outage, the next event, or if there is none the next retry.
 */
static void
take_turn(HandlerRun *run)
{
	bool		retries_due = run->next_retry_at <= GetCurrentTimestamp();

	if (!handler_run_may_run(run))
		return;
	if (run->state->failed_trials > 0)
	{
		if (has_batch(run))
		{
			if (run->state->claimed)
				batch_turn(run);
		}
		else if (retries_due)
			retry_run_due(run);
		return;
	}

	if (retries_due)
		retry_run_due(run);
	if (has_batch(run) && run->state->claimed)
		batch_turn(run);
}

/*
 * Third step of a round: a turn for each handler.  Returns how long, in ms, to
 * wait before the next one.
 */
static int
take_turns(MemoryContext turn_context)
{
	ListCell   *lc;
	int			nturns = 0;
	bool		backlog = false;

	foreach(lc, runs_all())
	{
		HandlerRun *run = lfirst(lc);

		if (executor_stop_requested())
			return 0;
		MemoryContextReset(turn_context);
		MemoryContextSwitchTo(turn_context);
		if (has_batch(run))
			nturns++;
		take_turn(run);
		if (has_more(run))
			backlog = true;
		CHECK_FOR_INTERRUPTS();
		pgstat_report_stat(false);
	}
	return backlog ? 0 : throttle_round(nturns);
}

/*
 * When to wake up though nobody rings.
 */
static Instant
next_deadline(void)
{
	Instant		deadline = loglimit_due();
	Instant		now = instant_now();
	ListCell   *lc;

	if (pne_executor_idle_timeout > 0)
		deadline = Min(deadline, instant_after(now, pne_executor_idle_timeout));
	foreach(lc, runs_all())
	{
		HandlerRun *run = lfirst(lc);

		Instant		due = instant_of_time(run->next_retry_at);

		if (run->state->next_trial_at > now)
			due = run->state->next_trial_at;
		if (run->ahead_since != 0)
			due = Min(due, instant_after(run->ahead_since, LAZY_STORE_MS));
		if (run->not_before > now)
			due = run->not_before;
		deadline = Min(deadline, due);
	}
	return deadline;
}

static void
executor_sleep(Instant until)
{
	stops_soon = true;
	worker_sleep(my_bell, until);
	stops_soon = false;
}

/*
 * Let events come together for a while, whoever rings.
 */
static void
executor_pause(int ms)
{
	stops_soon = true;
	worker_pause(ms);
	stops_soon = false;
}

/*
 * Work until there is none.  Returns whether there was any.
 */
static bool
executor_work(MemoryContext cycle_context, MemoryContext turn_context)
{
	bool		worked = false;
	bool		asked = false;
	uint32		requests;

	for (;;)
	{
		bool		work;
		int			interval;

		(void) doorbell_answer(my_bell);
		CHECK_FOR_INTERRUPTS();
		pg_atomic_fetch_add_u64(&my_slot->worker.wakeups, 1);
		(void) worker_reload_config();
		loglimit_report(false);

		MemoryContextReset(cycle_context);
		MemoryContextSwitchTo(cycle_context);
		requests = pg_atomic_read_u32(&my_database->persist_requests);
		work = read_windows();
		MemoryContextSwitchTo(cycle_context);
		if (executor_stop_requested())
			executor_stop();
		crash_guard_release_gone(runs_states());
		if (!work)
			break;
		worked = worked || work;
		if (!executor_stop_requested())
			claim_handlers();
		interval = take_turns(turn_context);
		MemoryContextSwitchTo(cycle_context);
		asked = (requests != persist_requests_seen) || asked;
		store_positions(requests != persist_requests_seen);
		persist_requests_seen = requests;
		pg_atomic_write_u32(&my_slot->persisted, requests);
		worker_recovered(&my_slot->worker);
		executor_pause(interval);
		if (executor_stop_requested())
			executor_stop();
	}

	/* who asked during the rounds may have to wait for what came in the last */
	store_positions(asked || requests != persist_requests_seen);
	persist_requests_seen = requests;
	return worked;
}

/*
 * Work until there is none, and sleep.
 */
static void
executor_cycle(MemoryContext cycle_context, MemoryContext turn_context)
{
	/* also after an error, such as a lock that was waited for in vain */
	if (executor_stop_requested())
		executor_stop();
	if (my_slot->worker.not_before > instant_now())
	{
		/* backing off */
		(void) doorbell_answer(my_bell);
		if (executor_stop_requested())
			executor_stop();
		executor_sleep(my_slot->worker.not_before);
		return;
	}

	if (executor_work(cycle_context, turn_context))
		worked_at = instant_now();
	worker_recovered(&my_slot->worker);

	if (pne_executor_idle_timeout > 0 &&
		instant_passed(worked_at, instant_now(), pne_executor_idle_timeout))
		executor_stop();

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	my_slot->handler[0] = '\0';
	LWLockRelease(shared->lock);
	worker_enter_phase(&my_slot->worker, WORKER_IDLE, "waiting for events");

	/* all is done, stored, counted and shown: that is what they wait for */
	pg_atomic_write_u32(&my_slot->persisted, persist_requests_seen);
	ConditionVariableBroadcast(&my_database->progress);
	if (pg_atomic_read_u32(&shared->slot_wanted) != 0)
		doorbell_ring_launcher();

	pgstat_report_stat(true);

	/* a change of the owner's role is noticed at any lock, and rings no bell */
	if (!executor_stop_requested())
		executor_sleep(next_deadline());
	if (executor_stop_requested())
		executor_stop();
}

/*
 * Entry point.
 */
void
pne_executor_main(Datum main_arg)
{
	WorkerStart start;
	MemoryContext cycle_context;
	MemoryContext turn_context;

	memcpy(&start, MyBgworkerEntry->bgw_extra, sizeof(start));
	worker_signals();
	executor_attach(&start);
	pne_signal_with_info(SIGTERM, executor_terminate);
	owner_watch();
	worker_connect(start.dboid, start.owner);
	before_shmem_exit(executor_release_on_exit, (Datum) 0);
	call_timeout_init();
	crash_guard_init();
	StartTransactionCommand();
	owner_connected(start.owner);
	CommitTransactionCommand();

	runs_init();
	cycle_context = AllocSetContextCreate(TopMemoryContext, "executor cycle", ALLOCSET_DEFAULT_SIZES);
	turn_context = AllocSetContextCreate(TopMemoryContext, "executor turn", ALLOCSET_DEFAULT_SIZES);
	worked_at = instant_now();

	for (;;)
	{
		PG_TRY();
		{
			executor_cycle(cycle_context, turn_context);
		}
		PG_CATCH();
		{
			stops_soon = false;
			crash_guard_attempt_ends();
			MemoryContextSwitchTo(cycle_context);
			if (geterrcode() == ERRCODE_LOCK_NOT_AVAILABLE)
				worker_locked_out(&my_slot->worker);
			else
				worker_recover(&my_slot->worker);
			runs_forget();
		}
		PG_END_TRY();
	}
}
