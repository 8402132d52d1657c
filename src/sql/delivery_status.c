/*-------------------------------------------------------------------------
 *
 * delivery_status.c
 *		SQL functions about what became of events: why one was not delivered,
 *		and having dead or delivered ones tried again.
 *
 * Whatever is to be tried again becomes a waiting row of _event_retries; the
 * executor does the rest (retry.c).  For that the handler's definition is
 * locked; replay_events() also locks its progress row, so that it waits for the
 * batch at hand and sees what that has passed.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "executor/tuptable.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/tuplestore.h"
#include "utils/xid8.h"

#include "base/arguments.h"
#include "base/catalog.h"
#include "base/compat.h"
#include "base/doorbell.h"
#include "base/settings.h"
#include "base/shared.h"
#include "consumer/consumer.h"
#include "handler/handler.h"
#include "handler/handler_definition.h"
#include "log/window.h"

/* replayed events that one statement inserts */
#define REPLAY_CHUNK 1000

PG_FUNCTION_INFO_V1(pne_retry_dead_events);
PG_FUNCTION_INFO_V1(pne_discard_dead_events);
PG_FUNCTION_INFO_V1(pne_replay_events);
PG_FUNCTION_INFO_V1(pne_event_delivery_status);

/* ----------
 * Dead events
 * ----------
 */

/*
 * Run a statement on the dead events of the caller's handler, and return how
 * many there were.
 */
static int64
change_dead_events(FunctionCallInfo fcinfo, const char *function, OwnStatement *statement)
{
	char	   *name = name_argument(fcinfo, 0, "handler", "event handler");
	Datum		value = CStringGetTextDatum(name);
	Handler    *handler;
	int64		count;

	require_writable(function);
	SPI_connect();
	handler = lock_own_handler(name);
	count = own_execute(statement, &value, NULL, 0);
	if (count > 0)
		doorbell_handlers_at_commit(handler->owner);
	SPI_finish();
	return count;
}

/*
 * retry_dead_events(handler text) returns bigint
 *
 * Has the handler's dead events tried again from now on, as often as any other.
 * Returns how many.  Errors: no such handler; not the owner.
 */
Datum
pne_retry_dead_events(PG_FUNCTION_ARGS)
{
	static OwnStatement revive = {
		.sql = "UPDATE @s._event_retries SET state = 'waiting', attempts = 0, "
		"next_attempt_at = pg_catalog.clock_timestamp(), attempt_began_at = NULL "
		"WHERE handler OPERATOR(pg_catalog.=) $1 AND state OPERATOR(pg_catalog.=) 'dead'",
		.target = OWN_RETRIES,
		.nargs = 1,
		.argtypes = {TEXTOID},
	};

	PG_RETURN_INT64(change_dead_events(fcinfo, "retry_dead_events()", &revive));
}

/*
 * discard_dead_events(handler text) returns bigint
 *
 * Gives the handler's dead events up: they stay listed as discarded.  Returns
 * how many.  Errors: no such handler; not the owner.
 */
Datum
pne_discard_dead_events(PG_FUNCTION_ARGS)
{
	static OwnStatement discard = {
		.sql = "UPDATE @s._event_retries SET state = 'discarded' "
		"WHERE handler OPERATOR(pg_catalog.=) $1 AND state OPERATOR(pg_catalog.=) 'dead'",
		.target = OWN_RETRIES,
		.nargs = 1,
		.argtypes = {TEXTOID},
	};

	PG_RETURN_INT64(change_dead_events(fcinfo, "discard_dead_events()", &discard));
}

/* ----------
 * Replay
 * ----------
 */

typedef struct ReplayState
{
	const Handler *handler;
	Relation	log;
	MemoryContext context;		/* of the events that are collected */
	Event		events[REPLAY_CHUNK];
	int			nevents;
	Size		bytes;
	int64		scheduled;
} ReplayState;

/*
 * Schedule what is wanted of the events collected so far.  One that waits
 * already is left alone.  What row security hides from the caller is out before
 * anything can be told from it.
 */
static void
schedule_replay(ReplayState *state)
{
	static OwnStatement insert_retries = {
		.sql = "INSERT INTO @s._event_retries AS t (handler, event_id, event_txid, state, attempts, next_attempt_at) "
		"SELECT $1, i.id, i.txid, 'waiting', 0, pg_catalog.clock_timestamp() "
		"FROM ROWS FROM (pg_catalog.unnest($2), pg_catalog.unnest($3)) AS i (id, txid) "
		"ON CONFLICT (handler, event_id, event_txid) DO UPDATE SET state = 'waiting', attempts = 0, "
		"next_attempt_at = excluded.next_attempt_at, last_error = NULL, last_sqlstate = NULL, "
		"last_error_at = NULL, attempt_began_at = NULL "
		"WHERE t.state OPERATOR(pg_catalog.<>) 'waiting'",
		.target = OWN_RETRIES,
		.nargs = 3,
		.argtypes = {TEXTOID, INT8ARRAYOID, XID8ARRAYOID},
	};
	const Handler *handler = state->handler;
	MemoryContext old = MemoryContextSwitchTo(state->context);
	EventIdentity wanted[REPLAY_CHUNK];
	Datum		values[3];
	int			nwanted = 0;

	if (state->nevents > 0)
		match_row_security(state->log, state->events, state->nevents);
	for (int i = 0; i < state->nevents; i++)
	{
		Event	   *event = &state->events[i];

		if (!event->hidden && match_name(&handler->pattern, event->name) &&
			match_filter(&handler->pattern, event->tuple, RelationGetDescr(state->log)))
			wanted[nwanted++] = (EventIdentity) {event->id, event->txid};
	}
	if (nwanted > 0)
	{
		values[0] = CStringGetTextDatum(handler->name);
		values[1] = event_ids_datum(wanted, nwanted);
		values[2] = event_txids_datum(wanted, nwanted);
		state->scheduled += own_execute(&insert_retries, values, NULL, 0);
	}
	MemoryContextSwitchTo(old);
	MemoryContextReset(state->context);
	state->nevents = 0;
	state->bytes = 0;
}

static bool
replay_event(TupleTableSlot *slot, int64 id, void *arg)
{
	ReplayState *state = (ReplayState *) arg;
	MemoryContext old;

	if (!event_position_passed(&state->handler->position, event_slot_txid(slot), id))
		return true;
	old = MemoryContextSwitchTo(state->context);
	event_from_slot(&state->events[state->nevents], slot);
	MemoryContextSwitchTo(old);
	state->bytes += state->events[state->nevents++].size;
	if (state->nevents == REPLAY_CHUNK || state->bytes >= (Size) pne_batch_bytes * 1024)
		schedule_replay(state);
	return true;
}

/*
 * replay_events(handler text, from_id bigint, to_id bigint) returns bigint
 *
 * Has the handler called again with the events of its name and filter, by id,
 * that its position has passed; null as to_id means up to the last.  Returns how
 * many; one that waits for a retry already is not counted.  Waits for the batch
 * at hand.  Errors: no such handler; not the owner; a dormant handler, whose
 * position means nothing here; from_id null or above to_id.
 */
Datum
pne_replay_events(PG_FUNCTION_ARGS)
{
	static OwnStatement lock_progress = {
		.sql = "SELECT 1 FROM @s._event_handler_progress AS p "
		"WHERE p.handler OPERATOR(pg_catalog.=) $1 FOR UPDATE",
		.target = OWN_PROGRESS,
		.nargs = 1,
		.argtypes = {TEXTOID},
	};
	char	   *name = name_argument(fcinfo, 0, "handler", "event handler");
	Datum		value = CStringGetTextDatum(name);
	int64		from;
	int64		to = PG_ARGISNULL(2) ? PG_INT64_MAX : PG_GETARG_INT64(2);
	ReplayState *state = palloc0(sizeof(ReplayState));
	const char *oversized;

	require_writable("replay_events()");
	require_argument(fcinfo, 1, "from_id");
	from = PG_GETARG_INT64(1);
	if (from > to)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("from_id %lld is above to_id %lld", (long long) from, (long long) to),
				 errhint("Both are included; without to_id all events from from_id on are meant.")));

	state->log = table_open(catalog_lookup(false)->log, AccessShareLock);
	state->context = AllocSetContextCreate(CurrentMemoryContext, "replayed events", ALLOCSET_DEFAULT_SIZES);
	SPI_connect();
	handler_wait_for_batch(lock_own_handler(name));
	own_execute(&lock_progress, &value, NULL, 1);
	/* once more: its position as it is now that nobody moves it */
	state->handler = lock_own_handler(name);
	if (state->handler->dormant)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("event handler \"%s\" is dormant", name),
				 errhint("A superuser wakes it with activate_events().")));
	oversized = match_oversized(&state->handler->pattern);
	if (oversized != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("events cannot be chosen for event handler \"%s\": %s", name, oversized),
				 errhint("Give it a shorter one with alter_event_handler().")));

	PushActiveSnapshot(GetTransactionSnapshot());
	event_scan_ids(state->log, GetActiveSnapshot(), from, to, replay_event, state);
	schedule_replay(state);
	PopActiveSnapshot();
	if (state->scheduled > 0)
		doorbell_handlers_at_commit(state->handler->owner);
	SPI_finish();
	table_close(state->log, NoLock);

	PG_RETURN_INT64(state->scheduled);
}

/* ----------
 * Status
 * ----------
 */

/* an event as event_delivery_status() sees it; without a tuple, it is not there */
typedef struct EventOfInterest
{
	int64		id;
	HeapTuple	tuple;
	TupleDesc	desc;
	char	   *name;
	uint64		txid;
	uint64		origin_txid;	/* in the database that it was restored from; 0: it was not */
} EventOfInterest;

static bool
take_event(TupleTableSlot *slot, int64 id, void *arg)
{
	EventOfInterest *event = (EventOfInterest *) arg;
	Datum		value;
	bool		isnull;

	event->tuple = ExecCopySlotHeapTuple(slot);
	event->name = TextDatumGetCString(slot_getattr(slot, Anum_event_name, &isnull));
	event->txid = event_slot_txid(slot);
	value = slot_getattr(slot, Anum_event_origin_txid, &isnull);
	event->origin_txid = isnull ? 0 : event_txid_from_datum(value);
	return false;
}

/* a handler or a consumer, as event_delivery_status() sees it */
typedef struct Receiver
{
	const char *kind;
	const char *name;
	Oid			owner;
	const EventPattern *pattern;
	const EventPosition *position;
	const EventSnapshot *start;
	bool		dormant;
	bool		paused;
	bool		holds_event;	/* a consumer has it in its open batch */
	OwnStatement *select_retry; /* of the event, as RETRIES_OF_EVENT has it:
								 * state, attempts, next attempt, last error */
} Receiver;

/*
 * What became of an event that is on no list of retries.
 */
static const char *
delivery_status(const Receiver *receiver, const EventOfInterest *event)
{
	if (receiver->dormant)
		return "dormant";
	if (receiver->holds_event)
		return "pending";
	if (!match_name(receiver->pattern, event->name) ||
		!match_filter_or_error(receiver->pattern, event->tuple, event->desc))
		return "not matched";
	if (event_snapshot_sees(receiver->start, event->txid))
		return "before start";
	if (event_position_passed(receiver->position, event->txid, event->id))
		return "delivered";
	return receiver->paused ? "paused" : "pending";
}

#define STATUS_COLUMNS 6

/*
 * What is listed about an event: of id $2 and one of the transactions $3, or of
 * any where it is not there any more.
 */
#define RETRIES_OF_EVENT \
	"t.event_id OPERATOR(pg_catalog.=) $2 " \
	"AND ($3 IS NULL OR t.event_txid OPERATOR(pg_catalog.=) ANY ($3)) " \
	"ORDER BY t.event_txid DESC LIMIT 1"

/*
 * The transactions that rows about the event name; null if it is not there.
 * A receiver that was restored knows the event by the one it had then.
 */
static Datum
known_txids(const Receiver *receiver, const EventOfInterest *event, char *null)
{
	EventIdentity known[2] = {{event->id, event->txid}, {event->id, event->origin_txid}};
	int			nknown = (receiver->dormant && event->origin_txid != 0) ? 2 : 1;

	*null = (event->tuple == NULL) ? 'n' : ' ';
	return event_txids_datum(known, nknown);
}

/*
 * Add the row of one handler or consumer.  False where there is nothing to tell:
 * the caller may not see it, or the event is gone, and is on no list.
 */
static bool
put_status(const Receiver *receiver, const EventOfInterest *event, ReturnSetInfo *rsinfo)
{
	Datum		keys[3] = {CStringGetTextDatum(receiver->name), Int64GetDatum(event->id)};
	char		key_nulls[3] = {' ', ' ', ' '};
	Datum		values[STATUS_COLUMNS] = {0};
	bool		nulls[STATUS_COLUMNS] = {false, false, false, true, true, true};

	if (!handler_owner_is_visible(receiver->owner))
		return false;
	keys[2] = known_txids(receiver, event, &key_nulls[2]);
	values[0] = keys[0];
	values[1] = CStringGetTextDatum(receiver->kind);
	if (own_execute(receiver->select_retry, keys, key_nulls, 1) == 1)
	{
		values[2] = CStringGetTextDatum(own_text(0, 1));
		for (int i = 3; i < STATUS_COLUMNS; i++)
			values[i] = own_value(0, i - 1, &nulls[i]);
	}
	else if (event->tuple != NULL)
		values[2] = CStringGetTextDatum(delivery_status(receiver, event));
	else
		return false;
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	return true;
}

/*
 * Add the rows of the handlers.  True if there is any.
 */
static bool
put_handlers(const EventOfInterest *event, ReturnSetInfo *rsinfo)
{
	static OwnStatement select_retry = {
		.sql = "SELECT t.state, t.attempts, t.next_attempt_at, t.last_error FROM @s._event_retries AS t "
		"WHERE t.handler OPERATOR(pg_catalog.=) $1 AND " RETRIES_OF_EVENT,
		.target = OWN_NONE,
		.nargs = 3,
		.argtypes = {TEXTOID, INT8OID, XID8ARRAYOID},
	};
	ListCell   *lc;
	List	   *handlers = handler_load(NULL, InvalidOid, CurrentMemoryContext);
	bool		found = false;

	foreach(lc, handlers)
	{
		Handler    *handler = lfirst(lc);
		Receiver	receiver = {
			.kind = "handler",
			.name = handler->name,
			.owner = handler->owner,
			.pattern = &handler->pattern,
			.position = &handler->position,
			.start = handler->start,
			.dormant = handler->dormant,
			.paused = handler->paused,
			.select_retry = &select_retry,
		};

		found = put_status(&receiver, event, rsinfo) || found;
	}
	return found;
}

static bool
holds_event(const Consumer *consumer, const EventOfInterest *event)
{
	int			index = consumer_batch_index(consumer, event->id);

	return index >= 0 && consumer->batch[index].txid == event->txid;
}

/*
 * The same for consumers.  What was handed back and is in the open batch again
 * is not waiting any more, but its attempts count.
 */
static bool
put_consumers(const EventOfInterest *event, ReturnSetInfo *rsinfo)
{
	static OwnStatement select_retry = {
		.sql = "SELECT CASE WHEN t.next_attempt_at IS NULL THEN 'pending' ELSE 'waiting' END, "
		"t.attempts, t.next_attempt_at, NULL::pg_catalog.text FROM @s._event_consumer_retries AS t "
		"WHERE t.consumer OPERATOR(pg_catalog.=) $1 AND " RETRIES_OF_EVENT,
		.target = OWN_NONE,
		.nargs = 3,
		.argtypes = {TEXTOID, INT8OID, XID8ARRAYOID},
	};
	ListCell   *lc;
	List	   *consumers = consumer_load_all();
	bool		found = false;

	foreach(lc, consumers)
	{
		Consumer   *consumer = lfirst(lc);
		Receiver	receiver = {
			.kind = "consumer",
			.name = consumer->name,
			.owner = consumer->owner,
			.pattern = &consumer->pattern,
			.position = &consumer->position,
			.start = consumer->start,
			.dormant = consumer->dormant,
			.holds_event = holds_event(consumer, event),
			.select_retry = &select_retry,
		};

		found = put_status(&receiver, event, rsinfo) || found;
	}
	return found;
}

/*
 * Read the event, if it is there.  False where the caller may not know.
 */
static bool
read_event(EventOfInterest *event, Relation log)
{
	Event		row = {.id = event->id};
	bool		may_read = pg_class_aclcheck(RelationGetRelid(log), GetUserId(), ACL_SELECT) == ACLCHECK_OK;

	if (!may_read && !has_privs_of_role(GetUserId(), ROLE_PG_MONITOR))
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_TABLE, RelationGetRelationName(log));
	event_scan_ids(log, GetActiveSnapshot(), event->id, event->id, take_event, event);
	if (event->tuple == NULL)
		return true;
	/* of who may not read the log nobody can ask which rows a policy hides */
	if (may_read)
		match_row_security(log, &row, 1);
	else
		row.hidden = match_is_restricted(log);
	return !row.hidden;
}

/*
 * event_delivery_status(event_id bigint) returns table (name text, kind text,
 *		status text, attempts integer, next_attempt_at timestamptz, last_error
 *		text)
 *
 * A row for each handler and each consumer that the caller may see.  Row
 * security is not asked on behalf of their owners.  Errors: event_id null; no such
 * event; no right to read the log; a parallel operation, which can have no
 * subtransaction (match_filter_or_error).
 */
Datum
pne_event_delivery_status(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	EventOfInterest event = {0};
	Relation	log;
	bool		found;

	PreventCommandIfParallelMode("event_delivery_status()");
	require_argument(fcinfo, 0, "event_id");
	event.id = PG_GETARG_INT64(0);

	InitMaterializedSRF(fcinfo, 0);
	log = table_open(catalog_lookup(false)->log, AccessShareLock);
	event.desc = RelationGetDescr(log);
	SPI_connect();
	PushActiveSnapshot(GetTransactionSnapshot());
	found = read_event(&event, log);
	if (found)
	{
		bool		by_handlers = put_handlers(&event, rsinfo);
		bool		by_consumers = put_consumers(&event, rsinfo);

		found = event.tuple != NULL || by_handlers || by_consumers;
	}
	if (!found)
		ereport(ERROR,
				(errcode(ERRCODE_NO_DATA_FOUND),
				 errmsg("event %lld does not exist", (long long) event.id),
				 errhint("It was not committed, or it was deleted from notification_events.")));
	PopActiveSnapshot();
	SPI_finish();
	table_close(log, AccessShareLock);
	return (Datum) 0;
}
