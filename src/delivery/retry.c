/*-------------------------------------------------------------------------
 *
 * retry.c
 *		Attempts to handle events that failed, or that may end the process.
 *
 * An attempt may never come back (crash_guard.c).  So each is two transactions:
 * the first counts it, sets attempt_began_at and is flushed, the second calls
 * the handler.  Whoever finds attempt_began_at set knows how that ended.  A
 * failure only adds its error; where the event is not to blame for it, it takes
 * the count back (backoff.c).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/xid8.h"

#include "base/catalog.h"
#include "base/fault.h"
#include "base/internal_sql.h"
#include "base/settings.h"
#include "delivery/backoff.h"
#include "delivery/call.h"
#include "delivery/call_timeout.h"
#include "delivery/crash_guard.h"
#include "delivery/executor_slot.h"
#include "delivery/progress.h"
#include "delivery/retry.h"
#include "delivery/session.h"
#include "delivery/transaction.h"
#include "handler/event_counters.h"
#include "handler/handler_counters.h"
#include "handler/retry_table.h"

/* retries that one look takes up */
#define DUE_RETRIES 100

/*
 * The failure of an event's attempt of that number is committed: tell everybody.
 * parked: it is not charged for it.  Returns whether the handler can go on.
 */
static BatchOutcome
failure_recorded(HandlerRun *run, int64 event_id, const char *event_name, int attempts,
				 bool deferred, TimestampTz due, ErrorData *error)
{
	if (event_name != NULL)
		event_counters_failed(event_name);
	run->next_retry_at = Min(run->next_retry_at, due);
	if (deferred)
		backoff_event_deferred(run, event_id, due, error);
	else
	{
		retry_log_failure(run->definition, event_id, attempts, due == DT_NOEND, error);
		backoff_event_charged(run, due, attempts == 1, error);
	}
	executor_progress_committed(0);
	FreeErrorData(error);
	return run->state->failed_trials > 0 ? BATCH_SUSPENDED : BATCH_DONE;
}

/*
 * An event failed alone, at its first attempt: record that and move the
 * handler's position, index next of its window, past it.  An error here is not
 * the event's.
 */
BatchOutcome
retry_record_failure(HandlerRun *run, Event *event, int64 next, ErrorData *error)
{
	static const ProgressCounters nothing = {0};
	bool		deferred = backoff_is_to_blame(run, error);
	TimestampTz due = deferred ? backoff_next_trial(run) : retry_due_again(run->definition, 1);
	EventIdentity identity = {event->id, event->txid};
	/* no name: the event was deleted, and what failed is to pass it */
	char	   *event_name = event->name ? pstrdup(event->name) : NULL;

	transaction_start_own();
	if (!progress_lock(run))
	{
		transaction_commit(0);
		FreeErrorData(error);
		return BATCH_STALE;
	}
	retry_write_failure(run->definition, identity, deferred ? 0 : 1, due, deferred, error);
	progress_store(run, next, &nothing);
	FAULT_POINT("before-failure-commit");
	transaction_commit(0);

	progress_stored(run, next);
	crash_guard_note_commit(run, 1);
	return failure_recorded(run, identity.id, event_name, 1, deferred, due, error);
}

/* ----------
 * Attempts
 * ----------
 */

/*
 * Whether a handler's position has passed an event that upto sees, and that has
 * not come to the end of its first attempt.  One whose executor was lost has: it
 * waits for the next one.  One whose executor ended in order is to be made again.
 */
bool
retry_first_attempt_open(const Handler *handler, const EventSnapshot *upto)
{
	static InternalStatement select_untried = {
		.sql = "SELECT t.event_txid, t.attempt_began_at IS NOT NULL, p.owner_token "
		"FROM @s._event_retries AS t "
		"JOIN @s._event_handler_progress AS p ON p.handler OPERATOR(pg_catalog.=) t.handler "
		"WHERE t.handler OPERATOR(pg_catalog.=) $1 AND t.untried",
		.target = TABLE_NONE,
		.nargs = 1,
		.argtypes = {TEXTOID},
	};
	Datum		name = CStringGetTextDatum(handler->name);
	int			count = internal_execute(&select_untried, &name, NULL, 0);
	bool		found = false;
	bool		isnull;

	for (int i = 0; i < count && !found; i++)
	{
		uint64		txid = U64FromFullTransactionId(DatumGetFullTransactionId(internal_value(i, 1, &isnull)));
		bool		began = DatumGetBool(internal_value(i, 2, &isnull));
		int64		token = DatumGetInt64(internal_value(i, 3, &isnull));

		if (began && !isnull && crash_guard_token_is_lost(token))
			continue;
		found = event_snapshot_sees(upto, txid);
	}
	return found;
}

static void
release_attempt(HandlerRun *run, EventIdentity event, int attempts)
{
	transaction_start_own();
	if (retry_give_back(run->definition->name, event, attempts))
		ForceSyncCommit();
	transaction_commit(0);
	run->next_retry_at = 0;		/* now */
}

/*
 * An attempt failed: write that down in a transaction of its own.  The event's
 * name is NULL where it failed before it was read.
 *
 * Only the row is locked, which is the attempt's as long as it has its number,
 * whatever was done to the handler meanwhile.  Who drops the handler may have
 * it; he is not waited for.
 */
static BatchOutcome
record_failed_attempt(HandlerRun *run, EventIdentity event, const char *event_name, int attempts,
					  ErrorData *error)
{
	bool		deferred = backoff_is_to_blame(run, error);
	TimestampTz due = deferred ? backoff_next_trial(run) : retry_due_again(run->definition, attempts);
	bool		unused;

	FAULT_POINT("before-record");
	transaction_start_own();
	if (retry_lock_attempt(run->definition->name, event, attempts, &unused))
	{
		retry_write_failure(run->definition, event, deferred ? attempts - 1 : attempts, due, deferred, error);
		ForceSyncCommit();
	}
	transaction_commit(0);
	return failure_recorded(run, event.id, event_name, attempts, deferred, due, error);
}

/*
 * Call the handler with one event whose attempt is counted, and with that take
 * it off the list.  Called in the transaction that has locked the row.  Returns
 * whether the handler was called.  An error before *ready is set is neither its
 * doing nor the event's.
 */
static bool
call_for_retry(HandlerRun *run, Relation log, EventIdentity identity, Event *event, bool fresh,
			   bool never_failed, MemoryContext context, BatchCounters *counters,
			   volatile bool *ready)
{
	const char *name = run->definition->name;
	ProgressCounters progress = {.delivered = 1, .retried = fresh ? 0 : 1, .last_event_id = identity.id};
	MemoryContext old = MemoryContextSwitchTo(context);
	bool		found = event_fetch(event, log, GetActiveSnapshot(), identity.id) && event->txid == identity.txid;
	bool		passes;
	int			suspect;

	MemoryContextSwitchTo(old);
	if (!found)
	{
		retry_discard(name, identity, "the event was deleted from notification_events");
		return false;
	}

	call_apply_row_security(run, log, event, 1);
	*ready = true;
	call_reading_works(run);
	if (event->hidden)
	{
		retry_drop(name, identity, never_failed, "row security hides the event");
		return false;
	}
	if (call_filter_events(run, &event, 1, RelationGetDescr(log), &passes, &suspect) == 0)
	{
		retry_drop(name, identity, never_failed, "the filter does not let the event pass any more");
		return false;
	}

	handler_prepare_call(&run->call, run->definition, run->approved);
	call_handler(run, &event, 1, RelationGetDescr(log), counters);
	call_timeout_disarm();
	retry_delete(name, identity);
	progress_store(run, run->next, &progress);
	backoff_charge_deferred(run);
	return true;
}

/*
 * Make an attempt that is counted, as a transaction of its own.
 */
static BatchOutcome
try_attempt(HandlerRun *run, EventIdentity identity, int attempts, bool fresh, char **event_name,
			ErrorData **failure)
{
	MemoryContext context = CurrentMemoryContext;
	BatchCounters counters;
	volatile BatchOutcome outcome = BATCH_DONE;
	volatile bool called = false;
	volatile bool ready = false;
	Event		event = {.id = identity.id};
	ErrorData  *volatile error = NULL;

	handler_counters_batch_begins(&counters, 1);
	PG_TRY();
	{
		Relation	log;
		bool		never_failed;

		transaction_start();
		log = table_open(catalog_lookup(false)->log, AccessShareLock);
		if (!call_check_handler(run))
			outcome = BATCH_SUSPENDED;
		else if (!progress_lock(run))
			outcome = BATCH_STALE;
		else if (retry_lock_attempt(run->definition->name, identity, attempts, &never_failed))
			called = call_for_retry(run, log, identity, &event, fresh, never_failed, context, &counters,
									&ready);
		ForceSyncCommit();
		table_close(log, NoLock);
		transaction_commit(called ? handler_timeout(run->definition) : 0);
	}
	PG_CATCH();
	{
		outcome = BATCH_SUSPENDED;
		if (!ready)
			call_reading_failed(run, context);
		else
		{
			error = transaction_abort(context);
			if (!call_was_unwanted(run, error))
				outcome = BATCH_FAILED;
		}
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);

	if (called && outcome == BATCH_DONE)
	{
		handler_counters_batch_committed(run->definition, &counters);
		progress_stored(run, run->next);
		backoff_over(run);
		executor_progress_committed(1);
	}
	/* it is recorded: should the process end while it cleans its session, no event is the cause */
	if (outcome == BATCH_DONE)
		crash_guard_attempt_ends();
	session_discard();
	*event_name = event.name;
	*failure = error;
	return outcome;
}

/*
 * Make an attempt that is counted and flushed, and see to what comes of it.
 */
static BatchOutcome
run_attempt(HandlerRun *run, EventIdentity event, int attempts, bool fresh)
{
	char	   *event_name;
	ErrorData  *error;
	BatchOutcome outcome;
	int			tries = 0;

	crash_guard_attempt_begins(run->definition->name, event, attempts);
	FAULT_POINT("after-charge");
	for (;;)
	{
		outcome = try_attempt(run, event, attempts, fresh, &event_name, &error);
		if (outcome != BATCH_FAILED || !call_try_again(error, tries++))
			break;
		FreeErrorData(error);
	}
	if (outcome == BATCH_DONE)
		return outcome;
	if (outcome == BATCH_FAILED)
		outcome = record_failed_attempt(run, event, event_name, attempts, error);
	else
		release_attempt(run, event, attempts);
	crash_guard_attempt_ends();
	return outcome;
}

/*
 * Try an event of the window for the first time, carefully: count the attempt
 * and move the position, index next of the window, past it before the call.
 */
BatchOutcome
retry_run_fresh(HandlerRun *run, EventIdentity event, int64 next)
{
	static const ProgressCounters nothing = {0};
	BatchOutcome outcome = BATCH_DONE;

	executor_report_running(run->definition->name, event.id, 1);
	transaction_start();
	if (executor_stop_requested() || !call_check_handler(run))
		outcome = BATCH_SUSPENDED;
	else if (!progress_lock(run))
		outcome = BATCH_STALE;
	else
	{
		retry_write_attempt(run->definition, event, 1, true);
		progress_store(run, next, &nothing);
		ForceSyncCommit();
	}
	transaction_commit(0);
	if (outcome != BATCH_DONE)
		return outcome;

	progress_stored(run, next);
	outcome = run_attempt(run, event, 1, true);
	handler_run_note_passed(run, 1);
	return outcome;
}

/*
 * Count an attempt of a retry that is due, flushed.  Sets how often the event
 * was tried then, or -1 where there is nothing to try.
 */
static BatchOutcome
retry_charge(HandlerRun *run, EventIdentity event, int *attempts)
{
	BatchOutcome outcome = BATCH_DONE;

	*attempts = -1;
	transaction_start();
	if (executor_stop_requested() || !call_check_handler(run))
		outcome = BATCH_SUSPENDED;
	else if (!progress_lock(run))
		outcome = BATCH_STALE;
	else
	{
		int			before = retry_lock_due(run->definition->name, event);

		if (before < 0)
		{
			/* somebody has it, and will not ring */
			handler_run_postpone(run);
			outcome = BATCH_SUSPENDED;
		}
		else if (before >= run->definition->max_attempts)
			retry_mark_dead(run->definition, event, before);
		else
		{
			*attempts = before + 1;
			retry_write_attempt(run->definition, event, *attempts, false);
			ForceSyncCommit();
		}
	}
	transaction_commit(0);
	return outcome;
}

/*
 * Try the retries of a handler that are due, oldest first, until the batch's
 * time is up; in an outage one.
 */
void
retry_run_due(HandlerRun *run)
{
	Instant		deadline = instant_in(pne_batch_time);
	DueRetry	waiting[DUE_RETRIES];
	int			count;
	BatchOutcome outcome = BATCH_DONE;

	transaction_start();
	count = retry_find_waiting(run->definition->name, run->definition->ordered, waiting,
						 run->state->failed_trials > 0 ? 1 : DUE_RETRIES);
	transaction_commit(0);

	for (int i = 0; i < count && outcome == BATCH_DONE; i++)
	{
		int			attempts;

		CHECK_FOR_INTERRUPTS();
		if (waiting[i].due > GetCurrentTimestamp() || (i > 0 && instant_now() >= deadline))
			break;
		if (!run->state->claimed)
			crash_guard_claim(list_make1(run));
		if (!run->state->claimed)
			return;
		executor_report_running(run->definition->name, waiting[i].event.id, 1);
		outcome = retry_charge(run, waiting[i].event, &attempts);
		if (attempts > 0)
			outcome = run_attempt(run, waiting[i].event, attempts, false);
	}

	transaction_start();
	handler_run_read_next_retry(run);
	transaction_commit(0);
}
