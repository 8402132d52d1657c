/*-------------------------------------------------------------------------
 *
 * retry.c
 *		Attempts to handle events that failed before, or that may end the process.
 *
 * An attempt may end the process (crash_guard.c).  Therefore each attempt is two
 * transactions.  The first counts the attempt, sets attempt_began_at and is flushed.
 * The second calls the handler.  A process that finds attempt_began_at set knows that
 * the attempt did not come to its end.  A failure only adds its error to the row.  If
 * the event is not to blame for the failure, the count is taken back (backoff.c).
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

/* how many retries one look at the table returns */
#define DUE_RETRIES 100

/*
 * The failure of an attempt has been committed: update statistics and state, and log
 * it.  attempts is the number of the attempt.  If deferred is set, the attempt is not
 * charged to the event.  Frees the error.  Returns BATCH_SUSPENDED if the handler
 * backs off, else BATCH_DONE.
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
 * Record that an event failed when it was run alone, at its first attempt.  Moves the
 * handler's position, index next of its window, past the event.  Frees the error that
 * is passed in.  Returns BATCH_DONE, BATCH_SUSPENDED if the handler backs off, or
 * BATCH_STALE if the progress row could not be locked.  An error that this throws is
 * not the event's.
 */
BatchOutcome
retry_record_failure(HandlerRun *run, Event *event, int64 next, ErrorData *error)
{
	static const ProgressCounters nothing = {0};
	bool		deferred = backoff_is_to_blame(run, error);
	TimestampTz due = deferred ? backoff_next_trial(run) : retry_due_again(run->definition, 1);
	EventIdentity identity = {event->id, event->txid};
	/* the name is NULL if the event was deleted and passing it failed */
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
 * Whether the handler's position has passed an event that upto sees, but the first
 * attempt of that event has not ended.  An attempt whose executor was lost has ended:
 * the event waits for the next attempt.  An attempt whose executor ended cleanly has
 * not: it is made again.  The caller is connected to SPI and has an active snapshot.
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
	run->next_retry_at = DT_NOBEGIN;	/* look now */
}

/*
 * Record that an attempt failed, in a transaction of its own.  event_name is NULL if
 * the attempt failed before the event was read.
 *
 * This locks only the row of the retry.  As long as the row has the number of this
 * attempt, it belongs to it, whatever was done to the handler meanwhile.  A session
 * that drops the handler may have locked the row; this does not wait for it.
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
 * Call the handler with one event whose attempt is counted, and delete the retry in
 * the same transaction.  The transaction must have locked the rows of the progress and
 * the retry.  Returns whether the handler was called.  Sets *ready when the event has
 * been read: an error before that is caused neither by the handler nor by the event.
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
 * Make a counted attempt, as a transaction of its own.  Sets the event's name (NULL if
 * it was not read) and, if the result is BATCH_FAILED, the error.
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
	/* before the session is cleaned: if the process ends there, no event is the cause */
	if (outcome == BATCH_DONE)
		crash_guard_attempt_ends();
	session_discard();
	*event_name = event.name;
	*failure = error;
	return outcome;
}

/*
 * Make an attempt that is counted and flushed, and record how it ended.
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
 * Make the first attempt of an event of the window, under the crash guard.  Before the
 * call a flushed transaction counts the attempt and moves the handler's position,
 * index next of its window, past the event.  Returns BATCH_DONE if the handler can go
 * on with the next event.
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
 * Count the next attempt of a retry that is due, flushed.  Sets *attempts to the
 * number of that attempt, or to -1 if there is nothing to try.
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
			/* another session has locked the row, and will not wake us */
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
 * Try the handler's retries that are due, oldest first, until the time of a batch is
 * over.  During a back-off try only one.  Claims the handler first if it is not
 * claimed yet.
 */
void
retry_run_due(HandlerRun *run)
{
	Instant		deadline = instant_in(pne_batch_time);
	DueRetry	waiting[DUE_RETRIES];
	int			count;
	BatchOutcome outcome = BATCH_DONE;

	/* first, as that may make attempts due, or put them off */
	if (!run->state->claimed)
		crash_guard_claim(list_make1(run));
	if (!run->state->claimed)
		return;

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
		executor_report_running(run->definition->name, waiting[i].event.id, 1);
		outcome = retry_charge(run, waiting[i].event, &attempts);
		if (attempts > 0)
			outcome = run_attempt(run, waiting[i].event, attempts, false);
	}

	transaction_start();
	handler_run_read_next_retry(run);
	transaction_commit(0);
}
