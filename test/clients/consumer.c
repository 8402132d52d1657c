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
#include <unistd.h>

/* Handle what waits; false if the connection is lost. */
static bool
handle_waiting_events(PGconn *conn)
{
	int			count;

	do
	{
		PGresult   *events = PQexec(conn, "SELECT id, event_name FROM fetch_events('libpq')");
		bool		ok = PQresultStatus(events) == PGRES_TUPLES_OK;

		count = PQntuples(events);
		for (int i = 0; i < count; i++)
			printf("%s %s\n", PQgetvalue(events, i, 0), PQgetvalue(events, i, 1));
		fflush(stdout);
		if (ok && count > 0)
		{
			const char *last = PQgetvalue(events, count - 1, 0);
			PGresult   *ack = PQexecParams(conn, "SELECT ack_events('libpq', $1)",
										   1, NULL, &last, NULL, NULL, 0);

			ok = PQresultStatus(ack) == PGRES_TUPLES_OK;
			PQclear(ack);
		}
		PQclear(events);
		if (!ok)
			return false;
	} while (count > 0);
	return true;
}

int
main(int argc, char **argv)
{
	for (;; usleep(200000))		/* the server is away: it comes back */
	{
		PGconn	   *conn = PQconnectdb(argc > 1 ? argv[1] : "");
		PGnotify   *notify;

		PQclear(PQexec(conn, "LISTEN event_notification")); /* first listen, then look */
		while (handle_waiting_events(conn))
		{
			struct pollfd socket = {.fd = PQsocket(conn), .events = POLLIN};
			bool		rung = false;

			while (!rung)
			{
				while ((notify = PQnotifies(conn)) != NULL)
				{
					rung = true;
					PQfreemem(notify);
				}
				if (!rung && (poll(&socket, 1, -1) < 0 || PQconsumeInput(conn) == 0))
					break;
			}
		}
		PQfinish(conn);
	}
}
