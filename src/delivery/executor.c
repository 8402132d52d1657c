/*-------------------------------------------------------------------------
 *
 * executor.c
 *		The process that runs the handlers of one owner.
 *
 * Its session user is the owner.  So a handler runs in an ordinary session of that
 * role, and no rights of the extension have to be taken away before a call.
 *
 * Work is done in rounds.  A round begins with one short transaction that locks the
 * log, takes a snapshot, and reads which events lie between that snapshot and the
 * handlers' positions.  Handlers at the same position share what is read.  Then each
 * handler that has something in its window gets a turn of one batch (batch.c), which
 * reads the rows.  A slow handler delays no other one: it keeps its window, and the
 * others take new ones.
 *
 * An executor sleeps until its bell is rung or a retry of its handlers is due.  It
 * stops when the launcher wants its slot for another owner, when the listener wants
 * the database empty, or when it had nothing to do for long.
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

/* how long each step of stopping may take, in ms */
#define STOP_TIMEOUT_MS 1000

/*
 * How many handlers are claimed in one transaction.  The transaction holds locks for
 * each of them, and by default the server's lock table has room for 64 locks per
 * session.
 */
#define CLAIM_AT_ONCE 50

/* a position that only passed events of others is stored after this, in ms */
#define LAZY_STORE_MS 5000

static bool stopping_cleanly = false;

static uint32 persist_requests_seen = 0;

/*
 * No code of a handler runs, and none of ours that could wait for long.  So a process
 * that is requested to stop soon does so by itself.
 */
static volatile sig_atomic_t stops_soon = false;

/* when there was work last */
static Instant worked_at = 0;

/* ----------
 * The process
 * ----------
 */

/*
 * Exit callback: clear the slot first, then ring.  So a process that looks after the
 * ring finds no executor, and work that arrived in between is noticed.
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
 * Exit callback that runs before executor_on_exit(), while transactions are still
 * possible: remove the tokens of an executor that was terminated, or that could not
 * remove all of them when it left and the server stops.
 */
static void
executor_release_on_exit(int code, Datum arg)
{
	if ((!stopping_cleanly || executor_is_stopped_by_server()) && PostmasterIsAlive())
		crash_guard_release_at_exit(*runs_states());
}

/*
 * Take a bell, and the slot that the launcher has assigned to us.  Exits if the slot
 * has been given to another process meanwhile.
 */
static void
executor_attach(const WorkerStart *start)
{
	ExecutorSlot *slot = &shared->executors[start->slot];
	DatabaseSlot *database = shared_find_database(start->dboid);

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	if (database == NULL || pg_atomic_read_u32(&database->dboid) != start->dboid ||
		!slot->in_use || slot->generation != start->generation ||
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
 * Handler of SIGTERM, which may arrive twice at a shutdown.  If nothing is being done,
 * nothing has to be interrupted: the executor stops cleanly, as it does if it is
 * about to stop anyway.  Otherwise it dies at the next opportunity.  It counts as lost
 * only if it was in a call or in a counted attempt and the server does not stop
 * (crash_guard_release_at_exit).  The sender of the signal tells the two apart: a call
 * that has its own process terminated is treated like a call that crashes.
 */
static void
executor_terminate(PNE_SIGNAL_INFO_ARGS)
{
	int			save_errno = errno;

	/* a child process that a call has forked and that has not yet started its program */
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
 * Store positions that are ahead of what is stored: all of them, or those that have
 * been ahead for long.
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
 * Whether the extension exists.  Sets *log_is_free if its log can be locked at once.
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
 * Do one step of stopping, with a time limit of its own.  If it fails or there is too
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
 * Stop cleanly.  No call is in doubt.  Other processes may wait for this one to end,
 * so it waits neither for a lock nor for a standby.
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
 * Move the handler to an event that concerns it, in its window or, if nothing is left
 * in that, in the next one.  Returns false if there is none.  Also returns false if
 * one part of a large window has none: the next round reads the next part, for all
 * handlers that have come so far.
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
 * First step of a round: read what there is to do.  Returns whether there is anything.
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

		/*
		 * The extension exists, but a table or index is missing.  An error tells
		 * which, and the executor waits.
		 */
		if (exists)
			(void) catalog_lookup(false);
		CommitTransactionCommand();
		if (!exists)
			executor_exit();
		doorbell_ring(my_bell);
		return false;
	}
	SPI_connect();
	(void) executor_stop_requested();	/* an executor whose owner was altered notices that here */

	/*
	 * Read the positions before taking the snapshot.  A snapshot that is older than a
	 * position would give the handler an empty window, and so move it back to before
	 * what another executor has done.
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
			backoff_over(run);	/* no event is left for a trial */
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
 * Whether the handler may run a batch: it stands in its window at an event that
 * concerns it.
 */
static bool
has_batch(const HandlerRun *run)
{
	return handler_run_may_run(run) && run->window != NULL && !handler_run_is_held(run);
}

/*
 * Whether the handler may run a batch now, or when the next part of its window has
 * been read.
 */
static bool
has_more(const HandlerRun *run)
{
	return has_batch(run) ||
		(handler_run_is_inside_window(run) && handler_run_may_run(run) && !handler_run_is_held(run));
}

/*
 * Second step of a round: claim the handlers that have work for the first time, as
 * many in one transaction as their locks allow.
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
 * Give a handler its turn: the retries that are due, and a batch of its window.  In a
 * back-off: a trial with the next event, or with the next retry if there is no such
 * event.
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
 * Third step of a round: a turn for each handler.  Returns how long, in ms, to wait
 * before the next round.
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
 * When to wake up if nobody rings.
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
 * Wait for a while, so that events accumulate.  A ring does not end this.
 */
static void
executor_pause(int ms)
{
	stops_soon = true;
	worker_pause(ms);
	stops_soon = false;
}

/*
 * Work until there is nothing to do.  Returns whether there was anything.
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

	/* a request that came during the rounds may concern what was read in the last one */
	store_positions(asked || requests != persist_requests_seen);
	persist_requests_seen = requests;
	return worked;
}

/*
 * Work until there is nothing to do, then sleep.
 */
static void
executor_cycle(MemoryContext cycle_context, MemoryContext turn_context)
{
	/* checked here also after an error, such as a lock that was not to be had in time */
	if (executor_stop_requested())
		executor_stop();
	if (my_slot->worker.not_before > instant_now())
	{
		/* the executor waits after an error */
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

	/* everything is done, stored, counted and shown: wake the sessions that wait for that */
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
