/*-------------------------------------------------------------------------
 *
 * slow_flush.c
 *	  Simulates a disk that takes a millisecond to flush the WAL, by LD_PRELOAD.
 *
 * The benchmark's postgresql.conf sets wal_sync_method = fdatasync, so the server
 * uses fdatasync() to flush its WAL, and for nothing else.  This fdatasync()
 * really flushes, but does not return until a millisecond after it was called.
 * Meanwhile the process sleeps, as it would while it waits for a disk: the
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
 * Signals interrupt the sleep, so its end is an absolute time.  The kernel would
 * add the timer slack, 50 microseconds by default, to the sleep.
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
