/*-------------------------------------------------------------------------
 *
 * consumer_fetch.c
 *		fetch_events(), ack_events(), retry_event(): what clients do with a consumer.
 *
 * Fetch, effects and acknowledgement in one transaction happen exactly once.  In
 * separate transactions they happen at least once, and no transaction is held open:
 * the open batch stays in the consumer's row in between.  Because its ids are stored
 * there, every fetch returns the same batch until it is acknowledged, and an
 * acknowledgement can tell whether it concerns this batch.  That keeps out a client
 * that was too slow.
 *
 * Events that are fetched again were matched before, and are not matched again, even
 * if the definition has changed.  An event is left out if it was deleted, or if row
 * security hides it by now.  Each event is identified by its id and its transaction:
 * an id that has returned belongs to another event.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "base/arguments.h"
#include "base/catalog.h"
#include "base/doorbell.h"
#include "base/internal_sql.h"
#include "consumer/consumer.h"
#include "consumer/consumer_batch.h"
#include "consumer/consumer_search.h"
#include "log/window.h"

#define MAX_EVENTS 10000

/*
 * A position that has passed so many events without finding any is stored.  Fewer are
 * looked at again by the next fetch, so a client that polls an idle consumer writes
 * nothing.
 */
#define MANY_PASSED 1000

PG_FUNCTION_INFO_V1(pne_fetch_events);
PG_FUNCTION_INFO_V1(pne_ack_events);
PG_FUNCTION_INFO_V1(pne_retry_event);

/* ----------
 * Fetch
 * ----------
 */

/* the state of one fetch_events() */
typedef struct Fetch
{
	Consumer   *consumer;
	int			max_events;
	int64		lease;			/* ms; 0: no lease */
	EventSearch search;			/* its result is returned */
	bool		is_new;			/* a new batch, not the open one again */
	EventIdentity *listed;		/* events that were looked at because they are in the */
	int			nlisted;		/* open batch, or were handed back and are due */
} Fetch;

/*
 * Find the events of a list.
 */
static void
find_listed(Fetch *fetch, const EventIdentity *listed, int nlisted)
{
	memcpy(fetch->listed + fetch->nlisted, listed, sizeof(EventIdentity) * nlisted);
	fetch->nlisted += search_listed(&fetch->search, listed, nlisted);
}

/*
 * Find the events that were handed back and are due.
 */
static void
find_due(Fetch *fetch)
{
	static InternalStatement select_due = {
		.sql = "SELECT t.event_id, t.event_txid FROM @s._event_consumer_retries AS t "
		"WHERE t.consumer OPERATOR(pg_catalog.=) $1 "
		"AND t.next_attempt_at OPERATOR(pg_catalog.<=) pg_catalog.clock_timestamp() "
		"ORDER BY t.event_id LIMIT $2",
		.target = TABLE_NONE,
		.nargs = 2,
		.argtypes = {TEXTOID, INT8OID},
	};
	Datum		values[2] = {CStringGetTextDatum(fetch->consumer->name), Int64GetDatum(fetch->max_events)};
	int			ndue = internal_execute(&select_due, values, NULL, 0);
	EventIdentity *due = palloc(sizeof(EventIdentity) * ndue);
	bool		isnull;

	for (int i = 0; i < ndue; i++)
	{
		due[i].id = DatumGetInt64(internal_value(i, 1, &isnull));
		due[i].txid = event_txid_from_datum(internal_value(i, 2, &isnull));
	}
	find_listed(fetch, due, ndue);
}

static int
compare_events(const void *a, const void *b)
{
	int64		left = ((const FoundEvent *) a)->identity.id;
	int64		right = ((const FoundEvent *) b)->identity.id;

	return (left > right) - (left < right);
}

/*
 * Put what was found into the tuplestore, by id.
 */
static void
put_sorted(EventSearch *search, Tuplestorestate *store)
{
	qsort(search->found, search->nfound, sizeof(FoundEvent), compare_events);
	for (int i = 0; i < search->nfound; i++)
		search_put(search, store, search->found[i].tuple);
}

/*
 * Find what is to be returned and put it into the tuplestore: the open batch; without
 * one, or if all its events are gone, the events that are due, then new ones.
 */
static void
find_events(Fetch *fetch, Relation log, Snapshot snapshot, Tuplestorestate *store)
{
	Consumer   *consumer = fetch->consumer;
	EventSearch *search = &fetch->search;

	fetch->listed = palloc(sizeof(EventIdentity) * (consumer->nbatch + fetch->max_events));
	fetch->nlisted = 0;
	fetch->is_new = false;
	if (consumer->nbatch > 0)
	{
		search_begin(search, consumer, log, snapshot, consumer->nbatch);
		search->max_bytes = SIZE_MAX;	/* the whole batch, whatever max_events is */
		search->store = store;
		find_listed(fetch, consumer->batch, consumer->nbatch);
		search_end(search);
		if (search->nfound > 0)
			return;
	}

	fetch->is_new = true;
	search_begin(search, consumer, log, snapshot, fetch->max_events);
	find_due(fetch);
	search->passed = 0;
	/* new events may have smaller ids than those that are due */
	if (search->nfound == 0)
		search->store = store;
	search_log(search);
	search_end(search);
	if (search->store == NULL)
		put_sorted(search, store);
}

/*
 * Whether the consumer's rows have to be written.
 */
static bool
has_changed(const Fetch *fetch)
{
	const EventSearch *search = &fetch->search;

	if (!fetch->is_new)
		return search->nfound < fetch->consumer->nbatch || fetch->lease > 0;
	return search->nfound > 0 || fetch->nlisted > 0 || search->passed >= MANY_PASSED || !search->finished;
}

/*
 * Whether an event of a list was found.
 */
static bool
was_found(const EventSearch *search, EventIdentity listed)
{
	FoundEvent	key = {.identity = listed};
	const FoundEvent *found = bsearch(&key, search->found, search->nfound, sizeof(FoundEvent), compare_events);

	return found != NULL && found->identity.txid == listed.txid;
}

/*
 * Among the events that were handed back, mark those that are in the open batch now,
 * and delete those that are gone.
 */
static void
store_retries(const Fetch *fetch, Datum ids, Datum txids)
{
	static InternalStatement delete_gone = {
		.sql = "DELETE FROM @s._event_consumer_retries WHERE consumer OPERATOR(pg_catalog.=) $1 "
		"AND event_id OPERATOR(pg_catalog.=) $2 AND event_txid OPERATOR(pg_catalog.=) $3",
		.target = TABLE_CONSUMER_RETRIES,
		.nargs = 3,
		.argtypes = {TEXTOID, INT8OID, XID8OID},
	};

	/*
	 * A row with the id of one of these events and another transaction concerns an
	 * event that is gone, because the id is in use again.  So it does no harm that
	 * this may mark that row, too.
	 */
	static InternalStatement update_taken = {
		.sql = "UPDATE @s._event_consumer_retries SET next_attempt_at = NULL "
		"WHERE consumer OPERATOR(pg_catalog.=) $1 AND event_id OPERATOR(pg_catalog.=) ANY ($2) "
		"AND event_txid OPERATOR(pg_catalog.=) ANY ($3)",
		.target = TABLE_CONSUMER_RETRIES,
		.nargs = 3,
		.argtypes = {TEXTOID, INT8ARRAYOID, XID8ARRAYOID},
	};
	Datum		name = CStringGetTextDatum(fetch->consumer->name);
	Datum		taken[3] = {name, ids, txids};

	for (int i = 0; i < fetch->nlisted; i++)
	{
		EventIdentity listed = fetch->listed[i];
		Datum		gone[3] = {name, Int64GetDatum(listed.id), event_txid_datum(listed.txid)};

		if (!was_found(&fetch->search, listed))
			internal_execute(&delete_gone, gone, NULL, 0);
	}
	internal_execute(&update_taken, taken, NULL, 0);
}

/*
 * Store what was found as the open batch, with the position behind it.
 */
static void
store_fetch(const Fetch *fetch, const EventIdentity *found)
{
	static InternalStatement update_progress = {
		.sql = "UPDATE @s._event_consumer_progress SET "
		"cursor = $2::pg_catalog.pg_snapshot, \"window\" = $3::pg_catalog.pg_snapshot, last_id = $4, "
		"batch = $5, batch_length = $8, leased_until = $6, fetched = fetched OPERATOR(pg_catalog.+) $7, "
		"last_fetched_at = CASE WHEN $8 OPERATOR(pg_catalog.=) 0 "
		"THEN last_fetched_at ELSE pg_catalog.clock_timestamp() END "
		"WHERE consumer OPERATOR(pg_catalog.=) $1",
		.target = TABLE_CONSUMER_PROGRESS,
		.nargs = 8,
		.argtypes = {TEXTOID, TEXTOID, TEXTOID, INT8OID, BYTEAOID, TIMESTAMPTZOID, INT8OID, INT4OID},
	};
	const EventSearch *search = &fetch->search;
	const EventPosition *position = &search->position;
	Datum		values[8] = {0};
	char		nulls[8] = {' ', ' ', 'n', 'n', ' ', 'n', ' ', ' '};

	values[0] = CStringGetTextDatum(fetch->consumer->name);
	values[1] = CStringGetTextDatum(event_snapshot_text(position->cursor));
	if (position->window != NULL)
	{
		values[2] = CStringGetTextDatum(event_snapshot_text(position->window));
		values[3] = Int64GetDatum(position->last_id);
		nulls[2] = nulls[3] = ' ';
	}
	values[4] = batch_datum(found, search->nfound);
	if (fetch->lease > 0 && search->nfound > 0)
	{
		values[5] = TimestampTzGetDatum(TimestampTzPlusMilliseconds(GetCurrentTimestamp(), fetch->lease));
		nulls[5] = ' ';

		/* other clients respect the lease after a crash, too */
		ForceSyncCommit();
	}
	values[6] = Int64GetDatum(fetch->is_new ? search->nfound : 0);
	values[7] = Int32GetDatum(search->nfound);

	if (fetch->nlisted > 0)
		store_retries(fetch, event_ids_datum(found, search->nfound), event_txids_datum(found, search->nfound));
	internal_execute(&update_progress, values, nulls, 0);
}

/*
 * Fetch for a consumer that this session has locked.
 */
static void
fetch_locked(Fetch *fetch, Relation log, ReturnSetInfo *rsinfo)
{
	EventSearch *search = &fetch->search;
	EventIdentity *found;
	bool		changed;

	PushActiveSnapshot(GetTransactionSnapshot());
	find_events(fetch, log, GetActiveSnapshot(), rsinfo->setResult);
	found = palloc(sizeof(EventIdentity) * search->nfound);
	for (int i = 0; i < search->nfound; i++)
		found[i] = search->found[i].identity;
	window_flush_events(found, search->nfound);
	changed = has_changed(fetch);
	if (changed)
		store_fetch(fetch, found);
	PopActiveSnapshot();

	if (changed || search->nfound > 0)
		doorbell_at_commit(RING_CONSUMERS);
	else
		consumer_unlock(fetch->consumer);
}

/*
 * Load the caller's consumer, if events may be fetched for it.
 */
static Consumer *
find_fetchable(const char *name)
{
	Consumer   *consumer = consumer_find_own(name);

	consumer_check_awake(consumer);
	consumer_check_owner(name, consumer->owner);
	return consumer;
}

/*
 * fetch_events(consumer text, max_events int, lease interval) returns setof
 * notification_events
 *
 * Returns the open batch, whatever max_events is.  Without one it returns the next
 * batch, by id: events that were handed back and are due, then new ones.  Returns no
 * rows while a lease runs or another session has the consumer.  Errors: bad arguments;
 * no such consumer; not its owner or a member of the owner; the owner may not read the
 * log; a dormant consumer; REPEATABLE READ; a read-only transaction; a standby.
 */
Datum
pne_fetch_events(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	char	   *name = name_argument(fcinfo, 0, "consumer", "event consumer");
	Fetch		fetch = {0};
	Consumer   *consumer;
	Relation	log;

	fetch.max_events = integer_argument(fcinfo, 1, "max_events", MAX_EVENTS);
	fetch.lease = PG_ARGISNULL(2) ? 0 : interval_argument(fcinfo, 2, "lease");
	require_writable("fetch_events()");
	require_read_committed("fetch_events()", "new events");

	InitMaterializedSRF(fcinfo, 0);
	log = table_open(catalog_lookup(false)->log, AccessShareLock);
	SPI_connect();
	consumer = find_fetchable(name);
	if (!consumer_is_leased(consumer) && consumer_try_lock(consumer))
	{
		/*
		 * again: its row as it is now that no other session moves it, or another
		 * consumer of that name
		 */
		fetch.consumer = find_fetchable(name);
		if (consumer_is_leased(fetch.consumer) || fetch.consumer->number != consumer->number)
			consumer_unlock(consumer);
		else
			fetch_locked(&fetch, log, rsinfo);
	}
	SPI_finish();
	table_close(log, NoLock);
	return (Datum) 0;
}

/* ----------
 * Acknowledge, hand back
 * ----------
 */

/*
 * The index of an event in the open batch; an error if it is not there.
 */
static int
find_in_batch(const Consumer *consumer, int64 id)
{
	int			index = consumer_batch_index(consumer, id);

	if (index < 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("event %lld is not in the open batch of event consumer \"%s\"",
						(long long) id, consumer->name),
				 errhint("It was acknowledged or handed back already, perhaps by another session, or was not fetched. fetch_events() returns the open batch.")));
	return index;
}

/*
 * Store a batch without nout of its events from index first on.  They were
 * acknowledged, retried of them after they had been handed back; or they are handed
 * back.
 */
static void
store_batch(Consumer *consumer, int first, int nout, bool acknowledged, int64 retried)
{
	static InternalStatement update_batch = {
		.sql = "UPDATE @s._event_consumer_progress SET batch = $2, batch_length = $6, "
		"leased_until = CASE WHEN $6 OPERATOR(pg_catalog.=) 0 "
		"THEN NULL ELSE leased_until END, "
		"acknowledged = acknowledged OPERATOR(pg_catalog.+) $3, "
		"retried = retried OPERATOR(pg_catalog.+) $4, "
		"last_event_id = COALESCE($5, last_event_id), "
		"last_acknowledged_at = CASE WHEN $5 IS NULL THEN last_acknowledged_at "
		"ELSE pg_catalog.clock_timestamp() END "
		"WHERE consumer OPERATOR(pg_catalog.=) $1",
		.target = TABLE_CONSUMER_PROGRESS,
		.nargs = 6,
		.argtypes = {TEXTOID, BYTEAOID, INT8OID, INT8OID, INT8OID, INT4OID},
	};
	Datum		values[6];
	char		nulls[6] = {' ', ' ', ' ', ' ', acknowledged ? ' ' : 'n', ' '};

	values[4] = Int64GetDatum(consumer->batch[first + nout - 1].id);
	consumer->nbatch -= nout;
	memmove(consumer->batch + first, consumer->batch + first + nout,
			sizeof(EventIdentity) * (consumer->nbatch - first));
	values[0] = CStringGetTextDatum(consumer->name);
	values[1] = batch_datum(consumer->batch, consumer->nbatch);
	values[2] = Int64GetDatum(acknowledged ? nout : 0);
	values[3] = Int64GetDatum(retried);
	values[5] = Int32GetDatum(consumer->nbatch);
	internal_execute(&update_batch, values, nulls, 0);
	doorbell_at_commit(RING_CONSUMERS);
}

/*
 * Lock the consumer that the first argument names, for a function that changes
 * its open batch.
 */
static Consumer *
lock_consumer(FunctionCallInfo fcinfo, const char *function)
{
	char	   *name = name_argument(fcinfo, 0, "consumer", "event consumer");
	Consumer   *consumer;

	require_writable(function);
	consumer = consumer_lock_own(name);
	consumer_check_awake(consumer);
	return consumer;
}

/*
 * ack_events(consumer text, up_to_id bigint) returns bigint
 *
 * Acknowledges the events of the open batch up to the one with that id, or all of them
 * (null), and returns how many.  Waits for a session that has the consumer.  Errors:
 * up_to_id is not in the open batch; no such consumer; not its owner or a member of
 * the owner; a dormant consumer; a read-only transaction.
 */
Datum
pne_ack_events(PG_FUNCTION_ARGS)
{
	static InternalStatement delete_retries = {
		.sql = "DELETE FROM @s._event_consumer_retries WHERE consumer OPERATOR(pg_catalog.=) $1 "
		"AND next_attempt_at IS NULL AND event_id OPERATOR(pg_catalog.<=) $2",
		.target = TABLE_CONSUMER_RETRIES,
		.nargs = 2,
		.argtypes = {TEXTOID, INT8OID},
	};
	Consumer   *consumer;
	int			count;

	SPI_connect();
	consumer = lock_consumer(fcinfo, "ack_events()");
	count = PG_ARGISNULL(1) ? consumer->nbatch : find_in_batch(consumer, PG_GETARG_INT64(1)) + 1;
	if (count > 0)
	{
		/* rows without a time are those of the open batch */
		Datum		values[2] = {CStringGetTextDatum(consumer->name), Int64GetDatum(consumer->batch[count - 1].id)};

		store_batch(consumer, 0, count, true, internal_execute(&delete_retries, values, NULL, 0));
	}
	else
		consumer_unlock(consumer);
	SPI_finish();
	PG_RETURN_INT64(count);
}

/*
 * retry_event(consumer text, event_id bigint, delay interval) returns void
 *
 * Hands an event of the open batch back.  It is fetched again after the delay, with a
 * later batch.  Waits for a session that has the consumer.  Errors: as for
 * ack_events(); a bad delay.
 */
Datum
pne_retry_event(PG_FUNCTION_ARGS)
{
	static InternalStatement insert_retry = {
		.sql = "INSERT INTO @s._event_consumer_retries AS t (consumer, event_id, event_txid, attempts, next_attempt_at) "
		"VALUES ($1, $2, $4, 1, $3) ON CONFLICT (consumer, event_id, event_txid) DO UPDATE "
		"SET attempts = t.attempts OPERATOR(pg_catalog.+) 1, next_attempt_at = excluded.next_attempt_at",
		.target = TABLE_CONSUMER_RETRIES,
		.nargs = 4,
		.argtypes = {TEXTOID, INT8OID, TIMESTAMPTZOID, XID8OID},
	};
	Consumer   *consumer;
	EventIdentity event;
	int			index;
	int64		delay;
	Datum		values[4];

	require_argument(fcinfo, 1, "event_id");
	delay = delay_argument(fcinfo, 2);

	SPI_connect();
	consumer = lock_consumer(fcinfo, "retry_event()");
	index = find_in_batch(consumer, PG_GETARG_INT64(1));
	event = consumer->batch[index];
	store_batch(consumer, index, 1, false, 0);
	values[0] = CStringGetTextDatum(consumer->name);
	values[1] = Int64GetDatum(event.id);
	values[2] = TimestampTzGetDatum(TimestampTzPlusMilliseconds(GetCurrentTimestamp(), delay));
	values[3] = event_txid_datum(event.txid);
	internal_execute(&insert_retry, values, NULL, 0);
	SPI_finish();
	PG_RETURN_VOID();
}
