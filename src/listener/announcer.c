/*-------------------------------------------------------------------------
 *
 * announcer.c
 *		The listener's way through the log: it counts events by name, and announces
 *		those that are left to it (announce.c).
 *
 * The position is a snapshot, like all positions (position.c).  What has become visible
 * since is read as a window: the ids of its marked events.  They are announced in
 * transactions of one chunk each, so that no transaction gets long.  Equal
 * announcements in a chunk become one, as NOTIFY does.  When the window is through,
 * the position moves to its end.  A window with more events than memory may hold is
 * read in parts.  Then the position is inside the window, and each event is counted
 * with the first part.
 *
 * The position is stored some seconds later (announcer_store).  After a crash, or the
 * loss of the listener, the events announced since then are announced again, and none
 * is left out.  A chunk whose transaction fails, for example because the queue is
 * full, is announced again from its beginning.
 *
 * Before a chunk is announced the WAL is flushed past all that it reveals.  This
 * happens before the transaction commits and takes NOTIFY's lock; the commit itself
 * waits for no flush.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "base/catalog.h"
#include "base/internal_sql.h"
#include "base/shared.h"
#include "base/worker.h"
#include "emit/announce.h"
#include "handler/event_counters.h"
#include "listener/announcer.h"
#include "log/window.h"

/* events announced in one transaction, unless batch_bytes ends it before */
#define ANNOUNCE_CHUNK 1000

static MemoryContext announcer_context = NULL;

/* the log that is followed; a new extension has another one */
static Oid	followed = InvalidOid;

/*
 * The position: every event that it has passed is announced.  Its cursor is what is
 * stored.  If ahead_since is 0, it is stored.
 */
static EventPosition position = {.cursor = NULL};
static Instant ahead_since = 0;

/* the window that was read, or NULL; its events before index next are announced */
static Window *window = NULL;
static int64 next = 0;

/* the events that are being announced */
static EventChunk *chunk = NULL;

/*
 * Once per listener.
 */
void
announcer_init(void)
{
	announcer_context = AllocSetContextCreate(TopMemoryContext, "relay", ALLOCSET_DEFAULT_SIZES);
	chunk = chunk_create(announcer_context);
}

/*
 * Read the stored cursor.
 */
static void
load_cursor(void)
{
	static InternalStatement select_cursor = {
		.sql = "SELECT r.cursor::pg_catalog.text FROM @s._event_announcer AS r",
		.target = TABLE_NONE,
	};
	MemoryContext old;

	if (internal_execute(&select_cursor, NULL, NULL, 1) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"_event_announcer\" is empty"),
				 errhint("Drop the extension and create it again.")));
	old = MemoryContextSwitchTo(announcer_context);
	position.cursor = event_snapshot_parse(internal_text(0, 1));
	MemoryContextSwitchTo(old);
}

/*
 * Whether an event is to be announced.
 */
static bool
is_marked(TupleTableSlot *slot, int64 id, void *arg)
{
	bool		isnull;
	bool		marked = DatumGetBool(slot_getattr(slot, Anum_event_announce, &isnull));

	return marked && !isnull;
}

/*
 * An event has become visible: count it, and tell whether it is to be announced.
 *
 * A restored event is not new.  An event from before the server's start is only
 * read again.
 */
static bool
see_event(TupleTableSlot *slot, int64 id, void *arg)
{
	bool	   *found = (bool *) arg;
	bool		no_origin;
	bool		isnull;
	Datum		created_at;

	*found = true;
	(void) slot_getattr(slot, Anum_event_origin_txid, &no_origin);
	created_at = slot_getattr(slot, Anum_event_created_at, &isnull);
	if (no_origin && event_slot_txid(slot) >= pg_atomic_read_u64(&shared->start_xid))
	{
		char	   *name;

		if (isnull || TIMESTAMP_NOT_FINITE(DatumGetTimestampTz(created_at)))
			created_at = TimestampTzGetDatum(GetCurrentTimestamp());
		name = TextDatumGetCString(slot_getattr(slot, Anum_event_name, &isnull));
		event_counters_emitted(name, DatumGetTimestampTz(created_at));
		pfree(name);
	}

	return is_marked(slot, id, NULL);
}

/*
 * The window, or the part of it that was read, is through.  found tells that it had
 * events, marked or not, so that the position is worth storing.
 */
static void
finish_window(bool found)
{
	EventPosition come_to = window_position(window, window->nevents);
	EventPosition previous = position;
	MemoryContext old = MemoryContextSwitchTo(announcer_context);

	position = event_position_copy(&come_to);
	event_position_free(&previous);
	MemoryContextSwitchTo(old);
	window_release(window);
	window = NULL;
	chunk_clear(chunk);
	if (found && ahead_since == 0 && position.window == NULL)
		ahead_since = instant_now();
}

/*
 * Forget the position and the window.
 */
static void
start_anew(Oid log)
{
	if (window != NULL)
		window_release(window);
	if (position.cursor != NULL)
		event_position_free(&position);
	window = NULL;
	position = (EventPosition) {.cursor = NULL};
	ahead_since = 0;
	followed = log;
}

/*
 * Read what has become visible, unless there is still something to announce.  Returns
 * whether anything has.
 */
bool
announcer_read(Relation log, Snapshot snapshot)
{
	bool		news = false;
	bool		inside;

	if (followed != RelationGetRelid(log))
		start_anew(RelationGetRelid(log));
	if (window != NULL)
		return false;
	if (position.cursor == NULL)
		load_cursor();

	/* noted by an earlier try that failed */
	event_counters_discard_noted();
	inside = (position.window != NULL);
	window = window_read_wanted(log, &position, snapshot, event_snapshot_build(snapshot),
								CurrentMemoryContext, inside ? is_marked : see_event, &news);
	MemoryContextSetParent(window->context, announcer_context);
	next = 0;
	event_counters_flush_noted();
	if (window->nevents == 0)
		finish_window(inside || news);
	return news;
}

/*
 * Announce the next chunk of the window when the current transaction commits.
 */
void
announcer_announce(Relation log, Snapshot snapshot, const char *channel)
{
	TupleDesc	desc = RelationGetDescr(log);
	MemoryContext event_context;

	if (window == NULL)
		return;

	event_context = AllocSetContextCreate(CurrentMemoryContext, "announcement", ALLOCSET_DEFAULT_SIZES);
	(void) chunk_load(chunk, log, snapshot, window->events + next,
					  (int) Min(window->nevents - next, ANNOUNCE_CHUNK));
	for (int i = 0; i < chunk->length; i++)
	{
		Event	   *event = &chunk->events[i];
		MemoryContext old;

		/* deleted meanwhile: there is nothing to announce */
		if (event->tuple == NULL)
			continue;
		CHECK_FOR_INTERRUPTS();
		old = MemoryContextSwitchTo(event_context);
		announce_event(channel, event, desc);
		MemoryContextSwitchTo(old);
		MemoryContextReset(event_context);
	}
	MemoryContextDelete(event_context);
	window_flush_wal();

	/* a hint bit that was set while reading must not make the commit wait */
	(void) set_config_option("synchronous_commit", "off", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_LOCAL,
							 true, 0, false);
}

/*
 * The announcing transaction has committed.  Returns how many events it announced.
 */
int
announcer_announced(void)
{
	int			announced = 0;

	if (window == NULL)
		return 0;

	for (int i = 0; i < chunk->length; i++)
	{
		Event	   *event = &chunk->events[i];

		if (event->tuple == NULL)
			continue;
		event_counters_announced(event->name);
		announced++;
	}
	event_counters_flush_noted();
	next += chunk->length;
	if (next >= window->nevents)
		finish_window(true);
	return announced;
}

/*
 * Whether there are events left to announce.
 */
bool
announcer_has_more(void)
{
	return window != NULL || position.window != NULL;
}

/*
 * Whether the position has been ahead of the stored one for so many ms.
 */
bool
announcer_is_ahead(int ms)
{
	return ahead_since != 0 && instant_passed(ahead_since, instant_now(), ms);
}

/*
 * Store the position.
 */
void
announcer_store(void)
{
	static InternalStatement update_cursor = {
		.sql = "UPDATE @s._event_announcer SET cursor = $1::pg_catalog.pg_snapshot",
		.target = TABLE_ANNOUNCER,
		.nargs = 1,
		.argtypes = {TEXTOID},
	};
	Datum		value;

	worker_start_short_transaction();
	if (catalog_lookup(true) != NULL)
	{
		SPI_connect();
		PushActiveSnapshot(GetTransactionSnapshot());
		value = CStringGetTextDatum(event_snapshot_text(position.cursor));
		internal_execute(&update_cursor, &value, NULL, 0);
		PopActiveSnapshot();
		SPI_finish();
	}
	worker_commit_short_transaction();
	ahead_since = 0;
}
