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
 *	  progress row (in_use), flushed, and takes it back when it leaves, is
 *	  terminated while no code of a handler runs, or is ended by the stop of the
 *	  server, be it in a call (crash_guard_take_up, crash_guard_release,
 *	  crash_guard_release_at_exit).  Where it cannot, as the row is locked or the
 *	  table is not found, it says so in shared memory (crash_guard_disown_marks).
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
#define MARK_RANDOM_BITS 32

/*
 * How often who ends with the server tries to take its marks, and how long it
 * waits in between, in us: who has them locked is about to end, too.
 */
#define RELEASE_TRIES 100
#define RELEASE_PAUSE_US 10000

/* this executor's mark: the timeline, and below it a random number; never 0 */
static int64 my_mark = 0;

/* events that were called since progress was last flushed by us */
static int	unflushed = 0;

/* what the mark of a progress row tells */
typedef enum MarkMeaning
{
	MARK_IS_NOBODYS,			/* there is none, or whose it is ended in order */
	MARK_IS_OURS,
	MARK_IS_OTHERS,				/* it is there, and leaves the handler to us */
	MARK_IS_LOST
} MarkMeaning;

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
	my_mark = ((int64) GetWALInsertionTimeLine() << MARK_RANDOM_BITS) | pg_prng_uint32(&pg_global_prng_state);
	executor_show_mark(my_mark);
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
	if (run->health->unstored + nevents > MAX_UNSTORED && run->health->unstored > 0)
	{
		progress_flush(run, true);
		if (run->health->unstored > 0)
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
	return run->health->one_by_one && stands_in_group(run);
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
	if (run->health->careful == 0)
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
	run->health->one_by_one = false;
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
static MarkMeaning
mark_meaning(int64 mark)
{
	if (mark == 0 || mark >> MARK_RANDOM_BITS != GetWALInsertionTimeLine() || shared_mark_is_released(mark))
		return MARK_IS_NOBODYS;
	if (mark == my_mark)
		return MARK_IS_OURS;
	return shared_executor_lives(mark) ? MARK_IS_OTHERS : MARK_IS_LOST;
}

/*
 * Whether the executor that has left a mark was lost.
 */
bool
crash_guard_mark_is_lost(int64 mark)
{
	return mark_meaning(mark) == MARK_IS_LOST;
}

/*
 * How many events are to be tried carefully, but none that are not there yet.
 */
static void
begin_phase(HandlerHealth *health, int nevents)
{
	MemoryContext old;

	health->careful = nevents;
	if (health->careful_upto != NULL)
		pfree(health->careful_upto);
	health->careful_upto = NULL;
	if (nevents == 0)
		return;
	old = MemoryContextSwitchTo(TopMemoryContext);
	health->careful_upto = event_snapshot_build(GetActiveSnapshot());
	MemoryContextSwitchTo(old);
}

/*
 * Leave our mark, and for how many events a successor would have to be careful,
 * in the transaction that has locked the row; unless the mark of another executor
 * is there (lost), and others are to be taken up in the transaction.  Returns
 * whether it was left.
 */
static bool
write_mark(HandlerRun *run, bool alone, bool *lost)
{
	static OwnStatement select_mark = {
		.sql = "SELECT p.in_use, p.at_risk, p.careful, p.tried_upto FROM @s._event_handler_progress AS p "
		"WHERE p.handler OPERATOR(pg_catalog.=) $1",
		.target = OWN_NONE,
		.nargs = 1,
		.argtypes = {TEXTOID},
	};
	static OwnStatement update_mark = {
		.sql = "UPDATE @s._event_handler_progress SET in_use = $2, at_risk = $3, careful = $4, tried_upto = $5 "
		"WHERE handler OPERATOR(pg_catalog.=) $1",
		.target = OWN_PROGRESS,
		.nargs = 5,
		.argtypes = {TEXTOID, INT8OID, INT4OID, INT4OID, INT8OID},
	};
	Handler    *handler = run->definition;
	HandlerHealth *health = run->health;
	int64		mark;
	int			at_risk;
	int			careful;
	int64		group_end;
	MarkMeaning meaning;
	Datum		values[5];
	char		nulls[5] = {' ', ' ', ' ', ' ', ' '};
	bool		isnull;

	values[0] = CStringGetTextDatum(handler->name);
	if (own_execute(&select_mark, values, NULL, 1) != 1)
		elog(ERROR, "event handler \"%s\" has no progress row", handler->name);
	mark = DatumGetInt64(own_value(0, 1, &isnull));
	if (isnull)
		mark = 0;
	at_risk = DatumGetInt32(own_value(0, 2, &isnull));
	careful = DatumGetInt32(own_value(0, 3, &isnull));
	group_end = DatumGetInt64(own_value(0, 4, &isnull));
	if (isnull)
		group_end = NO_GROUP;

	meaning = mark_meaning(mark);
	*lost = (meaning == MARK_IS_LOST);
	if (*lost && !alone)
		return false;
	if (mark != 0 && shared_mark_is_released(mark))
	{
		/* what it could not write (crash_guard_disown_marks) */
		careful = 0;
		group_end = NO_GROUP;
	}
	if (meaning != MARK_IS_OURS)
	{
		begin_phase(health, *lost ? at_risk : careful);
		health->one_by_one = (group_end != NO_GROUP);
	}
	if (*lost)
		retry_recover_attempts(run->definition);
	else if (meaning == MARK_IS_NOBODYS)
	{
		if (retry_give_back_attempts(handler))
			run->next_retry_at = 0; /* now */
	}
	handler->group_end = group_end;

	values[1] = Int64GetDatum(my_mark);
	values[2] = Int32GetDatum(MAX_UNSTORED + MAX_UNFLUSHED + handler->batch_size);
	values[3] = Int32GetDatum(health->careful);
	values[4] = Int64GetDatum(group_end);
	if (group_end == NO_GROUP)
		nulls[4] = 'n';
	own_execute(&update_mark, values, nulls, 0);
	return true;
}

/*
 * The mark is there, and flushed.
 */
static void
taken_up(HandlerRun *run)
{
	run->health->marked = run->health->taken_up = true;
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
				(errmsg("event handler \"%s\" goes on carefully: an executor that ran it was lost",
						run->definition->name),
				 run->health->one_by_one ?
				 errdetail("One of the events that it was trying may be the cause. They are tried one by one, each attempt recorded before it.") :
				 errdetail("One of its events may be the cause. Those that are there, or the next %d, are tried in groups of %d, each recorded before it.",
						   run->health->careful, GROUP_SIZE)));
}

/*
 * Before the first batch of handlers in this process, and of each of their
 * definitions: leave our mark, and find out whether a predecessor was lost.  Those
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
		done = write_mark(run, alone, &lost);
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
	FAULT_POINT("after-mark");

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
release_mark(const HandlerHealth *health, bool wait)
{
#define LOCK_MARK \
	"SELECT 1 FROM @s._event_handler_progress AS p " \
	"WHERE p.handler OPERATOR(pg_catalog.=) $1 AND p.in_use OPERATOR(pg_catalog.=) $2 " \
	"AND p.created OPERATOR(pg_catalog.=) $3 FOR UPDATE"
	static OwnStatement lock_mark = {
		.sql = LOCK_MARK,
		.target = OWN_PROGRESS,
		.nargs = 3,
		.argtypes = {TEXTOID, INT8OID, INT8OID},
	};
	static OwnStatement lock_mark_if_free = {
		.sql = LOCK_MARK " SKIP LOCKED",
		.target = OWN_PROGRESS,
		.nargs = 3,
		.argtypes = {TEXTOID, INT8OID, INT8OID},
	};
	static OwnStatement clear_mark = {
		.sql = "UPDATE @s._event_handler_progress SET in_use = NULL, careful = $2, "
		"tried_upto = CASE WHEN $3 THEN tried_upto END "
		"WHERE handler OPERATOR(pg_catalog.=) $1",
		.target = OWN_PROGRESS,
		.nargs = 3,
		.argtypes = {TEXTOID, INT4OID, BOOLOID},
	};
	Datum		keys[3] = {CStringGetTextDatum(health->name), Int64GetDatum(my_mark), Int64GetDatum(health->created)};
	Datum		values[3] = {keys[0], Int32GetDatum(health->careful), BoolGetDatum(health->one_by_one)};

	if (own_execute(wait ? &lock_mark : &lock_mark_if_free, keys, NULL, 1) != 1)
		return wait;
	own_execute(&clear_mark, values, NULL, 0);
	return true;
}

/*
 * Take our marks from these handlers, or from those that are not the owner's any
 * more, in a transaction that was started for it.  Nobody is waited for.
 */
static void
release_free_marks(List *healths, bool all)
{
	ListCell   *lc;

	foreach(lc, healths)
	{
		HandlerHealth *health = lfirst(lc);

		health->released = health->marked && (all || health->gone) && release_mark(health, false);
	}
	transaction_commit(0);

	/* not before: who is terminated in between has not released them */
	foreach(lc, healths)
	{
		HandlerHealth *health = lfirst(lc);

		if (health->released)
			health->marked = false;
	}
}

static bool
any_mark(List *healths, bool all)
{
	ListCell   *lc;

	foreach(lc, healths)
	{
		HandlerHealth *health = lfirst(lc);

		if (health->marked && (all || health->gone))
			return true;
	}
	return false;
}

/*
 * Take our marks from handlers that are not the owner's any more, and forget
 * those.
 */
void
crash_guard_release_gone(List **healths)
{
	ListCell   *lc;

	if (any_mark(*healths, false))
	{
		FAULT_POINT("before-release");
		transaction_start_own();
		release_free_marks(*healths, false);
	}

	foreach(lc, *healths)
	{
		HandlerHealth *health = lfirst(lc);

		if (!health->gone)
			continue;
		*healths = foreach_delete_current(*healths, lc);
		if (health->problem != NULL)
			pfree(health->problem);
		if (health->careful_upto != NULL)
			pfree(health->careful_upto);
		pfree(health);
	}
}

/*
 * The executor leaves: take all marks.  A row that is locked may be so by the
 * successor, who is about to look whether we are alive; so he is waited for, as
 * long as the caller has set a timeout for.
 */
void
crash_guard_release(List *healths)
{
	ListCell   *lc;

	if (!any_mark(healths, true))
		return;
	FAULT_POINT("before-release");
	transaction_start_own();
	release_free_marks(healths, true);

	foreach(lc, healths)
	{
		HandlerHealth *health = lfirst(lc);

		if (!health->marked)
			continue;
		transaction_start_own();
		(void) release_mark(health, true);
		transaction_commit(0);
		health->marked = false;
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
		ConditionalLockRelationOid(catalog_lookup(false)->own_tables[OWN_RETRIES], RowExclusiveLock))
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
crash_guard_disown_marks(List *healths)
{
	ListCell   *lc;

	if (!nothing_is_in_doubt() || !any_mark(healths, true))
		return;
	foreach(lc, healths)
	{
		HandlerHealth *health = lfirst(lc);

		if (health->marked && (health->careful > 0 || health->one_by_one))
			return;
	}
	shared_release_mark(my_mark);
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
crash_guard_release_at_exit(List *healths)
{
	if (!nothing_is_in_doubt() || !any_mark(healths, true))
		return;
	AbortOutOfAnyTransaction();
	transaction_never_wait(0);
	for (int i = 0; i < RELEASE_TRIES && any_mark(healths, true); i++)
	{
		if (i > 0)
			pg_usleep(RELEASE_PAUSE_US);
		if (transaction_start_if_free())
		{
			if (executor_is_stopped_by_server())
				give_back_attempt();
			release_free_marks(healths, true);
		}
		if (!executor_is_stopped_by_server())
			break;
	}
	crash_guard_disown_marks(healths);
}
