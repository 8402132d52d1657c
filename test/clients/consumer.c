/*
 * Print each event as "id name": plain libpq, LISTEN and fetch.
 *
 * usage: consumer CONNECTION_STRING
 * cc consumer.c -I$(pg_config --includedir) -lpq -o consumer
 *
 * Created before: SELECT create_event_consumer('libpq').
 */
#include <libpq-fe.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int	look_every = 60;	/* s without an announcement */

/* Wait for something from the server; false if nothing comes, or the connection is lost. */
static bool
wait_for_input(PGconn *conn, int seconds)
{
	struct pollfd socket = {.fd = PQsocket(conn), .events = POLLIN};

	return poll(&socket, 1, seconds * 1000) > 0 && PQconsumeInput(conn) == 1;
}

/* Run a statement.  NULL if the server is away: it comes back.  A mistake ends us. */
static PGresult *
ask(PGconn *conn, const char *statement, const char *argument)
{
	static const char *const away[] = {"08", "25006", "25P03", "53", "57P0"};
	PGresult   *result = NULL;
	PGresult   *next;
	const char *state;

	if (PQsendQueryParams(conn, statement, argument != NULL, NULL, &argument, NULL, NULL, 0) == 0)
		return NULL;
	do
	{
		while (PQisBusy(conn))
		{
			if (!wait_for_input(conn, 2 * look_every))
				return NULL;
		}
		if ((next = PQgetResult(conn)) != NULL)
		{
			PQclear(result);
			result = next;
		}
	} while (next != NULL);

	if (PQresultStatus(result) == PGRES_TUPLES_OK || PQresultStatus(result) == PGRES_COMMAND_OK)
		return result;
	state = PQresultErrorField(result, PG_DIAG_SQLSTATE);
	for (size_t i = 0; state != NULL && i < sizeof(away) / sizeof(away[0]); i++)
	{
		if (strncmp(state, away[i], strlen(away[i])) == 0)
			state = NULL;
	}
	if (state != NULL)
	{
		fprintf(stderr, "%s", PQerrorMessage(conn));
		exit(EXIT_FAILURE);
	}
	PQclear(result);
	return NULL;
}

/* Handle what waits; false if the server is away. */
static bool
handle_waiting_events(PGconn *conn)
{
	int			count;

	do
	{
		PGresult   *events = ask(conn, "SELECT id, event_name FROM fetch_events('libpq')", NULL);
		PGresult   *ack = NULL;
		bool		ok;

		if (events == NULL)
			return false;
		count = PQntuples(events);
		for (int i = 0; i < count; i++)
			printf("%s %s\n", PQgetvalue(events, i, 0), PQgetvalue(events, i, 1));
		fflush(stdout);
		if (count > 0)
			ack = ask(conn, "SELECT ack_events('libpq', $1)", PQgetvalue(events, count - 1, 0));
		ok = (count == 0 || ack != NULL);
		PQclear(ack);
		PQclear(events);
		if (!ok)
			return false;
	} while (count > 0);
	return true;
}

int
main(int argc, char **argv)
{
	const char *const keys[] = {"dbname", "connect_timeout", "keepalives_idle",
	"keepalives_interval", "keepalives_count", "tcp_user_timeout", NULL};
	const char *const values[] = {argc > 1 ? argv[1] : "", "10", "30", "10", "3", "60000", NULL};
	unsigned	delay = 1;

	if (getenv("LOOK_EVERY") != NULL)
		look_every = atoi(getenv("LOOK_EVERY"));
	for (;;)
	{
		PGconn	   *conn = PQconnectdbParams(keys, values, 1);
		bool		connected = PQstatus(conn) == CONNECTION_OK;
		PGresult   *listen = connected ? ask(conn, "LISTEN event_notification", NULL) : NULL;
		PGnotify   *notify;

		PQclear(listen);		/* first listen, then look */
		while (listen != NULL && handle_waiting_events(conn))
		{
			bool		rung = false;

			delay = 1;
			do
			{
				while ((notify = PQnotifies(conn)) != NULL)
				{
					rung = true;
					PQfreemem(notify);
				}
			} while (!rung && wait_for_input(conn, look_every));
		}
		fprintf(stderr, "%s", PQerrorMessage(conn));
		PQfinish(conn);
		sleep(delay);
		delay = delay < 8 ? 2 * delay : delay;
	}
}
