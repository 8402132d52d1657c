/*-------------------------------------------------------------------------
 *
 * wait.c
 *		CALL wait_for_event_handlers() waits until everything committed before is
 *		handled.  CALL wait_for_events() waits until a consumer has events to fetch.
 *
 * Neither holds a snapshot or a lock while it sleeps.
 *
 * wait_for_event_handlers() takes a snapshot and waits until the stored position of
 * each running handler has passed every event that the snapshot sees.  A position that
 * has passed only events of others is stored lazily.  So the procedure asks the
 * executors to store their positions, and they signal after each commit of progress.
 *
 * wait_for_events() looks for events as fetch_events() does, each time from where it
 * has come to before.  The listener signals it when it finds events in the log, and so
 * does each transaction that had a consumer when it ends.  Everything else has a
 * deadline that it knows.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/condition_variable.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "base/arguments.h"
#include "base/catalog.h"
#include "base/compat.h"
#include "base/doorbell.h"
#include "base/internal_sql.h"
#include "base/shared.h"
#include "consumer/consumer_ready.h"
#include "delivery/executor_slot.h"
#include "delivery/retry.h"
#include "handler/handler.h"
#include "sql/stats_views.h"

PG_FUNCTION_INFO_V1(pne_wait_for_event_handlers);
PG_FUNCTION_INFO_V1(pne_wait_for_events);

/*
 * Look again at least this often, in ms.  A worker that was not running when it was to
 * be woken may be running by then.
 */
#define MAX_WAIT_MS 1000

/*
 * When everything is done, wait up to this long, in ms, until the executors have
 * counted it, for a caller that looks at the counters next.
 */
#define COUNT_GRACE_MS 1000

/* how many handlers a time-out explains */
#define MAX_EXPLAINED 10

/* how much of an error it quotes, in bytes */
#define EXPLAINED_ERROR_SIZE 200

/*
 * Whether a handler reads the log at present.
 */
static bool
handler_runs(const Handler *handler)
{
	HandlerProblem problem;

	return !handler->paused && !handler->dormant && handler_check(handler, &problem);
}

/* what is known about a handler from one look to the next */
typedef struct AwaitedHandler
{
	int64		number;			/* of the handler */
	int64		version;		/* of its definition */
	bool		known;			/* otherwise nothing is known */
	EventIdentity event;		/* an event that it has not passed yet; txid 0: there is none */
} AwaitedHandler;

/*
 * What a waiting session remembers from one look to the next.  Events that upto sees
 * do not become more.  If there was none for a handler, there will be none.  If one
 * was found, it is enough to check whether the handler has passed it.  So rows are
 * looked at again only after such an event was passed, however often the session looks
 * and however many handlers there are.  The remembered event is the newest one, which
 * mostly is the last one to be passed.
 */
typedef struct WaitMemory
{
	MemoryContext context;
	EventSnapshot *upto;		/* where handlers have to get to; NULL before the first look */
	HTAB	   *handlers;		/* of AwaitedHandler */
} WaitMemory;

static AwaitedHandler *
recall(WaitMemory *memory, const Handler *handler)
{
	AwaitedHandler *entry;
	bool		found;

	if (memory->handlers == NULL)
	{
		HASHCTL		info = {.keysize = sizeof(int64), .entrysize = sizeof(AwaitedHandler), .hcxt = memory->context};

		memory->handlers = hash_create("awaited handlers", 64, &info, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	entry = hash_search(memory->handlers, &handler->number, HASH_ENTER, &found);
	if (!found || entry->version != handler->version)
	{
		entry->version = handler->version;
		entry->known = false;
	}
	return entry;
}

/*
 * Whether a handler still has to pass an event that was found for it before.
 */
static bool
event_is_ahead(const Handler *handler, const EventIdentity *identity, Relation log, Snapshot snapshot)
{
	Event		event;

	return !event_position_passed(&handler->position, identity->txid, identity->id) &&
		event_fetch(&event, log, snapshot, identity->id) && event.txid == identity->txid;
}

/* a search for events of all handlers about which nothing is known */
typedef struct AwaitedSearch
{
	WaitMemory *memory;
	List	   *handlers;
	bool		one_is_enough;
	bool		ended;			/* set if it ended before all rows were looked at */
} AwaitedSearch;

static bool
find_awaited(TupleTableSlot *slot, int64 id, void *arg)
{
	AwaitedSearch *search = (AwaitedSearch *) arg;
	uint64		txid = event_slot_txid(slot);
	bool		isnull;
	char	   *name = TextDatumGetCString(slot_getattr(slot, Anum_event_name, &isnull));
	ListCell   *lc;

	foreach(lc, search->handlers)
	{
		Handler    *handler = lfirst(lc);
		AwaitedHandler *entry;

		if (event_position_passed(&handler->position, txid, id) || !match_name(&handler->pattern, name))
			continue;
		entry = recall(search->memory, handler);
		entry->known = true;
		entry->event = (EventIdentity) {id, txid};
		search->handlers = foreach_delete_current(search->handlers, lc);
		search->ended = search->one_is_enough;
	}
	pfree(name);
	return !search->ended && search->handlers != NIL;
}

/*
 * Find out for each running handler whether there is an event that it still has to
 * pass.  If all is false, stop when there is one for any handler.
 */
static void
look_for_events(WaitMemory *memory, List *handlers, bool all, Relation log, Snapshot snapshot)
{
	AwaitedSearch search = {memory, NIL, !all, false};
	EventPosition position = {.cursor = NULL};
	ListCell   *lc;

	foreach(lc, handlers)
	{
		Handler    *handler = lfirst(lc);
		AwaitedHandler *entry = recall(memory, handler);

		if (event_snapshot_covers(handler->position.cursor, memory->upto))
		{
			entry->known = true;
			entry->event.txid = 0;
		}
		if (entry->known && entry->event.txid != 0)
		{
			entry->known = event_is_ahead(handler, &entry->event, log, snapshot);
			if (entry->known && !all)
				return;
		}
		if (entry->known)
			continue;
		search.handlers = lappend(search.handlers, handler);
		position.cursor = (position.cursor == NULL) ? handler->position.cursor :
			event_snapshot_common(position.cursor, handler->position.cursor);
	}
	if (search.handlers == NIL)
		return;
	window_scan_back(log, &position, snapshot, memory->upto, find_awaited, &search);
	if (search.ended)
		return;
	foreach(lc, search.handlers)
	{
		AwaitedHandler *entry = recall(memory, lfirst(lc));

		entry->known = true;
		entry->event.txid = 0;
	}
}

/*
 * Whether a running handler is through with everything that is waited for.
 *
 * It is if its position covers upto, or if no event for it lies between, and if no
 * event that its position has passed is at its first attempt.  An event that only the
 * handler's filter refuses is passed by the executor, not here.
 */
static bool
handler_is_done(WaitMemory *memory, const Handler *handler)
{
	AwaitedHandler *entry = recall(memory, handler);

	return entry->known && entry->event.txid == 0 && !retry_first_attempt_open(handler, memory->upto);
}

typedef struct FutureSearch
{
	List	   *handlers;
	int64		id;				/* of the event that was found */
	uint64		txid;
} FutureSearch;

static bool
find_future(TupleTableSlot *slot, int64 id, void *arg)
{
	FutureSearch *search = (FutureSearch *) arg;
	bool		isnull;
	char	   *name = TextDatumGetCString(slot_getattr(slot, Anum_event_name, &isnull));
	bool		wanted = false;
	ListCell   *lc;

	foreach(lc, search->handlers)
		wanted = wanted || match_name(&((Handler *) lfirst(lc))->pattern, name);
	pfree(name);
	search->id = id;
	search->txid = wanted ? event_slot_txid(slot) : 0;
	return !wanted;
}

/*
 * Raise an error if there is an event for one of the handlers whose transaction has
 * not begun yet.  No snapshot sees that transaction as finished, so no handler can
 * ever pass the event.
 */
static void
check_no_future(List *handlers, Relation log, Snapshot snapshot, const EventSnapshot *upto)
{
	EventPosition present = {.cursor = event_snapshot_before(upto->xmax)};
	FutureSearch search = {handlers, 0, 0};

	if (handlers == NIL)
		return;
	window_scan(log, &present, snapshot, event_snapshot_before(PG_UINT64_MAX), find_future, &search);
	if (search.txid != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("event handlers cannot come to all events"),
				 errdetail("Event %lld has the transaction id %llu, and the next one of this server is %llu.",
						   (long long) search.id, (unsigned long long) search.txid,
						   (unsigned long long) upto->xmax),
				 errhint("The row was copied from another server while triggers were disabled. Delete it and insert it again with triggers enabled: they set the transaction id.")));
}

/*
 * Add a line about what a handler is doing, and its last error.
 */
static void
explain_handler(const Handler *handler, StringInfo details)
{
	static InternalStatement select_failure = {
		.sql = "SELECT f.last_error, f.last_error_at FROM @s._event_handler_failures AS f "
		"WHERE f.handler OPERATOR(pg_catalog.=) $1",
		.target = TABLE_NONE,
		.nargs = 1,
		.argtypes = {TEXTOID},
	};
	Datum		name = CStringGetTextDatum(handler->name);
	bool		isnull;
	char	   *reason;

	appendStringInfo(details, "%s\"%s\" is %s, ", details->len > 0 ? "\n" : "", handler->name,
					 stats_handler_state(handler, &reason));
	if (internal_execute(&select_failure, &name, NULL, 1) == 1)
	{
		char	   *error = internal_text(0, 1);

		appendStringInfo(details, "its last error, at %s: %.*s",
						 timestamptz_to_str(DatumGetTimestampTz(internal_value(0, 2, &isnull))),
						 pg_mbcliplen(error, (int) strlen(error), EXPLAINED_ERROR_SIZE), error);
	}
	else
		appendStringInfoString(details, "and has had no error.");
}

/* handlers that are not done, for the error message */
typedef struct NotDone
{
	StringInfoData names;		/* ends with the number of handlers of other roles */
	StringInfoData details;		/* of the first handlers */
} NotDone;

/*
 * Find the handlers that are not done: all of them, with an explanation, or only the
 * first one.  Returns false if there is none.  The first look decides where they have
 * to get to: everything that is visible then.
 */
static bool
find_not_done(WaitMemory *memory, bool all, NotDone *found)
{
	Relation	log = table_open(catalog_lookup(false)->log, AccessShareLock);
	MemoryContext look_context = CurrentMemoryContext;
	Snapshot	snapshot;
	int			named = 0;
	int			others = 0;
	ListCell   *lc;
	List	   *handlers;

	PushActiveSnapshot(GetTransactionSnapshot());
	snapshot = GetActiveSnapshot();
	handlers = handler_load_without_filters(InvalidOid, CurrentMemoryContext);
	foreach(lc, handlers)
	{
		if (!handler_runs(lfirst(lc)))
			handlers = foreach_delete_current(handlers, lc);
	}
	if (memory->upto == NULL)
	{
		MemoryContextSwitchTo(memory->context);
		memory->upto = event_snapshot_build(snapshot);
		MemoryContextSwitchTo(look_context);
		check_no_future(handlers, log, snapshot, memory->upto);
	}
	look_for_events(memory, handlers, all, log, snapshot);

	/* the message is shown after this look has ended */
	if (all)
		MemoryContextSwitchTo(memory->context);
	initStringInfo(&found->names);
	initStringInfo(&found->details);
	MemoryContextSwitchTo(look_context);
	foreach(lc, handlers)
	{
		Handler    *handler = lfirst(lc);

		if (handler_is_done(memory, handler))
			continue;
		if (has_privs_of_role(GetUserId(), handler->owner))
		{
			appendStringInfo(&found->names, "%s\"%s\"", named > 0 ? ", " : "", handler->name);
			if (all && ++named <= MAX_EXPLAINED)
				explain_handler(handler, &found->details);
		}
		else
			others++;
		if (!all)
			break;
	}
	if (others > 0)
		appendStringInfo(&found->names, ngettext("%s%d of another role", "%s%d of other roles", others),
						 named > 0 ? ", and " : "", others);
	PopActiveSnapshot();
	table_close(log, AccessShareLock);
	return found->names.len > 0;
}

/*
 * Whether the executors of this database have counted everything that they had done
 * when the request was made.
 */
static bool
executors_have_counted(uint32 request)
{
	bool		result = true;

	LWLockAcquire(shared->lock, LW_SHARED);
	for (int i = 0; i < MAX_EXECUTOR_SLOTS && result; i++)
	{
		ExecutorSlot *slot = &shared->executors[i];

		if (slot->in_use && slot->dboid == MyDatabaseId &&
			(slot->worker.phase == WORKER_IDLE || slot->worker.phase == WORKER_RUNNING))
			result = (int32) (pg_atomic_read_u32(&slot->persisted) - request) >= 0;
	}
	LWLockRelease(shared->lock);
	return result;
}

/*
 * Raise an error where waiting could not work.  function is the procedure's name, with
 * parentheses.  The hints explain why it cannot work in a handler and in a transaction
 * block.
 */
static void
check_context(FunctionCallInfo fcinfo, const char *function, const char *what, const char *in_handler,
			  const char *in_block)
{
	CallContext *call = castNode(CallContext, fcinfo->context);

	PreventCommandDuringRecovery(function);
	if (executor_is_me())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("a handler cannot wait for %s", what),
				 errhint("%s", in_handler)));
	if (call->atomic || IsTransactionBlock())
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("%s cannot run inside a transaction block", function),
				 errhint("%s", in_block)));
	if (pne_is_pipelining())
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("%s cannot run behind other statements of a pipeline", function),
				 errdetail("It would commit them before the client has sent all."),
				 errhint("Have the client synchronize before and after it.")));
	require_read_committed(function, "progress");
	shared_require_preload(function);
}

/*
 * Begin a look, which is a transaction of its own.  Its memory, SPI's included, is
 * freed by the next look: one call may look a million times.
 */
static void
begin_look(MemoryContext look_context)
{
	MemoryContextReset(look_context);
	MemoryContextSwitchTo(look_context);
	SPI_connect_ext(SPI_OPT_NONATOMIC);
	MemoryContextSwitchTo(look_context);
}

static void
end_look(MemoryContext look_context)
{
	SPI_commit();
	SPI_finish();
	MemoryContextSwitchTo(look_context);
}

/*
 * Sleep until the condition variable, if there is one, is signalled, at most timeout
 * ms.  Returns whether it was signalled.
 */
static bool
sleep_for(ConditionVariable *cv, long timeout)
{
	uint32		wait_event = pne_wait_event("PgNotifyEventsWait");

	if (cv != NULL)
		return !ConditionVariableTimedSleep(cv, timeout, wait_event);
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, timeout, wait_event);
	ResetLatch(MyLatch);
	return false;
}

/*
 * wait_for_event_handlers(timeout interval)
 *
 * Returns when all handlers that are not paused, suspended or dormant have handled
 * every event committed before the call, or have it in event_retries.  Errors: the
 * timeout, with the handlers that are not done and why; events that no handler can
 * ever pass; a transaction block; a pipeline; REPEATABLE READ; inside a handler; a
 * standby; not preloaded.
 */
Datum
pne_wait_for_event_handlers(PG_FUNCTION_ARGS)
{
	MemoryContext context = CurrentMemoryContext;
	MemoryContext look_context;
	WaitMemory	memory = {.context = context};
	NotDone		found;
	Instant		deadline;
	DatabaseSlot *slot;
	int64		timeout;
	bool		not_done;
	uint32		request = 0;
	Instant		done_at = 0;
	Instant		asked_at = 0;

	check_context(fcinfo, "wait_for_event_handlers()", "event handlers", "It would wait for itself.",
				  "Events are handled when they are committed: COMMIT first, then CALL it on its own.");
	timeout = timeout_argument(fcinfo, 0);
	deadline = instant_in(timeout);

	look_context = AllocSetContextCreate(context, "look at event handlers", ALLOCSET_DEFAULT_SIZES);
	for (;;)
	{
		Instant		now;
		bool		is_last;

		CHECK_FOR_INTERRUPTS();
		slot = shared_find_database(MyDatabaseId);

		/* before the look, or the signal could come in between */
		if (slot != NULL)
			ConditionVariablePrepareToSleep(&slot->progress);

		/*
		 * Ask for positions, and again only after a while, because the answer is a
		 * signal, too.
		 */
		now = instant_now();
		if (slot != NULL && instant_passed(asked_at, now, MAX_WAIT_MS))
		{
			uint32		made = pg_atomic_add_fetch_u32(&slot->persist_requests, 1);

			request = (request == 0) ? made : request;
			asked_at = now;
			doorbell_ring_database(MyDatabaseId);
		}
		is_last = (now >= deadline);
		begin_look(look_context);
		not_done = find_not_done(&memory, is_last, &found);
		end_look(look_context);

		/* what is done is counted a moment later; but a long call is not waited for */
		now = instant_now();
		if (!not_done && done_at == 0)
			done_at = now;
		if (is_last ||
			(!not_done && (executors_have_counted(request) ||
						   instant_passed(done_at, now, COUNT_GRACE_MS))))
			break;

		(void) sleep_for(slot ? &slot->progress : NULL, Min(MAX_WAIT_MS, instant_ms_left(now, deadline)));
	}
	ConditionVariableCancelSleep();
	if (not_done)
		ereport(ERROR,
				(errcode(ERRCODE_QUERY_CANCELED),
				 errmsg("timeout while waiting for event handlers: %s", found.names.data),
				 found.details.len > 0 ? errdetail_internal("%s", found.details.data) : 0,
				 errhint("Look at event_handler_stats and event_worker_stats.")));
	MemoryContextSwitchTo(context);
	PG_RETURN_VOID();
}

/*
 * wait_for_events(consumer text, timeout interval)
 *
 * Returns when events can be fetched, or at the timeout.  Errors: bad arguments; no
 * such consumer; not its owner or a member of the owner; the owner may not read the
 * log; a dormant consumer; a transaction block; REPEATABLE READ; inside a handler; a
 * standby; not preloaded.
 */
Datum
pne_wait_for_events(PG_FUNCTION_ARGS)
{
	char	   *name = name_argument(fcinfo, 0, "consumer", "event consumer");
	int64		timeout = timeout_argument(fcinfo, 1);
	Instant		deadline = instant_in(timeout);
	ConsumerMemory memory = {.context = CurrentMemoryContext};
	MemoryContext look_context;

	check_context(fcinfo, "wait_for_events()", "events", "It would keep its executor from all other work.",
				  "It holds no transaction while it waits: COMMIT first, then CALL it on its own.");

	look_context = AllocSetContextCreate(CurrentMemoryContext, "look for events", ALLOCSET_DEFAULT_SIZES);
	for (;;)
	{
		DatabaseSlot *slot = shared_find_database(MyDatabaseId);
		Instant		look_again;
		Instant		now;
		bool		ready;

		CHECK_FOR_INTERRUPTS();

		/* before the look, or the signal could come in between */
		if (slot != NULL)
			ConditionVariablePrepareToSleep(&slot->news);
		begin_look(look_context);
		ready = consumer_is_ready(name, &memory, &look_again);
		end_look(look_context);

		now = instant_now();
		if (ready || now >= deadline)
			break;
		look_again = Min(Min(look_again, deadline), instant_after(now, MAX_WAIT_MS));
		if (look_again > now &&
			sleep_for(slot ? &slot->news : NULL, instant_ms_left(now, look_again)))
			memory.lock_wait = 0;	/* the holder may be about to release it */
	}
	ConditionVariableCancelSleep();
	MemoryContextSwitchTo(memory.context);
	PG_RETURN_VOID();
}
