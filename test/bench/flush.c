/*-------------------------------------------------------------------------
 *
 * flush.c
 *	  Measures how long a flush takes: fdatasync() of one page in an existing file.
 *
 * usage: flush FILE COUNT
 *
 * Prints the microseconds that each of COUNT flushes took, one per line.  The
 * program creates and removes the file, which should be on the disk of the WAL.
 * With slow_flush.c loaded it shows the effect of that.
 *
 *-------------------------------------------------------------------------
 */
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "client.h"

#define PAGE_SIZE	8192
#define PAGES		512

int
main(int argc, char **argv)
{
	static char page[PAGE_SIZE];
	int			count;
	int			fd;

	if (argc != 3)
		fail("usage: flush FILE COUNT");
	count = atoi(argv[2]);
	fd = open(argv[1], O_RDWR | O_CREAT | O_EXCL, 0600);
	if (fd < 0)
		fail("cannot make %s: %m", argv[1]);
	for (int i = 0; i < PAGES; i++)
	{
		if (pwrite(fd, page, PAGE_SIZE, (off_t) i * PAGE_SIZE) != PAGE_SIZE)
			fail("cannot write %s: %m", argv[1]);
	}
	if (fsync(fd) != 0)
		fail("cannot flush %s: %m", argv[1]);
	for (int i = 0; i < count; i++)
	{
		int64_t		start;

		if (pwrite(fd, page, PAGE_SIZE, (off_t) (i % PAGES) * PAGE_SIZE) != PAGE_SIZE)
			fail("cannot write %s: %m", argv[1]);
		start = now_us();
		if (fdatasync(fd) != 0)
			fail("cannot flush %s: %m", argv[1]);
		printf("%" PRId64 "\n", now_us() - start);
	}
	unlink(argv[1]);
	return 0;
}
