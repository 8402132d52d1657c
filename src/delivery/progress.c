/*-------------------------------------------------------------------------
 *
 * progress.c
 *		A handler's stored position: its row of _event_handler_progress.
 *
 * Before a transaction of an executor writes, it locks the row and compares it with
 * what the window was read from (progress_lock).  Another executor, a changed
 * definition or a replaced handler may have come in between.  In that case only the
 * window is lost.
 *
 * The row usually is where it was when it was read or written last.  Its tid saves a
 * search by name, which would have to pass all versions of the row that cannot be
 * removed yet.  If the row is not there any more, it is searched by name.  It is
 * locked without an SQL statement: an event waits for this lock before its handler is
 * called, and running a plan made the time from the executor's wake-up to the call
 * longer by a third.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/tuptable.h"
#include "storage/bufmgr.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "base/catalog.h"
#include "base/internal_sql.h"
#include "base/throttle.h"
#include "delivery/executor_slot.h"
#include "delivery/progress.h"
#include "delivery/transaction.h"
#include "handler/handler.h"

/* columns of _event_handler_progress, in the order of the install script */
#define Anum_progress_handler	1
#define Anum_progress_version	3
#define Anum_progress_cursor	4
#define Anum_progress_window	5
#define Anum_progress_last_id	6

/* ----------
 * The row
 * ----------
 */

/*
 * Whether the row in the slot is that of the handler.
 */
static bool
is_of_handler(const Handler *handler, TupleTableSlot *slot)
{
	bool		isnull;

	return strcmp(TextDatumGetCString(slot_getattr(slot, Anum_progress_handler, &isnull)), handler->name) == 0;
}

/*
 * Lock the row at a tid, if it is the handler's, without waiting.  On success the slot
 * has the row as our snapshot sees it.  Returns TM_Deleted if our snapshot sees no
 * such row there.
 */
static TM_Result
lock_at(Relation progress, ItemPointer tid, const Handler *handler, TupleTableSlot *slot)
{
	Snapshot	snapshot = GetActiveSnapshot();
	TM_FailureData failure;

	/* reading behind the end of the table would be an error */
	if (ItemPointerGetBlockNumber(tid) >= RelationGetNumberOfBlocks(progress) ||
		!table_tuple_fetch_row_version(progress, tid, snapshot, slot) ||
		!is_of_handler(handler, slot))
		return TM_Deleted;
	return table_tuple_lock(progress, tid, snapshot, slot, GetCurrentCommandId(true),
							LockTupleExclusive, LockWaitSkip, 0, &failure);
}

static EventSnapshot *
slot_snapshot(TupleTableSlot *slot, AttrNumber column)
{
	bool		isnull;
	Datum		value = slot_getattr(slot, column, &isnull);

	return isnull ? NULL : event_snapshot_parse(DatumGetCString(DirectFunctionCall1(pg_snapshot_out, value)));
}

/*
 * Whether the row in the slot has the version and position that are known of the
 * handler.
 */
static bool
is_known(const Handler *handler, TupleTableSlot *slot)
{
	const EventPosition *known = &handler->position;
	bool		isnull;
	int64		version = DatumGetInt64(slot_getattr(slot, Anum_progress_version, &isnull));
	int64		last_id = DatumGetInt64(slot_getattr(slot, Anum_progress_last_id, &isnull));

	return version == handler->version &&
		event_snapshot_equal(slot_snapshot(slot, Anum_progress_cursor), known->cursor) &&
		event_snapshot_equal(slot_snapshot(slot, Anum_progress_window), known->window) &&
		(isnull ? 0 : last_id) == known->last_id;
}

/*
 * Lock the row where it was last, with a new snapshot, as a statement of its own
 * would.  On success this sets stale if the row differs from what is known.  Returns
 * TM_Deleted if the tid of the row is not known, or the row is not there.
 */
static TM_Result
lock_row(HandlerRun *run)
{
	Relation	progress;
	TupleTableSlot *slot;
	TM_Result	result;

	if (!ItemPointerIsValid(&run->progress_tid))
		return TM_Deleted;
	progress = internal_open(TABLE_PROGRESS);
	slot = table_slot_create(progress, NULL);
	PushActiveSnapshot(GetTransactionSnapshot());
	result = lock_at(progress, &run->progress_tid, run->definition, slot);
	if (result == TM_Ok)
		run->stale = !is_known(run->definition, slot);
	PopActiveSnapshot();
	ExecDropSingleTupleTableSlot(slot);
	table_close(progress, NoLock);
	return result;
}

/*
 * Find the row by the handler's name, and note its tid.  Returns whether there is one.
 */
static bool
find_row(HandlerRun *run)
{
	static InternalStatement find_progress = {
		.sql = "SELECT p.ctid FROM @s._event_handler_progress AS p "
		"WHERE p.handler OPERATOR(pg_catalog.=) $1",
		.target = TABLE_NONE,
		.nargs = 1,
		.argtypes = {TEXTOID},
	};
	Datum		name = CStringGetTextDatum(run->definition->name);
	bool		isnull;

	if (internal_execute(&find_progress, &name, NULL, 0) != 1)
		return false;
	run->progress_tid = *(ItemPointer) DatumGetPointer(internal_value(0, 1, &isnull));
	return true;
}

/*
 * Lock the handler's progress row in the current transaction, without waiting.
 * Returns false and sets stale if the row differs from what was read before: then
 * everything that was read is void.  Also returns false if another session has or
 * wants the row, and postpones the handler, because other handlers must not wait for
 * that.  The caller is connected to SPI and has an active snapshot.
 */
bool
progress_lock(HandlerRun *run)
{
	TM_Result	result = TM_WouldBlock;

	Assert(ActiveSnapshotSet());

	if (handler_begin_batch(run->definition))
	{
		/* again if the row was moved after it was found and before it was locked */
		do
			result = lock_row(run);
		while ((result == TM_Deleted || result == TM_Updated) && find_row(run));
	}
	if (result != TM_Ok)
	{
		handler_run_postpone(run);
		return false;
	}
	return !run->stale;
}

/* ----------
 * The position
 * ----------
 */

/*
 * The position of a handler that has reached index next of its window.
 */
static EventPosition
position_at(HandlerRun *run, int64 next)
{
	if (run->window != NULL && (next > 0 || run->window->nevents == 0))
		return window_position(run->window, next);
	return run->position;
}

/*
 * The end of the stored group for a handler that has reached a position.  NO_GROUP if
 * the position is not inside the group any more.
 */
static int64
group_end_at(const HandlerRun *run, const EventPosition *position)
{
	const Handler *handler = run->definition;

	if (handler->group_end == NO_GROUP || position->window == NULL ||
		position->last_id >= handler->group_end ||
		!event_snapshot_equal(position->window, handler->position.window))
		return NO_GROUP;
	return handler->group_end;
}

/*
 * Store a position in the row, which progress_lock() has locked and compared with
 * what is known.
 *
 * A snapshot that does not change is not written again.  While hundreds of transactions
 * run, each snapshot is kilobytes of TOAST, and most batches of a large window move
 * only last_id.
 */
static void
store_position(HandlerRun *run, const EventPosition *position, int64 group_end,
			   const ProgressCounters *counters)
{
#define UPDATE_PROGRESS(condition) \
	"UPDATE @s._event_handler_progress SET " \
	"cursor = COALESCE($2::pg_catalog.pg_snapshot, cursor), " \
	"\"window\" = CASE WHEN $10 THEN \"window\" ELSE $3::pg_catalog.pg_snapshot END, last_id = $4, " \
	"delivered = delivered OPERATOR(pg_catalog.+) $5, " \
	"retried = retried OPERATOR(pg_catalog.+) $6, " \
	"last_event_id = COALESCE($7, last_event_id), " \
	"last_delivered_at = CASE WHEN $7 IS NULL THEN last_delivered_at " \
	"ELSE pg_catalog.clock_timestamp() END, " \
	"tried_upto = $9 " \
	"WHERE handler OPERATOR(pg_catalog.=) $1 AND created OPERATOR(pg_catalog.=) $8" condition " " \
	"RETURNING ctid"
	static InternalStatement update_progress = {
		.sql = UPDATE_PROGRESS(""),
		.target = TABLE_PROGRESS,
		.nargs = 10,
		.argtypes = {TEXTOID, TEXTOID, TEXTOID, INT8OID, INT8OID, INT8OID, INT8OID, INT8OID, INT8OID, BOOLOID},
	};
	static InternalStatement update_progress_at = {
		.sql = UPDATE_PROGRESS(" AND ctid OPERATOR(pg_catalog.=) $11"),
		.target = TABLE_PROGRESS,
		.nargs = 11,
		.argtypes = {TEXTOID, TEXTOID, TEXTOID, INT8OID, INT8OID, INT8OID, INT8OID, INT8OID, INT8OID, BOOLOID, TIDOID},
	};
	const EventPosition *stored = &run->definition->position;
	bool		same_window = event_snapshot_equal(position->window, stored->window);
	int			nxids = 0;
	Datum		values[11] = {0};
	char		nulls[11] = {' ', 'n', 'n', 'n', ' ', ' ', ' ', ' ', ' ', ' ', ' '};
	bool		isnull;

	values[0] = CStringGetTextDatum(run->definition->name);
	if (!event_snapshot_equal(position->cursor, stored->cursor))
	{
		values[1] = CStringGetTextDatum(event_snapshot_text(position->cursor));
		nulls[1] = ' ';
		nxids += position->cursor->nxip;
	}
	if (position->window != NULL && !same_window)
	{
		values[2] = CStringGetTextDatum(event_snapshot_text(position->window));
		nulls[2] = ' ';
		nxids += position->window->nxip;
	}
	if (position->window != NULL)
	{
		values[3] = Int64GetDatum(position->last_id);
		nulls[3] = ' ';
	}
	values[4] = Int64GetDatum(counters->delivered);
	values[5] = Int64GetDatum(counters->retried);
	values[6] = Int64GetDatum(counters->last_event_id);
	if (counters->delivered == 0)
		nulls[6] = 'n';
	values[7] = Int64GetDatum(run->definition->created);
	values[8] = Int64GetDatum(group_end);
	if (group_end == NO_GROUP)
		nulls[8] = 'n';
	values[9] = BoolGetDatum(same_window);

	/*
	 * The row is locked by this transaction.  It can be elsewhere if this transaction
	 * has changed it already.  It can be gone if the handler dropped itself.  If the
	 * handler was then created again, that is another handler.
	 */
	values[10] = PointerGetDatum(&run->progress_tid);
	if (internal_execute(&update_progress_at, values, nulls, 0) == 1 ||
		internal_execute(&update_progress, values, nulls, 0) == 1)
		run->progress_tid = *(ItemPointer) DatumGetPointer(internal_value(0, 1, &isnull));
	else
		run->stale = true;
	throttle_progress_written(GetTopFullTransactionId(), nxids);
}

/*
 * Store that the handler has reached index next of its window, and add the counters.
 * Called in the transaction that has locked the row with progress_lock().  Sets stale
 * if the row is gone.  Call progress_stored() after the commit.
 */
void
progress_store(HandlerRun *run, int64 next, const ProgressCounters *counters)
{
	EventPosition position = position_at(run, next);

	Assert(ActiveSnapshotSet());
	store_position(run, &position, group_end_at(run, &position), counters);
}

/*
 * Remember a position that was stored and is committed.
 */
static void
remember_position(HandlerRun *run, const EventPosition *position, int64 group_end)
{
	MemoryContext old = MemoryContextSwitchTo(run->context);
	EventPosition *stored = &run->definition->position;
	EventPosition previous = *stored;

	*stored = event_position_copy(position);
	run->definition->group_end = group_end;
	MemoryContextSwitchTo(old);
	event_position_free(&previous);
}

/*
 * What progress_store() has written for index next is committed: remember it, and
 * finish the window if the handler has reached its end.
 */
void
progress_stored(HandlerRun *run, int64 next)
{
	EventPosition position = position_at(run, next);

	remember_position(run, &position, group_end_at(run, &position));
	run->next = next;
	if (run->window != NULL && next >= run->window->nevents)
		handler_run_finish_window(run);
	run->ahead_since = 0;
	run->state->unstored = 0;
}

/*
 * Set the handler's position in memory to its stored position.
 */
static void
enter_position(HandlerRun *run)
{
	EventPosition previous = run->position;
	MemoryContext old = MemoryContextSwitchTo(run->context);

	run->position = event_position_copy(&run->definition->position);
	MemoryContextSwitchTo(old);
	event_position_free(&previous);
}

/*
 * Record, flushed, that the events from where the handler is in its window up to event
 * group_end are being tried.  The window is stored with it.  So the events that remain
 * of the group are those that this window has up to group_end, whatever becomes
 * visible later.  Returns false if the row could not be locked and the handler has to
 * wait.  Not to be called in a transaction; the handler must have a window.
 */
bool
progress_record_group(HandlerRun *run, int64 group_end)
{
	static const ProgressCounters nothing = {0};
	EventPosition position = position_at(run, run->next);

	Assert(run->window != NULL);

	if (position.window == NULL)
		position = (EventPosition) {.cursor = run->position.cursor, .window = run->window->upto, .last_id = PG_INT64_MIN};
	transaction_start_own();
	if (!progress_lock(run))
	{
		transaction_commit(0);
		return false;
	}
	store_position(run, &position, group_end, &nothing);
	ForceSyncCommit();
	transaction_commit(0);
	remember_position(run, &position, group_end);
	enter_position(run);
	run->ahead_since = 0;
	run->state->unstored = 0;
	return true;
}

/*
 * Store a position that is ahead of the stored one because events did not concern the
 * handler.  Does nothing if it is not ahead, or if the row cannot be locked; in the
 * latter case the handler is postponed or stale.  durable: flush it, too.  Not to be
 * called in a transaction.
 */
void
progress_flush(HandlerRun *run, bool durable)
{
	static const ProgressCounters nothing = {0};

	if (run->ahead_since == 0)
		return;
	transaction_start();
	if (progress_lock(run))
	{
		progress_store(run, run->next, &nothing);
		if (durable)
			ForceSyncCommit();
		transaction_commit(0);
		progress_stored(run, run->next);
		executor_progress_committed(0);
	}
	else
		transaction_commit(0);
}
