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
 * statements on the own tables do not (catalog.c).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/lmgr.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"

#include "base/catalog.h"
#include "base/fault.h"
#include "base/loglimit.h"
#include "base/settings.h"
#include "base/worker.h"
#include "delivery/backoff.h"
#include "delivery/batch.h"
#include "delivery/crash_guard.h"
#include "delivery/executor.h"
#include "delivery/progress.h"
#include "delivery/retry.h"

/* how often a serialization failure or deadlock is tried again at once */
#define IMMEDIATE_TRIES 3

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
	int64		group_end;		/* careful_group_end() */
} Batch;

/* what an attempt to run some of them told */
typedef struct Attempt
{
	int			done;			/* how many from the first are committed */
	int			tried;			/* how many took part in what failed */
	int			suspect;		/* the one in whose call it failed, or -1 */
	ErrorData  *error;
} Attempt;

/* ----------
 * Transactions
 * ----------
 */

/* current when the transaction was started, and again when it has ended */
static MemoryContext outer_context = NULL;

static bool never_wait = false;
static Instant leave_until = INSTANT_NEVER;

/*
 * From now on commits wait for neither disk nor standby, and what else there is
 * to do has to be done in so many ms (0: nobody watches).
 */
void
batch_never_wait(int timeout)
{
	never_wait = true;
	if (timeout > 0)
		leave_until = instant_in(timeout);
}

/*
 * What our commits wait for.  It is the session's default, not set for each
 * transaction: where a transaction has set nothing, the end of a call has no
 * settings to look through (handler_undo_settings).
 */
static void
set_synchronous_commit(void)
{
	static const char *current = NULL;
	const char *wanted = never_wait ? "off" : settings_synchronous_commit_name();

	if (current != NULL && strcmp(current, wanted) == 0)
		return;
	SetConfigOption("synchronous_commit", wanted, PGC_USERSET, PGC_S_OVERRIDE);
	current = wanted;
}

static void
begin(void)
{
	outer_context = CurrentMemoryContext;
	set_synchronous_commit();
	SetCurrentStatementStartTimestamp();
	/* each commit ends that of its transaction */
	if (leave_until != INSTANT_NEVER)
		careful_arm_timeout((int) Max(instant_ms_left(instant_now(), leave_until), 1));
	StartTransactionCommand();
}

/*
 * Start a transaction of an executor, with SPI and a snapshot.  The log is
 * locked first: a snapshot from before a rewrite of it would see no events.
 * Where somebody keeps it locked that is an error soon, as the place may be wanted.
 */
void
batch_start_transaction(void)
{
	begin();
	worker_lock_table(catalog_lookup(false)->log);
	SPI_connect();
	PushActiveSnapshot(GetTransactionSnapshot());
}

/*
 * The same for what concerns own tables only, whoever has the log locked.
 */
void
batch_start_own_transaction(void)
{
	begin();
	SPI_connect();
	PushActiveSnapshot(GetTransactionSnapshot());
}

/*
 * The same, to write progress.  False, and no transaction, where that would have
 * to wait for a lock, or the extension is not there any more.
 */
bool
batch_start_transaction_if_free(void)
{
	const EventCatalog *catalog;

	begin();
	catalog = catalog_lookup(true);
	if (catalog == NULL ||
		!ConditionalLockRelationOid(catalog->own_tables[OWN_PROGRESS], RowExclusiveLock))
	{
		CommitTransactionCommand();
		return false;
	}
	SPI_connect();
	PushActiveSnapshot(GetTransactionSnapshot());
	return true;
}

/*
 * Commit it.  Deferred triggers are the handler's doing, so its timeout (in
 * ms, 0 for none) is on until they are through; the commit itself has none
 * (crash_guard.c).
 */
void
batch_commit_transaction(int timeout)
{
	PopActiveSnapshot();
	SPI_finish();
	if (timeout > 0)
		careful_begin_call(timeout);
	CommitTransactionCommand();
	if (timeout > 0)
		careful_disarm_timeout();
	careful_stop_watch();
	MemoryContextSwitchTo(outer_context);
}

/*
 * In a PG_CATCH block: take the error, abort the transaction.
 */
ErrorData *
batch_abort_transaction(MemoryContext context)
{
	ErrorData  *error;

	HOLD_INTERRUPTS();
	careful_disarm_timeout();
	careful_stop_watch();
	MemoryContextSwitchTo(context);
	error = CopyErrorData();
	FlushErrorState();
	AbortOutOfAnyTransaction();
	MemoryContextSwitchTo(context);
	RESUME_INTERRUPTS();
	return error;
}

/*
 * Nothing can be done for the handler now, and nobody may ring when that
 * changes: look again later.
 */
void
batch_leave_alone(HandlerRun *run)
{
	run->not_before = instant_in(pne_naptime);
}

/*
 * Whether the handler can run now.  If not it is left alone for a while, and
 * the reason is logged once.
 */
bool
batch_check_handler(HandlerRun *run)
{
	Handler    *handler = run->definition;
	HandlerHealth *health = run->health;
	HandlerProblem problem;

	run->approved = handler_approve(handler, &problem);
	if (OidIsValid(run->approved))
	{
		if (health->problem != NULL)
		{
			if (loglimit_allows(LOG_TOPIC_HANDLERS))
				ereport(LOG,
						(errmsg("event handler \"%s\" goes on", handler->name)));
			pfree(health->problem);
			health->problem = NULL;
		}
		return true;
	}

	batch_leave_alone(run);
	if (health->problem == NULL || strcmp(health->problem, problem.message) != 0)
	{
		if (health->problem != NULL)
			pfree(health->problem);
		health->problem = MemoryContextStrdup(TopMemoryContext, problem.message);
		if (loglimit_allows(LOG_TOPIC_HANDLERS))
			ereport(LOG,
					(errcode(problem.sqlstate),
					 errmsg("event handler \"%s\" is suspended: %s", handler->name, problem.message),
					 errhint("%s", problem.hint)));
	}
	return false;
}

/*
 * Call the handler's function under its timeout.  After the last call of a batch
 * careful_disarm_timeout() is to follow.
 */
void
batch_call_handler(HandlerRun *run, Event **events, int nevents, TupleDesc desc, BatchFigures *figures)
{
	FAULT_POINT("before-call");
	stats_call_begins(figures, events, nevents);
	careful_begin_call(handler_timeout(run->definition));
	handler_call(&run->call, events, nevents, desc);
	careful_call_returned();
	stats_call_ends(figures);
}

/*
 * Whether it was a serialization failure, a deadlock or the like: not the event's
 * doing alone.
 */
static bool
is_rollback(const ErrorData *error)
{
	return ERRCODE_TO_CATEGORY(error->sqlerrcode) == ERRCODE_TRANSACTION_ROLLBACK;
}

/*
 * Whether to try an event again at once: what was in the way may be gone by then.
 */
bool
batch_try_again(const ErrorData *error, int tries)
{
	return tries < IMMEDIATE_TRIES && is_rollback(error);
}

/*
 * Whether an error came while the handler was being dropped: then it is nobody's,
 * and gone.  Should the drop not be committed, the handler goes on later.
 */
bool
batch_was_unwanted(HandlerRun *run, ErrorData *error)
{
	if (!executor_call_is_unwanted())
		return false;
	FreeErrorData(error);
	batch_leave_alone(run);
	return true;
}

/*
 * The handler is through with its window, or with what was read of it.
 */
void
batch_finish_window(HandlerRun *run)
{
	EventPosition come_to = window_position(run->window, run->window->nevents);
	EventPosition previous = run->position;
	MemoryContext old = MemoryContextSwitchTo(run->context);

	run->position = event_position_copy(&come_to);
	event_position_free(&previous);
	MemoryContextSwitchTo(old);
	window_release(run->window);
	run->window = NULL;
	if (run->names != NULL)
		pfree(run->names);
	run->names = NULL;
	run->next = 0;
	if (run->ahead_since == 0)
		run->ahead_since = instant_now();
	careful_note_window_end(run);
}

/*
 * Whether the next part of the handler's window is to be read.
 */
bool
batch_is_inside_window(const HandlerRun *run)
{
	return run->window == NULL && run->position.window != NULL;
}

/*
 * The handler moves to index next of its window, past events that do not concern
 * it: nevents of them were looked at.
 */
static void
pass_over(HandlerRun *run, int64 next, int nevents)
{
	if (next == run->next)
		return;
	run->next = next;
	run->health->unstored += nevents;
	if (run->ahead_since == 0)
		run->ahead_since = instant_now();
}

/* ----------
 * A batch
 * ----------
 */

/*
 * Whether the handler has to wait for a retry before it may go on.
 */
bool
batch_is_held(const HandlerRun *run)
{
	return run->definition->ordered && run->next_retry_at != DT_NOEND;
}

/*
 * Whether the handler may be run now.
 */
bool
batch_may_run(const HandlerRun *run)
{
	Instant		now = instant_now();

	return !run->stale && run->not_before <= now && run->health->probe_at <= now;
}

/*
 * Find out which events the handler's owner is not to see.  The policies are as
 * foreign as the handler's code, and have as long; what they set ends with them,
 * too.
 */
void
batch_apply_row_security(HandlerRun *run, Relation log, Event *events, int nevents)
{
	Oid			role = GetUserId();
	int			nest_level;

	if (!match_is_restricted(log))
		return;
	careful_begin_call(handler_timeout(run->definition));
	nest_level = NewGUCNestLevel();
	match_row_security(log, events, nevents);
	handler_undo_settings(nest_level, role);
	careful_disarm_timeout();
}

/*
 * Which events of the batch pass the handler's filter, and how many.  Those that
 * are NULL do not.  The one that is being looked at is the suspect.
 */
int
batch_filter_events(HandlerRun *run, Event **events, int nevents, TupleDesc desc, bool *passes, int *suspect)
{
	bool		has_filter = (run->definition->pattern.filter != (Datum) 0);
	int			count = 0;

	if (has_filter)
		careful_begin_call(handler_timeout(run->definition));
	for (int i = 0; i < nevents; i++)
	{
		*suspect = i;
		CHECK_FOR_INTERRUPTS();
		passes[i] = events[i] != NULL &&
			match_filter(&run->definition->pattern, events[i]->tuple, desc);
		count += passes[i];
	}
	*suspect = -1;
	if (has_filter)
		careful_disarm_timeout();
	return count;
}

/*
 * Call the handler for the events that pass, one by one or all at once, until
 * the batch's time is up.  Returns how many of the events are through.
 */
static int
call_for_events(HandlerRun *run, Event **events, int nevents, TupleDesc desc, const bool *passes,
				BatchFigures *figures, ProgressFigures *progress, int *suspect)
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
		batch_call_handler(run, chosen, nchosen, desc, figures);
		progress->delivered += nchosen;
		progress->last_event_id = chosen[nchosen - 1]->id;
		nchosen = 0;
		if (figures->now >= deadline)
			break;
	}
	careful_disarm_timeout();
	*suspect = -1;
	return through;
}

/*
 * The events of the handler can be read (again).
 */
void
batch_reading_works(HandlerRun *run)
{
	if (run->health->unreadable != NULL)
		pfree(run->health->unreadable);
	run->health->unreadable = NULL;
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
		batch_apply_row_security(run, log, chunk->events, chunk->length);
	for (int i = 0; i < chunk->length; i++)
	{
		Event	   *event = &chunk->events[i];

		events[i] = (event->tuple != NULL && !event->hidden &&
					 match_name(&run->definition->pattern, event->name)) ? event : NULL;
	}
	return chunk->length;
}

/*
 * In a PG_CATCH block: before the events of a batch were read, or while they were,
 * there was an error; of a policy, for example.  Nothing of that was the doing
 * of the handler or of an event, so nothing is charged; and it is this handler's
 * alone, as others may have other events.
 */
void
batch_reading_failed(HandlerRun *run, MemoryContext context)
{
	HandlerHealth *health = run->health;
	ErrorData  *error = batch_abort_transaction(context);
	const char *message = error->message ? error->message : "";

	if (batch_was_unwanted(run, error))
		return;
	executor_report_error(message);
	if (health->unreadable == NULL || strcmp(health->unreadable, message) != 0)
	{
		batch_reading_works(run);
		health->unreadable = MemoryContextStrdup(TopMemoryContext, message);
		if (loglimit_allows(LOG_TOPIC_HANDLERS))
			ereport(LOG,
					(errcode(error->sqlerrcode),
					 errmsg("the events of event handler \"%s\" cannot be read: %s", run->definition->name, message),
					 errhint("They wait, and are tried again. Look at the policies on notification_events, and at who has it locked.")));
	}
	batch_leave_alone(run);
	FreeErrorData(error);
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
	BatchFigures figures;
	ProgressFigures progress = {0};
	volatile BatchOutcome outcome = BATCH_DONE;
	volatile bool ready = false;
	volatile bool wrote = false;

	attempt->done = 0;
	attempt->tried = nevents;
	attempt->suspect = -1;
	attempt->error = NULL;
	stats_batch_begins(&figures, nevents);
	executor_report_running(run->definition->name, batch->refs[0].id, nevents);

	PG_TRY();
	{
		Relation	log;
		TupleDesc	desc;

		batch_start_transaction();
		log = table_open(catalog_lookup(false)->log, AccessShareLock);
		desc = RelationGetDescr(log);

		if (executor_asked_to_leave() || !batch_check_handler(run))
			outcome = BATCH_SUSPENDED;
		else
		{
			nevents = read_events(run, batch, nevents, log, true, events);
			attempt->tried = nevents;
			ready = true;
			batch_reading_works(run);

			if (batch_filter_events(run, events, nevents, desc, passes, &attempt->suspect) == 0)
				attempt->done = nevents;
			else if (!progress_lock(run))
				outcome = BATCH_STALE;
			else
			{
				handler_prepare_call(&run->call, run->definition, run->approved);
				attempt->done = call_for_events(run, events, nevents, desc, passes, &figures, &progress,
												&attempt->suspect);
				attempt->tried = attempt->done;
				progress_store(run, batch->indexes[attempt->done], &progress);
				outage_charge_parked(run);
				wrote = true;
				FAULT_POINT("after-call");
			}
		}
		table_close(log, NoLock);
		batch_commit_transaction(wrote ? handler_timeout(run->definition) : 0);
	}
	PG_CATCH();
	{
		attempt->done = 0;
		if (attempt->suspect >= 0)
			attempt->tried = attempt->suspect + 1;
		outcome = ready ? BATCH_FAILED : BATCH_SUSPENDED;
		if (!ready)
			batch_reading_failed(run, context);
		else
		{
			attempt->error = batch_abort_transaction(context);
			if (batch_was_unwanted(run, attempt->error))
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
			stats_batch_committed(run->definition, &figures);
			progress_stored(run, next);
			careful_note_commit(run, attempt->done);
			outage_over(run);
			executor_progress_committed((int) progress.delivered);
		}
		else
		{
			pass_over(run, next, attempt->done);
			careful_note_passed(run, attempt->done);
		}
	}
	executor_discard_session();
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
	HandlerHealth *health = run->health;

	health->good_batches = 0;
	health->suspect = 0;
	if (attempt->suspect < 0 || is_rollback(attempt->error))
		health->batch_limit = Max(attempt->tried / 2, 1);
	else
	{
		health->batch_limit = Max(batch->nevents / 2, attempt->suspect);
		health->suspect = batch->refs[attempt->suspect].id;
	}
}

/*
 * A batch that was made smaller is through: after a while of these they may be
 * larger again.
 */
static void
batch_went_well(HandlerRun *run)
{
	HandlerHealth *health = run->health;

	if (health->batch_limit == 0 || ++health->good_batches < GOOD_BATCHES)
		return;
	health->good_batches = 0;
	health->batch_limit *= 2;
	if (health->batch_limit >= run->definition->batch_size)
		health->batch_limit = 0;
}

/*
 * Run a batch, or if it fails split it; an event that fails alone has failed.
 * Returns BATCH_DONE, or why the handler cannot go on.
 */
static BatchOutcome
run_batch(HandlerRun *run, Batch *batch)
{
	HandlerHealth *health = run->health;
	Attempt		attempt;
	BatchOutcome outcome;
	int			tries = 0;

	for (;;)
	{
		CHECK_FOR_INTERRUPTS();
		outcome = try_events(run, batch, &attempt);
		if (outcome != BATCH_FAILED || batch->nevents > 1 || !batch_try_again(attempt.error, tries++))
			break;
		FreeErrorData(attempt.error);
	}

	if (outcome == BATCH_FAILED && batch->nevents > 1)
	{
		split_batch(run, batch, &attempt);
		FreeErrorData(attempt.error);
		return BATCH_DONE;
	}
	if (batch->refs[0].id == health->suspect)
		health->suspect = 0;
	if (outcome == BATCH_FAILED)
	{
		health->good_batches = 0;
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

		batch_start_transaction();
		log = table_open(catalog_lookup(false)->log, AccessShareLock);
		if (!executor_asked_to_leave() && batch_check_handler(run))
			nevents = read_events(run, batch, batch->nevents, log, false, events);
		table_close(log, NoLock);
		batch_commit_transaction(0);
	}
	PG_CATCH();
	{
		nevents = 0;
		batch_reading_failed(run, context);
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
		pass_over(run, batch->indexes[1], nevents);
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
			batch_is_held(run) || instant_now() >= deadline)
			break;
	}
}

/*
 * Move on to the next event of the window that concerns the handler by its name.
 * False if there is none: then the window is finished.
 */
bool
batch_seek(HandlerRun *run)
{
	Window	   *window = run->window;

	/* after each turn it stands at such an event */
	if (run->names == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(run->context);
		int64		next;

		run->names = match_names(&run->definition->pattern, window->names);
		MemoryContextSwitchTo(old);
		(void) window_find(window, run->next, run->names, 0, &next);
		pass_over(run, next, 0);
	}
	if (run->next < window->nevents)
		return true;
	batch_finish_window(run);
	return false;
}

/*
 * How many events the next batch may have.
 */
static int
batch_room(const HandlerRun *run)
{
	const HandlerHealth *health = run->health;

	if (health->probes > 0)
		return 1;
	if (health->batch_limit == 0)
		return run->definition->batch_size;
	return Min(health->batch_limit, run->definition->batch_size);
}

/*
 * The events of a batch, from where the handler is in its window on.  One that
 * is suspected goes alone; and who is careful stays in his group.
 */
static void
fill_batch(HandlerRun *run, Batch *batch)
{
	Window	   *window = run->window;
	int64		suspect = run->health->suspect;
	int64		room = Min(window->nevents - run->next, batch_room(run));

	batch->refs = palloc(sizeof(EventRef) * room);
	batch->indexes = palloc(sizeof(int64) * (room + 1));
	batch->chunk = chunk_create(CurrentMemoryContext);
	batch->group_end = careful_group_end(run);
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
	HandlerHealth *health = run->health;
	Instant		deadline = instant_in(pne_batch_time);
	MemoryContext turn_context = CurrentMemoryContext;
	MemoryContext context = AllocSetContextCreate(turn_context, "event batch", ALLOCSET_DEFAULT_SIZES);
	bool		more;

	Assert(health->taken_up);

	do
	{
		Batch		batch;

		MemoryContextReset(context);
		MemoryContextSwitchTo(context);
		fill_batch(run, &batch);
		more = false;
		if (careful_bound(run, batch.nevents))
		{
			if (careful_one_by_one(run))
				run_one_by_one(run, &batch);
			else if (careful_enter_group(run, batch.group_end))
				more = run_batch(run, &batch) == BATCH_DONE && health->batch_limit > 0 && health->probes == 0;
		}

		if (run->window != NULL && run->next >= run->window->nevents)
			batch_finish_window(run);
	} while (more && run->window != NULL && batch_may_run(run) && !batch_is_held(run) &&
			 !executor_asked_to_leave() && instant_now() < deadline);

	MemoryContextSwitchTo(turn_context);
	MemoryContextDelete(context);
}
