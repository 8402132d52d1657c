/*-------------------------------------------------------------------------
 *
 * latency.c
 *	  From the start of an INSERT to its announcement, on an idle server.
 *
 * usage: latency COUNT RATE
 *
 * One connection inserts COUNT rows into "orders", RATE a second, one at a
 * time; another one LISTENs.  Prints for each how many microseconds passed from
 * sending the INSERT to receiving its announcement, one a line.  The next one is
 * sent when its time has come and both the announcement and the result of the
 * last one are there.  The first few, for which the server fills its caches,
 * are not counted.
 *
 *-------------------------------------------------------------------------
 */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "client.h"

#define FIRST_FEW	20
#define GIVE_UP		60000000

static PGconn *listening;
static PGconn *inserting;

/* One INSERT; returns how long its announcement took. */
static int64_t
insert_and_receive(void)
{
	int64_t		start = now_us();
	int64_t		received = 0;
	bool		inserted = false;

	if (!PQsendQueryPrepared(inserting, "insert", 0, NULL, NULL, NULL, 0))
		fail("%s", PQerrorMessage(inserting));
	while (!inserted || received == 0)
	{
		PGnotify   *notification;
		PGresult   *result;

		if (now_us() - start > GIVE_UP)
			fail("an event is not announced");
		wait_for_input(listening, inserting, -1, start + GIVE_UP);
		while ((notification = PQnotifies(listening)) != NULL)
		{
			if (received != 0 || strcmp(notification->extra, EVENT) != 0)
				fail("an announcement that nobody asked for: %s", notification->extra);
			received = now_us();
			PQfreemem(notification);
		}
		if (!inserted && (result = result_if_complete(inserting)) != NULL)
		{
			inserted = true;
			PQclear(result);
		}
	}
	return received - start;
}

int
main(int argc, char **argv)
{
	int			count;
	int64_t		interval;
	int64_t		next;

	if (argc != 3 || atoi(argv[2]) <= 0)
		fail("usage: latency COUNT RATE");
	count = atoi(argv[1]);
	interval = 1000000 / atoi(argv[2]);

	listening = connect_to_server("listen");
	execute(listening, "LISTEN " CHANNEL);
	inserting = connect_to_server("insert");
	prepare(inserting, "insert", "INSERT INTO orders (customer, amount) VALUES ('Ada', 12.50)");
	next = now_us();
	for (int i = -FIRST_FEW; i < count; i++)
	{
		int64_t		latency;

		while (now_us() < next)
			wait_for_input(listening, inserting, -1, next);
		next += interval;
		latency = insert_and_receive();
		if (i >= 0)
			printf("%" PRId64 "\n", latency);
	}
	PQfinish(listening);
	PQfinish(inserting);
	return 0;
}
