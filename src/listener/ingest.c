/*-------------------------------------------------------------------------
 *
 * ingest.c
 *		From notifications of applications to events: what the listener does for event
 *		channels (channel.c).
 *
 * The queue hands over everything it has at once (notify_queue.c).  From there
 * notifications are inserted into the log in the order of their arrival, one short
 * transaction in each of the listener's cycles, because nothing is read from the queue
 * meanwhile.  A notification is forgotten when the transaction that inserts it has
 * committed.
 *
 * The insertion runs as the extension's owner, so a foreign trigger on the log would
 * run with that role's rights.  As long as there is one that fires for INSERT, the
 * channels are suspended.  What arrives is kept as far as there is room; the rest is
 * counted as dropped.
 *
 * A failure here must not keep the listener from its other work.  So this file has its
 * own error handling and its own back-off, and waits for no lock for long.
 *
 * A channel that becomes the one of announcements is suspended, too: the announcement
 * of its event would become an event.  What the listener itself announces is never
 * received (notify_queue.c).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "base/arguments.h"
#include "base/catalog.h"
#include "base/fault.h"
#include "base/internal_sql.h"
#include "base/notify_queue.h"
#include "base/settings.h"
#include "base/worker.h"
#include "listener/channel.h"
#include "listener/ingest.h"

/* either ends a transaction */
#define BATCH_EVENTS 1000
#define BATCH_BYTES ((Size) 1024 * 1024)

/* how long a listener that stops goes on inserting at most, in ms */
#define LEAVE_MS 2000

/*
 * Channels, in a context of their own; if valid, as of definitions_seen and
 * announce_seen.  Earlier ones live in retired_context as long as notifications of
 * theirs are kept.
 */
static MemoryContext channels_context = NULL;
static MemoryContext retired_context = NULL;
static List *channels = NIL;
static bool channels_valid = false;
static uint32 definitions_seen = 0;
static char announce_seen[NAMEDATALEN] = "";

/* nothing is tried before this; failures lengthen backoff, in ms */
static Instant not_before = 0;
static int	backoff = 0;

/* no event can be inserted now */
static bool suspended = false;

/* what was logged and still holds: about all channels, about one, about some */
static char complaint[WORKER_ERROR_SIZE] = "";
static char refused_channel[NAMEDATALEN] = "";
static char unfit_channel[NAMEDATALEN] = "";
static ChannelsLeftOut left_out_seen = {0};

/* ----------
 * States
 * ----------
 */

/*
 * The process ends: what is kept is lost.  Count it as dropped.
 */
static void
ingest_on_exit(int code, Datum arg)
{
	Notification *notification;

	for (notification = notify_queue_kept(); notification != NULL; notification = notification->next)
		notification->channel->counted.dropped++;
	for (notification = notify_queue_kept(); notification != NULL; notification = notification->next)
	{
		if (notification->channel->counted.dropped > 0)
			channel_publish((EventChannel *) notification->channel);
	}
}

/*
 * Show the state of all channels, and what was counted.
 */
static void
publish_all(void)
{
	ListCell   *lc;

	foreach(lc, channels)
	{
		EventChannel *channel = lfirst(lc);

		channel->suspended = suspended || channel->unfit || strcmp(channel->queue.name, announce_seen) == 0;
		channel_publish(channel);
	}
}

/*
 * Show what was received since the last time.
 */
static void
publish_received(void)
{
	ListCell   *lc;

	foreach(lc, channels)
	{
		EventChannel *channel = lfirst(lc);

		if (channel->queue.counted.notifications > 0)
			channel_publish(channel);
	}
}

static void
set_suspended(bool now_suspended)
{
	if (suspended == now_suspended)
		return;
	suspended = now_suspended;
	publish_all();
}

/*
 * Log why no event can be inserted, unless that was logged before.
 */
static void
complain(int sqlstate, const char *why, const char *detail, const char *hint)
{
	if (strncmp(complaint, why, sizeof(complaint) - 1) == 0)
		return;
	strlcpy(complaint, why, sizeof(complaint));
	ereport(WARNING,
			(errcode(sqlstate),
			 errmsg("event channels are suspended: %s", why),
			 detail ? errdetail_internal("%s", detail) : 0,
			 errhint("%s", hint)));
}

/*
 * A foreign trigger on the log would run as the extension's owner.
 */
static void
suspend_for_trigger(const char *trigger)
{
	char	   *why = psprintf("table \"notification_events\" has a trigger \"%s\" that is not the extension's",
							   trigger);

	complain(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, why,
			 "It would run as the owner of pg_notify_events.",
			 "Drop it, and revoke the TRIGGER privilege that let it be created.");
	pfree(why);
	set_suspended(true);
	not_before = instant_in(pne_naptime);
}

/*
 * In a PG_CATCH block: log what happened, without details, which may contain event
 * data, and back off.
 */
static void
ingest_failed(Worker *worker)
{
	int			sqlstate = geterrcode();

	worker_abort(worker, false);
	complain(sqlstate, worker->last_error, NULL,
			 "It is tried again. What comes meanwhile is kept as far as there is room.");
	set_suspended(true);
	backoff = worker_next_backoff(backoff);
	not_before = instant_in(backoff);
}

static void
ingest_succeeded(void)
{
	complaint[0] = '\0';
	backoff = 0;
	set_suspended(false);
}

/*
 * Start a transaction with SPI and a snapshot.  Returns false, without a transaction,
 * if the extension is being created or dropped.  DROP EXTENSION holds a lock on the
 * log until its end is known here.
 */
static bool
begin_transaction(void)
{
	Relation	log;

	worker_start_short_transaction();
	log = catalog_open_log();
	if (log == NULL)
	{
		worker_commit_short_transaction();
		not_before = instant_in(pne_naptime);
		return false;
	}
	table_close(log, NoLock);
	SPI_connect();
	PushActiveSnapshot(GetTransactionSnapshot());
	return true;
}

static void
end_transaction(void)
{
	PopActiveSnapshot();
	SPI_finish();
	worker_commit_short_transaction();
}

/* ----------
 * Definitions
 * ----------
 */

/*
 * Log a complaint about channels that are defined but not listened on.
 */
static void
complain_about_channels(const ChannelsLeftOut *left_out, const char *refused, const char *unfit)
{
	if (left_out->dormant > 0 && left_out->dormant != left_out_seen.dormant)
		ereport(WARNING,
				(errcode(ERRCODE_WARNING),
				 errmsg_plural("%lld event channel is dormant", "%lld event channels are dormant",
							   (unsigned long) left_out->dormant, (long long) left_out->dormant),
				 errdetail("They were defined in another database, or restored."),
				 errhint("A superuser wakes them with activate_events().")));
	if (left_out->beyond > 0 && left_out->beyond != left_out_seen.beyond)
		ereport(WARNING,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg_plural("%lld event channel is not listened on", "%lld event channels are not listened on",
							   (unsigned long) left_out->beyond, (long long) left_out->beyond),
				 errdetail("The oldest %d are.", MAX_CHANNELS),
				 errhint("End others with unlisten_event_channel(). The view event_channel_stats shows which ones are left out.")));
	left_out_seen = *left_out;

	if (refused[0] != '\0' && strcmp(refused, refused_channel) != 0)
		ereport(WARNING,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("event channel \"%s\" is suspended: events are announced on it", refused),
				 errhint("Set pg_notify_events.channel to another one, or end it with unlisten_event_channel().")));
	strlcpy(refused_channel, refused, NAMEDATALEN);

	if (unfit[0] != '\0' && strcmp(unfit, unfit_channel) != 0)
		ereport(WARNING,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("event channel \"%s\" is suspended: no event can have its event_name", unfit),
				 errdetail("An event name has 1 to %d characters.", EVENT_NAME_MAX_CHARS),
				 errhint("End it with unlisten_event_channel(), and define it anew.")));
	strlcpy(unfit_channel, unfit, NAMEDATALEN);
}

/*
 * Listen on the channels of a new list, and on no others any more.
 */
static void
switch_channels(List *loaded, const ChannelsLeftOut *left_out, MemoryContext context)
{
	QueueChannel **wanted = MemoryContextAlloc(context, sizeof(QueueChannel *) * (list_length(loaded) + 1));
	const char *refused = "";
	const char *unfit = "";
	int			nwanted = 0;
	ListCell   *lc;

	foreach(lc, loaded)
	{
		EventChannel *channel = lfirst(lc);

		if (strcmp(channel->queue.name, pne_channel) == 0)
			refused = channel->queue.name;
		else if (channel->unfit)
			unfit = channel->queue.name;
		else
			wanted[nwanted++] = &channel->queue;
	}
	notify_queue_keep(wanted, nwanted);

	/* from here on nothing throws */
	if (channels_context != NULL)
		MemoryContextSetParent(channels_context, retired_context);
	channels_context = context;
	channels = loaded;
	if (notify_queue_kept() == NULL)
		MemoryContextDeleteChildren(retired_context);
	channel_forget_others(channels);
	channel_publish_last(left_out->beyond > 0 ? llast(channels) : NULL);
	publish_all();
	complain_about_channels(left_out, refused, unfit);
}

/*
 * Read the definitions.
 */
static void
load_channels(void)
{
	MemoryContext context;

	if (retired_context == NULL)
	{
		retired_context = AllocSetContextCreate(TopMemoryContext, "former event channels",
												ALLOCSET_SMALL_SIZES);
		before_shmem_exit(ingest_on_exit, (Datum) 0);
	}

	if (!begin_transaction())
		return;
	context = AllocSetContextCreate(TopMemoryContext, "event channels", ALLOCSET_SMALL_SIZES);
	PG_TRY();
	{
		ChannelsLeftOut left_out;
		List	   *loaded = channel_load_all(context, &left_out);

		end_transaction();
		switch_channels(loaded, &left_out, context);
	}
	PG_CATCH();
	{
		if (channels_context != context)
			MemoryContextDelete(context);
		PG_RE_THROW();
	}
	PG_END_TRY();
	channels_valid = true;
}

/* ----------
 * Events
 * ----------
 */

/*
 * A payload as event data: its JSON if jsonb can hold that, otherwise a JSON string of
 * it.
 */
static Datum
payload_to_jsonb(const char *payload)
{
	MemoryContext context = CurrentMemoryContext;
	volatile Datum result = (Datum) 0;
	volatile bool is_json = false;
	JsonbValue	string;

	PG_TRY();
	{
		result = DirectFunctionCall1(jsonb_in, CStringGetDatum(payload));
		is_json = true;
	}
	PG_CATCH();
	{
		int			category = ERRCODE_TO_CATEGORY(geterrcode());

		/*
		 * The payload is malformed, or too deep, or has a number or an escape that
		 * jsonb or the encoding cannot hold.  The parser holds nothing but memory.
		 */
		if (category != ERRCODE_DATA_EXCEPTION &&
			category != ERRCODE_PROGRAM_LIMIT_EXCEEDED &&
			category != ERRCODE_FEATURE_NOT_SUPPORTED)
			PG_RE_THROW();
		MemoryContextSwitchTo(context);
		FlushErrorState();
	}
	PG_END_TRY();
	if (is_json)
		return result;

	string.type = jbvString;
	string.val.string.len = (int) strlen(payload);
	string.val.string.val = unconstify(char *, payload);
	return JsonbPGetDatum(JsonbValueToJsonb(&string));
}

/*
 * Insert the oldest notifications that are kept.  Returns how many.
 */
static int
insert_events(void)
{
	static InternalStatement insert = {
		.sql = "INSERT INTO @s.notification_events (event_name, event_data) "
		"SELECT u.event_name, u.event_data "
		"FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2)) "
		"WITH ORDINALITY AS u (event_name, event_data, place) "
		"ORDER BY u.place",
		.target = TABLE_LOG,
		.nargs = 2,
		.argtypes = {TEXTARRAYOID, JSONBARRAYOID},
	};
	MemoryContext parse_context = AllocSetContextCreate(CurrentMemoryContext, "payload",
														ALLOCSET_DEFAULT_SIZES);
	Datum	   *names = palloc(sizeof(Datum) * BATCH_EVENTS);
	Datum	   *data = palloc(sizeof(Datum) * BATCH_EVENTS);
	Datum		values[2];
	Size		bytes = 0;
	int			count = 0;

	for (Notification *notification = notify_queue_kept();
		 notification != NULL && count < BATCH_EVENTS && bytes < BATCH_BYTES;
		 notification = notification->next)
	{
		MemoryContext old = MemoryContextSwitchTo(parse_context);
		Datum		parsed = payload_to_jsonb(notification->payload);

		MemoryContextSwitchTo(old);
		names[count] = CStringGetTextDatum(((EventChannel *) notification->channel)->event_name);
		data[count] = datumCopy(parsed, false, -1);
		bytes += VARSIZE(DatumGetPointer(parsed));
		count++;
		MemoryContextReset(parse_context);
	}

	values[0] = PointerGetDatum(construct_array(names, count, TEXTOID, -1, false, TYPALIGN_INT));
	values[1] = PointerGetDatum(construct_array(data, count, JSONBOID, -1, false, TYPALIGN_INT));
	internal_execute(&insert, values, NULL, 0);
	return count;
}

/*
 * Insert as many of the kept notifications as one transaction may, unless the channels
 * are suspended.
 */
static void
insert_batch(void)
{
	char		trigger[NAMEDATALEN];
	bool		foreign;
	int			count = 0;

	if (!begin_transaction())
		return;
	foreign = internal_foreign_trigger(TABLE_LOG, trigger);
	if (!foreign)
		count = insert_events();
	FAULT_POINT("bridging");
	end_transaction();

	if (foreign)
	{
		suspend_for_trigger(trigger);
		return;
	}
	notify_queue_forget(count);
	if (notify_queue_kept() == NULL && retired_context != NULL)
		MemoryContextDeleteChildren(retired_context);
	ingest_succeeded();
}

/* ----------
 * For the listener
 * ----------
 */

/*
 * Follow the definitions, and insert some of what the queue has handed over.  Called
 * in each cycle, outside of a transaction.  Does not throw.
 */
void
ingest_work(DatabaseSlot *slot)
{
	uint32		definitions = pg_atomic_read_u32(&slot->channel_definitions);
	MemoryContext context = CurrentMemoryContext;

	publish_received();
	if (definitions != definitions_seen || strcmp(announce_seen, pne_channel) != 0)
	{
		/* a failure of an earlier transaction must not delay this */
		definitions_seen = definitions;
		strlcpy(announce_seen, pne_channel, NAMEDATALEN);
		channels_valid = false;
		not_before = 0;
	}
	if (instant_now() < not_before)
		return;

	PG_TRY();
	{
		if (!channels_valid)
			load_channels();
		if (notify_queue_kept() != NULL)
			insert_batch();
		else if (channels_valid)
			ingest_succeeded();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		ingest_failed(&slot->listener);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
}

/*
 * When to call ingest_work() again without a wake-up; INSTANT_NEVER: never.
 */
Instant
ingest_due(void)
{
	return channels_valid && notify_queue_kept() == NULL ? INSTANT_NEVER : not_before;
}

/*
 * The listener stops: insert what is kept, if that does not take long.
 */
void
ingest_stop(DatabaseSlot *slot)
{
	MemoryContext context = CurrentMemoryContext;
	Instant		until = instant_in(LEAVE_MS);

	PG_TRY();
	{
		Notification *oldest = NULL;

		/* also if the channels are suspended: the cause may be gone */
		while (notify_queue_kept() != NULL && notify_queue_kept() != oldest &&
			   instant_now() < until)
		{
			oldest = notify_queue_kept();
			insert_batch();
		}
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		ingest_failed(&slot->listener);
	}
	PG_END_TRY();
}
