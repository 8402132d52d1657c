/*-------------------------------------------------------------------------
 *
 * retry.c
 *		Events that failed: recording them, trying them again.
 *
 * A row of _event_retries is an event that a handler's position has moved past
 * without success.  It waits until next_attempt_at, and goes away when an
 * attempt succeeds, in the transaction of that success; after max_attempts it
 * is dead and stays.
 *
 * The delay doubles with each attempt up to max_retry_delay.  Each is cut
 * short by up to a quarter at random, so that events which failed together do
 * not come back together.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "common/pg_prng.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "catalog.h"
#include "executor.h"
#include "retry.h"
#include "stats.h"

/* due retries that one look takes up */
#define DUE_RETRIES 100

/* the share of a delay that chance may cut off */
#define JITTER 0.25

/* what is kept of an error message, in bytes */
#define STORED_ERROR_SIZE 4096

/*
 * How long to wait after the given number of attempts, in ms.
 */
static int64
retry_delay(const Handler *handler, int attempts)
{
	double		delay = (double) handler->retry_delay;

	for (int i = 1; i < attempts && delay < (double) handler->max_retry_delay; i++)
		delay *= 2;
	delay = Min(delay, (double) handler->max_retry_delay);
	return (int64) (delay * (1 - JITTER * pg_prng_double(&pg_global_prng_state)));
}

static Datum
error_text(const ErrorData *error)
{
	const char *message = error->message ? error->message : "(no message)";

	return PointerGetDatum(cstring_to_text_with_len(message,
													pg_mbcliplen(message, (int) strlen(message), STORED_ERROR_SIZE)));
}

/*
 * Count a failure of the handler.
 */
static void
count_failure(HandlerRun *run, const ErrorData *error)
{
	static OwnStatement upsert_failure = {
		.sql = "INSERT INTO @s._event_handler_failures AS f "
		"(handler, failed, last_error, last_sqlstate, last_error_at) "
		"VALUES ($1, 1, $2, $3, pg_catalog.clock_timestamp()) "
		"ON CONFLICT (handler) DO UPDATE SET failed = f.failed OPERATOR(pg_catalog.+) 1, "
		"last_error = excluded.last_error, last_sqlstate = excluded.last_sqlstate, "
		"last_error_at = excluded.last_error_at",
		.target = OWN_FAILURES,
		.nargs = 3,
		.argtypes = {TEXTOID, TEXTOID, TEXTOID},
	};
	Datum		values[3] = {CStringGetTextDatum(run->definition->name), error_text(error),
	CStringGetTextDatum(unpack_sql_state(error->sqlerrcode))};

	own_execute(&upsert_failure, values, NULL, 0);
}

/*
 * Write the row of an event that failed.  Returns when it is due again, or
 * DT_NOEND if it is dead.
 */
static TimestampTz
write_retry(HandlerRun *run, int64 event_id, int attempts, const ErrorData *error)
{
	static OwnStatement upsert_retry = {
		.sql = "INSERT INTO @s._event_retries AS t "
		"(handler, event_id, state, attempts, next_attempt_at, last_error, last_sqlstate, last_error_at) "
		"VALUES ($1, $2, $3, $4, $5, $6, $7, pg_catalog.clock_timestamp()) "
		"ON CONFLICT (handler, event_id) DO UPDATE SET state = excluded.state, "
		"attempts = excluded.attempts, next_attempt_at = excluded.next_attempt_at, "
		"last_error = excluded.last_error, last_sqlstate = excluded.last_sqlstate, "
		"last_error_at = excluded.last_error_at",
		.target = OWN_RETRIES,
		.nargs = 7,
		.argtypes = {TEXTOID, INT8OID, TEXTOID, INT4OID, TIMESTAMPTZOID, TEXTOID, TEXTOID},
	};
	Handler    *handler = run->definition;
	bool		dead = (attempts >= handler->max_attempts);
	TimestampTz due = DT_NOEND;
	Datum		values[7];
	char		nulls[7] = {' ', ' ', ' ', ' ', ' ', ' ', ' '};

	if (!dead)
		due = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), retry_delay(handler, attempts));
	values[0] = CStringGetTextDatum(handler->name);
	values[1] = Int64GetDatum(event_id);
	values[2] = CStringGetTextDatum(dead ? "dead" : "waiting");
	values[3] = Int32GetDatum(attempts);
	values[4] = TimestampTzGetDatum(due);
	if (dead)
		nulls[4] = 'n';
	values[5] = error_text(error);
	values[6] = CStringGetTextDatum(unpack_sql_state(error->sqlerrcode));
	own_execute(&upsert_retry, values, nulls, 0);
	return due;
}

static void
log_failure(const HandlerRun *run, int64 event_id, int attempts, bool dead, const ErrorData *error)
{
	ereport(LOG,
			(errcode(error->sqlerrcode),
			 errmsg("event handler \"%s\" failed for event %lld (attempt %d of %d)%s: %s",
					run->definition->name, (long long) event_id, attempts,
					run->definition->max_attempts, dead ? ", the event is dead" : "",
					error->message ? error->message : "")));
}

/*
 * An event failed alone: record it and move the handler's position, index next
 * of its window, past it.  An error here is not the event's.
 */
BatchOutcome
retry_record_failure(HandlerRun *run, Event *event, int64 next, ErrorData *error)
{
	static const ProgressFigures nothing = {0};
	TimestampTz due;

	batch_start_transaction();
	if (!progress_lock(run))
	{
		batch_commit_transaction(0);
		return BATCH_STALE;
	}
	due = write_retry(run, event->id, 1, error);
	count_failure(run, error);
	progress_store(run, next, &nothing);
	batch_commit_transaction(0);

	log_failure(run, event->id, 1, due == DT_NOEND, error);
	stats_event_failed(event->name);
	run->next_retry_at = Min(run->next_retry_at, due);
	progress_stored(run, next);
	executor_progress_committed(0);
	FreeErrorData(error);
	return BATCH_DONE;
}

/*
 * When the first of a handler's retries is due; DT_NOEND if none waits.  The
 * caller is connected to SPI and has an active snapshot.
 */
TimestampTz
retry_earliest(const char *handler)
{
	static OwnStatement select_earliest = {
		.sql = "SELECT t.next_attempt_at FROM @s._event_retries AS t "
		"WHERE t.handler OPERATOR(pg_catalog.=) $1 AND t.state OPERATOR(pg_catalog.=) 'waiting' "
		"ORDER BY t.next_attempt_at LIMIT 1",
		.target = OWN_NONE,
		.nargs = 1,
		.argtypes = {TEXTOID},
	};
	Datum		value = CStringGetTextDatum(handler);
	bool		isnull = true;
	TimestampTz result = DT_NOEND;

	if (own_execute(&select_earliest, &value, NULL, 1) == 1)
	{
		Datum		due = own_value(0, 1, &isnull);

		if (!isnull)
			result = DatumGetTimestampTz(due);
	}
	return result;
}

/*
 * The same for a handler in an executor, noted there.
 */
void
retry_read_deadline(HandlerRun *run)
{
	run->next_retry_at = retry_earliest(run->definition->name);
}

/*
 * Lock the row of a due retry.  Returns how often it was tried, or -1 if it is
 * not waiting any more.
 */
static int
lock_retry(const char *handler, int64 event_id)
{
	static OwnStatement lock_row = {
		.sql = "SELECT t.attempts FROM @s._event_retries AS t "
		"WHERE t.handler OPERATOR(pg_catalog.=) $1 AND t.event_id OPERATOR(pg_catalog.=) $2 "
		"AND t.state OPERATOR(pg_catalog.=) 'waiting' "
		"AND t.next_attempt_at OPERATOR(pg_catalog.<=) pg_catalog.clock_timestamp() "
		"FOR UPDATE",
		.target = OWN_RETRIES,
		.nargs = 2,
		.argtypes = {TEXTOID, INT8OID},
	};
	Datum		values[2] = {CStringGetTextDatum(handler), Int64GetDatum(event_id)};
	bool		isnull;

	if (own_execute(&lock_row, values, NULL, 1) != 1)
		return -1;
	return DatumGetInt32(own_value(0, 1, &isnull));
}

static void
delete_retry(const char *handler, int64 event_id)
{
	static OwnStatement delete_row = {
		.sql = "DELETE FROM @s._event_retries "
		"WHERE handler OPERATOR(pg_catalog.=) $1 AND event_id OPERATOR(pg_catalog.=) $2",
		.target = OWN_RETRIES,
		.nargs = 2,
		.argtypes = {TEXTOID, INT8OID},
	};
	Datum		values[2] = {CStringGetTextDatum(handler), Int64GetDatum(event_id)};

	own_execute(&delete_row, values, NULL, 0);
}

/*
 * The event of a retry is not there for the handler any more: that is the end
 * of it, and the row says why.
 */
static void
discard_retry(const char *handler, int64 event_id, const char *reason)
{
	static OwnStatement update_row = {
		.sql = "UPDATE @s._event_retries SET state = 'discarded', next_attempt_at = NULL, "
		"last_error = $3, "
		"last_error_at = pg_catalog.clock_timestamp() "
		"WHERE handler OPERATOR(pg_catalog.=) $1 AND event_id OPERATOR(pg_catalog.=) $2",
		.target = OWN_RETRIES,
		.nargs = 3,
		.argtypes = {TEXTOID, INT8OID, TEXTOID},
	};
	Datum		values[3] = {CStringGetTextDatum(handler), Int64GetDatum(event_id),
	CStringGetTextDatum(reason)};

	own_execute(&update_row, values, NULL, 0);
}

/*
 * A retry failed again: write that down in a transaction of its own.  The
 * event's name is NULL where it failed before it was read.
 */
static void
record_failed_retry(HandlerRun *run, int64 event_id, const char *event_name, ErrorData *error)
{
	TimestampTz due = DT_NOEND;
	int			attempts = -1;

	batch_start_transaction();
	if (progress_lock(run))
	{
		attempts = lock_retry(run->definition->name, event_id);
		if (attempts >= 0)
		{
			due = write_retry(run, event_id, ++attempts, error);
			count_failure(run, error);
		}
	}
	batch_commit_transaction(0);

	if (attempts >= 0)
	{
		log_failure(run, event_id, attempts, due == DT_NOEND, error);
		if (event_name != NULL)
			stats_event_failed(event_name);
		executor_progress_committed(0);
	}
	FreeErrorData(error);
}

/*
 * Try one event again, as a transaction of its own.
 */
static BatchOutcome
run_retry(HandlerRun *run, int64 event_id)
{
	MemoryContext context = CurrentMemoryContext;
	const char *name = run->definition->name;
	BatchFigures figures;
	volatile BatchOutcome outcome = BATCH_DONE;
	volatile bool called = false;
	Event		event = {0};
	Event	   *events = &event;
	ErrorData  *volatile error = NULL;

	stats_batch_begins(&figures, 1);
	executor_report_running(name, event_id, 1);

	PG_TRY();
	{
		Relation	log;

		batch_start_transaction();
		log = table_open(catalog_lookup(false)->log, AccessShareLock);
		if (executor_asked_to_leave() || !batch_check_handler(run))
			outcome = BATCH_SUSPENDED;
		else if (!progress_lock(run))
			outcome = BATCH_STALE;
		else if (lock_retry(name, event_id) >= 0)
		{
			HeapTuple	tuple = window_fetch_event(log, GetActiveSnapshot(), event_id);

			if (tuple != NULL)
			{
				MemoryContext old = MemoryContextSwitchTo(context);

				event_from_tuple(&event, log, heap_copytuple(tuple));
				MemoryContextSwitchTo(old);
				handler_hide_events(log, &event, 1);
			}

			if (tuple == NULL)
				discard_retry(name, event_id, "the event was deleted from notification_events");
			else if (event.hidden)
				discard_retry(name, event_id, "row security hides the event");
			else
			{
				ProgressFigures progress = {.delivered = 1, .retried = 1, .last_event_id = event_id};

				handler_prepare_call(&run->call, run->definition, run->approved);
				called = true;
				stats_call_begins(&figures, &events, 1);
				batch_call_handler(run, &events, 1, RelationGetDescr(log));
				stats_call_ends(&figures);
				delete_retry(name, event_id);
				progress_store(run, run->next, &progress);
			}
		}
		table_close(log, NoLock);
		batch_commit_transaction(called ? run->definition->timeout : 0);
	}
	PG_CATCH();
	{
		error = batch_abort_transaction(context);
		outcome = BATCH_FAILED;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);

	if (outcome == BATCH_DONE && called)
	{
		stats_batch_committed(run->definition, &figures);
		progress_stored(run, run->next);
		executor_progress_committed(1);
	}
	executor_discard_session();
	if (outcome == BATCH_FAILED)
		record_failed_retry(run, event_id, event.name, error);
	return outcome;
}

/*
 * Try the retries of a handler that are due, oldest first.  False where the
 * handler cannot go on for now.
 */
bool
retry_run_due(HandlerRun *run)
{
	static OwnStatement select_due = {
		.sql = "SELECT t.event_id FROM @s._event_retries AS t "
		"WHERE t.handler OPERATOR(pg_catalog.=) $1 AND t.state OPERATOR(pg_catalog.=) 'waiting' "
		"AND t.next_attempt_at OPERATOR(pg_catalog.<=) pg_catalog.clock_timestamp() "
		"ORDER BY t.next_attempt_at, t.event_id",
		.target = OWN_NONE,
		.nargs = 1,
		.argtypes = {TEXTOID},
	};
	Datum		value = CStringGetTextDatum(run->definition->name);
	int64		ids[DUE_RETRIES];
	int			count;
	bool		isnull;
	BatchOutcome outcome = BATCH_DONE;

	batch_start_transaction();
	count = own_execute(&select_due, &value, NULL, DUE_RETRIES);
	for (int i = 0; i < count; i++)
		ids[i] = DatumGetInt64(own_value(i, 1, &isnull));
	batch_commit_transaction(0);

	for (int i = 0; i < count && (outcome == BATCH_DONE || outcome == BATCH_FAILED); i++)
	{
		CHECK_FOR_INTERRUPTS();
		outcome = run_retry(run, ids[i]);
	}

	batch_start_transaction();
	retry_read_deadline(run);
	batch_commit_transaction(0);
	return outcome == BATCH_DONE || outcome == BATCH_FAILED;
}
