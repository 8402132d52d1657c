/*-------------------------------------------------------------------------
 *
 * careful.c
 *		Events that end the process which handles them.
 *
 * A call may never return: it crashes the server, has it killed by the kernel,
 * or terminates its own process.  Nobody is left then to record a failure, so
 * what an attempt is must be on disk before it begins.  That would cost each
 * event a flush; so it is done only where there is reason to:
 *
 *	- Before the first batch of a handler its executor leaves its mark in the
 *	  progress row (in_use), flushed, and takes it back when it leaves, or is
 *	  terminated while no code of a handler runs (careful_take_up,
 *	  careful_release, careful_release_at_exit).  Where it cannot, as the row is
 *	  locked or the table is not found, it says so in shared memory
 *	  (careful_disown_marks).
 *	- An executor that finds another one's mark has lost a predecessor, and
 *	  works carefully: event by event, each parked in _event_retries with the
 *	  attempt counted and the position moved past it, flushed, before the call
 *	  (retry_run_fresh).  An event that kills is so counted, and the others go
 *	  on behind it.  Retries are always run so.
 *	- How long?  A position that only refused events have moved is stored
 *	  lazily, and batches need not be flushed when they commit, so that a crash
 *	  of the server takes some back.  But never more than MAX_UNSTORED events
 *	  are passed without storing it, nor more than MAX_UNFLUSHED called before
 *	  that is flushed (careful_bound); so what the lost executor was doing is
 *	  among the next MAX_UNSTORED + MAX_UNFLUSHED events, or in the batch behind
 *	  them.  (Should as many events become visible just now that have lower ids,
 *	  it is found at the next loss.)
 *
 * Every commit that ends an attempt which was counted is flushed, too: a crash
 * shall not take the end back and leave the count.
 *
 * A call can also refuse to end: it catches the cancel that its timeout sends.
 * A second after that its process is ended; what that means for the event is
 * the above.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "common/pg_prng.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "utils/builtins.h"
#include "utils/guc.h"

#include "careful.h"
#include "catalog.h"
#include "executor.h"
#include "fault.h"
#include "loglimit.h"
#include "progress.h"
#include "retry.h"
#include "timers.h"
#include "worker.h"

/* events that may be called before what was committed is flushed */
#define MAX_UNFLUSHED 4096

/* events that may be passed before the position is stored, and flushed */
#define MAX_UNSTORED 1024

/*
 * How long a call may go on after its timeout, and how often to look, in ms.  The
 * latter is less than deadlock_timeout is for clients, as a rule.
 */
#define OVERRUN_MS 1000
#define WATCH_MS 500

/* this executor's mark; never 0 */
static int64 my_mark = 0;

/*
 * Events that were called since progress was last known to be flushed: up to
 * the commit that ends at half_lsn, and after it.
 */
static int	first_half = 0;
static int	second_half = 0;
static XLogRecPtr half_lsn = InvalidXLogRecPtr;

static TimeoutId watch_timeout;
static volatile sig_atomic_t overran = false;

/* code of a handler runs, and that is to end where the handler is dropped */
static volatile sig_atomic_t in_call = false;

/* the same; and it stays so where the process was told to end meanwhile */
static bool call_in_doubt = false;

/* when the present call's timeout ends, and when it was first seen to have */
static Instant call_deadline = INSTANT_NEVER;
static Instant overrun_since = 0;

/* attempts that were counted and whose end was not recorded */
static int	open_attempts = 0;

/*
 * No code of the handler runs any more; but who was told to die while it did dies
 * of that, though it be later.  Nor does it count as its end that a process which
 * dies of it commits something: the server removes temporary tables then.
 */
static void
code_has_ended(void)
{
	in_call = false;
	if (ProcDiePending || proc_exit_inprogress)
		return;
	call_deadline = INSTANT_NEVER;
	call_in_doubt = false;
}

/*
 * Called from time to time while code of the handler runs.
 *
 * Who waits for a lock looks for a deadlock only once, at the beginning.  One that
 * comes to be later would be found by the client that waits last, which then is
 * the victim; so we look again.
 *
 * A process that was stopped for a while finds its timeout long past; the call
 * shall have heard of it before it is ended.  The timeout of a call that nobody
 * wants any more is now.
 */
static void
watch(void)
{
	Instant		now = instant_now();

	/* timers go on while the process ends, when there may be no MyProc any more */
	if (proc_exit_inprogress)
		return;
	if (MyProc->waitLock != NULL)
		CheckDeadLockAlert();
	if (in_call && now < call_deadline && executor_call_is_unwanted())
	{
		call_deadline = now;
		kill(MyProcPid, SIGINT);
	}
	if (now < call_deadline)
		return;
	if (overrun_since == 0)
		overrun_since = now;
	if (!instant_passed(overrun_since, now, OVERRUN_MS))
		return;
	overran = true;
	ProcDiePending = true;
	InterruptPending = true;
	SetLatch(MyLatch);
}

/*
 * A transaction commits.  What is committed is committed: the timeout of the
 * handler's code ends here, behind the deferred triggers, and so does the watch
 * for overruns.  What the commit may still have to wait for before its record is
 * written is the lock of NOTIFY; the rest of the time is for that.  If it is not
 * to be had in time, that is the error of a lock, which no event is charged for.
 */
static void
end_timeout_at_commit(XactEvent event, void *arg)
{
	char		rest[MAXINT8LEN + 1];

	if (event != XACT_EVENT_PRE_COMMIT || call_deadline == INSTANT_NEVER)
		return;
	/* should it be over, that is the timeout's doing still (worker.c) */
	disable_timeout(STATEMENT_TIMEOUT, true);
	careful_stop_watch();
	pg_lltoa(Max(instant_ms_left(instant_now(), call_deadline), 1), rest);
	(void) set_config_option("lock_timeout", rest, PGC_USERSET, PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0, false);
	code_has_ended();
}

/*
 * Once per executor, when it has connected.
 */
void
careful_init(void)
{
	RegisterXactCallback(end_timeout_at_commit, NULL);
	while (my_mark == 0)
		my_mark = (int64) pg_prng_uint64(&pg_global_prng_state);
	executor_show_mark(my_mark);
	watch_timeout = RegisterTimeout(USER_TIMEOUT, watch);
}

/* ----------
 * Timeouts
 * ----------
 */

/*
 * What follows has so many ms at most, and can be cancelled.  Who watches it looks
 * from time to time, for all calls of a transaction: a timer that is started for
 * each would cost more than a call.
 */
void
careful_arm_timeout(int timeout)
{
	call_deadline = instant_in(timeout);
	overrun_since = 0;
	if (!get_timeout_active(watch_timeout))
		timers_repeat(watch_timeout, WATCH_MS);
	timers_start(STATEMENT_TIMEOUT, call_deadline);
	worker_allow_cancels();
}

/*
 * The same for code of the handler, or of a policy, which may end the process.  It
 * is not to begin where the handler is being dropped, and to end soon where it has
 * begun.
 */
void
careful_begin_call(int timeout)
{
	careful_arm_timeout(timeout);
	in_call = call_in_doubt = true;
	if (executor_call_is_unwanted())
		ereport(ERROR,
				(errcode(ERRCODE_QUERY_CANCELED),
				 errmsg("the event handler is being dropped")));
}

/*
 * It has come to its end, or failed.  A cancel that comes too late for it is
 * nobody's.
 *
 * The timer goes on: who calls again soon moves it, and who does not stops it
 * with careful_disarm_timeout().
 */
void
careful_call_returned(void)
{
	code_has_ended();
	worker_hold_cancels();
}

/*
 * The same, and no other call is to follow.
 */
void
careful_disarm_timeout(void)
{
	disable_timeout(STATEMENT_TIMEOUT, false);
	careful_call_returned();
}

/*
 * The transaction is over.
 */
void
careful_stop_watch(void)
{
	if (get_timeout_active(watch_timeout))
		disable_timeout(watch_timeout, false);
}

/*
 * Whether the process is being ended because a call did not end.
 */
bool
careful_overran(void)
{
	return overran;
}

/* ----------
 * What is flushed
 * ----------
 */

/*
 * Before a batch: see to it that no more events are called beyond what is
 * stored and flushed than a successor would be careful for.  False where the
 * handler cannot go on for now.
 */
bool
careful_bound(HandlerRun *run, int nevents)
{
	int			unflushed = first_half + second_half;

	if (run->health->unstored + nevents > MAX_UNSTORED && run->health->unstored > 0)
	{
		progress_flush(run, true);
		if (run->health->unstored > 0)
			return false;
	}

	if (unflushed == 0)
		return true;
	if (GetFlushRecPtr(NULL) >= half_lsn)
	{
		/* the WAL writer has been there */
		unflushed = first_half = second_half;
		second_half = 0;
		half_lsn = XactLastCommitEnd;
	}
	if (unflushed + nevents > MAX_UNFLUSHED && unflushed > 0)
	{
		XLogFlush(XactLastCommitEnd);
		first_half = second_half = 0;
	}
	return true;
}

/*
 * A batch, or the failure of an event, is committed.
 */
void
careful_note_commit(int nevents)
{
	if (first_half == 0)
	{
		first_half = nevents;
		half_lsn = XactLastCommitEnd;
	}
	else
		second_half += nevents;
}

/* ----------
 * Marks
 * ----------
 */

/*
 * Leave our mark, and for how many events a successor would have to be careful,
 * in the transaction that has locked the row; unless the mark of another executor
 * is there (lost), and others are to be taken up in the transaction.  Returns
 * whether it was left.
 */
static bool
write_mark(HandlerRun *run, bool alone, bool *lost)
{
	static OwnStatement select_mark = {
		.sql = "SELECT p.in_use, p.careful FROM @s._event_handler_progress AS p "
		"WHERE p.handler OPERATOR(pg_catalog.=) $1",
		.target = OWN_NONE,
		.nargs = 1,
		.argtypes = {TEXTOID},
	};
	static OwnStatement update_mark = {
		.sql = "UPDATE @s._event_handler_progress SET in_use = $2, careful = $3 "
		"WHERE handler OPERATOR(pg_catalog.=) $1",
		.target = OWN_PROGRESS,
		.nargs = 3,
		.argtypes = {TEXTOID, INT8OID, INT4OID},
	};
	Datum		values[3];
	bool		marked = false;
	bool		released;
	bool		isnull;

	*lost = false;
	values[0] = CStringGetTextDatum(run->definition->name);
	values[1] = Int64GetDatum(my_mark);
	values[2] = Int32GetDatum(MAX_UNSTORED + MAX_UNFLUSHED + run->definition->batch_size);
	if (own_execute(&select_mark, values, NULL, 1) == 1)
	{
		int64		mark = DatumGetInt64(own_value(0, 1, &isnull));

		marked = !isnull;
		released = marked && shared_mark_is_released(mark);
		*lost = marked && !released && mark != my_mark && !shared_executor_lives(mark);
		if (*lost && !alone)
			return false;
		if (released)
			run->health->careful = 0;
		else if (!marked || *lost)
			run->health->careful = DatumGetInt32(own_value(0, 2, &isnull));
	}
	own_execute(&update_mark, values, NULL, 0);
	return true;
}

/*
 * The mark is there, and flushed.
 */
static void
taken_up(HandlerRun *run)
{
	run->health->marked = run->health->taken_up = true;
}

/*
 * And the mark of another executor was there.
 */
static void
taken_over(HandlerRun *run)
{
	run->next_retry_at = 0;		/* look again */
	if (loglimit_allows(LOG_TOPIC_HANDLERS))
		ereport(LOG,
				(errmsg("event handler \"%s\" goes on carefully: an executor that ran it was lost",
						run->definition->name),
				 errdetail("One of its events may be the cause. The next %d are tried one by one, each attempt recorded before it.",
						   run->health->careful)));
}

/*
 * Before the first batch of handlers in this process, and of each of their
 * definitions: leave our mark, and find out whether a predecessor was lost.  Those
 * that cannot go on for now are not taken up.
 *
 * One transaction for all of them, as it waits for its flush; but one of its own
 * for each whose executor was lost, as its attempts may be locked by somebody.
 */
void
careful_take_up(List *runs)
{
	MemoryContext context = CurrentMemoryContext;
	bool		alone = (list_length(runs) == 1);
	bool		lost = false;
	List	   *marked = NIL;
	List	   *left_out = NIL;
	ListCell   *lc;

	batch_start_transaction();
	foreach(lc, runs)
	{
		HandlerRun *run = lfirst(lc);
		MemoryContext old;
		bool		done;

		if (!progress_lock(run))
			continue;
		done = write_mark(run, alone, &lost);
		if (done && lost)
			retry_recover_attempts(run);
		old = MemoryContextSwitchTo(context);
		if (done)
			marked = lappend(marked, run);
		else
			left_out = lappend(left_out, run);
		MemoryContextSwitchTo(old);
	}
	if (marked != NIL)
		ForceSyncCommit();
	batch_commit_transaction(0);
	FAULT_POINT("after-mark");

	/* all, before anything that could be interrupted: who has a mark releases it */
	foreach(lc, marked)
	{
		taken_up(lfirst(lc));
	}
	if (alone && lost && marked != NIL)
		taken_over(linitial(marked));
	foreach(lc, left_out)
	{
		careful_take_up(list_make1(lfirst(lc)));
	}
}

/*
 * Take our mark from a handler's progress row, if it is there.  Where somebody
 * has locked the row, wait for him, or let it be and return false.
 */
static bool
release_mark(const HandlerHealth *health, bool wait)
{
#define LOCK_MARK \
	"SELECT 1 FROM @s._event_handler_progress AS p " \
	"WHERE p.handler OPERATOR(pg_catalog.=) $1 AND p.in_use OPERATOR(pg_catalog.=) $2 " \
	"AND p.created OPERATOR(pg_catalog.=) $3 FOR UPDATE"
	static OwnStatement lock_mark = {
		.sql = LOCK_MARK,
		.target = OWN_PROGRESS,
		.nargs = 3,
		.argtypes = {TEXTOID, INT8OID, INT8OID},
	};
	static OwnStatement lock_mark_if_free = {
		.sql = LOCK_MARK " SKIP LOCKED",
		.target = OWN_PROGRESS,
		.nargs = 3,
		.argtypes = {TEXTOID, INT8OID, INT8OID},
	};
	static OwnStatement clear_mark = {
		.sql = "UPDATE @s._event_handler_progress SET in_use = NULL, careful = $2 "
		"WHERE handler OPERATOR(pg_catalog.=) $1",
		.target = OWN_PROGRESS,
		.nargs = 2,
		.argtypes = {TEXTOID, INT4OID},
	};
	Datum		keys[3] = {CStringGetTextDatum(health->name), Int64GetDatum(my_mark), Int64GetDatum(health->created)};
	Datum		values[2] = {keys[0], Int32GetDatum(health->careful)};

	if (own_execute(wait ? &lock_mark : &lock_mark_if_free, keys, NULL, 1) != 1)
		return wait;
	own_execute(&clear_mark, values, NULL, 0);
	return true;
}

/*
 * Take our marks from these handlers, or from those that are not the owner's any
 * more, in a transaction that was started for it.  Nobody is waited for.
 */
static void
release_free_marks(List *healths, bool all)
{
	ListCell   *lc;

	foreach(lc, healths)
	{
		HandlerHealth *health = lfirst(lc);

		health->released = health->marked && (all || health->gone) && release_mark(health, false);
	}
	batch_commit_transaction(0);

	/* not before: who is terminated in between has not released them */
	foreach(lc, healths)
	{
		HandlerHealth *health = lfirst(lc);

		if (health->released)
			health->marked = false;
	}
}

static bool
any_mark(List *healths, bool all)
{
	ListCell   *lc;

	foreach(lc, healths)
	{
		HandlerHealth *health = lfirst(lc);

		if (health->marked && (all || health->gone))
			return true;
	}
	return false;
}

/*
 * Take our marks from handlers that are not the owner's any more, and forget
 * those.
 */
void
careful_release_gone(List **healths)
{
	ListCell   *lc;

	if (any_mark(*healths, false))
	{
		FAULT_POINT("before-release");
		batch_start_own_transaction();
		release_free_marks(*healths, false);
	}

	foreach(lc, *healths)
	{
		HandlerHealth *health = lfirst(lc);

		if (!health->gone)
			continue;
		*healths = foreach_delete_current(*healths, lc);
		if (health->problem != NULL)
			pfree(health->problem);
		pfree(health);
	}
}

/*
 * The executor leaves: take all marks.  A row that is locked may be so by the
 * successor, who is about to look whether we are alive; so he is waited for, as
 * long as the caller has set a timeout for.
 */
void
careful_release(List *healths)
{
	ListCell   *lc;

	if (!any_mark(healths, true))
		return;
	FAULT_POINT("before-release");
	batch_start_own_transaction();
	release_free_marks(healths, true);

	foreach(lc, healths)
	{
		HandlerHealth *health = lfirst(lc);

		if (!health->marked)
			continue;
		batch_start_own_transaction();
		(void) release_mark(health, true);
		batch_commit_transaction(0);
		health->marked = false;
	}
}

/*
 * An attempt was counted; its end is recorded.  Who ends in between, or fails to
 * record it, leaves that to the successor, who looks for such attempts where it
 * finds a mark (retry_recover_attempts).
 */
void
careful_attempt_begins(void)
{
	open_attempts++;
}

void
careful_attempt_ends(void)
{
	Assert(open_attempts > 0);
	open_attempts--;
}

/*
 * Whether the process can end here without anybody's having to be careful: not
 * during a call, or an attempt, unless that is of a handler which is being dropped.
 */
static bool
nothing_is_in_doubt(void)
{
	return (!call_in_doubt && open_attempts == 0) || executor_call_is_unwanted();
}

/*
 * The executor ends in good order.  Marks that it could not take, as the row is
 * locked or the table is not where it was, are told apart from those of a lost
 * executor by what this says in shared memory, for as long as that lives.  Not so
 * where it was careful itself and is not through with that.
 */
void
careful_disown_marks(List *healths)
{
	ListCell   *lc;

	if (!nothing_is_in_doubt() || !any_mark(healths, true))
		return;
	foreach(lc, healths)
	{
		HandlerHealth *health = lfirst(lc);

		if (health->marked && health->careful > 0)
			return;
	}
	shared_release_mark(my_mark);
}

/*
 * The process is being terminated.  If that did not happen during a call, or an
 * attempt, or if the call was that of a handler that is being dropped, no event
 * is the cause; so the marks are taken, though only where the progress can be had
 * at once: there are no interrupts any more.
 */
void
careful_release_at_exit(List *healths)
{
	if (!nothing_is_in_doubt() || !any_mark(healths, true))
		return;
	AbortOutOfAnyTransaction();
	batch_never_wait(0);
	if (batch_start_transaction_if_free())
		release_free_marks(healths, true);
	careful_disown_marks(healths);
}
