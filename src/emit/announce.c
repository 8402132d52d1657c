/*-------------------------------------------------------------------------
 *
 * announce.c
 *		Who announces an event to LISTEN clients, and what they get to read.
 *
 * NOTIFY takes one lock for the whole cluster at commit, and holds it while the
 * WAL is flushed: transactions that notify commit one after the other.  So who
 * emits leaves the announcement to the listener (announcer.c), which notifies for
 * many at once and need not flush.  Or it notifies itself, "directly", as the
 * recipe does: where that is set, and where no listener is to be expected.  A
 * listener that is only restarting announces late; nobody goes back to the lock
 * for it.
 *
 * Which of the two it is, is decided once, when the event is emitted, and
 * written on its row.  Settings may change before the commit and after it, the
 * database may cease to be served: the listener announces what is marked and
 * nothing else.  So no event is announced by both, and none by nobody
 * (test/model/announce.pml).
 *
 * A full notification queue makes NOTIFY, and with it the transaction, fail.  No
 * business transaction shall, so beyond queue_usage_limit a direct announcement
 * is left to the listener, too, who can wait.  Which process keeps the queue from
 * getting shorter, the server itself says in the log once it is half full.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "commands/async.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/numeric.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "base/catalog.h"
#include "base/notify_queue.h"
#include "base/settings.h"
#include "base/shared.h"
#include "emit/announce.h"

/* what pg_notify() takes, less the terminator (async.c keeps it to itself) */
#define ANNOUNCEMENT_MAX_BYTES (BLCKSZ - NAMEDATALEN - 128 - 1)

/*
 * A jsonb whose text fits is not much larger than that itself; who is larger
 * need not be looked at.
 */
#define ANNOUNCEMENT_DATA_MAX_RAW ((Size) 16 * ANNOUNCEMENT_MAX_BYTES)

/*
 * Whether the text of a jsonb could fit into an announcement.
 *
 * It is measured before it is made: a number of a few bytes can be a text of
 * 128 kB, and a small array of such numbers one that exhausts all memory.
 */
static bool
data_may_fit(Datum data)
{
	Jsonb	   *jsonb;
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	value;
	Size		length = 0;

	if (toast_raw_datum_size(data) > ANNOUNCEMENT_DATA_MAX_RAW)
		return false;
	jsonb = DatumGetJsonbP(data);
	iterator = JsonbIteratorInit(&jsonb->root);
	while (length <= ANNOUNCEMENT_MAX_BYTES &&
		   (token = JsonbIteratorNext(&iterator, &value, false)) != WJB_DONE)
	{
		if (token != WJB_KEY && token != WJB_VALUE && token != WJB_ELEM)
			continue;
		if (value.type == jbvString)
			length += value.val.string.len;
		else if (value.type == jbvNumeric)
		{
			char	   *number = DatumGetCString(DirectFunctionCall1(numeric_out, NumericGetDatum(value.val.numeric)));

			length += strlen(number);
			pfree(number);
		}
	}
	return length <= ANNOUNCEMENT_MAX_BYTES;
}

/*
 * What an announcement of an event carries; name, id or json by the setting.
 */
static char *
announcement_payload(int64 id, const char *name, Datum data, bool data_is_null)
{
	StringInfoData buf;

	if (pne_payload == PAYLOAD_NAME)
		return pstrdup(name);

	initStringInfo(&buf);
	if (pne_payload == PAYLOAD_ID)
	{
		appendStringInfo(&buf, INT64_FORMAT, id);
		return buf.data;
	}

	appendStringInfo(&buf, "{\"id\": " INT64_FORMAT ", \"name\": ", id);
	escape_json(&buf, name);
	if (!data_is_null && data_may_fit(data))
	{
		char	   *text = DatumGetCString(DirectFunctionCall1(jsonb_out, data));
		static const char key[] = ", \"data\": ";

		if (buf.len + strlen(key) + strlen(text) + 1 <= ANNOUNCEMENT_MAX_BYTES)
			appendStringInfo(&buf, "%s%s", key, text);
	}
	appendStringInfoChar(&buf, '}');
	return buf.data;
}

/*
 * Announce an event when the current transaction commits.
 */
void
announce_event(const char *channel, const Event *event, TupleDesc desc)
{
	bool		isnull;
	Datum		data = heap_getattr(event->tuple, Anum_event_data, desc, &isnull);

	Async_Notify(channel, announcement_payload(event->id, event->name, data, isnull));
}

/*
 * Whether the database has a listener, or is to get one.
 */
static bool
listener_is_expected(void)
{
	HeapTuple	tuple;
	bool		served;

	if (shared == NULL)
		return false;

	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(MyDatabaseId));
	if (!HeapTupleIsValid(tuple))
		return false;
	served = settings_serve_database((Form_pg_database) GETSTRUCT(tuple));
	ReleaseSysCache(tuple);

	/* the launcher may not have come to it yet; but it can serve only so many */
	return served && (shared_find_database(MyDatabaseId) != NULL || shared_has_room());
}

/*
 * Whether the notification queue has no room for a direct announcement of so
 * many bytes.  What this transaction has announced already is not in the queue
 * before it commits.  The queue is looked at once per statement.
 */
static bool
queue_is_crowded(Size bytes)
{
	static TimestampTz looked_at = 0;
	static double usage = 0;
	static FullTransactionId announcer = {0};
	static uint64 announced = 0;
	FullTransactionId xid = GetTopFullTransactionId();

	if (looked_at != GetCurrentStatementStartTimestamp())
	{
		usage = notify_queue_usage();
		looked_at = GetCurrentStatementStartTimestamp();
	}
	if (!FullTransactionIdEquals(announcer, xid))
	{
		announcer = xid;
		announced = 0;
	}
	if (usage + notify_queue_share(announced + bytes) > pne_queue_usage_limit)
		return true;
	announced += bytes;
	return false;
}

/*
 * An event is being emitted: announce it, or leave that to the listener; true
 * if that is to do it.
 */
bool
announce_emitted(int64 id, Datum name, Datum data, bool data_is_null)
{
	char	   *payload;

	if (pne_announce == ANNOUNCE_OFF)
		return false;
	if (pne_announce == ANNOUNCE_RELAY && listener_is_expected())
		return true;

	payload = announcement_payload(id, TextDatumGetCString(name), data, data_is_null);
	if (queue_is_crowded(strlen(pne_channel) + strlen(payload)) && listener_is_expected())
		return true;
	Async_Notify(pne_channel, payload);
	return false;
}
