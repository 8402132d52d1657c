/*-------------------------------------------------------------------------
 *
 * delivery_status.c
 *		event_delivery_status(): what became of an event for each handler and
 *		consumer, and why it was not delivered.
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
#include "base/internal_sql.h"
#include "base/settings.h"
#include "base/shared.h"
#include "consumer/consumer.h"
#include "handler/handler.h"
#include "log/window.h"

PG_FUNCTION_INFO_V1(pne_event_delivery_status);

/* an event as event_delivery_status() sees it; without a tuple if the event is gone */
typedef struct EventOfInterest
{
	int64		id;
	HeapTuple	tuple;
	TupleDesc	desc;
	char	   *name;
	uint64		txid;
	uint64		origin_txid;	/* its transaction in the database that it was restored from; 0 if it was not restored */
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
	InternalStatement *select_retry; /* of the event, as RETRIES_OF_EVENT has it:
								 * state, attempts, next attempt, last error */
} Receiver;

/*
 * What became of an event that is not in a table of retries.
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
 * Selects the rows about an event: of id $2 and one of the transactions $3, or of any
 * transaction if the event is gone.
 */
#define RETRIES_OF_EVENT \
	"t.event_id OPERATOR(pg_catalog.=) $2 " \
	"AND ($3 IS NULL OR t.event_txid OPERATOR(pg_catalog.=) ANY ($3)) " \
	"ORDER BY t.event_txid DESC LIMIT 1"

/*
 * The transactions by which rows about the event name it; null if the event is gone.
 * A restored receiver knows the event by the transaction that it had before.
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
 * Add the row of one handler or consumer.  Returns false if there is no row: the
 * caller may not see it, or the event is gone and not listed.
 */
static bool
put_status(const Receiver *receiver, const EventOfInterest *event, ReturnSetInfo *rsinfo)
{
	Datum		keys[3] = {CStringGetTextDatum(receiver->name), Int64GetDatum(event->id)};
	char		key_nulls[3] = {' ', ' ', ' '};
	Datum		values[STATUS_COLUMNS] = {0};
	bool		nulls[STATUS_COLUMNS] = {false, false, false, true, true, true};

	if (!catalog_owner_is_visible(receiver->owner))
		return false;
	keys[2] = known_txids(receiver, event, &key_nulls[2]);
	values[0] = keys[0];
	values[1] = CStringGetTextDatum(receiver->kind);
	if (internal_execute(receiver->select_retry, keys, key_nulls, 1) == 1)
	{
		values[2] = CStringGetTextDatum(internal_text(0, 1));
		for (int i = 3; i < STATUS_COLUMNS; i++)
			values[i] = internal_value(0, i - 1, &nulls[i]);
	}
	else if (event->tuple != NULL)
		values[2] = CStringGetTextDatum(delivery_status(receiver, event));
	else
		return false;
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	return true;
}

/*
 * Add the rows of the handlers.  Returns whether there is any.
 */
static bool
put_handlers(const EventOfInterest *event, ReturnSetInfo *rsinfo)
{
	static InternalStatement select_retry = {
		.sql = "SELECT t.state, t.attempts, t.next_attempt_at, t.last_error FROM @s._event_retries AS t "
		"WHERE t.handler OPERATOR(pg_catalog.=) $1 AND " RETRIES_OF_EVENT,
		.target = TABLE_NONE,
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
 * Add the rows of the consumers.  An event that was handed back and is in the open
 * batch again does not wait any more, but its attempts count.
 */
static bool
put_consumers(const EventOfInterest *event, ReturnSetInfo *rsinfo)
{
	static InternalStatement select_retry = {
		.sql = "SELECT CASE WHEN t.next_attempt_at IS NULL THEN 'pending' ELSE 'waiting' END, "
		"t.attempts, t.next_attempt_at, NULL::pg_catalog.text FROM @s._event_consumer_retries AS t "
		"WHERE t.consumer OPERATOR(pg_catalog.=) $1 AND " RETRIES_OF_EVENT,
		.target = TABLE_NONE,
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
 * Read the event, if it exists.  Returns false if the caller may not know.
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
	/* a role that may not read the log cannot be asked which rows a policy hides */
	if (may_read)
		match_row_security(log, &row, 1);
	else
		row.hidden = match_is_restricted(log);
	return !row.hidden;
}

/*
 * event_delivery_status(event_id bigint) returns table (name text, kind text, status
 * text, attempts integer, next_attempt_at timestamptz, last_error text)
 *
 * Returns a row for each handler and each consumer that the caller may see.  Row
 * security is not asked on behalf of their owners.  Errors: event_id null; no such
 * event; no right to read the log; a parallel operation, which cannot have a
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
