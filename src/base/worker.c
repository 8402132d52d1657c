/*-------------------------------------------------------------------------
 *
 * worker.c
 *		What launcher, listener and executor have in common: signals, session
 *		settings, sleeping, and error recovery.
 *
 * An error outside a handler's code does not end a worker.  The error is logged
 * once, with its context, and kept for event_worker_stats.  Then the worker
 * backs off before it tries again; each further failure in a row doubles the
 * time.  If a worker dies nevertheless, the launcher starts it again after the
 * same back-off.
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

/* the minimum and the maximum time to back off, in ms */
#define MIN_BACKOFF 1000
#define MAX_BACKOFF 60000

/*
 * The maximum wait for a lock in a short transaction, or for the lock on the
 * log.
 */
#define LOCK_TIMEOUT_TEXT "1s"

/*
 * In a deadlock with a client, the worker should be the victim, because it
 * repeats its work and the client may not.  So it looks for deadlocks earlier
 * than clients do.  log_lock_waits is off, because it would write a line for
 * each look, and a handler looks often (call_timeout.c).
 */
#define DEADLOCK_TIMEOUT_TEXT "50ms"

/*
 * Settings that a worker must not take from its owner, the database or the
 * cluster.  A serializable worker would make emitting transactions fail, a
 * read-only one could never store progress, and call_timeout.c enforces the
 * handlers' timeouts.  Row security is evaluated, and handlers run, as the
 * session's user, whatever role the settings of that user or of the database
 * select.  RESET in a handler restores these values, too.
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
 * The worker's transaction has run its deferred triggers and is about to
 * commit.
 */
static volatile sig_atomic_t committing = false;

/*
 * Handler of SIGINT, which timeouts send, too.
 *
 * Once the commit record is written, a cancel could still cut the wait for a
 * standby short, even while cancels are held.  So while a transaction commits,
 * a cancel is accepted only during a wait for a heavyweight lock.  That is the
 * wait for the lock of NOTIFY, which comes before the commit record.  Any other
 * cancel comes too late and is dropped.
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
 * Forget a cancel that has come.  Also forget that lock_timeout has sent it:
 * otherwise the next cancel would be reported as a lock timeout.
 */
static void
forget_cancel(void)
{
	QueryCancelPending = false;
	(void) get_timeout_indicator(LOCK_TIMEOUT, true);
}

/*
 * Transaction callback.  Before a commit, a cancel that has come already takes
 * effect; if cancels are held, it is forgotten.
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
 * Install the signal handlers, and unblock signals.  SIGTERM calls die(), which
 * also interrupts waits for locks.
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
 * Hold cancels, and forget one that has come.  A cancel is for a handler's code
 * (call_timeout.c); there is nothing to cancel while a worker does its own work.
 * Must be called again after each error, because an error ends all holding.
 */
void
worker_hold_cancels(void)
{
	forget_cancel();
	if (QueryCancelHoldoffCount == 0)
		HOLD_CANCEL_INTERRUPTS();
}

/*
 * Let cancels take effect until worker_hold_cancels() is called or an error is
 * raised.  lock_timeout needs that, too: it ends a wait by a cancel.
 */
void
worker_allow_cancels(void)
{
	forget_cancel();
	if (QueryCancelHoldoffCount > 0)
		RESUME_CANCEL_INTERRUPTS();
}

/*
 * Connect to a database as owner, or as the bootstrap superuser if owner is
 * InvalidOid.  Called once per process.
 */
void
worker_connect(Oid dboid, Oid owner)
{
	BackgroundWorkerInitializeConnectionByOid(dboid, owner, 0);

	for (int i = 0; i < (int) lengthof(forced_settings); i++)
		SetConfigOption(forced_settings[i].name, forced_settings[i].value,
						PGC_SUSET, PGC_S_OVERRIDE);

	/* payloads and event data are in the database's encoding */
	SetConfigOption("client_encoding", GetDatabaseEncodingName(), PGC_USERSET, PGC_S_OVERRIDE);
}

/*
 * Start a transaction of a listener.  The listener reads no notifications while
 * the transaction lasts, so it waits for no lock longer than LOCK_TIMEOUT_TEXT.
 * After that an error is raised, and the listener tries again later.  Must be
 * called outside of a transaction.
 */
void
worker_start_short_transaction(void)
{
	Assert(!IsTransactionState());

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	worker_allow_cancels();
	(void) set_config_option("lock_timeout", LOCK_TIMEOUT_TEXT,
							 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0, false);
}

/*
 * Commit it, and hold cancels again.
 */
void
worker_commit_short_transaction(void)
{
	CommitTransactionCommand();
	worker_hold_cancels();
}

/*
 * Lock a table with AccessShareLock until the end of the transaction.  If that
 * takes longer than LOCK_TIMEOUT_TEXT, an error is raised (55P03).  Must be
 * called in a transaction.
 */
void
worker_lock_table(Oid relid)
{
	bool		held = QueryCancelHoldoffCount > 0;
	int			level;

	Assert(IsTransactionState());

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
 * Note that the process is alive.  The caller must hold shared->lock
 * exclusively.
 */
void
worker_is_alive(Worker *worker)
{
	Assert(LWLockHeldByMeInMode(shared->lock, LW_EXCLUSIVE));

	worker->pid = MyProcPid;
	worker->started_at = GetCurrentTimestamp();
	worker->alive_since = instant_now();
}

/*
 * Returns how long to back off after a failure, in ms.  backoff is the previous
 * time, or 0 if there was no failure before.
 */
int
worker_next_backoff(int backoff)
{
	return Min(Max(backoff * 2, MIN_BACKOFF), MAX_BACKOFF);
}

/*
 * Begin a back-off, longer than the previous one.
 */
static void
lengthen_backoff(Worker *worker)
{
	worker->backoff = worker_next_backoff(worker->backoff);
	worker->not_before = instant_in(worker->backoff);
}

/*
 * Note that the process ends, regularly (clean) or not.  The caller must hold
 * shared->lock exclusively.
 */
void
worker_went_away(Worker *worker, bool clean)
{
	Assert(LWLockHeldByMeInMode(shared->lock, LW_EXCLUSIVE));

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
 * Enter a phase, and show it in event_worker_stats and, as activity, in
 * pg_stat_activity.  The caller must not hold shared->lock.
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

/*
 * Wait for the latch, for events and timeout as WaitLatch() takes them, and
 * process interrupts.
 */
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
 * Sleep until the bell is rung or until an instant (INSTANT_NEVER: without a
 * limit).  May return earlier.
 *
 * The bell's flag is tested after the latch was reset and before the sleep, so
 * no ring is missed (doorbell.c).  The caller tests notifyInterruptPending
 * likewise, because notifications of this process set that flag without the
 * latch.
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
 * Sleep for so many ms, even if the bell is rung.
 */
void
worker_pause(int ms)
{
	if (ms <= 0)
		return;
	wait_on_latch(WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, ms);
}

/*
 * Read the configuration again if that was requested.  Returns whether it was.
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
 * Abort the transaction after an error, and keep the error for
 * event_worker_stats.  Log it if log is set.  Must be called in a PG_CATCH
 * block.
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
 * Returns whether the error has another message than the last one.  Must be
 * called in a PG_CATCH block.
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
 * Recover from an error in the main loop of a worker.  Aborts the transaction,
 * and logs the error unless it is the same as the last one.  Sets not_before to
 * the end of the back-off; the main loop waits until then.  Must be called in a
 * PG_CATCH block.
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
 * The same for a lock that could not be taken in time.  There is no back-off,
 * because the next attempt waits for the lock anyway.
 */
void
worker_locked_out(Worker *worker)
{
	worker_abort(worker, worker->phase != WORKER_BACKING_OFF || error_is_news(worker->last_error));
	worker_enter_phase(worker, WORKER_BACKING_OFF, "waiting for a lock on notification_events");
}

/*
 * Perform a task, unless it has failed and is still backing off.  Returns false
 * if it has failed just now; then the transaction was aborted.
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
 * Note that a cycle was successful: the next failure backs off for the shortest
 * time.
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
