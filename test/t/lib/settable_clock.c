/*-------------------------------------------------------------------------
 *
 * settable_clock.c
 *		A time of day that a test can set for a whole server at once.
 *
 * Preloaded with LD_PRELOAD.  The file that SETTABLE_CLOCK names holds a 64-bit number.
 * The system's time of day is changed by this many seconds.  All other clocks, and
 * timers, are not affected, as when somebody sets the system's clock.
 *
 *-------------------------------------------------------------------------
 */
#define _GNU_SOURCE

#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *ahead = NULL;

static __attribute__((constructor)) void
open_clock(void)
{
	const char *name = getenv("SETTABLE_CLOCK");
	int			file = name != NULL ? open(name, O_RDWR) : -1;
	void	   *map = MAP_FAILED;

	if (file >= 0)
	{
		map = mmap(NULL, sizeof(*ahead), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
		close(file);
	}
	if (map == MAP_FAILED)
		abort();
	ahead = map;
}

int
clock_gettime(clockid_t id, struct timespec *now)
{
	int			result = (int) syscall(SYS_clock_gettime, id, now);

	if (result == 0 && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE))
		now->tv_sec += *ahead;
	return result;
}

int
gettimeofday(struct timeval *restrict now, void *restrict zone)
{
	struct timespec time;

	(void) zone;
	(void) clock_gettime(CLOCK_REALTIME, &time);
	now->tv_sec = time.tv_sec;
	now->tv_usec = time.tv_nsec / 1000;
	return 0;
}

time_t
time(time_t *result)
{
	struct timespec now;

	(void) clock_gettime(CLOCK_REALTIME, &now);
	if (result != NULL)
		*result = now.tv_sec;
	return now.tv_sec;
}
