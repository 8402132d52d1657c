/*-------------------------------------------------------------------------
 *
 * batch.c
 *		A turn: read, match, call, move the position, commit; and isolate an event
 *		that fails.
 *
 * A batch is one transaction.  The handler's function is called for some events, and
 * the handler's progress row moves past them.  So effects and progress are committed
 * together or not at all.  There are no subtransactions.
 *
 * If anything fails, the commit included, the whole transaction is rolled back.  Then
 * the event that failed has to be found.  If the error was in a call, the call tells:
 * the events before it are run as a transaction of their own, and then the suspect
 * alone.  That costs one replay, where halving would cost log2(n).  Halving remains for
 * errors that no call tells about, such as an error at commit.  Only an event that
 * fails alone has failed.  It is recorded in event_retries, in a transaction that
 * moves past it.  All of this is expressed by the size of the next batches, which is
 * kept in the handler's state.  So the handler can end its turn at any point, and
 * batches stay small while many events fail (split_batch, batch_went_well).
 *
 * The transaction runs as the handler's owner, whose session this is.  Only the
 * statements on the internal tables run as another role (catalog.c).
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

/* a limited batch size is doubled after so many batches without a failure */
#define GOOD_BATCHES 10

/*
 * The events of one turn: those whose names concern the handler.  Each transaction
 * that runs them reads their rows itself, so it calls the handler with what it sees.
 */
typedef struct Batch
{
	int			nevents;
	EventRef   *refs;
	int64	   *indexes;		/* index in the window of each event, and of what follows the last */
	EventChunk *chunk;			/* the rows that were read last */
	uint64	   *txids;			/* of the events that thin_out() has kept */
	int64		group_end;		/* crash_guard_group_end() */
} Batch;

/* the result of an attempt to run some of them */
typedef struct Attempt
{
	int			done;			/* how many, from the first, are committed */
	int			tried;			/* how many took part in what failed */
	int			suspect;		/* index of the event in whose call it failed, or -1 */
	ErrorData  *error;
	bool		ready;			/* the events were read */
	bool		wrote;			/* the handler was called, and its progress stored */
	BatchCounters counters;
	ProgressCounters progress;
} Attempt;

/*
 * Call the handler for the events that pass, one by one or all at once, until the time
 * of a batch is over.  *suspect is the index of the event whose call is running, or -1
 * if no single event can be named.  Returns how many of the events are finished.
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
 * Read the rows of the first events of a batch: nevents of them, or fewer if they are
 * too large.  Returns how many.  An event that does not exist any more, or that the
 * handler must not see, is NULL in events.  Policies are code of others, so the caller
 * decides whether they are asked.
 */
static int
read_events(HandlerRun *run, Batch *batch, int nevents, Relation log, bool ask_policies, Event **events)
{
	EventChunk *chunk = batch->chunk;

	(void) chunk_load(chunk, log, GetActiveSnapshot(), batch->refs, nevents);
	for (int i = 0; i < chunk->length; i++)
	{
		Event	   *event = &chunk->events[i];

		/* the id was used again: the event of the window is gone */
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
 * In the transaction of a batch: read its events, call the handler for those that
 * pass, and store its progress.
 */
static BatchOutcome
work_on_events(HandlerRun *run, Batch *batch, Attempt *attempt)
{
	int			nevents = batch->nevents;
	Event	  **events = palloc(sizeof(Event *) * nevents);
	bool	   *passes = palloc(sizeof(bool) * nevents);
	Relation	log = table_open(catalog_lookup(false)->log, AccessShareLock);
	TupleDesc	desc = RelationGetDescr(log);
	BatchOutcome outcome = BATCH_DONE;

	if (executor_stop_requested() || !call_check_handler(run))
		outcome = BATCH_SUSPENDED;
	else
	{
		nevents = read_events(run, batch, nevents, log, true, events);
		attempt->tried = nevents;
		attempt->ready = true;
		call_reading_works(run);

		if (call_filter_events(run, events, nevents, desc, passes, &attempt->suspect) == 0)
			attempt->done = nevents;
		else if (!progress_lock(run))
			outcome = BATCH_STALE;
		else
		{
			handler_prepare_call(&run->call, run->definition, run->approved);
			attempt->done = call_for_events(run, events, nevents, desc, passes, &attempt->counters,
											&attempt->progress, &attempt->suspect);
			attempt->tried = attempt->done;
			progress_store(run, batch->indexes[attempt->done], &attempt->progress);
			backoff_charge_deferred(run);
			attempt->wrote = true;
			FAULT_POINT("after-call");
		}
	}
	table_close(log, NoLock);
	return outcome;
}

/*
 * The transaction of a batch is committed: note how far the handler has come.
 */
static void
note_commit(HandlerRun *run, const Batch *batch, const Attempt *attempt)
{
	int64		next = batch->indexes[attempt->done];

	if (attempt->wrote)
	{
		FAULT_POINT("after-commit");
		handler_counters_batch_committed(run->definition, &attempt->counters);
		progress_stored(run, next);
		crash_guard_note_commit(run, attempt->done);
		backoff_over(run);
		executor_progress_committed((int) attempt->progress.delivered);
	}
	else
	{
		handler_run_pass_over(run, next, attempt->done);
		handler_run_note_passed(run, attempt->done);
	}
}

/*
 * Run the events of a batch as one transaction.  Returns BATCH_DONE if attempt->done
 * events are committed or passed, BATCH_FAILED with attempt->error set, or another
 * reason why the handler cannot go on.
 */
static BatchOutcome
try_events(HandlerRun *run, Batch *batch, Attempt *attempt)
{
	MemoryContext context = CurrentMemoryContext;
	volatile BatchOutcome outcome = BATCH_DONE;

	memset(attempt, 0, sizeof(Attempt));
	attempt->tried = batch->nevents;
	attempt->suspect = -1;
	handler_counters_batch_begins(&attempt->counters, batch->nevents);
	executor_report_running(run->definition->name, batch->refs[0].id, batch->nevents);

	PG_TRY();
	{
		transaction_start();
		outcome = work_on_events(run, batch, attempt);
		transaction_commit(attempt->wrote ? handler_timeout(run->definition) : 0);
	}
	PG_CATCH();
	{
		attempt->done = 0;
		if (attempt->suspect >= 0)
			attempt->tried = attempt->suspect + 1;
		outcome = attempt->ready ? BATCH_FAILED : BATCH_SUSPENDED;
		if (!attempt->ready)
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
		note_commit(run, batch, attempt);
	session_discard();
	return outcome;
}

/*
 * Choose the next batch after one that failed.  If a call failed, run the events
 * before it, and then that event alone.  If no call tells, run half of what was tried.
 * Do that also if other transactions were in the way (a deadlock, a serialization
 * failure): fewer events take fewer locks.
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
 * A batch has succeeded.  If the batch size is limited, raise the limit after enough
 * of these.
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
 * Run a batch.  If it fails, split it; if it is a single event, record the failure.
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
 * Read the events of a batch in a transaction of its own.  Events that the handler is
 * not to be called with become NULL.  Returns how many were read, or 0 if the handler
 * cannot run at present.
 *
 * No code of others may run here, because no attempt is counted.  A policy might end
 * the process, and would do so each time.  So policies are asked by the attempt.
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
 * Remove the events from the batch that the handler is not to be called with.
 */
static void
thin_out(HandlerRun *run, Batch *batch)
{
	Event	  **events = palloc(sizeof(Event *) * batch->nevents);
	int			nevents = look_at_events(run, batch, events);
	int			count = 0;

	/*
	 * Each event that stays moves the position right behind itself.  An event that is
	 * removed is passed together with the next one that stays, or in the next turn.
	 * If none stays, all are passed at once.
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
 * Run the events of a batch one by one, until the time of a batch is over.  Each
 * attempt is recorded and flushed before its call.
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
 * Choose the events of the next batch, beginning where the handler is in its window.
 * A suspected event is run alone.  A guarded handler does not go beyond the end of its
 * group.
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
 * Give the handler its turn: run a batch of its window.  The handler must be claimed
 * and stand at an event of its window that concerns it.
 *
 * If the batch fails, its parts and the smaller batches behind it are run until the
 * time of a batch is over.  Then other handlers have their turns.  What is known of
 * the split is kept for the next turn.
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
	Assert(run->window != NULL && run->next < run->window->nevents);

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
