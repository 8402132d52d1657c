/*-------------------------------------------------------------------------
 *
 * slow_flush.c
 *	  A disk that takes a millisecond to flush the WAL, by LD_PRELOAD.
 *
 * With wal_sync_method = fdatasync, which the benchmark's postgresql.conf sets,
 * fdatasync() is what the server flushes its WAL with, and nothing else.  Here
 * it flushes in earnest, and returns not before a millisecond has passed since
 * it was called.  Meanwhile the process sleeps, as it would for a disk: the
 * processor is free for others.
 *
 *-------------------------------------------------------------------------
 */
#include <errno.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define FLUSH_NANOSECONDS	1000000

/*
 * Signals interrupt the sleep, thus it has a point in time as its end.  The
 * timer slack, 50 microseconds by default, would be slept on top of it.
 */
static void
sleep_until(const struct timespec *end)
{
	prctl(PR_SET_TIMERSLACK, 1UL);
	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, end, NULL) == EINTR)
		;
	prctl(PR_SET_TIMERSLACK, 0UL);	/* the default again */
}

int
fdatasync(int fd)
{
	struct timespec end;
	int			result;
	int			saved_errno;

	clock_gettime(CLOCK_MONOTONIC, &end);
	end.tv_nsec += FLUSH_NANOSECONDS;
	if (end.tv_nsec >= 1000000000)
	{
		end.tv_nsec -= 1000000000;
		end.tv_sec++;
	}
	result = (int) syscall(SYS_fdatasync, fd);
	saved_errno = errno;
	sleep_until(&end);
	errno = saved_errno;
	return result;
}
