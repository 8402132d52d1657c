/*-------------------------------------------------------------------------
 *
 * call_timeout.c
 *		How long the code of a handler may run.
 *
 * A call is cancelled when its handler's timeout is over.  The code can catch the
 * cancel and go on.  One second later the process is ended; crash_guard.c says what
 * that means for the event.
 *
 * The timer that watches a call also looks for deadlocks that arose after a wait
 * began, and ends the call of a handler that is being dropped.
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
 * How long a call may go on after its timeout, and how often it is checked, in ms.
 * The second value is usually less than the deadlock_timeout of clients.
 */
#define OVERRUN_MS 1000
#define WATCH_MS 500

static TimeoutId watch_timeout;
static volatile sig_atomic_t overran = false;

/* code of a handler runs, and has to end if the handler is dropped */
static volatile sig_atomic_t in_call = false;

/* the same, but it stays set if the process was told to end meanwhile */
static bool call_in_doubt = false;

/* when the timeout of the current call ends, and when it was first seen to be over */
static Instant call_deadline = INSTANT_NEVER;
static Instant overrun_since = 0;

/*
 * No code of the handler runs any more.  A terminate request that arrived during the
 * call is honoured later; in that case the call stays in doubt.  A process that dies
 * of such a request may still commit something, because the server removes temporary
 * tables then.  Such a commit does not count as the end of the call.
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
 * Timer handler: checks the call while code of the handler runs.
 *
 * A process that waits for a lock looks for a deadlock only once, soon after the wait
 * began.  A deadlock that arises later would be found by the client that waits last,
 * and that client would become the victim.  So this looks again.
 *
 * A process that was stopped for a while finds its timeout long past.  The call must
 * get the cancel before the process is ended, so the second runs from when this first
 * saw the timeout.  If the handler is being dropped, the timeout of the call is now.
 */
static void
watch(void)
{
	Instant		now = instant_now();

	/* timers go on while the process ends, and MyProc may be gone by then */
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
 * Transaction callback.  What is committed cannot be undone by a timeout.  So the
 * timeout of the handler's code ends here, behind the deferred triggers, and so does
 * the watch for overruns.  Until its record is written, the commit may only have to
 * wait for the lock of NOTIFY, and it may wait for the rest of the time.  If it does
 * not get the lock in time, that is a lock error, which is charged to no event.
 */
static void
end_timeout_at_commit(XactEvent event, void *arg)
{
	char		rest[MAXINT8LEN + 1];

	if (event != XACT_EVENT_PRE_COMMIT || call_deadline == INSTANT_NEVER)
		return;
	/* if the timeout is over already, the cancel still counts as its doing (worker.c) */
	disable_timeout(STATEMENT_TIMEOUT, true);
	call_timeout_stop_watch();
	pg_lltoa(Max(instant_ms_left(instant_now(), call_deadline), 1), rest);
	(void) set_config_option("lock_timeout", rest, PGC_USERSET, PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0, false);
	code_has_ended();
}

/*
 * Register the callback and the timer.  Called once per executor, when it has
 * connected.
 */
void
call_timeout_init(void)
{
	RegisterXactCallback(end_timeout_at_commit, NULL);
	watch_timeout = RegisterTimeout(USER_TIMEOUT, watch);
}

/*
 * Give what follows at most timeout ms, and allow cancels.  The timer that watches it
 * is started once and serves all calls of a transaction: starting one for each call
 * would cost more than a call.
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
 * The same for code of the handler or of a policy, which may end the process.  Throws
 * an error if the handler is being dropped.  If the drop begins later, the call is
 * cancelled soon.
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
 * The call has ended, or failed.  Hold cancels: one that arrives too late for the call
 * is ignored.
 *
 * The timer goes on.  A caller that makes another call soon moves it; any other caller
 * stops it with call_timeout_disarm().
 */
void
call_timeout_call_returned(void)
{
	code_has_ended();
	worker_hold_cancels();
}

/*
 * The same, if no other call follows.
 */
void
call_timeout_disarm(void)
{
	disable_timeout(STATEMENT_TIMEOUT, false);
	call_timeout_call_returned();
}

/*
 * Stop the timer that watches calls, because the transaction is over.
 */
void
call_timeout_stop_watch(void)
{
	if (get_timeout_active(watch_timeout))
		disable_timeout(watch_timeout, false);
}

/*
 * Whether the process is being ended because a call went on after its timeout.
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
