/*-------------------------------------------------------------------------
 *
 * fault.c
 *		Fault points, at which tests can stop or break a process, and limits that
 *		tests can lower.
 *
 * Only a build made for tests has them (make FAULTS=1).  A test creates a file
 * in the directory pg_notify_events.faults of the data directory.  The file's
 * name is that of the fault point.  Its content says what is to happen there:
 *
 *		wait	wait until the file NAME.hit is removed
 *		error	ereport(ERROR)
 *		fatal	ereport(FATAL)
 *		crash	die as if by kill -9, so that the server restarts
 *
 * The first process that reaches the fault point renames the file to NAME.hit,
 * and only this process does what the file says.  Files are used rather than a
 * setting because a process can remove the file before it dies.  So the server
 * that restarts does not stop at the same point again.
 *
 * A file with the name of a limit and a number in it lowers that limit as long
 * as the file exists.
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
 * Read the first line of a file in the directory into what, of the given size.
 * Returns false if the file does not exist or is empty.
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
 * Take the fault of this point, if there is one: read into what what is to
 * happen, rename the file, and put its new name into hit.  Returns false if
 * nothing is to happen.
 */
static bool
take_fault(const char *name, char *what, size_t size, char *hit, size_t hit_size)
{
	char		path[MAXPGPATH];

	snprintf(path, sizeof(path), FAULT_DIRECTORY "/%s", name);
	snprintf(hit, hit_size, FAULT_DIRECTORY "/%s.hit", name);
	return read_fault(path, what, size) && rename(path, hit) == 0;
}

/*
 * If a test has set a fault for this point, carry it out, once.
 */
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
			/*
			 * This does nothing if interrupts are held off, as after a commit.
			 */
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
 * Returns a limit: the number that a test has set for it, or else the given
 * one.
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
