/*-------------------------------------------------------------------------
 *
 * crash_guard.c
 *		Events that end the process which handles them.
 *
 * A call may never return: it crashes the server, has it killed by the kernel,
 * or terminates its own process.  Nobody is left then to record a failure, so
 * what an attempt is must be on disk before it begins.  That would cost each
 * event a flush; so it is done only where there is reason to:
 *
 *	- Before the first batch of a handler its executor leaves its mark in the
 *	  progress row (owner_token), flushed, and takes it back when it leaves, is
 *	  terminated while no code of a handler runs, or is ended by the stop of the
 *	  server, be it in a call (crash_guard_take_up, crash_guard_release,
 *	  crash_guard_release_at_exit).  Where it cannot, as the row is locked or the
 *	  table is not found, it says so in shared memory (crash_guard_disown_tokens).
 *	- An executor that finds another one's mark has lost a predecessor, and
 *	  works carefully: in small groups.  Before the first call of a group its
 *	  last event is stored with the position, flushed (tried_upto); the group
 *	  then runs as any batch, or several, and the commit that passes its last
 *	  event clears that.
 *	- An executor that finds another one's mark and a group stored has lost a
 *	  predecessor in that group.  Its events go one by one, each parked in
 *	  _event_retries with the attempt counted and the position moved past it,
 *	  flushed, before the call (retry_run_fresh).  An event that kills is so
 *	  counted, and the others go on behind it.  Retries are always run so.
 *	  Thus an event that kills does it in a batch, in a group, and then as often
 *	  as it may be tried; and a loss that was no event's doing costs a flush for
 *	  each group.
 *	- How long?  No event can be the cause that was not there when the mark is
 *	  found.  And a position that only refused events have moved is stored
 *	  lazily, and batches need not be flushed when they commit, so that a crash
 *	  of the server takes some back.  But never more than MAX_UNSTORED events
 *	  are passed without storing it, nor more than MAX_UNFLUSHED called before
 *	  that is flushed (crash_guard_bound); so what the lost executor was doing is
 *	  among the next MAX_UNSTORED + MAX_UNFLUSHED events, or in the batch behind
 *	  them.  (Should as many events become visible just now that have lower ids,
 *	  it is found at the next loss.)
 *
 * A mark says which timeline it was made in.  One from before a promotion is that
 * of an executor of the old primary, which tells nothing about events: what it
 * was doing is no loss, and an attempt that it was making is taken back.
 *
 * Every commit that ends an attempt which was counted is flushed, too: a crash
 * shall not take the end back and leave the count.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "common/pg_prng.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "base/catalog.h"
#include "base/fault.h"
#include "base/internal_sql.h"
#include "base/loglimit.h"
#include "delivery/call_timeout.h"
#include "delivery/crash_guard.h"
#include "delivery/executor_slot.h"
#include "delivery/progress.h"
#include "delivery/transaction.h"
#include "handler/retry_table.h"

/* events that may be called before what was committed is flushed */
#define MAX_UNFLUSHED 4096

/* events that may be passed before the position is stored, and flushed */
#define MAX_UNSTORED 1024

/* events of a group */
#define GROUP_SIZE 64

/* a mark's random part; above it stands the timeline */
#define TOKEN_RANDOM_BITS 32

/*
 * How often who ends with the server tries to take its marks, and how long it
 * waits in between, in us: who has them locked is about to end, too.
 */
#define RELEASE_TRIES 100
#define RELEASE_PAUSE_US 10000

/* this executor's mark: the timeline, and below it a random number; never 0 */
static int64 my_token = 0;

/* events that were called since progress was last flushed by us */
static int	unflushed = 0;

/* what the mark of a progress row tells */
typedef enum TokenMeaning
{
	TOKEN_IS_NOBODYS,			/* there is none, or whose it is ended in order */
	TOKEN_IS_OURS,
	TOKEN_IS_OTHERS,				/* it is there, and leaves the handler to us */
	TOKEN_IS_LOST
} TokenMeaning;

/* the attempt that this process is making, which is counted; none: attempts is 0 */
static struct
{
	char		handler[HANDLER_NAME_SIZE];
	EventIdentity event;
	int			attempts;
}			under_way;

/*
 * Once per executor, when it has connected.
 */
void
crash_guard_init(void)
{
	my_token = ((int64) GetWALInsertionTimeLine() << TOKEN_RANDOM_BITS) | pg_prng_uint32(&pg_global_prng_state);
	executor_show_token(my_token);
}

/* ----------
 * What is flushed
 * ----------
 */

/*
 * Before a batch: see to it that no more events are called beyond what is
 * stored and flushed than a successor would be careful for.  False where the
 * handler cannot go on for now.
 */
bool
crash_guard_bound(HandlerRun *run, int nevents)
{
	if (run->state->unstored + nevents > MAX_UNSTORED && run->state->unstored > 0)
	{
		progress_flush(run, true);
		if (run->state->unstored > 0)
			return false;
	}

	/* nothing is left to do for that where the WAL writer has been there */
	if (unflushed + nevents > MAX_UNFLUSHED && unflushed > 0)
	{
		XLogFlush(XactLastCommitEnd);
		unflushed = 0;
	}
	return true;
}

/*
 * A batch, or the failure of an event, is committed.
 */
void
crash_guard_note_commit(HandlerRun *run, int nevents)
{
	unflushed += nevents;
	handler_run_note_passed(run, nevents);
}

/* ----------
 * The careful phase
 * ----------
 */

/*
 * Whether the event at which the handler stands in its window is one of the group
 * that is stored.
 */
static bool
stands_in_group(const HandlerRun *run)
{
	const Handler *handler = run->definition;

	return handler->group_end != NO_GROUP &&
		event_snapshot_equal(run->window->upto, handler->position.window) &&
		run->window->events[run->next].id <= handler->group_end;
}

/*
 * Whether the next event is to be tried alone.
 */
bool
crash_guard_one_by_one(const HandlerRun *run)
{
	return run->state->one_by_one && stands_in_group(run);
}

/*
 * The last event that the next batch may have; PG_INT64_MAX: any.  The events of
 * a group are those that concern the handler by their names.
 */
int64
crash_guard_group_end(const HandlerRun *run)
{
	int64		indexes[GROUP_SIZE + 1];
	int			nevents;

	if (stands_in_group(run))
		return run->definition->group_end;
	if (run->state->guarded_events == 0)
		return PG_INT64_MAX;
	nevents = window_find(run->window, run->next, run->names, GROUP_SIZE, indexes);
	return run->window->events[indexes[nevents - 1]].id;
}

/*
 * Before a batch, whose group ends with that event: see to it that the group is
 * stored.  False where the handler cannot go on for now.
 */
bool
crash_guard_enter_group(HandlerRun *run, int64 group_end)
{
	if (group_end == PG_INT64_MAX || stands_in_group(run))
		return true;
	if (!progress_record_group(run, group_end))
		return false;
	run->state->one_by_one = false;
	unflushed = 0;
	FAULT_POINT("after-group");
	return true;
}

/* ----------
 * Marks
 * ----------
 */

/*
 * What a mark tells; 0: there is none.
 */
static TokenMeaning
token_meaning(int64 token)
{
	if (token == 0 || token >> TOKEN_RANDOM_BITS != GetWALInsertionTimeLine() || shared_token_is_released(token))
		return TOKEN_IS_NOBODYS;
	if (token == my_token)
		return TOKEN_IS_OURS;
	return shared_executor_lives(token) ? TOKEN_IS_OTHERS : TOKEN_IS_LOST;
}

/*
 * Whether the executor that has left a mark was lost.
 */
bool
crash_guard_token_is_lost(int64 token)
{
	return token_meaning(token) == TOKEN_IS_LOST;
}

/*
 * How many events are to be tried carefully, but none that are not there yet.
 */
static void
begin_phase(HandlerState *state, int nevents)
{
	MemoryContext old;

	state->guarded_events = nevents;
	if (state->guarded_upto != NULL)
		pfree(state->guarded_upto);
	state->guarded_upto = NULL;
	if (nevents == 0)
		return;
	old = MemoryContextSwitchTo(TopMemoryContext);
	state->guarded_upto = event_snapshot_build(GetActiveSnapshot());
	MemoryContextSwitchTo(old);
}

/*
 * Leave our token, and for how many events a successor would have to be careful,
 * in the transaction that has locked the row; unless the mark of another executor
 * is there (lost), and others are to be taken up in the transaction.  Returns
 * whether it was left.
 */
static bool
write_token(HandlerRun *run, bool alone, bool *lost)
{
	static InternalStatement select_token = {
		.sql = "SELECT p.owner_token, p.at_risk, p.guarded_events, p.tried_upto FROM @s._event_handler_progress AS p "
		"WHERE p.handler OPERATOR(pg_catalog.=) $1",
		.target = TABLE_NONE,
		.nargs = 1,
		.argtypes = {TEXTOID},
	};
	static InternalStatement update_token = {
		.sql = "UPDATE @s._event_handler_progress SET owner_token = $2, at_risk = $3, guarded_events = $4, tried_upto = $5 "
		"WHERE handler OPERATOR(pg_catalog.=) $1",
		.target = TABLE_PROGRESS,
		.nargs = 5,
		.argtypes = {TEXTOID, INT8OID, INT4OID, INT4OID, INT8OID},
	};
	Handler    *handler = run->definition;
	HandlerState *state = run->state;
	int64		token;
	int			at_risk;
	int			guarded_events;
	int64		group_end;
	TokenMeaning meaning;
	Datum		values[5];
	char		nulls[5] = {' ', ' ', ' ', ' ', ' '};
	bool		isnull;

	values[0] = CStringGetTextDatum(handler->name);
	if (internal_execute(&select_token, values, NULL, 1) != 1)
		elog(ERROR, "event handler \"%s\" has no progress row", handler->name);
	token = DatumGetInt64(internal_value(0, 1, &isnull));
	if (isnull)
		token = 0;
	at_risk = DatumGetInt32(internal_value(0, 2, &isnull));
	guarded_events = DatumGetInt32(internal_value(0, 3, &isnull));
	group_end = DatumGetInt64(internal_value(0, 4, &isnull));
	if (isnull)
		group_end = NO_GROUP;

	meaning = token_meaning(token);
	*lost = (meaning == TOKEN_IS_LOST);
	if (*lost && !alone)
		return false;
	if (token != 0 && shared_token_is_released(token))
	{
		/* what it could not write (crash_guard_disown_tokens) */
		guarded_events = 0;
		group_end = NO_GROUP;
	}
	if (meaning != TOKEN_IS_OURS)
	{
		begin_phase(state, *lost ? at_risk : guarded_events);
		state->one_by_one = (group_end != NO_GROUP);
	}
	if (*lost)
		retry_recover_attempts(run->definition);
	else if (meaning == TOKEN_IS_NOBODYS)
	{
		if (retry_give_back_attempts(handler))
			run->next_retry_at = 0; /* now */
	}
	handler->group_end = group_end;

	values[1] = Int64GetDatum(my_token);
	values[2] = Int32GetDatum(MAX_UNSTORED + MAX_UNFLUSHED + handler->batch_size);
	values[3] = Int32GetDatum(state->guarded_events);
	values[4] = Int64GetDatum(group_end);
	if (group_end == NO_GROUP)
		nulls[4] = 'n';
	internal_execute(&update_token, values, nulls, 0);
	return true;
}

/*
 * The mark is there, and flushed.
 */
static void
taken_up(HandlerRun *run)
{
	run->state->has_token = run->state->taken_up = true;
}

/*
 * And the mark of another executor was there.
 */
static void
taken_over(HandlerRun *run)
{
	run->next_retry_at = 0;		/* look again */
	if (loglimit_allows(LOG_TOPIC_HANDLERS))
		ereport(LOG,
				(errmsg("event handler \"%s\" is guarded: an executor that ran it was lost",
						run->definition->name),
				 run->state->one_by_one ?
				 errdetail("One of the events that it was trying may be the cause. They are tried one by one, each attempt recorded before it.") :
				 errdetail("One of its events may be the cause. Those that are there, or the next %d, are tried in groups of %d, each recorded before it.",
						   run->state->guarded_events, GROUP_SIZE)));
}

/*
 * Before the first batch of handlers in this process, and of each of their
 * definitions: leave our token, and find out whether a predecessor was lost.  Those
 * that cannot go on for now are not taken up.
 *
 * One transaction for all of them, as it waits for its flush; but one of its own
 * for each whose executor was lost, as its attempts may be locked by somebody.
 */
void
crash_guard_take_up(List *runs)
{
	MemoryContext context = CurrentMemoryContext;
	bool		alone = (list_length(runs) == 1);
	bool		lost = false;
	List	   *marked = NIL;
	List	   *left_out = NIL;
	ListCell   *lc;

	transaction_start();
	foreach(lc, runs)
	{
		HandlerRun *run = lfirst(lc);
		MemoryContext old;
		bool		done;

		if (!progress_lock(run))
			continue;
		done = write_token(run, alone, &lost);
		old = MemoryContextSwitchTo(context);
		if (done)
			marked = lappend(marked, run);
		else
			left_out = lappend(left_out, run);
		MemoryContextSwitchTo(old);
	}
	if (marked != NIL)
		ForceSyncCommit();
	transaction_commit(0);
	FAULT_POINT("after-token");

	/* all, before anything that could be interrupted: who has a mark releases it */
	foreach(lc, marked)
	{
		taken_up(lfirst(lc));
	}
	if (alone && lost && marked != NIL)
		taken_over(linitial(marked));
	foreach(lc, left_out)
	{
		crash_guard_take_up(list_make1(lfirst(lc)));
	}
}

/*
 * Take our mark from a handler's progress row, if it is there, and leave what is
 * still to be done carefully.  Where somebody has locked the row, wait for him, or
 * let it be and return false.
 */
static bool
release_token(const HandlerState *state, bool wait)
{
#define LOCK_TOKEN \
	"SELECT 1 FROM @s._event_handler_progress AS p " \
	"WHERE p.handler OPERATOR(pg_catalog.=) $1 AND p.owner_token OPERATOR(pg_catalog.=) $2 " \
	"AND p.created OPERATOR(pg_catalog.=) $3 FOR UPDATE"
	static InternalStatement lock_token = {
		.sql = LOCK_TOKEN,
		.target = TABLE_PROGRESS,
		.nargs = 3,
		.argtypes = {TEXTOID, INT8OID, INT8OID},
	};
	static InternalStatement lock_token_if_free = {
		.sql = LOCK_TOKEN " SKIP LOCKED",
		.target = TABLE_PROGRESS,
		.nargs = 3,
		.argtypes = {TEXTOID, INT8OID, INT8OID},
	};
	static InternalStatement clear_token = {
		.sql = "UPDATE @s._event_handler_progress SET owner_token = NULL, guarded_events = $2, "
		"tried_upto = CASE WHEN $3 THEN tried_upto END "
		"WHERE handler OPERATOR(pg_catalog.=) $1",
		.target = TABLE_PROGRESS,
		.nargs = 3,
		.argtypes = {TEXTOID, INT4OID, BOOLOID},
	};
	Datum		keys[3] = {CStringGetTextDatum(state->name), Int64GetDatum(my_token), Int64GetDatum(state->created)};
	Datum		values[3] = {keys[0], Int32GetDatum(state->guarded_events), BoolGetDatum(state->one_by_one)};

	if (internal_execute(wait ? &lock_token : &lock_token_if_free, keys, NULL, 1) != 1)
		return wait;
	internal_execute(&clear_token, values, NULL, 0);
	return true;
}

/*
 * Take our marks from these handlers, or from those that are not the owner's any
 * more, in a transaction that was started for it.  Nobody is waited for.
 */
static void
release_free_tokens(List *states, bool all)
{
	ListCell   *lc;

	foreach(lc, states)
	{
		HandlerState *state = lfirst(lc);

		state->released = state->has_token && (all || state->gone) && release_token(state, false);
	}
	transaction_commit(0);

	/* not before: who is terminated in between has not released them */
	foreach(lc, states)
	{
		HandlerState *state = lfirst(lc);

		if (state->released)
			state->has_token = false;
	}
}

static bool
any_token(List *states, bool all)
{
	ListCell   *lc;

	foreach(lc, states)
	{
		HandlerState *state = lfirst(lc);

		if (state->has_token && (all || state->gone))
			return true;
	}
	return false;
}

/*
 * Take our marks from handlers that are not the owner's any more, and forget
 * those.
 */
void
crash_guard_release_gone(List **states)
{
	ListCell   *lc;

	if (any_token(*states, false))
	{
		FAULT_POINT("before-release");
		transaction_start_own();
		release_free_tokens(*states, false);
	}

	foreach(lc, *states)
	{
		HandlerState *state = lfirst(lc);

		if (!state->gone)
			continue;
		*states = foreach_delete_current(*states, lc);
		if (state->problem != NULL)
			pfree(state->problem);
		if (state->guarded_upto != NULL)
			pfree(state->guarded_upto);
		pfree(state);
	}
}

/*
 * The executor leaves: take all marks.  A row that is locked may be so by the
 * successor, who is about to look whether we are alive; so he is waited for, as
 * long as the caller has set a timeout for.
 */
void
crash_guard_release(List *states)
{
	ListCell   *lc;

	if (!any_token(states, true))
		return;
	FAULT_POINT("before-release");
	transaction_start_own();
	release_free_tokens(states, true);

	foreach(lc, states)
	{
		HandlerState *state = lfirst(lc);

		if (!state->has_token)
			continue;
		transaction_start_own();
		(void) release_token(state, true);
		transaction_commit(0);
		state->has_token = false;
	}
}

/*
 * An attempt was counted and begins; its end is to be recorded.  Who ends in between
 * leaves that to the successor, who looks for such attempts where it finds a mark
 * (retry_recover_attempts).
 */
void
crash_guard_attempt_begins(const char *handler, EventIdentity event, int attempts)
{
	strlcpy(under_way.handler, handler, HANDLER_NAME_SIZE);
	under_way.event = event;
	under_way.attempts = attempts;
}

/*
 * It has come to an end, which is recorded; or an error that was not its own kept
 * that from being recorded, and it is made again (retry_lock_due).
 */
void
crash_guard_attempt_ends(void)
{
	under_way.attempts = 0;
}

/*
 * The process ends in the middle of an attempt, and that is nobody's doing: take
 * it back, in the transaction that takes the marks.  Nobody is waited for.
 */
static void
give_back_attempt(void)
{
	if (under_way.attempts > 0 &&
		ConditionalLockRelationOid(catalog_lookup(false)->internal_tables[TABLE_RETRIES], RowExclusiveLock))
		(void) retry_give_back(under_way.handler, under_way.event, under_way.attempts);
}

/*
 * Whether the process can end here without anybody's having to be careful: not
 * during a call, or an attempt, unless that is of a handler which is being dropped,
 * or the server stops.
 */
static bool
nothing_is_in_doubt(void)
{
	return executor_call_is_unwanted() || executor_is_stopped_by_server() ||
		(!call_timeout_call_in_doubt() && under_way.attempts == 0);
}

/*
 * The executor ends in good order.  Marks that it could not take, as the row is
 * locked or the table is not where it was, are told apart from those of a lost
 * executor by what this says in shared memory, for as long as that lives.  Not so
 * where it was careful itself and is not through with that.
 */
void
crash_guard_disown_tokens(List *states)
{
	ListCell   *lc;

	if (!nothing_is_in_doubt() || !any_token(states, true))
		return;
	foreach(lc, states)
	{
		HandlerState *state = lfirst(lc);

		if (state->has_token && (state->guarded_events > 0 || state->one_by_one))
			return;
	}
	shared_release_token(my_token);
}

/*
 * The process is being terminated.  If that did not happen during a call, or an
 * attempt, or if the call was that of a handler that is being dropped, or if the
 * server stops, no event is the cause; so the marks are taken, though only where
 * the progress can be had at once: there are no interrupts any more.  With the
 * server others end, too, and what is said in shared memory ends; so who ends with
 * it tries again for a while.
 */
void
crash_guard_release_at_exit(List *states)
{
	if (!nothing_is_in_doubt() || !any_token(states, true))
		return;
	AbortOutOfAnyTransaction();
	transaction_never_wait(0);
	for (int i = 0; i < RELEASE_TRIES && any_token(states, true); i++)
	{
		if (i > 0)
			pg_usleep(RELEASE_PAUSE_US);
		if (transaction_start_if_free())
		{
			if (executor_is_stopped_by_server())
				give_back_attempt();
			release_free_tokens(states, true);
		}
		if (!executor_is_stopped_by_server())
			break;
	}
	crash_guard_disown_tokens(states);
}
