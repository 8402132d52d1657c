/*-------------------------------------------------------------------------
 *
 * fault.c
 *		Places at which tests can stop or break a process, and limits that they
 *		can lower.
 *
 * Only a build made for tests has them (make FAULTS=1).  A test puts a file
 * into the directory pg_notify_events.faults of the data directory; its name is
 * that of the place, its content what is to happen there:
 *
 *		wait	stay here until the file NAME.hit is removed
 *		error	ereport(ERROR)
 *		fatal	ereport(FATAL)
 *		crash	die as if by kill -9, so that the server restarts
 *
 * The first process that comes by renames the file to NAME.hit, and only that
 * one does it.  Files and not a setting, because a file can be taken away by
 * whoever dies next, and the server that comes up again shall get further.
 *
 * A limit is lowered by a file with its name and a number in it, for as long as
 * the file is there.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#ifdef PNE_FAULT_POINTS

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include "miscadmin.h"

#include "base/fault.h"

#define FAULT_DIRECTORY "pg_notify_events.faults"
#define POLL_US 1000

/*
 * Read a file of the directory.  False if there is none, or nothing in it.
 */
static bool
read_fault(const char *path, char *what, size_t size)
{
	int			file = open(path, O_RDONLY);
	ssize_t		length;

	if (file < 0)
		return false;
	length = read(file, what, size - 1);
	close(file);
	if (length <= 0)
		return false;
	what[length] = '\0';
	what[strcspn(what, "\n")] = '\0';
	return true;
}

/*
 * What is to happen here, once; false if nothing is.
 */
static bool
take_fault(const char *name, char *what, size_t size, char *hit, size_t hit_size)
{
	char		path[MAXPGPATH];

	snprintf(path, sizeof(path), FAULT_DIRECTORY "/%s", name);
	snprintf(hit, hit_size, FAULT_DIRECTORY "/%s.hit", name);
	return read_fault(path, what, size) && rename(path, hit) == 0;
}

void
fault_point(const char *name)
{
	char		what[16];
	char		hit[MAXPGPATH];

	if (!take_fault(name, what, sizeof(what), hit, sizeof(hit)))
		return;

	if (strcmp(what, "wait") == 0)
	{
		while (access(hit, F_OK) == 0)
		{
			/* where interrupts are held off, as after a commit, this does nothing */
			CHECK_FOR_INTERRUPTS();
			pg_usleep(POLL_US);
		}
	}
	else if (strcmp(what, "error") == 0)
		ereport(ERROR, (errmsg("fault at \"%s\"", name)));
	else if (strcmp(what, "fatal") == 0)
		ereport(FATAL, (errmsg("fault at \"%s\"", name)));
	else if (strcmp(what, "crash") == 0)
		kill(getpid(), SIGKILL);
	else
		ereport(FATAL, (errmsg("unknown fault \"%s\" at \"%s\"", what, name)));
}

/*
 * A limit as the test has it, or else as it is.
 */
int64
fault_number(const char *name, int64 number)
{
	char		what[32];
	char		path[MAXPGPATH];

	snprintf(path, sizeof(path), FAULT_DIRECTORY "/%s", name);
	return read_fault(path, what, sizeof(what)) ? strtoll(what, NULL, 10) : number;
}

#endif							/* PNE_FAULT_POINTS */
