/*-------------------------------------------------------------------------
 *
 * call_timeout.c
 *		How long the code of a handler may run.
 *
 * A call has its handler's timeout, at whose end it is cancelled.  It can refuse
 * to end: it catches that cancel.  A second after that its process is ended; what
 * that means for the event is in crash_guard.c.
 *
 * Who watches a call also looks for deadlocks that came to be after its wait began,
 * and ends the call of a handler that is being dropped.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/timeout.h"

#include "base/timers.h"
#include "base/worker.h"
#include "delivery/call_timeout.h"
#include "delivery/executor_slot.h"

/*
 * How long a call may go on after its timeout, and how often to look, in ms.  The
 * latter is less than deadlock_timeout is for clients, as a rule.
 */
#define OVERRUN_MS 1000
#define WATCH_MS 500

static TimeoutId watch_timeout;
static volatile sig_atomic_t overran = false;

/* code of a handler runs, and that is to end where the handler is dropped */
static volatile sig_atomic_t in_call = false;

/* the same; and it stays so where the process was told to end meanwhile */
static bool call_in_doubt = false;

/* when the present call's timeout ends, and when it was first seen to have */
static Instant call_deadline = INSTANT_NEVER;
static Instant overrun_since = 0;

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
	call_timeout_stop_watch();
	pg_lltoa(Max(instant_ms_left(instant_now(), call_deadline), 1), rest);
	(void) set_config_option("lock_timeout", rest, PGC_USERSET, PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0, false);
	code_has_ended();
}

/*
 * Once per executor, when it has connected.
 */
void
call_timeout_init(void)
{
	RegisterXactCallback(end_timeout_at_commit, NULL);
	watch_timeout = RegisterTimeout(USER_TIMEOUT, watch);
}

/*
 * What follows has so many ms at most, and can be cancelled.  Who watches it looks
 * from time to time, for all calls of a transaction: a timer that is started for
 * each would cost more than a call.
 */
void
call_timeout_arm(int timeout)
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
call_timeout_begin_call(int timeout)
{
	call_timeout_arm(timeout);
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
 * with call_timeout_disarm().
 */
void
call_timeout_call_returned(void)
{
	code_has_ended();
	worker_hold_cancels();
}

/*
 * The same, and no other call is to follow.
 */
void
call_timeout_disarm(void)
{
	disable_timeout(STATEMENT_TIMEOUT, false);
	call_timeout_call_returned();
}

/*
 * The transaction is over.
 */
void
call_timeout_stop_watch(void)
{
	if (get_timeout_active(watch_timeout))
		disable_timeout(watch_timeout, false);
}

/*
 * Whether the process is being ended because a call did not end.
 */
bool
call_timeout_overran(void)
{
	return overran;
}

/*
 * Whether code of a handler runs, or was running when the process was told to end.
 */
bool
call_timeout_call_in_doubt(void)
{
	return call_in_doubt;
}
