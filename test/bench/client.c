/*-------------------------------------------------------------------------
 *
 * client.c
 *	  Functions shared by the measuring clients.
 *
 * The clients use plain libpq and wait in poll(), so that they take as little
 * processor time as possible from what they measure.  libpq's environment
 * variables name the server and the database.  Times are microseconds of
 * CLOCK_MONOTONIC.
 *
 *-------------------------------------------------------------------------
 */
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdlib.h>
#include <time.h>

#include "client.h"

/* Ends the program with a message. */
void
fail(const char *format,...)
{
	va_list		args;

	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	exit(1);
}

int64_t
now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t) now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

PGconn *
connect_to_server(const char *application_name)
{
	const char *keywords[] = {"application_name", NULL};
	const char *values[] = {application_name, NULL};
	PGconn	   *conn = PQconnectdbParams(keywords, values, 0);

	if (PQstatus(conn) != CONNECTION_OK)
		fail("%s", PQerrorMessage(conn));
	return conn;
}

/* Runs a command that returns no rows. */
void
execute(PGconn *conn, const char *sql)
{
	PGresult   *result = PQexec(conn, sql);

	if (PQresultStatus(result) != PGRES_COMMAND_OK)
		fail("%s: %s", sql, PQerrorMessage(conn));
	PQclear(result);
}

void
prepare(PGconn *conn, const char *name, const char *sql)
{
	PGresult   *result = PQprepare(conn, name, sql, 0, NULL);

	if (PQresultStatus(result) != PGRES_COMMAND_OK)
		fail("%s: %s", sql, PQerrorMessage(conn));
	PQclear(result);
}

/* Takes what has arrived from the kernel; never waits. */
void
read_input(PGconn *conn)
{
	if (!PQconsumeInput(conn))
		fail("%s", PQerrorMessage(conn));
}

/*
 * Returns the result of the statement that was sent, or NULL while the server
 * has not completed it.  The caller clears the result.
 */
PGresult *
result_if_complete(PGconn *conn)
{
	PGresult   *result;
	ExecStatusType status;

	if (PQisBusy(conn))
		return NULL;
	result = PQgetResult(conn);
	status = PQresultStatus(result);
	if (status != PGRES_COMMAND_OK && status != PGRES_TUPLES_OK)
		fail("%s", PQerrorMessage(conn));
	PQclear(PQgetResult(conn)); /* NULL: there is no more */
	return result;
}

/*
 * Sleeps until one of the connections, or the other file if it is not -1, has
 * something to read, but at most until the given time.  Reads the connections'
 * input.
 */
void
wait_for_input(PGconn *a, PGconn *b, int other_fd, int64_t until)
{
	struct pollfd files[] = {
		{.fd = PQsocket(a), .events = POLLIN},
		{.fd = PQsocket(b), .events = POLLIN},
		{.fd = other_fd, .events = POLLIN}
	};
	int64_t		left = until - now_us();
	struct timespec timeout = {0, 0};

	if (left > 0)
	{
		timeout.tv_sec = (time_t) (left / 1000000);
		timeout.tv_nsec = (long) (left % 1000000 * 1000);
	}
	if (ppoll(files, 3, &timeout, NULL) < 0)
	{
		if (errno == EINTR)
			return;
		fail("poll: %m");
	}
	if (files[0].revents != 0)
		read_input(a);
	if (files[1].revents != 0)
		read_input(b);
}
