/*-------------------------------------------------------------------------
 *
 * wait.c
 *		CALL wait_for_event_handlers(): until everything committed before is
 *		handled.  CALL wait_for_events(): until a consumer has events to fetch.
 *
 * Neither holds a snapshot or a lock while it sleeps.
 *
 * wait_for_event_handlers() takes a snapshot and waits until the stored position
 * of each handler that runs has passed every event which that snapshot sees.
 * Positions that passed only events of others are stored lazily; so executors
 * are asked to store what they have, and signal after each commit of progress.
 *
 * wait_for_events() looks for events as fetch_events() does, each time from
 * where it has come to before.  It is signalled when the listener finds events
 * in the log, and when a transaction ends that had a consumer; for all else it
 * knows until when to sleep.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/condition_variable.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "arguments.h"
#include "catalog.h"
#include "compat.h"
#include "consumer.h"
#include "doorbell.h"
#include "executor.h"
#include "handler.h"
#include "shared.h"

PG_FUNCTION_INFO_V1(pne_wait_for_event_handlers);
PG_FUNCTION_INFO_V1(pne_wait_for_events);

/*
 * Ask again at least this often, in ms: a worker that was not there to be rung
 * may be by now.
 */
#define MAX_WAIT_MS 1000

/*
 * When all is done, wait this long, in ms, for the executors to count it: for
 * whoever waits and then looks at the figures.
 */
#define COUNT_GRACE_MS 1000

/*
 * Whether a handler has passed everything that upto sees.
 *
 * It has if its position covers that, or if no event for it lies between.  An
 * event that only its filter refuses is passed by the executor, not here.
 */
static bool
handler_is_done(const Handler *handler, Relation log, Snapshot snapshot, const EventSnapshot *upto)
{
	HandlerProblem problem;

	if (handler->paused || handler->dormant || !handler_check(handler, &problem))
		return true;
	if (event_snapshot_covers(handler->position.cursor, upto))
		return true;
	return !match_pending(&handler->pattern, &handler->position, log, snapshot, upto, NULL);
}

/*
 * The names of the handlers that are not done, all or the first one, or NULL.
 * upto is where they have to come to; NULL: what is visible now, which is
 * returned.
 */
static char *
handlers_not_done(EventSnapshot **upto, bool all, MemoryContext context)
{
	Relation	log = table_open(catalog_lookup(false)->log, AccessShareLock);
	Snapshot	snapshot;
	StringInfoData names;
	int			others = 0;
	ListCell   *lc;
	List	   *handlers;
	char	   *result = NULL;

	PushActiveSnapshot(GetTransactionSnapshot());
	snapshot = GetActiveSnapshot();
	if (*upto == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(context);

		*upto = event_snapshot_build(snapshot);
		MemoryContextSwitchTo(old);
	}

	initStringInfo(&names);
	handlers = handler_load(NULL, InvalidOid, CurrentMemoryContext);
	foreach(lc, handlers)
	{
		Handler    *handler = lfirst(lc);

		if (handler_is_done(handler, log, snapshot, *upto))
			continue;
		if (has_privs_of_role(GetUserId(), handler->owner))
			appendStringInfo(&names, "%s\"%s\"", names.len > 0 ? ", " : "", handler->name);
		else
			others++;
		if (!all)
			break;
	}
	if (others > 0)
		appendStringInfo(&names, ngettext("%s%d of another role", "%s%d of other roles", others),
						 names.len > 0 ? ", and " : "", others);
	PopActiveSnapshot();
	table_close(log, AccessShareLock);

	if (names.len > 0)
		result = MemoryContextStrdup(context, names.data);
	return result;
}

/*
 * Whether the executors of this database have counted all that they had done
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
 * Refuse where waiting could not work.  function is who waits, with its
 * parentheses, for what; the hints say why not in a handler, and in a
 * transaction block.
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
	require_read_committed(function, "progress");
	shared_require_preload(function);
}

/*
 * Sleep until the condition variable, if there is one, is signalled, at most
 * timeout ms.  Returns whether it was.
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
 * Returns when every event committed before the call has been handled or
 * parked in event_retries, by all handlers that are not paused, suspended or
 * dormant.  Errors: the timeout, naming the handlers not done; a transaction
 * block; REPEATABLE READ; inside a handler; a standby; not preloaded.
 */
Datum
pne_wait_for_event_handlers(PG_FUNCTION_ARGS)
{
	MemoryContext context = CurrentMemoryContext;
	EventSnapshot *upto = NULL;
	TimestampTz deadline;
	DatabaseSlot *slot;
	int64		timeout;
	char	   *names;
	uint32		request = 0;
	TimestampTz done_at = 0;
	TimestampTz asked_at = 0;

	check_context(fcinfo, "wait_for_event_handlers()", "event handlers", "It would wait for itself.",
				  "Events are handled when they are committed: COMMIT first, then CALL it on its own.");
	timeout = timeout_argument(fcinfo, 0);
	deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), timeout);

	SPI_connect_ext(SPI_OPT_NONATOMIC);
	for (;;)
	{
		TimestampTz now;
		bool		is_last;

		CHECK_FOR_INTERRUPTS();
		slot = shared_find_database(MyDatabaseId);

		/* before looking, or the signal could come in between */
		if (slot != NULL)
			ConditionVariablePrepareToSleep(&slot->progress);

		/*
		 * Ask for positions; again only after a while, because who answers
		 * signals, too.
		 */
		now = GetCurrentTimestamp();
		if (slot != NULL && TimestampDifferenceExceeds(asked_at, now, MAX_WAIT_MS))
		{
			uint32		made = pg_atomic_add_fetch_u32(&slot->persist_requests, 1);

			request = (request == 0) ? made : request;
			asked_at = now;
			doorbell_ring_database(MyDatabaseId);
		}
		is_last = (now >= deadline);
		names = handlers_not_done(&upto, is_last, context);
		SPI_commit();

		/* what is done counts a moment later; but a long call is not waited for */
		now = GetCurrentTimestamp();
		if (names == NULL && done_at == 0)
			done_at = now;
		if (is_last ||
			(names == NULL && (executors_have_counted(request) ||
							   TimestampDifferenceExceeds(done_at, now, COUNT_GRACE_MS))))
			break;

		(void) sleep_for(slot ? &slot->progress : NULL, Min(MAX_WAIT_MS, TimestampDifferenceMilliseconds(now, deadline)));
		if (names != NULL)
			pfree(names);
	}
	ConditionVariableCancelSleep();
	if (names != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_QUERY_CANCELED),
				 errmsg("timeout while waiting for event handlers: %s", names),
				 errhint("Look at event_handler_stats and event_worker_stats.")));
	SPI_finish();
	PG_RETURN_VOID();
}

/*
 * wait_for_events(consumer text, timeout interval)
 *
 * Returns when events could be fetched, or at the timeout.  Errors: bad
 * arguments; no such consumer; not the owner or a member of it; the owner may
 * not read the log; a dormant consumer; a transaction block; REPEATABLE READ;
 * inside a handler; a standby; not preloaded.
 */
Datum
pne_wait_for_events(PG_FUNCTION_ARGS)
{
	char	   *name = name_argument(fcinfo, 0, "consumer", "event consumer");
	int64		timeout = timeout_argument(fcinfo, 1);
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), timeout);
	ConsumerMemory memory = {.context = CurrentMemoryContext};
	MemoryContext look_context;

	check_context(fcinfo, "wait_for_events()", "events", "It would keep its executor from all other work.",
				  "It holds no transaction while it waits: COMMIT first, then CALL it on its own.");

	look_context = AllocSetContextCreate(CurrentMemoryContext, "look for events", ALLOCSET_DEFAULT_SIZES);
	SPI_connect_ext(SPI_OPT_NONATOMIC);
	for (;;)
	{
		DatabaseSlot *slot = shared_find_database(MyDatabaseId);
		TimestampTz look_again;
		TimestampTz now;
		bool		ready;

		CHECK_FOR_INTERRUPTS();

		/* before looking, or the signal could come in between */
		if (slot != NULL)
			ConditionVariablePrepareToSleep(&slot->news);
		MemoryContextReset(look_context);
		MemoryContextSwitchTo(look_context);
		ready = consumer_is_ready(name, &memory, &look_again);
		SPI_commit();

		now = GetCurrentTimestamp();
		if (ready || now >= deadline)
			break;
		look_again = Min(Min(look_again, deadline), TimestampTzPlusMilliseconds(now, MAX_WAIT_MS));
		if (look_again > now &&
			sleep_for(slot ? &slot->news : NULL, TimestampDifferenceMilliseconds(now, look_again)))
			memory.lock_wait = 0;	/* whoever has it may be just letting go */
	}
	ConditionVariableCancelSleep();
	SPI_finish();
	PG_RETURN_VOID();
}
