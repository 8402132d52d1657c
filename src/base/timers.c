/*-------------------------------------------------------------------------
 *
 * timers.c
 *		Keeps the server's timers right when the clock is set.
 *
 * The kernel counts the time until an alarm, but when it comes, the server
 * decides by the time of day which timers are due (its timeout.c).  If the clock
 * was set back meanwhile, nothing is due yet, and a timer of a second goes off
 * an hour later.  If the clock was set forward, all active timers go off with
 * the next alarm.
 *
 * Therefore each worker checks its timers after the server has handled an
 * alarm.  A timer that is farther away than its whole interval is set again.
 * So is a timer that went off too early, after the signal that it has sent was
 * dropped (timers_cancel_is_early).  An alarm always comes in time: a timer was
 * set either before or after the clock was, and in both cases the kernel counts
 * the right interval.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <limits.h>
#include <signal.h>
#include <sys/time.h>

#include "storage/ipc.h"
#include "storage/proc.h"
#include "utils/timestamp.h"

#include "base/timers.h"

/* a timer is not set again for a difference of less than this, in ms */
#define SLACK_MS 10

/* the worker's timers: one that ends a call, and one that repeats */
static TimeoutId single = MAX_TIMEOUTS;
static Instant single_due = INSTANT_NEVER;
static TimeoutId repeated = MAX_TIMEOUTS;
static int	repeated_interval = 0;

static struct sigaction server_action;
static volatile sig_atomic_t server_looks = false;
static volatile sig_atomic_t went_off_early = false;

/*
 * Returns whether a timer is active and goes off more than ms milliseconds from
 * now.
 */
static bool
is_too_late(TimeoutId id, int64 ms)
{
	return id < MAX_TIMEOUTS && get_timeout_active(id) &&
		get_timeout_finish_time(id) - GetCurrentTimestamp() > (ms + SLACK_MS) * 1000;
}

/*
 * Returns the time until the single timer is due, in ms, at least 1.
 */
static int
single_ms_left(void)
{
	return (int) Min(Max(instant_ms_left(instant_now(), single_due), 1), INT_MAX);
}

/*
 * Set again the timers that a change of the clock has moved.
 */
static void
put_right(void)
{
	if (went_off_early || is_too_late(single, single_ms_left()))
		enable_timeout_after(single, single_ms_left());
	went_off_early = false;
	if (is_too_late(repeated, repeated_interval))
		timers_repeat(repeated, repeated_interval);
	if (is_too_late(DEADLOCK_TIMEOUT, DeadlockTimeout))
		enable_timeout_after(DEADLOCK_TIMEOUT, DeadlockTimeout);
	if (is_too_late(LOCK_TIMEOUT, LockTimeout))
		enable_timeout_after(LOCK_TIMEOUT, LockTimeout);
}

/*
 * Handler of SIGALRM: calls the server's handler and then checks the timers.
 *
 * If the alarm comes while timers are being set, the server's handler does
 * nothing, and no next alarm is set.  Then this one does nothing either.
 */
static void
on_alarm(int signo, siginfo_t *info, void *context)
{
	int			save_errno = errno;
	struct itimerval next;

	server_looks = true;
	if (server_action.sa_flags & SA_SIGINFO)
		server_action.sa_sigaction(signo, info, context);
	else
		server_action.sa_handler(signo);
	server_looks = false;

	if (!proc_exit_inprogress && getitimer(ITIMER_REAL, &next) == 0 &&
		(went_off_early || next.it_value.tv_sec != 0 || next.it_value.tv_usec != 0))
		put_right();
	errno = save_errno;
}

/*
 * Install the handler of SIGALRM.  Called once per worker.  pqsignal() would
 * not do, because the server's handler must be kept, and only sigaction()
 * returns it.
 */
void
timers_init(void)
{
	struct sigaction action;

	if (sigaction(SIGALRM, NULL, &server_action) != 0)
		elog(ERROR, "could not look at the handler of SIGALRM: %m");
	action = server_action;
	action.sa_flags |= SA_SIGINFO;
	action.sa_sigaction = on_alarm;
	if (sigaction(SIGALRM, &action, NULL) != 0)
		elog(ERROR, "could not set the handler of SIGALRM: %m");
}

/*
 * Start the single timer, or move it.
 */
void
timers_start(TimeoutId id, Instant due)
{
	single = id;
	single_due = due;
	enable_timeout_after(id, single_ms_left());
}

/*
 * Start the timer that repeats, with an interval in ms.
 */
void
timers_repeat(TimeoutId id, int interval)
{
	repeated = id;
	repeated_interval = interval;
	enable_timeout_every(id, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), interval), interval);
}

/*
 * Returns whether the SIGINT that has come was sent by the single timer before
 * it is due.  Then the signal is to be dropped.  lock_timeout sends SIGINT,
 * too; such a signal is never dropped.  Called by the handler of SIGINT.
 */
bool
timers_cancel_is_early(void)
{
	if (!server_looks || single == MAX_TIMEOUTS || !get_timeout_indicator(single, false) ||
		get_timeout_indicator(LOCK_TIMEOUT, false) || single_ms_left() <= SLACK_MS)
		return false;
	went_off_early = true;
	return true;
}
