/*-------------------------------------------------------------------------
 *
 * worker.c
 *		What launcher, listener and executor have in common: signals, session
 *		settings, sleeping, and what happens after an error.
 *
 * An error outside a handler's code ends no worker.  It is logged once, with
 * its context, kept for event_worker_stats, and the worker backs off before it
 * tries again, twice as long after each failure in a row.  A worker that dies
 * all the same is started anew by the launcher, after the same back-off.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <limits.h>

#include "access/xact.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "storage/sinval.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "base/compat.h"
#include "base/foreign_text.h"
#include "base/timers.h"
#include "base/worker.h"

/* the first and the longest time to back off, in ms */
#define MIN_BACKOFF 1000
#define MAX_BACKOFF 60000

/* the longest wait for a lock in a short transaction, or for one on the log */
#define LOCK_TIMEOUT_TEXT "1s"

/*
 * Of a deadlock with a client the worker is to be the victim, as it repeats what
 * it did, and the client may not: it looks first.  As it looks soon and, for a
 * handler, often (crash_guard.c), log_lock_waits is off: that has a line for each look.
 */
#define DEADLOCK_TIMEOUT_TEXT "50ms"

/*
 * Settings that a worker must not take from owner, database or cluster: a
 * serializable one would make emitting transactions fail, a read-only one
 * could never progress, and the handlers' timeout is ours to enforce.  Row
 * security is asked, and handlers run, as the session's user, whatever role
 * sessions of him or of the database begin with; RESET comes back to this, too.
 */
static const struct
{
	const char *name;
	const char *value;
}			forced_settings[] = {
	{"default_transaction_isolation", "read committed"},
	{"default_transaction_read_only", "off"},
	{"default_transaction_deferrable", "off"},
	{"session_replication_role", "origin"},
	{"statement_timeout", "0"},
	{"lock_timeout", "0"},
	{"idle_in_transaction_session_timeout", "0"},
	{"idle_session_timeout", "0"},
	{"deadlock_timeout", DEADLOCK_TIMEOUT_TEXT},
	{"log_lock_waits", "off"},
#ifdef PNE_HAVE_TRANSACTION_TIMEOUT
	{"transaction_timeout", "0"},
#endif
	{"row_security", "on"},
	{"role", "none"},
};

/*
 * The worker's transaction has run its deferred triggers, and is about to be
 * committed.
 */
static volatile sig_atomic_t committing = false;

/*
 * SIGINT, also what timeouts send.  Once the record of a commit is written a
 * cancel could only cut the wait for a standby short, though cancels are held.
 * So while a transaction commits there is but one thing to cancel, the wait for
 * the lock of NOTIFY, which comes before that record.  Any other cancel comes too
 * late, and is dropped.
 */
static void
worker_cancel(SIGNAL_ARGS)
{
	if (timers_cancel_is_early())
		return;
	if (!committing || MyProc->waitLock != NULL)
		StatementCancelHandler(PNE_PASS_SIGNAL_ARGS);
}

/*
 * Forget a cancel that has come, and that it came from lock_timeout: the next one
 * would be taken for that.
 */
static void
forget_cancel(void)
{
	QueryCancelPending = false;
	(void) get_timeout_indicator(LOCK_TIMEOUT, true);
}

/*
 * Called at the end of each transaction.  A cancel that has come already is
 * acted upon, or where cancels are held, forgotten.
 */
static void
note_commit(XactEvent event, void *arg)
{
	committing = (event == XACT_EVENT_PRE_COMMIT);
	if (committing && QueryCancelPending)
	{
		CHECK_FOR_INTERRUPTS();
		forget_cancel();
	}
}

/*
 * Handlers of the usual signals.  SIGTERM is die(): it interrupts waits for
 * locks, too.
 */
void
worker_signals(void)
{
	RegisterXactCallback(note_commit, NULL);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGINT, worker_cancel);
	pqsignal(SIGTERM, die);
	timers_init();
	worker_hold_cancels();
	BackgroundWorkerUnblockSignals();
}

/*
 * A cancel is for a handler's code (crash_guard.c).  While a worker does its own
 * work there is nothing to cancel; one that has come is forgotten.  To be said
 * again after each error, which ends all holding.
 */
void
worker_hold_cancels(void)
{
	forget_cancel();
	if (QueryCancelHoldoffCount == 0)
		HOLD_CANCEL_INTERRUPTS();
}

/*
 * From here on a cancel is acted upon, which is also how lock_timeout ends a
 * wait; until worker_hold_cancels() is called, or an error is.
 */
void
worker_allow_cancels(void)
{
	forget_cancel();
	if (QueryCancelHoldoffCount > 0)
		RESUME_CANCEL_INTERRUPTS();
}

/*
 * Connect to a database, as owner or, without one, as the bootstrap superuser.
 */
void
worker_connect(Oid dboid, Oid owner)
{
	BackgroundWorkerInitializeConnectionByOid(dboid, owner, 0);

	for (int i = 0; i < (int) lengthof(forced_settings); i++)
		SetConfigOption(forced_settings[i].name, forced_settings[i].value,
						PGC_SUSET, PGC_S_OVERRIDE);

	/* payloads and event data are the database's own bytes */
	SetConfigOption("client_encoding", GetDatabaseEncodingName(), PGC_USERSET, PGC_S_OVERRIDE);
}

/*
 * Start a transaction of a listener.  While it lasts nothing is read from the
 * notification queue, so it waits for no lock for long: that is an error then,
 * and tried again later.
 */
void
worker_start_short_transaction(void)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	worker_allow_cancels();
	(void) set_config_option("lock_timeout", LOCK_TIMEOUT_TEXT,
							 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0, false);
}

void
worker_commit_short_transaction(void)
{
	CommitTransactionCommand();
	worker_hold_cancels();
}

/*
 * Lock a table for reading, until the end of the transaction, but do not wait for
 * that for long: it is an error then (55P03).
 */
void
worker_lock_table(Oid relid)
{
	bool		held = QueryCancelHoldoffCount > 0;
	int			level;

	if (ConditionalLockRelationOid(relid, AccessShareLock))
		return;
	level = NewGUCNestLevel();
	(void) set_config_option("lock_timeout", LOCK_TIMEOUT_TEXT,
							 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	if (held)
		worker_allow_cancels();
	LockRelationOid(relid, AccessShareLock);
	if (held)
		worker_hold_cancels();
	AtEOXact_GUC(true, level);
}

/*
 * The process is there.  The caller holds the lock.
 */
void
worker_is_alive(Worker *worker)
{
	worker->pid = MyProcPid;
	worker->started_at = GetCurrentTimestamp();
	worker->alive_since = instant_now();
}

/*
 * How long to back off, in ms, after a failure; backoff is how long it was
 * after the last one, 0 if that was none.
 */
int
worker_next_backoff(int backoff)
{
	return Min(Max(backoff * 2, MIN_BACKOFF), MAX_BACKOFF);
}

static void
lengthen_backoff(Worker *worker)
{
	worker->backoff = worker_next_backoff(worker->backoff);
	worker->not_before = instant_in(worker->backoff);
}

/*
 * The process ends.  The caller holds the lock.
 */
void
worker_went_away(Worker *worker, bool clean)
{
	worker->pid = 0;
	if (clean)
		worker_set_phase(worker, WORKER_NONE);
	else
	{
		lengthen_backoff(worker);
		worker_set_phase(worker, WORKER_BACKING_OFF);
	}
}

/*
 * Show what the worker does now, in event_worker_stats and pg_stat_activity.
 */
void
worker_enter_phase(Worker *worker, WorkerPhase phase, const char *activity)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	worker_set_phase(worker, phase);
	LWLockRelease(shared->lock);
	pgstat_report_activity(phase == WORKER_RUNNING || phase == WORKER_STARTING ? STATE_RUNNING : STATE_IDLE,
						   activity);
}

static void
wait_on_latch(int events, long timeout)
{
	static uint32 wait_event = 0;

	if (wait_event == 0)
		wait_event = pne_wait_event("PgNotifyEventsMain");
	(void) WaitLatch(MyLatch, events, timeout, wait_event);

	worker_hold_cancels();
	CHECK_FOR_INTERRUPTS();
	if (catchupInterruptPending)
		ProcessCatchupInterrupt();
}

/*
 * Sleep until the bell is rung or a time has come (INSTANT_NEVER: no time).
 *
 * The flag of the bell is tested after the latch was reset and before sleeping,
 * so no ring is slept over (doorbell.c).  The same goes for notifications of
 * our own: they raise the flag without the latch.
 */
void
worker_sleep(Bell *bell, Instant until)
{
	int			events = WL_LATCH_SET | WL_EXIT_ON_PM_DEATH;
	long		timeout = -1;

	if (doorbell_is_rung(bell))
		return;
	if (until != INSTANT_NEVER)
	{
		timeout = (long) Min(instant_ms_left(instant_now(), until), INT_MAX);
		if (timeout == 0)
			return;
		events |= WL_TIMEOUT;
	}
	wait_on_latch(events, timeout);
}

/*
 * Sleep so many ms, though somebody rings.
 */
void
worker_pause(int ms)
{
	if (ms <= 0)
		return;
	wait_on_latch(WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, ms);
}

/*
 * Read the configuration again if that was asked for.  True if it was.
 */
bool
worker_reload_config(void)
{
	if (!ConfigReloadPending)
		return false;
	ConfigReloadPending = false;
	ProcessConfigFile(PGC_SIGHUP);
	return true;
}

/*
 * In a PG_CATCH block of a worker: keep the error for event_worker_stats, log
 * it if asked to, and abort.
 */
void
worker_abort(Worker *worker, bool log)
{
	MemoryContext context = MemoryContextSwitchTo(TopMemoryContext);
	ErrorData  *error;

	HOLD_INTERRUPTS();
	LWLockReleaseAll();
	disable_all_timeouts(false);
	QueryCancelPending = false;
	error = CopyErrorData();
	if (error->message == NULL)
		error->message = pstrdup("");

	if (log)
		EmitErrorReport();
	AbortOutOfAnyTransaction();
	FlushErrorState();
	MemoryContextSwitchTo(context);

	worker_report_error(worker, error->message);
	FreeErrorData(error);
	worker_hold_cancels();
	RESUME_INTERRUPTS();
}

/*
 * In a PG_CATCH block: whether the error is another one than the last.
 */
static bool
error_is_news(const char *last_error)
{
	MemoryContext context = MemoryContextSwitchTo(TopMemoryContext);
	ErrorData  *error = CopyErrorData();
	char		message[WORKER_ERROR_SIZE];

	text_cut(message, error->message ? error->message : "", sizeof(message));
	FreeErrorData(error);
	MemoryContextSwitchTo(context);
	return strcmp(last_error, message) != 0;
}

/*
 * In a PG_CATCH block of a worker's main loop: log the error unless it is the
 * last one again, abort, and set not_before to the end of the back-off, which
 * the loop waits for.
 */
void
worker_recover(Worker *worker)
{
	worker_abort(worker, worker->backoff == 0 || error_is_news(worker->last_error));
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	lengthen_backoff(worker);
	LWLockRelease(shared->lock);
	worker_enter_phase(worker, WORKER_BACKING_OFF, "backing off after an error");
}

/*
 * The same where somebody has a lock that was waited for in vain: who tries again
 * waits again, and so need not wait before that.
 */
void
worker_locked_out(Worker *worker)
{
	worker_abort(worker, worker->phase != WORKER_BACKING_OFF || error_is_news(worker->last_error));
	worker_enter_phase(worker, WORKER_BACKING_OFF, "waiting for a lock on notification_events");
}

/*
 * Perform a duty, unless it has failed and is to be left alone for now.  False
 * if it has failed just now.
 */
bool
worker_perform(Worker *worker, WorkerTask *task, void (*work) (void))
{
	MemoryContext context = CurrentMemoryContext;
	volatile bool failed = false;

	if (task->not_before > instant_now())
		return true;

	PG_TRY();
	{
		work();
		task->backoff = 0;
		task->not_before = 0;
	}
	PG_CATCH();
	{
		failed = true;
		MemoryContextSwitchTo(context);
		worker_abort(worker, task->backoff == 0 || error_is_news(task->last_error));
		strlcpy(task->last_error, worker->last_error, WORKER_ERROR_SIZE);
		task->backoff = worker_next_backoff(task->backoff);
		task->not_before = instant_in(task->backoff);
	}
	PG_END_TRY();
	return !failed;
}

/*
 * A cycle went well: the next failure is a first one.
 */
void
worker_recovered(Worker *worker)
{
	if (worker->backoff == 0)
		return;
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	worker->backoff = 0;
	worker->not_before = 0;
	LWLockRelease(shared->lock);
}
