/*-------------------------------------------------------------------------
 *
 * timers.c
 *		The server's timers, whatever is done to the clock.
 *
 * The kernel counts how long an alarm is away, but what is due then the server
 * finds out by the time of day (timeout.c).  Where the clock was set back
 * meanwhile, nothing is due yet, and a timer of a second goes off an hour later;
 * where it was set forward, all that is on goes off with the next alarm.
 *
 * So each worker looks at its timers behind the server, when an alarm has come.
 * One that is farther away than it ever was to be is set again, and so is one that
 * went off too early, once what it has sent was dropped (timers_cancel_is_early).
 * An alarm always comes in time: the kernel was asked for it before the clock was
 * set, or after.
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

/* a timer is not set again for less than this, in ms */
#define SLACK_MS 10

/* ours: one that ends something, and one that comes again and again */
static TimeoutId single = MAX_TIMEOUTS;
static Instant single_due = INSTANT_NEVER;
static TimeoutId repeated = MAX_TIMEOUTS;
static int	repeated_interval = 0;

static struct sigaction server_action;
static volatile sig_atomic_t server_looks = false;
static volatile sig_atomic_t went_off_early = false;

/*
 * Whether a timer that is on goes off later than in so many ms.
 */
static bool
is_too_late(TimeoutId id, int64 ms)
{
	return id < MAX_TIMEOUTS && get_timeout_active(id) &&
		get_timeout_finish_time(id) - GetCurrentTimestamp() > (ms + SLACK_MS) * 1000;
}

static int
single_ms_left(void)
{
	return (int) Min(Max(instant_ms_left(instant_now(), single_due), 1), INT_MAX);
}

/*
 * Set the timers again that the clock's being set has moved.
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
 * SIGALRM.
 *
 * The server has done nothing where the alarm has come while timers are being set;
 * then there is no next alarm yet.  Nor can we then.
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
 * Once per worker.  Not with pqsignal(): the server's handler is to be called, and
 * is known to the server only.
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
 * Start the timer that ends something, or move it.
 */
void
timers_start(TimeoutId id, Instant due)
{
	single = id;
	single_due = due;
	enable_timeout_after(id, single_ms_left());
}

/*
 * Start the timer that comes again and again.
 */
void
timers_repeat(TimeoutId id, int interval)
{
	repeated = id;
	repeated_interval = interval;
	enable_timeout_every(id, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), interval), interval);
}

/*
 * Whether the SIGINT that has come is that of the timer which ends something, and
 * not due yet.  Then it is to be dropped.  A timer for a lock sends the same, and
 * does no harm.  Called by the signal's handler.
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
