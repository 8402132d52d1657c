/*-------------------------------------------------------------------------
 *
 * batch.c
 *		One batch: match, call, progress, commit; and what to do if it fails.
 *
 * A batch is one transaction in which the handler's function is called for
 * some events and the handler's progress row moves past them: effects and
 * progress are committed together or not at all.  There is no subtransaction.
 *
 * If anything fails, the commit included, the whole transaction is gone, and
 * what is left to do is to find out which event it was.  An error in a call
 * tells: the events before it run as a transaction of their own, then the
 * suspect alone.  That costs one replay where halving would cost log2(n), and
 * halving is left for what a call does not tell, an error at commit.  Only an
 * event that fails alone has failed; it is recorded in event_retries, in a
 * transaction that moves past it.  All of that is in how large the next batches
 * are, which is remembered with the handler: so it can end its turn anywhere, and
 * where many events fail, batches stay small (split_batch, batch_went_well).
 *
 * The transaction runs as the handler's owner, whose session this is.  Only the
 * statements on the own tables do not (internal_sql.c).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "base/catalog.h"
#include "base/fault.h"
#include "base/settings.h"
#include "delivery/backoff.h"
#include "delivery/batch.h"
#include "delivery/call.h"
#include "delivery/call_timeout.h"
#include "delivery/crash_guard.h"
#include "delivery/executor_slot.h"
#include "delivery/progress.h"
#include "delivery/retry.h"
#include "delivery/session.h"
#include "delivery/transaction.h"
#include "handler/handler_counters.h"

/* after so many batches that were made smaller they are doubled */
#define GOOD_BATCHES 10

/*
 * The events of one turn: those that concern the handler by their names.  Their
 * rows are read by each transaction that is to run them, so what it calls with
 * is what it sees.
 */
typedef struct Batch
{
	int			nevents;
	EventRef   *refs;
	int64	   *indexes;		/* of each in the window, and of what is behind */
	EventChunk *chunk;			/* the rows that were read last */
	uint64	   *txids;			/* of the events that thin_out() has left */
	int64		group_end;		/* crash_guard_group_end() */
} Batch;

/* what an attempt to run some of them told */
typedef struct Attempt
{
	int			done;			/* how many from the first are committed */
	int			tried;			/* how many took part in what failed */
	int			suspect;		/* the one in whose call it failed, or -1 */
	ErrorData  *error;
} Attempt;

/*
 * Call the handler for the events that pass, one by one or all at once, until
 * the batch's time is up.  Returns how many of the events are through.
 */
static int
call_for_events(HandlerRun *run, Event **events, int nevents, TupleDesc desc, const bool *passes,
				BatchCounters *counters, ProgressCounters *progress, int *suspect)
{
	bool		at_once = (run->call.shape == SHAPE_EVENT_ARRAY);
	Instant		deadline = instant_in(pne_batch_time);
	Event	  **chosen = palloc(sizeof(Event *) * nevents);
	int			nchosen = 0;
	int			through = 0;

	while (through < nevents)
	{
		if (passes[through])
			chosen[nchosen++] = events[through];
		through++;
		if (nchosen == 0 || (at_once && through < nevents))
			continue;

		*suspect = (nchosen == 1 && !at_once) || nevents == 1 ? through - 1 : -1;
		call_handler(run, chosen, nchosen, desc, counters);
		progress->delivered += nchosen;
		progress->last_event_id = chosen[nchosen - 1]->id;
		nchosen = 0;
		if (counters->now >= deadline)
			break;
	}
	call_timeout_disarm();
	*suspect = -1;
	return through;
}

/*
 * Read the first events of a batch: nevents, unless they are too large for that.
 * Returns how many; those that are not there any more, or that the handler is
 * not to see, are NULL.  Whether policies are asked about that, which are the code
 * of others, is up to the caller.
 */
static int
read_events(HandlerRun *run, Batch *batch, int nevents, Relation log, bool ask_policies, Event **events)
{
	EventChunk *chunk = batch->chunk;

	(void) chunk_load(chunk, log, GetActiveSnapshot(), batch->refs, nevents);
	for (int i = 0; i < chunk->length; i++)
	{
		Event	   *event = &chunk->events[i];

		/* an id that has returned: what was in the window is gone */
		if (event->tuple != NULL && !event_snapshot_sees(run->window->upto, event->txid))
			*event = (Event) {.id = event->id};
	}
	if (ask_policies)
		call_apply_row_security(run, log, chunk->events, chunk->length);
	for (int i = 0; i < chunk->length; i++)
	{
		Event	   *event = &chunk->events[i];

		events[i] = (event->tuple != NULL && !event->hidden &&
					 match_name(&run->definition->pattern, event->name)) ? event : NULL;
	}
	return chunk->length;
}

/*
 * Run the events of a batch as one transaction.
 */
static BatchOutcome
try_events(HandlerRun *run, Batch *batch, Attempt *attempt)
{
	MemoryContext context = CurrentMemoryContext;
	int			nevents = batch->nevents;
	Event	  **events = palloc(sizeof(Event *) * nevents);
	bool	   *passes = palloc(sizeof(bool) * nevents);
	BatchCounters counters;
	ProgressCounters progress = {0};
	volatile BatchOutcome outcome = BATCH_DONE;
	volatile bool ready = false;
	volatile bool wrote = false;

	attempt->done = 0;
	attempt->tried = nevents;
	attempt->suspect = -1;
	attempt->error = NULL;
	handler_counters_batch_begins(&counters, nevents);
	executor_report_running(run->definition->name, batch->refs[0].id, nevents);

	PG_TRY();
	{
		Relation	log;
		TupleDesc	desc;

		transaction_start();
		log = table_open(catalog_lookup(false)->log, AccessShareLock);
		desc = RelationGetDescr(log);

		if (executor_stop_requested() || !call_check_handler(run))
			outcome = BATCH_SUSPENDED;
		else
		{
			nevents = read_events(run, batch, nevents, log, true, events);
			attempt->tried = nevents;
			ready = true;
			call_reading_works(run);

			if (call_filter_events(run, events, nevents, desc, passes, &attempt->suspect) == 0)
				attempt->done = nevents;
			else if (!progress_lock(run))
				outcome = BATCH_STALE;
			else
			{
				handler_prepare_call(&run->call, run->definition, run->approved);
				attempt->done = call_for_events(run, events, nevents, desc, passes, &counters, &progress,
												&attempt->suspect);
				attempt->tried = attempt->done;
				progress_store(run, batch->indexes[attempt->done], &progress);
				backoff_charge_deferred(run);
				wrote = true;
				FAULT_POINT("after-call");
			}
		}
		table_close(log, NoLock);
		transaction_commit(wrote ? handler_timeout(run->definition) : 0);
	}
	PG_CATCH();
	{
		attempt->done = 0;
		if (attempt->suspect >= 0)
			attempt->tried = attempt->suspect + 1;
		outcome = ready ? BATCH_FAILED : BATCH_SUSPENDED;
		if (!ready)
			call_reading_failed(run, context);
		else
		{
			attempt->error = transaction_abort(context);
			if (call_was_unwanted(run, attempt->error))
				outcome = BATCH_SUSPENDED;
		}
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);

	if (outcome == BATCH_DONE)
	{
		int64		next = batch->indexes[attempt->done];

		if (wrote)
		{
			FAULT_POINT("after-commit");
			handler_counters_batch_committed(run->definition, &counters);
			progress_stored(run, next);
			crash_guard_note_commit(run, attempt->done);
			backoff_over(run);
			executor_progress_committed((int) progress.delivered);
		}
		else
		{
			handler_run_pass_over(run, next, attempt->done);
			handler_run_note_passed(run, attempt->done);
		}
	}
	session_discard();
	return outcome;
}

/*
 * A batch failed.  What is run next is a part of it: those before the one in
 * whose call it failed, which then goes alone; or if no call told, half of what
 * was tried.  So it is, too, if others were in the way (a deadlock, a
 * serialization failure): the fewer events, the fewer locks.
 */
static void
split_batch(HandlerRun *run, const Batch *batch, const Attempt *attempt)
{
	HandlerState *state = run->state;

	state->good_batches = 0;
	state->suspect = 0;
	if (attempt->suspect < 0 || call_error_is_rollback(attempt->error))
		state->batch_limit = Max(attempt->tried / 2, 1);
	else
	{
		state->batch_limit = Max(batch->nevents / 2, attempt->suspect);
		state->suspect = batch->refs[attempt->suspect].id;
	}
}

/*
 * A batch that was made smaller is through: after a while of these they may be
 * larger again.
 */
static void
batch_went_well(HandlerRun *run)
{
	HandlerState *state = run->state;

	if (state->batch_limit == 0 || ++state->good_batches < GOOD_BATCHES)
		return;
	state->good_batches = 0;
	state->batch_limit *= 2;
	if (state->batch_limit >= run->definition->batch_size)
		state->batch_limit = 0;
}

/*
 * Run a batch, or if it fails split it; an event that fails alone has failed.
 * Returns BATCH_DONE, or why the handler cannot go on.
 */
static BatchOutcome
run_batch(HandlerRun *run, Batch *batch)
{
	HandlerState *state = run->state;
	Attempt		attempt;
	BatchOutcome outcome;
	int			tries = 0;

	for (;;)
	{
		CHECK_FOR_INTERRUPTS();
		outcome = try_events(run, batch, &attempt);
		if (outcome != BATCH_FAILED || batch->nevents > 1 || !call_try_again(attempt.error, tries++))
			break;
		FreeErrorData(attempt.error);
	}

	if (outcome == BATCH_FAILED && batch->nevents > 1)
	{
		split_batch(run, batch, &attempt);
		FreeErrorData(attempt.error);
		return BATCH_DONE;
	}
	if (batch->refs[0].id == state->suspect)
		state->suspect = 0;
	if (outcome == BATCH_FAILED)
	{
		state->good_batches = 0;
		outcome = retry_record_failure(run, &batch->chunk->events[0], batch->indexes[1], attempt.error);
	}
	else if (outcome == BATCH_DONE)
		batch_went_well(run);
	return outcome;
}

/*
 * Read the events of a batch, of which those that the handler is not to be called
 * with are NULL, in a transaction of its own.  Returns how many were read: none
 * where the handler cannot go on for now.
 *
 * No code of others runs here, where no attempt is counted: that of a policy might
 * end the process, each time.  What policies hide is found out by the attempt.
 */
static int
look_at_events(HandlerRun *run, Batch *batch, Event **events)
{
	MemoryContext context = CurrentMemoryContext;
	volatile int nevents = 0;

	PG_TRY();
	{
		Relation	log;

		transaction_start();
		log = table_open(catalog_lookup(false)->log, AccessShareLock);
		if (!executor_stop_requested() && call_check_handler(run))
			nevents = read_events(run, batch, batch->nevents, log, false, events);
		table_close(log, NoLock);
		transaction_commit(0);
	}
	PG_CATCH();
	{
		nevents = 0;
		call_reading_failed(run, context);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	return nevents;
}

/*
 * Leave out of the batch what the handler is not to be called with.
 */
static void
thin_out(HandlerRun *run, Batch *batch)
{
	Event	  **events = palloc(sizeof(Event *) * batch->nevents);
	int			nevents = look_at_events(run, batch, events);
	int			count = 0;

	/*
	 * Each that stays moves the position right behind itself.  What is left out
	 * is passed with the next one, or in the next turn; all, if none stays.
	 */
	batch->txids = palloc(sizeof(uint64) * batch->nevents);
	for (int i = 0; i < nevents; i++)
	{
		batch->indexes[count + 1] = batch->indexes[i + 1];
		if (events[i] == NULL)
			continue;
		batch->txids[count] = events[i]->txid;
		batch->refs[count++] = batch->refs[i];
	}
	batch->nevents = count;
	if (count == 0 && nevents > 0)
		handler_run_pass_over(run, batch->indexes[1], nevents);
}

/*
 * Run the events of a batch one by one, each tried only after that is recorded
 * for good, until the batch's time is up.
 */
static void
run_one_by_one(HandlerRun *run, Batch *batch)
{
	Instant		deadline = instant_in(pne_batch_time);

	executor_report_running(run->definition->name, batch->refs[0].id, batch->nevents);
	thin_out(run, batch);
	for (int i = 0; i < batch->nevents; i++)
	{
		EventIdentity event = {batch->refs[i].id, batch->txids[i]};

		CHECK_FOR_INTERRUPTS();
		if (retry_run_fresh(run, event, batch->indexes[i + 1]) != BATCH_DONE ||
			handler_run_is_held(run) || instant_now() >= deadline)
			break;
	}
}

/*
 * How many events the next batch may have.
 */
static int
batch_room(const HandlerRun *run)
{
	const HandlerState *state = run->state;

	if (state->failed_trials > 0)
		return 1;
	if (state->batch_limit == 0)
		return run->definition->batch_size;
	return Min(state->batch_limit, run->definition->batch_size);
}

/*
 * The events of a batch, from where the handler is in its window on.  One that
 * is suspected goes alone; and who is careful stays in his group.
 */
static void
fill_batch(HandlerRun *run, Batch *batch)
{
	Window	   *window = run->window;
	int64		suspect = run->state->suspect;
	int64		room = Min(window->nevents - run->next, batch_room(run));

	batch->refs = palloc(sizeof(EventRef) * room);
	batch->indexes = palloc(sizeof(int64) * (room + 1));
	batch->chunk = chunk_create(CurrentMemoryContext);
	batch->group_end = crash_guard_group_end(run);
	batch->nevents = window_find(window, run->next, run->names, (int) room, batch->indexes);
	for (int i = 0; i < batch->nevents; i++)
	{
		batch->refs[i] = window->events[batch->indexes[i]];
		if (batch->refs[i].id > batch->group_end)
			batch->nevents = i;
		else if (suspect != 0 && batch->refs[i].id == suspect)
			batch->nevents = Max(i, 1);
	}
}

/*
 * Let the handler have its turn in its window, where it stands at an event that
 * concerns it: run a batch.
 *
 * After one that failed, its parts and the smaller batches behind them are run
 * until the time of a batch is up.  Then others have their turns; what is known
 * of the split is kept for the next one.
 */
void
batch_turn(HandlerRun *run)
{
	HandlerState *state = run->state;
	Instant		deadline = instant_in(pne_batch_time);
	MemoryContext turn_context = CurrentMemoryContext;
	MemoryContext context = AllocSetContextCreate(turn_context, "event batch", ALLOCSET_DEFAULT_SIZES);
	bool		more;

	Assert(state->claimed);

	do
	{
		Batch		batch;

		MemoryContextReset(context);
		MemoryContextSwitchTo(context);
		fill_batch(run, &batch);
		more = false;
		if (crash_guard_bound(run, batch.nevents))
		{
			if (crash_guard_one_by_one(run))
				run_one_by_one(run, &batch);
			else if (crash_guard_enter_group(run, batch.group_end))
				more = run_batch(run, &batch) == BATCH_DONE && state->batch_limit > 0 && state->failed_trials == 0;
		}

		if (run->window != NULL && run->next >= run->window->nevents)
			handler_run_finish_window(run);
	} while (more && run->window != NULL && handler_run_may_run(run) && !handler_run_is_held(run) &&
			 !executor_stop_requested() && instant_now() < deadline);

	MemoryContextSwitchTo(turn_context);
	MemoryContextDelete(context);
}
