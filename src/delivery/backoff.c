/*-------------------------------------------------------------------------
 *
 * backoff.c
 *		Back-off: failures that the events do not cause.  Examples are a full disk, a
 *		server that shuts down, and a hundred different events that fail in a row.
 *
 * During a back-off the handler is called only for trials.  There is one trial per
 * delay.  Each trial takes the next event, so that an event that merely looks like a
 * failing server is passed, too.  If a trial fails, its event is deferred: it is
 * written to _event_retries with deferred set, the position moves past the event, and
 * the attempt is not counted.  When any event succeeds, the back-off is over.  In the
 * transaction of that success each deferred event is charged one attempt, and then
 * waits for its next attempt like all events that failed.  If there is no further
 * event, the deferred ones are used for trials.
 *
 * An ordered handler has no next event.  There each trial after the first is charged
 * to the event that holds the handler.
 *
 * The deferred events are in the table.  Whether the handler backs off, and until
 * when, is in shared memory, so that the next executor respects it and everybody can
 * see it.  After a restart of the server the handler is simply tried.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "base/catalog.h"
#include "base/internal_sql.h"
#include "base/loglimit.h"
#include "delivery/backoff.h"
#include "handler/handler_counters.h"
#include "handler/retry_table.h"

/* if so many different events fail in a row, they are not the cause */
#define MAX_FAILED_IN_ROW 100

/*
 * Whether the error is of a kind that tells about the state of the server, or about
 * concurrent transactions, rather than about the event.  A cancel is charged to the
 * event: it comes from the timeout, or from somebody who wants this call to end.
 */
static bool
error_is_of_server(const ErrorData *error)
{
	int			sqlstate = error->sqlerrcode;

	switch (ERRCODE_TO_CATEGORY(sqlstate))
	{
		case ERRCODE_INSUFFICIENT_RESOURCES:
		case ERRCODE_SYSTEM_ERROR:
		case ERRCODE_TRANSACTION_ROLLBACK:
			return true;
		case ERRCODE_OPERATOR_INTERVENTION:
			return sqlstate != ERRCODE_QUERY_CANCELED;
		default:
			return sqlstate == ERRCODE_LOCK_NOT_AVAILABLE;
	}
}

/*
 * Load what is known of a back-off into the handler's state.  Called when this process
 * has not run the handler before, or not with this definition.  The caller is
 * connected to SPI and has an active snapshot.
 */
void
backoff_load(HandlerRun *run)
{
	static InternalStatement select_deferred = {
		.sql = "SELECT 1 FROM @s._event_retries AS t "
		"WHERE t.handler OPERATOR(pg_catalog.=) $1 AND t.deferred LIMIT 1",
		.target = TABLE_NONE,
		.nargs = 1,
		.argtypes = {TEXTOID},
	};
	HandlerState *state = run->state;
	Datum		value = CStringGetTextDatum(run->definition->name);

	state->deferred = internal_execute(&select_deferred, &value, NULL, 1) == 1;
	handler_counters_read_backoff(run->definition, &state->failed_trials, &state->next_trial_at);
}

/*
 * Whether a failure with this error is not to be charged to its event.
 */
bool
backoff_is_to_blame(const HandlerRun *run, const ErrorData *error)
{
	if (run->state->failed_trials > 0)
		return !run->definition->ordered;
	return error_is_of_server(error);
}

/*
 * When the next trial is due if a trial, or the first event, fails now.
 */
TimestampTz
backoff_next_trial(const HandlerRun *run)
{
	return retry_due_after(run->definition, run->state->failed_trials + 1);
}

static void
back_off(HandlerRun *run, TimestampTz until)
{
	HandlerState *state = run->state;

	state->failed_trials++;
	state->next_trial_at = instant_of_time(until);
	handler_counters_note_backoff(run->definition, state->failed_trials, state->next_trial_at);
}

/*
 * An event has failed, and was deferred instead of charged; this is committed.
 * next_trial is when the next trial is due.
 */
void
backoff_event_deferred(HandlerRun *run, int64 event_id, TimestampTz next_trial, const ErrorData *error)
{
	run->state->deferred = true;
	back_off(run, next_trial);
	if (!loglimit_allows(LOG_TOPIC_HANDLERS))
		return;
	ereport(LOG,
			(errcode(error->sqlerrcode),
			 errmsg("event handler \"%s\" backs off after event %lld failed: %s", run->definition->name,
					(long long) event_id, error->message ? error->message : ""),
			 errdetail("Not charged to the event unless others succeed. The next event is tried at %s.",
					   timestamptz_to_str(next_trial))));
}

/*
 * An event has failed and was charged; this is committed.  due is when its next
 * attempt is due; DT_NOEND: it is dead.  first: it was the event's first attempt.
 *
 * Too many first attempts that fail in a row begin a back-off.  If an ordered handler
 * backs off already, this was one more trial.
 */
void
backoff_event_charged(HandlerRun *run, TimestampTz due, bool first, const ErrorData *error)
{
	HandlerState *state = run->state;

	if (state->failed_trials > 0)
	{
		/* the event is dead, so nothing holds the handler any more */
		if (due == DT_NOEND)
			backoff_over(run);
		else
			back_off(run, due);
	}
	else if (first && ++state->failed_in_row >= MAX_FAILED_IN_ROW)
	{
		TimestampTz next_trial = backoff_next_trial(run);

		back_off(run, next_trial);
		if (loglimit_allows(LOG_TOPIC_HANDLERS))
			ereport(LOG,
					(errcode(error->sqlerrcode),
					 errmsg("event handler \"%s\" backs off: %d events in a row failed, the last with: %s",
							run->definition->name, state->failed_in_row, error->message ? error->message : ""),
					 errdetail("The next event is tried at %s.", timestamptz_to_str(next_trial))));
	}
}

/*
 * In the transaction in which an event succeeds: charge the events that were deferred
 * before.  The caller is connected to SPI and has an active snapshot.
 */
void
backoff_charge_deferred(HandlerRun *run)
{
	static InternalStatement select_deferred = {
		.sql = "SELECT t.event_id, t.event_txid, t.attempts FROM @s._event_retries AS t "
		"WHERE t.handler OPERATOR(pg_catalog.=) $1 AND t.deferred ORDER BY t.event_id",
		.target = TABLE_NONE,
		.nargs = 1,
		.argtypes = {TEXTOID},
	};
	Datum		name = CStringGetTextDatum(run->definition->name);
	EventIdentity *events;
	int		   *attempts;
	int			count;
	bool		isnull;

	Assert(ActiveSnapshotSet());

	if (!run->state->deferred)
		return;
	count = internal_execute(&select_deferred, &name, NULL, 0);
	events = palloc(sizeof(EventIdentity) * (Size) (count + 1));
	attempts = palloc(sizeof(int) * (Size) (count + 1));
	for (int i = 0; i < count; i++)
	{
		events[i].id = DatumGetInt64(internal_value(i, 1, &isnull));
		events[i].txid = event_txid_from_datum(internal_value(i, 2, &isnull));
		attempts[i] = DatumGetInt32(internal_value(i, 3, &isnull));
	}
	for (int i = 0; i < count; i++)
	{
		TimestampTz due = retry_charge_deferred(run->definition, events[i], attempts[i] + 1);

		run->next_retry_at = Min(run->next_retry_at, due);
	}
}

/*
 * An event has succeeded and that is committed: end the back-off, if there is one.
 */
void
backoff_over(HandlerRun *run)
{
	HandlerState *state = run->state;

	state->failed_in_row = 0;
	state->deferred = false;
	if (state->failed_trials == 0)
		return;
	state->failed_trials = 0;
	state->next_trial_at = 0;
	handler_counters_note_backoff(run->definition, 0, 0);
	if (loglimit_allows(LOG_TOPIC_HANDLERS))
		ereport(LOG,
				(errmsg("event handler \"%s\" goes on, its back-off is over", run->definition->name)));
}
