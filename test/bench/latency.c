/*-------------------------------------------------------------------------
 *
 * latency.c
 *	  Measures the time from an INSERT to its announcement, on an idle server.
 *
 * usage: latency COUNT RATE [insert | listen]
 *
 * One connection inserts COUNT rows into "orders", RATE a second, one at a
 * time; another one LISTENs.  Prints for each row the microseconds from sending
 * the INSERT to receiving its announcement, one per line.  It sends the next
 * INSERT when its time has come and both the announcement and the result of the
 * last one have arrived.  The first few INSERTs, for which the server fills its
 * caches, do not count.
 *
 * The two connections can also run in separate programs, so that other programs
 * can replace one of them.  With "insert" there is only the first connection.  It
 * prints the time when each INSERT was sent, and waits only for the result before
 * the next one.  With "listen" there is only the second connection.  It prints
 * "listening" when it listens, then the time when each announcement was received.
 * These times are microseconds since the epoch, a clock that other programs have
 * too, and COUNT includes the first few.
 *
 *-------------------------------------------------------------------------
 */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "client.h"

#define FIRST_FEW	20
#define GIVE_UP		60000000

static PGconn *listening;
static PGconn *inserting;

static int64_t
since_epoch_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return (int64_t) now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static void
start_listening(void)
{
	listening = connect_to_server("listen");
	execute(listening, "LISTEN " CHANNEL);
}

static void
start_inserting(void)
{
	inserting = connect_to_server("insert");
	prepare(inserting, "insert", "INSERT INTO orders (customer, amount) VALUES ('Ada', 12.50)");
}

static void
send_insert(void)
{
	if (!PQsendQueryPrepared(inserting, "insert", 0, NULL, NULL, NULL, 0))
		fail("%s", PQerrorMessage(inserting));
}

/* Sleeps until the given time. */
static void
wait_until(int64_t time)
{
	while (now_us() < time)
		wait_for_input(inserting, listening != NULL ? listening : inserting, -1, time);
}

/* Makes one INSERT; returns how long its announcement took. */
static int64_t
insert_and_receive(void)
{
	int64_t		start = now_us();
	int64_t		received = 0;
	bool		inserted = false;

	send_insert();
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

/* Only inserts. */
static void
insert_all(int count, int64_t interval)
{
	int64_t		next;

	start_inserting();
	next = now_us();
	for (int i = 0; i < count; i++)
	{
		PGresult   *result;
		int64_t		start;

		wait_until(next);
		next += interval;
		start = since_epoch_us();
		send_insert();
		printf("%" PRId64 "\n", start);
		while ((result = result_if_complete(inserting)) == NULL)
			wait_for_input(inserting, inserting, -1, now_us() + GIVE_UP);
		PQclear(result);
	}
	PQfinish(inserting);
}

/* Only receives. */
static void
receive_all(int count)
{
	int			received = 0;

	start_listening();
	printf("listening\n");
	fflush(stdout);
	while (received < count)
	{
		int64_t		give_up = now_us() + GIVE_UP;
		PGnotify   *notification;

		while ((notification = PQnotifies(listening)) == NULL)
		{
			if (now_us() > give_up)
				fail("an event is not announced");
			wait_for_input(listening, listening, -1, give_up);
		}
		printf("%" PRId64 "\n", since_epoch_us());
		PQfreemem(notification);
		received++;
	}
	PQfinish(listening);
}

/* Inserts and receives, and prints how long each announcement took. */
static void
insert_and_receive_all(int count, int64_t interval)
{
	int64_t		next;

	start_listening();
	start_inserting();
	next = now_us();
	for (int i = -FIRST_FEW; i < count; i++)
	{
		int64_t		latency;

		wait_until(next);
		next += interval;
		latency = insert_and_receive();
		if (i >= 0)
			printf("%" PRId64 "\n", latency);
	}
	PQfinish(listening);
	PQfinish(inserting);
}

int
main(int argc, char **argv)
{
	int			count;
	int64_t		interval;

	if (argc < 3 || argc > 4 || atoi(argv[2]) <= 0)
		fail("usage: latency COUNT RATE [insert | listen]");
	count = atoi(argv[1]);
	interval = 1000000 / atoi(argv[2]);

	if (argc == 3)
		insert_and_receive_all(count, interval);
	else if (strcmp(argv[3], "insert") == 0)
		insert_all(count, interval);
	else if (strcmp(argv[3], "listen") == 0)
		receive_all(count);
	else
		fail("what is %s?", argv[3]);
	return 0;
}
