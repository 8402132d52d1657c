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
 *	  progress row (in_use), flushed, and takes it back when it leaves cleanly
 *	  (careful_take_up, careful_release).
 *	- An executor that finds another one's mark has lost a predecessor, and
 *	  works carefully: event by event, each parked in _event_retries with the
 *	  attempt counted and the position moved past it, flushed, before the call
 *	  (retry_run_fresh).  An event that kills is so counted, and the others go
 *	  on behind it.  Retries are always run so.
 *	- How long?  Batches need not be flushed when they commit, and a crash of
 *	  the server takes those back that were not.  But never more than
 *	  MAX_UNFLUSHED events are called beyond what is flushed (careful_bound); so
 *	  whatever the lost executor was doing is among the next MAX_UNFLUSHED
 *	  events, or in the batch behind them.
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
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

#include "careful.h"
#include "catalog.h"
#include "fault.h"
#include "retry.h"
#include "worker.h"

/* events that may be called before what was committed is flushed */
#define MAX_UNFLUSHED 4096

/* how long a call may go on after its timeout, in ms */
#define OVERRUN_MS 1000

/* this executor's mark; never 0 */
static int64 my_mark = 0;

/*
 * Events that were called since progress was last known to be flushed: up to
 * the commit that ends at half_lsn, and after it.
 */
static int	first_half = 0;
static int	second_half = 0;
static XLogRecPtr half_lsn = InvalidXLogRecPtr;

static TimeoutId overrun_timeout;
static volatile sig_atomic_t overran = false;

static void
end_overrun(void)
{
	overran = true;
	ProcDiePending = true;
	InterruptPending = true;
	SetLatch(MyLatch);
}

/*
 * Once per executor, when it has connected.
 */
void
careful_init(void)
{
	while (my_mark == 0)
		my_mark = (int64) pg_prng_uint64(&pg_global_prng_state);
	overrun_timeout = RegisterTimeout(USER_TIMEOUT, end_overrun);
}

/* ----------
 * Timeouts
 * ----------
 */

/*
 * From now on code of the handler runs, for so many ms at most, and can be
 * cancelled.
 */
void
careful_arm_timeout(int timeout)
{
	EnableTimeoutParams params[2] = {
		{.id = STATEMENT_TIMEOUT, .type = TMPARAM_AFTER, .delay_ms = timeout},
		{.id = overrun_timeout, .type = TMPARAM_AT},
	};

	params[1].fin_time = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), (int64) timeout + OVERRUN_MS);
	enable_timeouts(params, lengthof(params));
	QueryCancelPending = false;
	RESUME_CANCEL_INTERRUPTS();
}

/*
 * It has come to its end, or failed.  A cancel that comes too late for it is
 * nobody's.
 */
void
careful_disarm_timeout(void)
{
	DisableTimeoutParams params[2] = {{.id = STATEMENT_TIMEOUT}, {.id = overrun_timeout}};

	disable_timeouts(params, lengthof(params));
	worker_hold_cancels();
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
 * flushed than a successor would be careful for.
 */
void
careful_bound(int nevents)
{
	if (first_half + second_half == 0)
		return;
	if (GetFlushRecPtr(NULL) >= half_lsn)
	{
		/* the WAL writer has been there */
		first_half = second_half;
		second_half = 0;
		half_lsn = XactLastCommitEnd;
	}
	if (first_half + second_half + nevents > MAX_UNFLUSHED && first_half + second_half > 0)
	{
		XLogFlush(XactLastCommitEnd);
		first_half = second_half = 0;
	}
}

/*
 * A batch is committed.
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
 * in the transaction that has locked the row.  Returns whether the mark of
 * another executor was there.
 */
static bool
write_mark(HandlerRun *run)
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
	bool		lost = false;
	bool		isnull;

	values[0] = CStringGetTextDatum(run->definition->name);
	values[1] = Int64GetDatum(my_mark);
	values[2] = Int32GetDatum(MAX_UNFLUSHED + run->definition->batch_size);
	if (own_execute(&select_mark, values, NULL, 1) == 1)
	{
		int64		mark = DatumGetInt64(own_value(0, 1, &isnull));

		marked = !isnull;
		lost = marked && mark != my_mark;
		if (!marked || lost)
			run->health->careful = DatumGetInt32(own_value(0, 2, &isnull));
	}
	own_execute(&update_mark, values, NULL, 0);
	return lost;
}

/*
 * Before the first batch of a handler in this process, and of each of its
 * definitions: leave our mark, and find out whether a predecessor was lost.
 * False where the handler cannot go on for now.
 */
bool
careful_take_up(HandlerRun *run)
{
	bool		lost;

	if (run->health->taken_up)
		return true;

	batch_start_transaction();
	if (!progress_lock(run))
	{
		batch_commit_transaction(0);
		return false;
	}
	lost = write_mark(run);
	if (lost)
		retry_recover_attempts(run);
	ForceSyncCommit();
	batch_commit_transaction(0);
	FAULT_POINT("after-mark");

	run->health->taken_up = true;
	if (lost)
		ereport(LOG,
				(errmsg("event handler \"%s\" goes on carefully: an executor that ran it was lost",
						run->definition->name),
				 errdetail("One of its events may be the cause. The next %d are tried one by one, each attempt recorded before it.",
						   run->health->careful)));
	return true;
}

/*
 * Take our mark from a handler's progress row.  Nobody is waited for: a mark
 * that stays costs the successor some care.
 */
static void
release_mark(const HandlerHealth *health)
{
	static OwnStatement lock_mark = {
		.sql = "SELECT 1 FROM @s._event_handler_progress AS p "
		"WHERE p.handler OPERATOR(pg_catalog.=) $1 AND p.in_use OPERATOR(pg_catalog.=) $2 "
		"FOR UPDATE SKIP LOCKED",
		.target = OWN_PROGRESS,
		.nargs = 2,
		.argtypes = {TEXTOID, INT8OID},
	};
	static OwnStatement clear_mark = {
		.sql = "UPDATE @s._event_handler_progress SET in_use = NULL, careful = $3 "
		"WHERE handler OPERATOR(pg_catalog.=) $1 AND in_use OPERATOR(pg_catalog.=) $2",
		.target = OWN_PROGRESS,
		.nargs = 3,
		.argtypes = {TEXTOID, INT8OID, INT4OID},
	};
	Datum		values[3] = {CStringGetTextDatum(health->name), Int64GetDatum(my_mark), Int32GetDatum(health->careful)};

	if (own_execute(&lock_mark, values, NULL, 1) == 1)
		own_execute(&clear_mark, values, NULL, 0);
}

/*
 * The executor leaves, and no call of it is under way.
 */
void
careful_release(const List *healths)
{
	ListCell   *lc;
	bool		any = false;

	foreach(lc, healths)
		any = any || ((HandlerHealth *) lfirst(lc))->taken_up;
	if (!any)
		return;

	FAULT_POINT("before-release");
	batch_start_transaction();
	foreach(lc, healths)
	{
		HandlerHealth *health = lfirst(lc);

		if (health->taken_up)
			release_mark(health);
	}
	batch_commit_transaction(0);
}
