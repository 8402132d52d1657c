/*-------------------------------------------------------------------------
 *
 * listener.c
 *		The process that listens in a database; one for each that has the
 *		extension.
 *
 * All its transactions are short, because a process in a transaction cannot
 * read the notification queue, and one listener that does not read lets the
 * queue grow for the whole cluster.  Handlers run elsewhere, in executors.
 *
 * What it does, whenever it is woken:
 *	- reads the notification queue, counts, and has the executors look;
 *	- follows the log with a snapshot cursor of its own and counts the events
 *	  that have become visible, by name;
 *	- asks for an executor for each owner that has work and none: events in the
 *	  log behind the stored position of a handler, or a retry that is due.
 * When nobody rings it looks at the log once per naptime, and once a second it
 * asks whether somebody wants the database to himself (DROP, RENAME, a copy):
 * then it leaves, and so do the executors.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "catalog/pg_type.h"
#include "commands/async.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "catalog.h"
#include "compat.h"
#include "fault.h"
#include "handler.h"
#include "listener.h"
#include "notify_queue.h"
#include "retry.h"
#include "settings.h"
#include "stats.h"
#include "window.h"
#include "worker.h"

/* the cursor is stored when it has been ahead for this long, in ms */
#define LAZY_STORE_MS 10000

/* a stored position is never more events of others behind than this */
#define MAX_PASSED 10000

/* wake-ups that are less than this apart, in ms, are made one */
#define WAKEUP_SLACK_MS 100

static DatabaseSlot *my_slot = NULL;
static bool leaving_cleanly = false;

/* a handler that nobody serves, and for which there is nothing before upto */
typedef struct QuietHandler
{
	char		name[HANDLER_NAME_SIZE];
	int64		version;
	EventSnapshot *stored;		/* its stored cursor */
	EventSnapshot *upto;
	int64		passed;			/* events of others between the two */
} QuietHandler;

/* survives the cycles */
static MemoryContext listener_context = NULL;
static char *channel = NULL;

/* the position in the log; ahead_since 0: it is stored */
static EventSnapshot *cursor = NULL;
static TimestampTz ahead_since = 0;

/* owners that have handlers which may run, as of definitions_seen */
static MemoryContext owners_context = NULL;
static List *owners = NIL;
static List *quiet_handlers = NIL;
static bool owners_valid = false;
static uint32 definitions_seen = 0;

/*
 * Complaints that were logged and still stand: dormant handlers as of
 * definitions_seen, and suspended ones of owners without an executor.
 */
static List *logged_dormant = NIL;
static List *logged_suspended = NIL;

/* what to wake up for */
static TimestampTz next_look;
static TimestampTz next_yield_check;
static TimestampTz next_retry;

/* ----------
 * The process
 * ----------
 */

static void
listener_on_exit(int code, Datum arg)
{
	doorbell_detach(&my_slot->bells[LISTENER_BELL]);
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	worker_went_away(&my_slot->listener, leaving_cleanly);
	if (leaving_cleanly)
		my_slot->listener.not_before =
			TimestampTzPlusMilliseconds(GetCurrentTimestamp(), YIELD_CHECK_MS);
	LWLockRelease(shared->lock);
	doorbell_ring_launcher();
}

static void
listener_attach(const WorkerStart *start)
{
	DatabaseSlot *slot = &shared->databases[start->slot];

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	if (pg_atomic_read_u32(&slot->dboid) != start->dboid || slot->generation != start->generation ||
		slot->listener.phase != WORKER_STARTING)
	{
		LWLockRelease(shared->lock);
		proc_exit(0);
	}
	slot->listener.pid = MyProcPid;
	slot->listener.started_at = GetCurrentTimestamp();
	if (pg_atomic_read_u32(&slot->bells_used) <= LISTENER_BELL)
		pg_atomic_write_u32(&slot->bells_used, LISTENER_BELL + 1);
	my_slot = slot;
	doorbell_attach(&slot->bells[LISTENER_BELL]);
	LWLockRelease(shared->lock);

	before_shmem_exit(listener_on_exit, (Datum) 0);
}

/*
 * How often CREATE EXTENSION has committed here.
 */
static uint32
count_installs(void)
{
	uint32		installs;

	LWLockAcquire(shared->lock, LW_SHARED);
	installs = my_slot->installs;
	LWLockRelease(shared->lock);
	return installs;
}

/*
 * Note whether the database has the extension, as was found after installs
 * were counted.  If one has committed since, somebody has to look again.
 */
static void
set_presence(ExtensionPresence presence, uint32 installs)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	if (presence == EXTENSION_PRESENT || my_slot->installs == installs)
		my_slot->extension = presence;
	else
		my_slot->extension = EXTENSION_UNKNOWN;
	LWLockRelease(shared->lock);
}

/*
 * Whether somebody waits for the database to be empty.  DDL on a database
 * holds a lock on it while it waits for its sessions to end, so a lock that we
 * cannot have tells.
 */
static bool
database_is_wanted(void)
{
	LOCKTAG		tag;
	bool		wanted;

	StartTransactionCommand();
	SET_LOCKTAG_OBJECT(tag, InvalidOid, DatabaseRelationId, MyDatabaseId, 0);
	wanted = (LockAcquire(&tag, RowExclusiveLock, false, true) == LOCKACQUIRE_NOT_AVAIL);
	CommitTransactionCommand();
	return wanted;
}

/* ----------
 * The log
 * ----------
 */

/*
 * Count one event that has become visible.  Restored ones are no news, and
 * what was there before the server started is only newly read.
 */
static bool
count_emitted(TupleTableSlot *slot, int64 id, void *arg)
{
	bool	   *found = (bool *) arg;
	bool		no_origin;
	bool		isnull;
	Datum		created_at;
	char	   *name;

	*found = true;
	(void) slot_getattr(slot, Anum_event_origin_txid, &no_origin);
	created_at = slot_getattr(slot, Anum_event_created_at, &isnull);
	if (!no_origin || event_slot_txid(slot) < pg_atomic_read_u64(&shared->start_xid))
		return true;
	if (isnull || TIMESTAMP_NOT_FINITE(DatumGetTimestampTz(created_at)))
		created_at = TimestampTzGetDatum(GetCurrentTimestamp());

	name = TextDatumGetCString(slot_getattr(slot, Anum_event_name, &isnull));
	stats_event_emitted(name, DatumGetTimestampTz(created_at));
	pfree(name);
	return true;
}

/*
 * Read the stored cursor.
 */
static void
load_cursor(void)
{
	static OwnStatement select_cursor = {
		.sql = "SELECT r.cursor::pg_catalog.text FROM @s._event_relay AS r",
		.target = OWN_NONE,
	};
	MemoryContext old;

	if (own_execute(&select_cursor, NULL, NULL, 1) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"_event_relay\" is empty"),
				 errhint("Drop the extension and create it again.")));
	old = MemoryContextSwitchTo(listener_context);
	cursor = event_snapshot_parse(own_text(0, 1));
	MemoryContextSwitchTo(old);
}

/*
 * Take up what has become visible since the last look.  True if there was
 * anything.
 */
static bool
follow_log(Relation log, Snapshot snapshot, const EventSnapshot *upto)
{
	EventPosition position = {NULL, NULL, 0};
	MemoryContext old;
	bool		found = false;

	if (cursor == NULL)
		load_cursor();
	position.cursor = cursor;
	window_scan(log, &position, snapshot, upto, count_emitted, &found);
	stats_flush_emitted();
	if (found && ahead_since == 0)
		ahead_since = GetCurrentTimestamp();

	old = MemoryContextSwitchTo(listener_context);
	pfree(cursor);
	cursor = event_snapshot_copy(upto);
	MemoryContextSwitchTo(old);
	return found;
}

/*
 * Store the cursor.
 */
static void
store_cursor(void)
{
	static OwnStatement update_cursor = {
		.sql = "UPDATE @s._event_relay SET cursor = $1::pg_catalog.pg_snapshot",
		.target = OWN_RELAY,
		.nargs = 1,
		.argtypes = {TEXTOID},
	};
	Datum		value;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	if (catalog_lookup(true) != NULL)
	{
		SPI_connect();
		PushActiveSnapshot(GetTransactionSnapshot());
		value = CStringGetTextDatum(event_snapshot_text(cursor));
		own_execute(&update_cursor, &value, NULL, 0);
		PopActiveSnapshot();
		SPI_finish();
	}
	CommitTransactionCommand();
	ahead_since = 0;
}

/*
 * Leave, and have the executors leave: the database is wanted, or not to be
 * served, or has no extension.
 */
static void
listener_leave(void)
{
	/* or our successor would count the same events again; but leave we must */
	PG_TRY();
	{
		if (ahead_since != 0)
			store_cursor();
	}
	PG_CATCH();
	{
		worker_recover(&my_slot->listener);
	}
	PG_END_TRY();

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	shared_dismiss_executors(MyDatabaseId);
	LWLockRelease(shared->lock);
	doorbell_ring_database(MyDatabaseId);
	leaving_cleanly = true;
	proc_exit(0);
}

/* ----------
 * Owners
 * ----------
 */

/*
 * Whether a complaint is new; if so, it is noted.
 */
static bool
is_news(List **complaints, const char *text)
{
	MemoryContext old;
	ListCell   *lc;

	foreach(lc, *complaints)
	{
		if (strcmp(lfirst(lc), text) == 0)
			return false;
	}
	old = MemoryContextSwitchTo(listener_context);
	*complaints = lappend(*complaints, pstrdup(text));
	MemoryContextSwitchTo(old);
	return true;
}

/*
 * A complaint as it is logged and noted.
 */
static char *
suspended_text(const char *handler, const char *reason)
{
	return psprintf("event handler \"%s\" is suspended: %s", handler, reason);
}

/*
 * Forget complaints, to make them again should the cause come back.
 */
static void
forget_complaints(List **complaints)
{
	list_free_deep(*complaints);
	*complaints = NIL;
}

/*
 * The handler can run, or its executor complains for itself.
 */
static void
forget_suspended(const Handler *handler)
{
	char	   *start = suspended_text(handler->name, "");
	ListCell   *lc;

	foreach(lc, logged_suspended)
	{
		if (strncmp(lfirst(lc), start, strlen(start)) == 0)
		{
			pfree(lfirst(lc));
			logged_suspended = foreach_delete_current(logged_suspended, lc);
		}
	}
	pfree(start);
}

/*
 * Definitions changed: find out again who has handlers, and what to complain
 * about.
 */
static void
forget_owners(uint32 definitions)
{
	owners = NIL;
	quiet_handlers = NIL;
	MemoryContextReset(owners_context);
	forget_complaints(&logged_dormant);
	forget_complaints(&logged_suspended);
	owners_valid = false;
	definitions_seen = definitions;
}

/*
 * Whether an owner has an executor, or waits for one.
 */
static bool
owner_is_served(Oid owner)
{
	ExecutorSlot *slot;
	bool		served;

	LWLockAcquire(shared->lock, LW_SHARED);
	slot = shared_find_executor(MyDatabaseId, owner);
	served = slot != NULL && slot->worker.phase != WORKER_BACKING_OFF;
	/* it backs off by itself: its process is there */
	served = served || (slot != NULL && slot->worker.pid != 0);
	LWLockRelease(shared->lock);
	return served;
}

/*
 * What is known of a handler that nobody serves, if it is the one that was
 * looked at before and its position is still the same.
 */
static QuietHandler *
known_quiet(const Handler *handler)
{
	ListCell   *lc;

	foreach(lc, quiet_handlers)
	{
		QuietHandler *quiet = lfirst(lc);

		if (strcmp(quiet->name, handler->name) != 0)
			continue;
		if (quiet->version == handler->version &&
			event_snapshot_equal(quiet->stored, handler->position.cursor))
			return quiet;
		quiet_handlers = foreach_delete_current(quiet_handlers, lc);
		break;
	}
	return NULL;
}

/*
 * Whether there is nothing for a handler that nobody serves.  Each event is
 * looked at once: what was found before is known.  Where many events of others
 * were passed, an executor is to store that, so that nobody has to look through
 * them again.
 */
static bool
is_quiet(const Handler *handler, Relation log, Snapshot snapshot, const EventSnapshot *upto)
{
	QuietHandler *quiet = NULL;
	EventPosition position = handler->position;
	MemoryContext old;
	int64		passed;

	if (position.window == NULL)
		quiet = known_quiet(handler);
	if (quiet != NULL)
		position.cursor = quiet->upto;
	if (match_pending(&handler->pattern, &position, log, snapshot, upto, &passed))
		return false;
	if (position.window != NULL)
		return true;

	old = MemoryContextSwitchTo(owners_context);
	if (quiet == NULL)
	{
		quiet = palloc0(sizeof(QuietHandler));
		strlcpy(quiet->name, handler->name, HANDLER_NAME_SIZE);
		quiet->version = handler->version;
		quiet->stored = event_snapshot_copy(handler->position.cursor);
		quiet_handlers = lappend(quiet_handlers, quiet);
	}
	else
		pfree(quiet->upto);
	quiet->upto = event_snapshot_copy(upto);
	quiet->passed += passed;
	MemoryContextSwitchTo(old);
	return quiet->passed < MAX_PASSED;
}

/*
 * Whether a handler that nobody serves has work, and what to wake up for if
 * not yet.
 */
static bool
handler_has_work(const Handler *handler, Relation log, Snapshot snapshot, const EventSnapshot *upto)
{
	HandlerProblem problem;
	TimestampTz due;
	TimestampTz probe_at;
	int			probes;

	if (handler->paused)
		return false;
	if (handler->dormant)
	{
		char	   *text = psprintf("event handler \"%s\" is dormant", handler->name);

		if (is_news(&logged_dormant, text))
			ereport(WARNING,
					(errcode(ERRCODE_WARNING),
					 errmsg_internal("%s", text),
					 errdetail("It was made in another database, or restored."),
					 errhint("A superuser wakes it with activate_events().")));
		return false;
	}
	if (!handler_check(handler, &problem))
	{
		char	   *text = suspended_text(handler->name, problem.message);

		if (is_news(&logged_suspended, text))
			ereport(LOG,
					(errcode(problem.sqlstate),
					 errmsg_internal("%s", text),
					 errhint("%s", problem.hint)));
		return false;
	}
	forget_suspended(handler);

	stats_read_outage(handler, &probes, &probe_at);
	if (probe_at > GetCurrentTimestamp())
	{
		next_retry = Min(next_retry, probe_at);
		return false;
	}

	due = retry_earliest(handler);
	if (due <= GetCurrentTimestamp())
		return true;
	next_retry = Min(next_retry, due);
	if (handler->ordered && due != DT_NOEND)
		return false;
	return !is_quiet(handler, log, snapshot, upto);
}

/*
 * Ask for executors for owners that have work and none.
 */
static void
consider_owners(Relation log, Snapshot snapshot, const EventSnapshot *upto)
{
	List	   *handlers;
	List	   *wanted = NIL;
	ListCell   *lc;
	bool		all_served = owners_valid;
	bool		news = false;

	/* executors keep their own deadlines */
	next_retry = DT_NOEND;

	foreach(lc, owners)
		all_served = all_served && owner_is_served(lfirst_oid(lc));
	if (all_served)
	{
		forget_complaints(&logged_suspended);
		return;
	}

	handlers = handler_load(NULL, InvalidOid, CurrentMemoryContext);
	foreach(lc, handlers)
	{
		Handler    *handler = lfirst(lc);

		if (!owners_valid && !handler->paused && !handler->dormant)
		{
			MemoryContext old = MemoryContextSwitchTo(owners_context);

			owners = list_append_unique_oid(owners, handler->owner);
			MemoryContextSwitchTo(old);
		}
		if (list_member_oid(wanted, handler->owner))
			continue;
		if (owner_is_served(handler->owner))
		{
			forget_suspended(handler);
			continue;
		}
		if (handler_has_work(handler, log, snapshot, upto))
			wanted = lappend_oid(wanted, handler->owner);
	}
	owners_valid = true;

	foreach(lc, wanted)
		news = shared_want_executor(MyDatabaseId, lfirst_oid(lc)) || news;
	if (news)
		doorbell_ring_launcher();
}

/* ----------
 * The loop
 * ----------
 */

/*
 * Look at the log and the handlers.
 */
static void
look(void)
{
	bool		found;
	uint32		definitions = pg_atomic_read_u32(&my_slot->definitions);
	uint32		installs = count_installs();
	Relation	log;
	Snapshot	snapshot;
	EventSnapshot *upto;

	if (definitions != definitions_seen)
		forget_owners(definitions);

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	next_look = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), pne_naptime);
	log = catalog_open_log();
	if (log == NULL)
	{
		bool		exists = catalog_extension_exists();

		CommitTransactionCommand();
		if (exists)
			return;				/* it is being made: look again */
		set_presence(EXTENSION_ABSENT, installs);
		listener_leave();
		return;					/* not reached */
	}
	SPI_connect();
	PushActiveSnapshot(GetTransactionSnapshot());
	snapshot = GetActiveSnapshot();
	upto = event_snapshot_build(snapshot);

	found = follow_log(log, snapshot, upto);
	consider_owners(log, snapshot, upto);

	PopActiveSnapshot();
	SPI_finish();
	table_close(log, NoLock);
	CommitTransactionCommand();
	FAULT_POINT("after-look");

	/*
	 * Who committed has rung, and we may be the second.  But should there ever
	 * be an event that nobody rang for, nobody else would.
	 */
	if (found)
		doorbell_ring_executors(my_slot);
}

/*
 * Read the queue.  Any notification on the channel has the executors look.
 */
static void
read_queue(void)
{
	int			received = notify_queue_read();
	Notification *notification;

	while ((notification = notify_queue_take()) != NULL)
	{
		ereport(DEBUG1,
				(errmsg("notification on channel \"%s\" from process %d: \"%s\"",
						notification->channel, notification->sender, notification->payload)));
		notify_queue_free(notification);
	}
	if (received > 0)
	{
		pg_atomic_fetch_add_u64(&my_slot->listener.notifications_received, received);
		doorbell_ring_executors(my_slot);
	}
}

/*
 * Take what the configuration says about the channel.
 */
static void
follow_channel(void)
{
	if (channel != NULL && strcmp(channel, pne_channel) == 0)
		return;
	notify_queue_listen(pne_channel, channel);
	if (channel != NULL)
		pfree(channel);
	channel = MemoryContextStrdup(listener_context, pne_channel);
}

static void
listener_cycle(MemoryContext cycle_context)
{
	Bell	   *bell = &my_slot->bells[LISTENER_BELL];
	bool		rung;
	TimestampTz now;
	TimestampTz until;

	MemoryContextReset(cycle_context);
	MemoryContextSwitchTo(cycle_context);

	rung = doorbell_answer(bell);
	CHECK_FOR_INTERRUPTS();
	pg_atomic_fetch_add_u64(&my_slot->listener.wakeups, 1);
	if (worker_reload_config())
		follow_channel();
	if (pg_atomic_read_u32(&my_slot->leave) != 0)
		listener_leave();

	read_queue();

	/* what is due in a moment is done now, to wake up once for both */
	now = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), WAKEUP_SLACK_MS);
	if (now >= next_yield_check)
	{
		if (database_is_wanted())
			listener_leave();
		next_yield_check = TimestampTzPlusMilliseconds(now, YIELD_CHECK_MS);
	}
	if (my_slot->listener.not_before > now)
		next_look = my_slot->listener.not_before;	/* backing off */
	else if (rung || now >= next_look || now >= next_retry)
	{
		look();
		if (ahead_since != 0 && TimestampDifferenceExceeds(ahead_since, now, LAZY_STORE_MS))
			store_cursor();
		worker_recovered(&my_slot->listener);
	}

	until = Min(next_look, next_yield_check);
	if (my_slot->listener.not_before <= now)
		until = Min(until, next_retry);
	if (!notifyInterruptPending && !doorbell_is_rung(bell))
	{
		pgstat_report_stat(true);
		worker_sleep(bell, until);
	}
	else
		pgstat_report_stat(false);
}

/*
 * Entry point.
 */
void
pne_listener_main(Datum main_arg)
{
	WorkerStart start;
	MemoryContext cycle_context;
	uint32		installs;
	bool		installed;

	memcpy(&start, MyBgworkerEntry->bgw_extra, sizeof(start));
	worker_signals();
	listener_attach(&start);
	worker_connect(start.dboid, InvalidOid);

	installs = count_installs();
	StartTransactionCommand();
	installed = catalog_extension_exists();
	CommitTransactionCommand();
	set_presence(installed ? EXTENSION_PRESENT : EXTENSION_ABSENT, installs);
	if (!installed)
		listener_leave();
	doorbell_ring_launcher();	/* it may wait to look into further databases */

	listener_context = AllocSetContextCreate(TopMemoryContext, "listener", ALLOCSET_DEFAULT_SIZES);
	owners_context = AllocSetContextCreate(TopMemoryContext, "handler owners", ALLOCSET_DEFAULT_SIZES);
	cycle_context = AllocSetContextCreate(TopMemoryContext, "listener cycle", ALLOCSET_DEFAULT_SIZES);

	next_look = next_yield_check = GetCurrentTimestamp();
	next_retry = DT_NOEND;

	for (;;)
	{
		PG_TRY();
		{
			/* LISTEN first, then look: what comes in between is seen twice, not never */
			if ((channel == NULL || my_slot->listener.phase != WORKER_LISTENING) &&
				my_slot->listener.not_before <= GetCurrentTimestamp())
			{
				follow_channel();
				worker_enter_phase(&my_slot->listener, WORKER_LISTENING, "listening");
			}
			listener_cycle(cycle_context);
		}
		PG_CATCH();
		{
			MemoryContextSwitchTo(cycle_context);
			worker_recover(&my_slot->listener);
			stats_discard_emitted();
			forget_owners(definitions_seen);
		}
		PG_END_TRY();
	}
}
