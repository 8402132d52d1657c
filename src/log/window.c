/*-------------------------------------------------------------------------
 *
 * window.c
 *		The snapshot cursor over the log.
 *
 * An event's id is drawn before its transaction commits.  So events become visible out
 * of the order of their ids, and a reader that remembers only the last id would lose
 * those that come late.  Therefore positions in the log are snapshots: every event
 * whose transaction is visible in the snapshot is done.  The next window is what is
 * visible now and was not visible then.  An event of a late commit is in a later
 * window, and delays nobody else's events.
 *
 * Everything depends on these rules, each of which lives in one place:
 *
 *	- The snapshot that becomes the next cursor is the very one under which the
 *	  window was read (callers build it from the same Snapshot).
 *	- event_snapshot_build() makes every cursor (position.c).
 *	- The log is locked before the snapshot is taken.  A snapshot that is older than
 *	  a rewrite of the table would see it empty.  (Callers open the relation first;
 *	  window_scan() asserts the lock.)
 *	- Inside a window events go by id.  An id is drawn while its row is locked, so
 *	  this is the order of the changes of each row between transactions.  The order
 *	  of transaction ids would not be.
 *
 * The log is read by direct index scans: an index range from the cursor's xmax on, and
 * a look-up for each transaction that was running then and has ended since.  So a
 * transaction that stays open for an hour costs one look-up, and no planner can choose
 * another way, whatever the statistics.
 *
 * Of a large window only the lowest ids are held in memory (collect.c).  The events
 * behind them are read later, from the id where the first ones end.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/relscan.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "executor/tuptable.h"
#include "storage/lmgr.h"
#include "storage/lwlock.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/xid8.h"

#include "base/catalog.h"
#include "base/compat.h"
#include "base/fault.h"
#include "base/index_lookup.h"
#include "base/settings.h"
#include "log/collect.h"
#include "log/window.h"

/* how many rows are looked at by id in vain, at most */
#define READ_ON_ROWS 10000

/*
 * How many events of a window are held in memory at most.  More events only cost
 * further reading.
 */
#define WINDOW_BOUND (INT64CONST(1) << 20)

/* reading by id pays if at least one of so many rows belongs to the window */
#define BY_ID_ROWS 4

/* after how many rows a reader with a deadline looks at the clock */
#define LOOK_AT_CLOCK 1024

/*
 * One scan of the index on txid, for the given keys.  Returns false if the callback or
 * the deadline has ended it.  Adds to rows how many were looked at.
 */
static bool
scan_txids(Relation log, Relation index, Snapshot snapshot, int nkeys, ScanKey keys,
		   const EventPosition *position, const EventSnapshot *upto, ScanDirection direction,
		   EventCallback callback, void *arg, Instant deadline, int64 *rows)
{
	IndexScanDesc scan;
	TupleTableSlot *slot = table_slot_create(log, NULL);
	BlockNumber block = InvalidBlockNumber;
	bool		go_on = true;

	scan = pne_index_beginscan(log, index, snapshot, nkeys);
	index_rescan(scan, keys, nkeys, NULL, 0);
	while (go_on && index_getnext_slot(scan, direction, slot))
	{
		uint64		xid;
		int64		id;

		CHECK_FOR_INTERRUPTS();
		event_prefetch_page(slot, &block);
		xid = event_slot_txid(slot);
		id = event_slot_id(slot);
		if (event_snapshot_sees(upto, xid) && !event_position_passed(position, xid, id))
			go_on = callback(slot, id, arg);
		if (++*rows % LOOK_AT_CLOCK == 0 && deadline != INSTANT_NEVER && instant_now() >= deadline)
			go_on = false;
	}
	index_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	return go_on;
}

/*
 * window_scan() with a deadline.  Returns false if the callback or the deadline has
 * ended it.  rows is how many were looked at.
 */
static bool
scan_window(Relation log, const EventPosition *position, Snapshot snapshot, const EventSnapshot *upto,
			ScanDirection direction, EventCallback callback, void *arg, Instant deadline, int64 *rows)
{
	static const WantedIndex by_txid = {.nkeys = 1, .keys = {Anum_event_txid}};
	const EventSnapshot *cursor = position->cursor;
	Relation	index;
	ScanKeyData keys[2];
	bool		go_on;

	Assert(CheckRelationLockedByMe(log, AccessShareLock, true));
	*rows = 0;

	index = index_open_wanted(log, &by_txid);

	ScanKeyInit(&keys[0], 1, BTGreaterEqualStrategyNumber, F_XID8GE,
				FullTransactionIdGetDatum(FullTransactionIdFromU64(cursor->xmax)));
	ScanKeyInit(&keys[1], 1, BTLessStrategyNumber, F_XID8LT,
				FullTransactionIdGetDatum(FullTransactionIdFromU64(upto->xmax)));
	go_on = scan_txids(log, index, snapshot, 2, keys, position, upto, direction, callback, arg, deadline, rows);

	for (int i = 0; go_on && i < cursor->nxip; i++)
	{
		if (!event_snapshot_sees(upto, cursor->xip[i]))
			continue;
		ScanKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_XID8EQ,
					FullTransactionIdGetDatum(FullTransactionIdFromU64(cursor->xip[i])));
		go_on = scan_txids(log, index, snapshot, 1, keys, position, upto, direction, callback, arg, deadline, rows);
	}

	index_close(index, AccessShareLock);
	return go_on;
}

/*
 * Scan every event between a position and a snapshot, in no particular order.
 *
 * The caller has locked the log before it took the snapshot.  upto was built from that
 * snapshot, or is an older window.
 */
void
window_scan(Relation log, const EventPosition *position, Snapshot snapshot,
			const EventSnapshot *upto, EventCallback callback, void *arg)
{
	int64		rows;

	(void) scan_window(log, position, snapshot, upto, ForwardScanDirection, callback, arg, INSTANT_NEVER, &rows);
}

/*
 * Scan the same events, from the newest transactions on.
 */
void
window_scan_back(Relation log, const EventPosition *position, Snapshot snapshot,
				 const EventSnapshot *upto, EventCallback callback, void *arg)
{
	int64		rows;

	(void) scan_window(log, position, snapshot, upto, BackwardScanDirection, callback, arg, INSTANT_NEVER, &rows);
}

/*
 * Create an empty window, with one reference, in a context of its own.
 */
static Window *
window_create(MemoryContext parent, const EventSnapshot *from, const EventSnapshot *upto)
{
	MemoryContext context = AllocSetContextCreate(parent, "event window", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	Window	   *window = palloc0(sizeof(Window));

	window->context = context;
	window->references = 1;
	window->from = event_snapshot_copy(from);
	window->upto = event_snapshot_copy(upto);
	window->whole = true;
	window->through = PG_INT64_MAX;
	MemoryContextSwitchTo(old);
	return window;
}

/*
 * Group the indexes of the events by name, if there are several names.
 */
static void
index_names(Window *window)
{
	int			count = window->names->count;
	int64	   *next;

	if (count <= NAME_UNKNOWN + 2)
		return;
	next = palloc0(sizeof(int64) * count);
	window->by_name = MemoryContextAllocHuge(window->context, sizeof(int64) * window->nevents);
	window->name_ends = MemoryContextAlloc(window->context, sizeof(int64) * count);
	for (int64 i = 0; i < window->nevents; i++)
		next[window->events[i].name]++;
	for (int64 number = 0, end = 0; number < count; number++)
	{
		int64		length = next[number];

		next[number] = end;
		window->name_ends[number] = end += length;
	}
	for (int64 i = 0; i < window->nevents; i++)
		window->by_name[next[window->events[i].name]++] = i;
	pfree(next);
}

/*
 * Where the events from index i on begin among those of one name.
 */
static int64
first_of_name(const Window *window, NameNumber name, int64 i)
{
	int64		low = (name > 0) ? window->name_ends[name - 1] : 0;
	int64		high = window->name_ends[name];

	while (low < high)
	{
		int64		middle = low + (high - low) / 2;

		if (window->by_name[middle] < i)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/*
 * Find the events from index i on whose names are wanted, limit at most.  indexes gets
 * their indexes, followed by that of the next one, or nevents.  Returns how many were
 * found.
 */
int
window_find(const Window *window, int64 i, const WantedNames *wanted, int limit, int64 *indexes)
{
	int			count = 0;

	/* If few events of many have a wanted name, it takes long to look at all of them. */
	if (wanted->count == 0)
		i = window->nevents;
	else if (wanted->count == 1 && window->by_name != NULL)
	{
		int64		at = first_of_name(window, wanted->some, i);
		int64		end = window->name_ends[wanted->some];

		for (; count < limit && at < end; at++)
			indexes[count++] = window->by_name[at];
		i = (at < end) ? window->by_name[at] : window->nevents;
	}
	else
	{
		for (; i < window->nevents; i++)
		{
			if (!wanted->names[window->events[i].name])
				continue;
			if (count == limit)
				break;
			indexes[count++] = i;
		}
	}
	indexes[count] = i;
	return count;
}

/*
 * How many events of a window are read at once, and held in memory, at most.
 */
int64
window_bound(void)
{
	return FAULT_NUMBER("window-bound", WINDOW_BOUND);
}

typedef struct ReadByIdState
{
	const EventPosition *position;
	EventCollection *collection;
	int64		looked_at;
	bool		ended;			/* ended before all was looked at, because there was enough, */
	bool		gave_up;		/* or too little */
} ReadByIdState;

static bool
read_by_id(TupleTableSlot *slot, int64 id, void *arg)
{
	ReadByIdState *state = (ReadByIdState *) arg;
	EventCollection *collection = state->collection;
	uint64		xid = event_slot_txid(slot);

	if (event_snapshot_sees(state->position->window, xid) && !event_snapshot_sees(state->position->cursor, xid))
	{
		(void) collect_event(slot, id, collection);
		state->ended = (collection->nevents == collection->limit);
	}
	state->looked_at++;
	state->gave_up = state->looked_at - collection->nevents * BY_ID_ROWS >= Max(state->position->rows, READ_ON_ROWS);
	return !state->ended && !state->gave_up;
}

/*
 * Read on by id from a position inside a window.  Returns false, and reads nothing, if
 * little of what is there belongs to the window.
 */
static bool
collect_by_id(Relation log, const EventPosition *position, Snapshot snapshot, Window *window,
			  EventCollection *collection)
{
	ReadByIdState state = {.position = position, .collection = collection};
	int64		end = (position->rows > 0) ? position->end : PG_INT64_MAX;

	if (position->last_id < end)
		event_scan_ids(log, snapshot, position->last_id + 1, end, read_by_id, &state);
	if (state.gave_up && !state.ended)
	{
		collect_again(collection);
		return false;
	}
	if (state.ended && collection->largest < end)
	{
		window->through = collection->largest;
		window->rows = position->rows;
		window->end = position->end;
	}
	return true;
}

/*
 * Read everything behind a position, by transaction, and keep what comes first.
 * Returns false if the deadline came before the end.
 */
static bool
collect_by_txid(Relation log, const EventPosition *position, Snapshot snapshot, Window *window,
				EventCollection *collection, Instant deadline)
{
	int64		rows;

	if (!scan_window(log, position, snapshot, window->upto, ForwardScanDirection, collect_event, collection,
					 deadline, &rows))
		return false;
	if (collection->overflowed)
	{
		window->through = collection->events[0].id;
		window->rows = rows;
		window->end = collection->largest;
	}
	return true;
}

/*
 * Read a window, limit events at most.  Returns NULL if the deadline came before the
 * end.
 *
 * A larger window is read in parts, one behind the other.  To find the part with the
 * lowest ids, the first read has to look at the whole window, by the index on txid.
 * If each part did that, the time would grow with the square of the backlog.  So the
 * parts behind the first one are read by id from there on.  In all, that takes no
 * longer than the window is large while a backlog is worked off, because most rows
 * there belong to it.  If other events lie in between (the window of a long
 * transaction that others have overtaken), it gives up after as many rows as a scan by
 * txid looks at, and makes that scan.  So no part takes more than twice as long as the
 * better way.
 */
static Window *
read_window(Relation log, const EventPosition *position, Snapshot snapshot, const EventSnapshot *upto,
			MemoryContext parent, int64 limit, bool with_names, bool by_id,
			EventCallback wanted, void *arg, Instant deadline)
{
	Window	   *window;
	EventCollection collection;
	MemoryContext old;

	if (position->window != NULL)
		upto = position->window;
	window = window_create(parent, position->cursor, upto);
	if (position->window != NULL)
	{
		window->whole = false;
		window->after = position->last_id;
	}
	old = MemoryContextSwitchTo(window->context);
	collect_begin(&collection, limit, with_names);
	MemoryContextSwitchTo(old);
	collection.wanted = wanted;
	collection.arg = arg;

	if (!(by_id && position->window != NULL &&
		  collect_by_id(log, position, snapshot, window, &collection)) &&
		!collect_by_txid(log, position, snapshot, window, &collection, deadline))
	{
		window_release(window);
		return NULL;
	}
	collect_end(&collection);
	window->nevents = collection.nevents;
	window->room = collection.room;
	window->events = collection.events;
	window->names = collection.names;
	if (with_names)
		index_names(window);
	return window;
}

/*
 * Read the window between a position and a snapshot: its first events, sorted; mostly
 * all of them.  Returns NULL if the deadline comes before the end (INSTANT_NEVER: no
 * deadline).
 *
 * A position inside a window is continued in that same window.  The result has one
 * reference.  It lives in a context of its own below parent.
 */
Window *
window_read(Relation log, const EventPosition *position, Snapshot snapshot,
			const EventSnapshot *upto, MemoryContext parent, Instant deadline)
{
	return read_window(log, position, snapshot, upto, parent, window_bound(), false, false, NULL, NULL, deadline);
}

/*
 * Read a window with the events' names, limit events at most.
 */
Window *
window_read_names(Relation log, const EventPosition *position, Snapshot snapshot,
				  const EventSnapshot *upto, MemoryContext parent, int64 limit)
{
	return read_window(log, position, snapshot, upto, parent, limit, true, true, NULL, NULL, INSTANT_NEVER);
}

/*
 * Read only those events of a window for which a callback returns true.  It is called
 * for each event, in no particular order, and only once for each if the position is
 * not inside a window.
 */
Window *
window_read_wanted(Relation log, const EventPosition *position, Snapshot snapshot,
				   const EventSnapshot *upto, MemoryContext parent,
				   EventCallback wanted, void *arg)
{
	return read_window(log, position, snapshot, upto, parent, window_bound(), false, true, wanted, arg, INSTANT_NEVER);
}

/*
 * The index of the first event behind an id.
 */
int64
window_behind(const Window *window, int64 id)
{
	int64		low = 0;
	int64		high = window->nevents;

	while (low < high)
	{
		int64		middle = low + (high - low) / 2;

		if (window->events[middle].id <= id)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/*
 * The position of a reader that has come to index next.  That is not the first one
 * unless the window is empty.  The result points into the window.
 */
EventPosition
window_position(const Window *window, int64 next)
{
	EventPosition position = {.cursor = window->upto};

	Assert(next > 0 || window->nevents == 0);
	if (next < window->nevents || window->through != PG_INT64_MAX)
	{
		position.cursor = window->from;
		position.window = window->upto;
		position.last_id = (next < window->nevents) ? window->events[next - 1].id : window->through;
		position.rows = window->rows;
		position.end = window->end;
	}
	return position;
}

void
window_release(Window *window)
{
	Assert(window->references > 0);
	if (--window->references == 0)
		MemoryContextDelete(window->context);
}

/*
 * Where the WAL that is written up to now ends.
 */
static XLogRecPtr
wal_end(void)
{
	XLogRecPtr	upto = GetXLogInsertRecPtr();
	uint32		offset = upto % XLOG_BLCKSZ;

	/*
	 * At the beginning of a page the position is behind the page's header, which is
	 * not written yet.  All WAL that exists ends before that page.
	 */
	if (offset == (XLogSegmentOffset(upto, wal_segment_size) < XLOG_BLCKSZ ?
				   SizeOfXLogLongPHD : SizeOfXLogShortPHD))
		upto -= offset;
	return upto;
}

/*
 * Flush whatever the snapshots that were taken so far see, before some of it leaves
 * the server.
 *
 * A commit need not wait for its flush (synchronous_commit = off), and then a crash
 * takes the transaction back.  An id that a client has seen would be given to another
 * event.
 */
void
window_flush_wal(void)
{
	XLogFlush(wal_end());
}

/*
 * Flush these events before they, and nothing else, leave the server.
 *
 * Other processes write at the same time, so there is nearly always WAL that is not on
 * disk.  But the commits of these events may be on disk, and the server knows that.
 * To decide when it may mark rows as committed, it remembers for asynchronous commits
 * how far the WAL has to be flushed, for some transactions of about the same time
 * together.  What it has forgotten about an old transaction was flushed long ago.
 */
void
window_flush_events(const EventIdentity *events, int nevents)
{
	uint64		next = U64FromFullTransactionId(ReadNextFullTransactionId());
	uint64		before = 0;
	XLogRecPtr	upto = InvalidXLogRecPtr;

	if (nevents == 0 || !XLogNeedsFlush(wal_end()))
		return;

	/* none of that is forgotten meanwhile */
	LWLockAcquire(XactTruncationLock, LW_SHARED);
	for (int i = 0; i < nevents; i++)
	{
		uint64		txid = events[i].txid;

		if (txid == before)
			continue;
		before = txid;
		if (next - txid <= MaxTransactionId / 2 &&
			!TransactionIdPrecedes((TransactionId) txid, TransamVariables->oldestClogXid))
			upto = Max(upto, TransactionIdGetCommitLSN((TransactionId) txid));
	}
	LWLockRelease(XactTruncationLock);
	if (upto != InvalidXLogRecPtr)
		XLogFlush(upto);
}
