/*-------------------------------------------------------------------------
 *
 * backoff.c
 *		Failures that are not the events' fault: a full disk, a server that
 *		shuts down, a hundred different events failing one after the other.
 *
 * During an outage the handler backs off: nothing is called but one probe per
 * delay, each with the next event, so that an event which only looks like an
 * outage is passed, too.  A probe that fails is parked in _event_retries with
 * deferred set: the position moves past the event, the attempt is not counted.
 * When any event succeeds the outage is over, and in the transaction of that
 * success the parked ones are charged their attempt, and wait for the next like
 * all that failed.  Where there is no further event, the parked ones are the
 * probes.
 *
 * An ordered handler has no next event; for it every probe after the first is
 * charged to the event that holds it.
 *
 * What is parked is in the table.  That the handler backs off, and until when,
 * is in shared memory, so that the next executor keeps to it and everybody can
 * see it; a server that was restarted just tries.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "base/catalog.h"
#include "base/internal_sql.h"
#include "base/loglimit.h"
#include "delivery/backoff.h"
#include "handler/handler_counters.h"
#include "handler/retry_table.h"

/* so many different events fail in a row: it is not them */
#define MAX_FAILED_IN_ROW 100

/*
 * Whether an error is of a kind that tells of the server's state, or of the
 * company that the event was in, rather than of the event.  A cancel is the
 * event's: its timeout, or somebody who wants just this call to end.
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
 * Take over what is known of an outage: this process has not run the handler
 * before, or not with this definition.  The caller is connected to SPI and has an active snapshot.
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
 * Whether a failure is not to be charged to its event.
 */
bool
backoff_is_to_blame(const HandlerRun *run, const ErrorData *error)
{
	if (run->state->failed_trials > 0)
		return !run->definition->ordered;
	return error_is_of_server(error);
}

/*
 * When there is to be a probe after one that fails now.
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
 * An event has failed, and was parked instead of charged.
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
 * An event has failed and was charged; first: its first attempt.  Too many of
 * these in a row are an outage.  To an ordered handler in an outage it was one
 * more probe.
 */
void
backoff_event_charged(HandlerRun *run, TimestampTz due, bool first, const ErrorData *error)
{
	HandlerState *state = run->state;

	if (state->failed_trials > 0)
	{
		/* dead: nothing holds the handler any more */
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
 * In the transaction of a success: charge what was parked before it.
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
 * An event has succeeded, and that is committed.
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
