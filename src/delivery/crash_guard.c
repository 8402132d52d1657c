/*-------------------------------------------------------------------------
 *
 * crash_guard.c
 *		The crash guard: what to do about events that end the process which handles
 *		them.
 *
 * A call may never return.  It may crash the server, get it killed by the kernel, or
 * terminate its own process.  Nobody is left then to record a failure, so an attempt
 * must be on disk before it begins.  That would cost a flush for each event.
 * Therefore it is done only if there is a reason for it:
 *
 *	- Before the first batch of a handler its executor writes its owner token to the
 *	  progress row, flushed (crash_guard_claim).  It removes the token when it stops
 *	  (crash_guard_release), when it is terminated while no code of a handler runs,
 *	  and when it ends because the server stops, even during a call
 *	  (crash_guard_release_at_exit).  If it cannot remove the token because the row
 *	  is locked or the table is not found, it says so in shared memory
 *	  (crash_guard_disown_tokens).
 *	- If an executor finds the token of another executor that is gone, that
 *	  predecessor was lost.  The handler is then guarded: its events are tried in
 *	  small groups.  Before the first call of a group the group's last event is
 *	  stored with the position, flushed (tried_upto).  The group then runs as any
 *	  batch does, or as several batches.  The commit that passes its last event
 *	  clears tried_upto.
 *	- If an executor finds such a token and a stored group, the predecessor was lost
 *	  in that group.  The events of the group are then tried one by one.  Before
 *	  each call the event is written to _event_retries with the attempt counted, the
 *	  position moves past it, and both are flushed (retry_run_fresh).  So the attempt
 *	  of an event that kills is counted, and the events behind it are not held up.
 *	  Retries are always run like this.  Thus an event that kills does so in a
 *	  batch, in a group, and then as often as it may be tried.  A loss that no event
 *	  has caused costs one flush per group.
 *	- The guard ends after a known number of events.  An event that was not there
 *	  when the token was found cannot be the cause.  A position that moved past
 *	  refused events only is stored lazily, and batches need not be flushed when
 *	  they commit, so a crash of the server takes some of them back.  But at most
 *	  MAX_UNSTORED events are passed without storing the position, and at most
 *	  MAX_UNFLUSHED are called before that is flushed (crash_guard_bound).  So the
 *	  events that the lost executor was handling are among the next MAX_UNSTORED +
 *	  MAX_UNFLUSHED events, or in the batch behind them.  (If as many events with
 *	  lower ids become visible in between, the cause is found at the next loss.)
 *
 * A token contains the timeline it was made in.  A token from before a promotion is
 * that of an executor of the old primary.  It tells nothing about events: what that
 * executor was doing does not count as a loss, and an attempt that it was making is
 * taken back.
 *
 * Each commit that ends a counted attempt is flushed, too.  A crash must not take the
 * end back and keep the count.
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

/* how many events may be called before the commits of their batches are flushed */
#define MAX_UNFLUSHED 4096

/* how many events may be passed before the position is stored and flushed */
#define MAX_UNSTORED 1024

/* events in a group */
#define GROUP_SIZE 64

/* the low bits of a token are random; the bits above are the timeline */
#define TOKEN_RANDOM_BITS 32

/*
 * How often a process that ends with the server tries to remove its tokens, and how
 * long it waits between two tries, in us.  Whoever has the rows locked is about to
 * end, too.
 */
#define RELEASE_TRIES 100
#define RELEASE_PAUSE_US 10000

/* this executor's token: the timeline, and a random number in the low bits; never 0 */
static int64 my_token = 0;

/* events that this process has called since it last flushed its commits */
static int	unflushed = 0;

/* what the token in a progress row means */
typedef enum TokenMeaning
{
	TOKEN_IS_NOBODYS,			/* there is none, or its executor ended cleanly */
	TOKEN_IS_OURS,
	TOKEN_IS_OTHERS,			/* its executor lives, and leaves the handler to us */
	TOKEN_IS_LOST
} TokenMeaning;

/* the counted attempt that this process is making; if there is none, attempts is 0 */
static struct
{
	char		handler[HANDLER_NAME_SIZE];
	EventIdentity event;
	int			attempts;
}			under_way;

/*
 * Make this executor's token and show it in shared memory.  Called once per executor,
 * when it has connected.
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
 * Before a batch of nevents events: keep the number of events beyond what is stored
 * and flushed within the bounds that a successor would guard.  Stores the position or
 * flushes the WAL if necessary, in transactions of its own.  Returns false if the
 * position could not be stored and the handler has to wait.
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

	/* does nothing if the WAL writer has flushed that already */
	if (unflushed + nevents > MAX_UNFLUSHED && unflushed > 0)
	{
		XLogFlush(XactLastCommitEnd);
		unflushed = 0;
	}
	return true;
}

/*
 * Count nevents events of a batch that has committed, or an event whose failure has
 * been recorded and committed.
 */
void
crash_guard_note_commit(HandlerRun *run, int nevents)
{
	unflushed += nevents;
	handler_run_note_passed(run, nevents);
}

/* ----------
 * Groups
 * ----------
 */

/*
 * Whether the handler's next event in its window belongs to the stored group.
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
 * Whether the handler's next event is to be tried alone: an executor was lost in the
 * stored group, and the event belongs to that group.  The handler must stand at an
 * event of its window.
 */
bool
crash_guard_one_by_one(const HandlerRun *run)
{
	return run->state->one_by_one && stands_in_group(run);
}

/*
 * The id of the last event that the next batch may contain; PG_INT64_MAX if there is
 * no bound.  A group consists of the events whose names concern the handler.  The
 * handler must stand at such an event of its window.
 */
int64
crash_guard_group_end(const HandlerRun *run)
{
	int64		indexes[GROUP_SIZE + 1];
	int			nevents;

	Assert(run->window != NULL && run->next < run->window->nevents);

	if (stands_in_group(run))
		return run->definition->group_end;
	if (run->state->guarded_events == 0)
		return PG_INT64_MAX;
	nevents = window_find(run->window, run->next, run->names, GROUP_SIZE, indexes);
	return run->window->events[indexes[nevents - 1]].id;
}

/*
 * Before a batch whose group ends with event group_end: store the group, unless there
 * is no bound or the group is stored already.  Returns false if it could not be stored
 * and the handler has to wait.
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
 * Tokens
 * ----------
 */

/*
 * What a token means; 0: there is no token.
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
 * Whether the executor that wrote this token was lost.
 */
bool
crash_guard_token_is_lost(int64 token)
{
	return token_meaning(token) == TOKEN_IS_LOST;
}

/*
 * Guard the handler for its next nevents events, but only for events that the active
 * snapshot sees.  With 0 the handler is not guarded.
 */
static void
begin_guard(HandlerState *state, int nevents)
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
 * Write our token to the handler's progress row, together with the number of events
 * that a successor would have to guard.  Called in the transaction that has locked the
 * row.
 *
 * Sets *lost if the row has the token of an executor that was lost.  In that case the
 * token is written only if the handler is alone in the transaction.  Returns whether
 * the token was written.
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
		/* its executor could not write this itself (crash_guard_disown_tokens) */
		guarded_events = 0;
		group_end = NO_GROUP;
	}
	if (meaning != TOKEN_IS_OURS)
	{
		begin_guard(state, *lost ? at_risk : guarded_events);
		state->one_by_one = (group_end != NO_GROUP);
	}
	if (*lost)
		retry_recover_attempts(run->definition);
	else if (meaning == TOKEN_IS_NOBODYS)
	{
		if (retry_give_back_attempts(handler))
			run->next_retry_at = DT_NOBEGIN;	/* look now */
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
 * Note that our token is written and flushed.
 */
static void
note_claimed(HandlerRun *run)
{
	run->state->has_token = run->state->claimed = true;
}

/*
 * Our token replaced that of a lost executor: log it, and look for retries again.
 */
static void
note_takeover(HandlerRun *run)
{
	run->next_retry_at = DT_NOBEGIN;	/* look again */
	if (loglimit_allows(LOG_TOPIC_HANDLERS))
		ereport(LOG,
				(errmsg("event handler \"%s\" is guarded: an executor that ran it was lost",
						run->definition->name),
				 run->state->one_by_one ?
				 errdetail("One of the events that it was trying may be the cause. They are tried one by one. Each attempt is recorded before the call.") :
				 errdetail("One of its events may be the cause. The events that exist now, at most the next %d, are tried in groups of %d. Each group is recorded before the first call.",
						   run->state->guarded_events, GROUP_SIZE)));
}

/*
 * Write our token for these handlers, and find out whether a predecessor was lost.
 * Called before the first batch of a handler in this process, and again for each new
 * definition of it.  Sets claimed in the handlers' states.  A handler that cannot run
 * at present is left unclaimed.
 *
 * One transaction serves all of them, because its commit waits for a flush.  But each
 * handler whose executor was lost gets a transaction of its own, because somebody may
 * have its attempts locked.
 */
void
crash_guard_claim(List *runs)
{
	MemoryContext context = CurrentMemoryContext;
	bool		alone = (list_length(runs) == 1);
	bool		lost = false;
	List	   *claimed = NIL;
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
			claimed = lappend(claimed, run);
		else
			left_out = lappend(left_out, run);
		MemoryContextSwitchTo(old);
	}
	if (claimed != NIL)
		ForceSyncCommit();
	transaction_commit(0);
	FAULT_POINT("after-token");

	/*
	 * Do this for all of them before anything that can be interrupted: a token is
	 * released only if this is noted.
	 */
	foreach(lc, claimed)
	{
		note_claimed(lfirst(lc));
	}
	if (alone && lost && claimed != NIL)
		note_takeover(linitial(claimed));
	foreach(lc, left_out)
	{
		crash_guard_claim(list_make1(lfirst(lc)));
	}
}

/*
 * Remove our token from a handler's progress row, if it is there, and store how many
 * events are still to be guarded.  If somebody else has locked the row, either wait
 * for the lock, or leave the row alone and return false.
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
 * Remove our tokens from all of these handlers, or only from those that are not the
 * owner's any more.  Called in a transaction that was started for this, and commits
 * it.  Does not wait for row locks.
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

	/* not before the commit: a process that is terminated before it has not released them */
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
 * Remove our tokens from handlers that are not the owner's any more, and remove the
 * states of those handlers from the list.
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
		if (state->unreadable != NULL)
			pfree(state->unreadable);
		if (state->guarded_upto != NULL)
			pfree(state->guarded_upto);
		pfree(state);
	}
}

/*
 * Remove all tokens, because the executor stops.  A locked row may be locked by the
 * successor, which is about to check whether we are alive.  So this waits for the
 * lock, for as long as the timeout that the caller has set.
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
 * An attempt has been counted and begins.  Its end is to be recorded.  If the process
 * ends before that, its successor does it: it looks for such attempts when it finds a
 * token (retry_recover_attempts).
 */
void
crash_guard_attempt_begins(const char *handler, EventIdentity event, int attempts)
{
	strlcpy(under_way.handler, handler, HANDLER_NAME_SIZE);
	under_way.event = event;
	under_way.attempts = attempts;
}

/*
 * The attempt has ended and that is recorded.  Or an unrelated error has prevented the
 * record, and the attempt is made again (retry_lock_due).
 */
void
crash_guard_attempt_ends(void)
{
	under_way.attempts = 0;
}

/*
 * The process ends during an attempt, and no event is the cause.  Take the attempt
 * back, in the transaction that removes the tokens.  Does not wait for locks.
 */
static void
give_back_attempt(void)
{
	if (under_way.attempts > 0 &&
		ConditionalLockRelationOid(catalog_lookup(false)->internal_tables[TABLE_RETRIES], RowExclusiveLock))
		(void) retry_give_back(under_way.handler, under_way.event, under_way.attempts);
}

/*
 * Whether the process can end here without a reason to guard any event.  This is so if
 * no call and no attempt is being made, if the call is that of a handler which is
 * being dropped, or if the server stops.
 */
static bool
nothing_is_in_doubt(void)
{
	return executor_call_is_unwanted() || executor_is_stopped_by_server() ||
		(!call_timeout_call_in_doubt() && under_way.attempts == 0);
}

/*
 * The executor ends cleanly.  Tokens may be left because their row is locked or the
 * table was not found.  Say in shared memory that they are not those of a lost
 * executor; this holds as long as the shared memory exists.  Do nothing if a handler
 * is still guarded: the successor has to continue that.
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
 * The process is being terminated.  Remove the tokens if no event can be the cause:
 * the process is not in a call or an attempt, or the handler of the call is being
 * dropped, or the server stops.  There are no interrupts any more, so this removes
 * only tokens whose locks it gets at once.  If the server stops, the other processes
 * end, too, and so does the shared memory; in that case this tries again for a while.
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
