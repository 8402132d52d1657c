/*-------------------------------------------------------------------------
 *
 * replay.c
 *		SQL functions that have a handler's dead or delivered events tried again.
 *
 * An event that is to be tried again becomes a waiting row of _event_retries; the
 * executor does the rest (retry.c).  The functions lock the handler's definition.
 * replay_events() also locks its progress row, so that it waits for the batch at hand
 * and sees what that batch has passed.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/xid8.h"

#include "base/arguments.h"
#include "base/catalog.h"
#include "base/compat.h"
#include "base/doorbell.h"
#include "base/internal_sql.h"
#include "base/settings.h"
#include "handler/handler.h"
#include "handler/handler_definition.h"
#include "log/window.h"

/* events that one statement inserts */
#define REPLAY_CHUNK 1000

PG_FUNCTION_INFO_V1(pne_retry_dead_events);
PG_FUNCTION_INFO_V1(pne_discard_dead_events);
PG_FUNCTION_INFO_V1(pne_replay_events);

/* ----------
 * Dead events
 * ----------
 */

/*
 * Run a statement on the dead events of the caller's handler.  Returns how many there
 * were.
 */
static int64
change_dead_events(FunctionCallInfo fcinfo, const char *function, InternalStatement *statement)
{
	char	   *name = name_argument(fcinfo, 0, "handler", "event handler");
	Datum		value = CStringGetTextDatum(name);
	Handler    *handler;
	int64		count;

	require_writable(function);
	SPI_connect();
	handler = lock_own_handler(name);
	count = internal_execute(statement, &value, NULL, 0);
	if (count > 0)
		doorbell_handlers_at_commit(handler->owner);
	SPI_finish();
	return count;
}

/*
 * retry_dead_events(handler text) returns bigint
 *
 * Has the handler's dead events tried again, with as many attempts as any other event.
 * Returns how many.  Errors: no such handler; not the owner.
 */
Datum
pne_retry_dead_events(PG_FUNCTION_ARGS)
{
	static InternalStatement revive = {
		.sql = "UPDATE @s._event_retries SET state = 'waiting', attempts = 0, "
		"next_attempt_at = pg_catalog.clock_timestamp(), attempt_began_at = NULL "
		"WHERE handler OPERATOR(pg_catalog.=) $1 AND state OPERATOR(pg_catalog.=) 'dead'",
		.target = TABLE_RETRIES,
		.nargs = 1,
		.argtypes = {TEXTOID},
	};

	PG_RETURN_INT64(change_dead_events(fcinfo, "retry_dead_events()", &revive));
}

/*
 * discard_dead_events(handler text) returns bigint
 *
 * Gives up the handler's dead events: they stay listed as discarded.  Returns how
 * many.  Errors: no such handler; not the owner.
 */
Datum
pne_discard_dead_events(PG_FUNCTION_ARGS)
{
	static InternalStatement discard = {
		.sql = "UPDATE @s._event_retries SET state = 'discarded' "
		"WHERE handler OPERATOR(pg_catalog.=) $1 AND state OPERATOR(pg_catalog.=) 'dead'",
		.target = TABLE_RETRIES,
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
	MemoryContext context;		/* of the events collected so far */
	Event		events[REPLAY_CHUNK];
	int			nevents;
	Size		bytes;
	int64		scheduled;
} ReplayState;

/*
 * Schedule the events collected so far.  An event that waits already is left alone.
 * Events that row security hides from the caller are removed first, so that nothing
 * can be learned about them.
 */
static void
schedule_replay(ReplayState *state)
{
	static InternalStatement insert_retries = {
		.sql = "INSERT INTO @s._event_retries AS t (handler, event_id, event_txid, state, attempts, next_attempt_at) "
		"SELECT $1, i.id, i.txid, 'waiting', 0, pg_catalog.clock_timestamp() "
		"FROM ROWS FROM (pg_catalog.unnest($2), pg_catalog.unnest($3)) AS i (id, txid) "
		"ON CONFLICT (handler, event_id, event_txid) DO UPDATE SET state = 'waiting', attempts = 0, "
		"next_attempt_at = excluded.next_attempt_at, last_error = NULL, last_sqlstate = NULL, "
		"last_error_at = NULL, attempt_began_at = NULL "
		"WHERE t.state OPERATOR(pg_catalog.<>) 'waiting'",
		.target = TABLE_RETRIES,
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
		state->scheduled += internal_execute(&insert_retries, values, NULL, 0);
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
 * Has the handler called again with the events of its name and filter whose ids are in
 * the range and that its position has passed.  A null to_id means up to the last one.
 * Waits for the batch at hand.  Returns how many events are scheduled; one that waits
 * for a retry already is not counted.  Errors: no such handler; not the owner; a
 * dormant handler, whose position means nothing here; from_id null or above to_id.
 */
Datum
pne_replay_events(PG_FUNCTION_ARGS)
{
	static InternalStatement lock_progress = {
		.sql = "SELECT 1 FROM @s._event_handler_progress AS p "
		"WHERE p.handler OPERATOR(pg_catalog.=) $1 FOR UPDATE",
		.target = TABLE_PROGRESS,
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
	internal_execute(&lock_progress, &value, NULL, 1);
	/* Read the position again, now that no batch moves it. */
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
