/*-------------------------------------------------------------------------
 *
 * announce.c
 *		Decides who announces an event to LISTEN clients, and makes the payload.
 *
 * NOTIFY takes a cluster-wide lock at commit and holds it while the WAL is
 * flushed, so transactions that notify commit one after the other.  Therefore
 * the emitting transaction normally leaves the announcement to the listener
 * (announcer.c), which notifies for many events at once and need not flush.
 * The transaction announces the event itself ("directly") if it is set so, or if
 * no listener is expected.  A listener that is only restarting announces late;
 * the transaction does not take the lock for that.
 *
 * This is decided once, when the event is emitted, and stored in its row.
 * Later, settings may change, or the database may no longer be served.  But the
 * listener announces exactly the events whose rows say so.  So no event is
 * announced by both, and none by nobody (test/model/announce.pml).
 *
 * If the notification queue is full, NOTIFY fails, and with it the transaction.
 * No user transaction should fail for that.  So beyond queue_usage_limit a direct
 * announcement is left to the listener, too, which can wait.  The server itself
 * logs which process keeps the queue from getting shorter, once it is half full.
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

/*
 * The longest payload that pg_notify() accepts, without its terminator (async.c
 * does not export it).
 */
#define ANNOUNCEMENT_MAX_BYTES (BLCKSZ - NAMEDATALEN - 128 - 1)

/*
 * A jsonb whose text fits is not much larger than its text.  A larger jsonb is
 * not looked at.
 */
#define ANNOUNCEMENT_DATA_MAX_RAW ((Size) 16 * ANNOUNCEMENT_MAX_BYTES)

/*
 * Returns whether the text of a jsonb could fit into an announcement.
 *
 * The text is measured before it is made.  A number of a few bytes can become a
 * text of 128 kB, and a small array of such numbers a text that exhausts all
 * memory.
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
 * Returns the payload of an event's announcement as a palloc'd string, as the
 * setting "payload" says.
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
 * Announce an event when the current transaction commits.  desc describes the
 * event's row.
 */
void
announce_event(const char *channel, const Event *event, TupleDesc desc)
{
	bool		isnull;
	Datum		data = heap_getattr(event->tuple, Anum_event_data, desc, &isnull);

	Async_Notify(channel, announcement_payload(event->id, event->name, data, isnull));
}

/*
 * Returns whether the database has a listener or will get one.
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

	/*
	 * The launcher may not have started it yet, but it can serve only so many.
	 */
	return served && (shared_find_database(MyDatabaseId) != NULL || shared_has_room());
}

/*
 * Returns whether the notification queue has too little room for a direct
 * announcement of so many bytes.  If not, counts these bytes: they are not in
 * the queue before this transaction commits.  Asks the server for the queue's
 * usage once per statement.
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
 * Decide who announces an event that is being emitted.  Returns true if the
 * listener is to do it.  Otherwise announces the event directly, unless
 * announcements are off.  name is of type text, data of type jsonb.
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
