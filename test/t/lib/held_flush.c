/*-------------------------------------------------------------------------
 *
 * held_flush.c
 *	  A WAL flush that a test can hold, by LD_PRELOAD.
 *
 * With wal_sync_method = fdatasync the server flushes its WAL with fdatasync(), and
 * uses that for nothing else.  This version does not return while the file exists
 * that the environment variable HELD_FLUSH names.
 *
 *-------------------------------------------------------------------------
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int
fdatasync(int fd)
{
	static const struct timespec millisecond = {0, 1000000};
	const char *file = getenv("HELD_FLUSH");
	int			result = (int) syscall(SYS_fdatasync, fd);
	int			saved_errno = errno;

	while (file != NULL && access(file, F_OK) == 0)
		(void) nanosleep(&millisecond, NULL);
	errno = saved_errno;
	return result;
}
