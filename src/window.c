/*-------------------------------------------------------------------------
 *
 * window.c
 *		The snapshot cursor over the log.
 *
 * An event's id is drawn before its transaction commits, so events become
 * visible out of the order of their ids, and a reader that remembers the last
 * id it has seen loses those that come late.  Positions in the log therefore
 * are snapshots: "every event whose transaction is visible in it is done".
 * The next window is what is visible now and was not visible then; a late
 * commit is in a later window, and delays nobody else's events.
 *
 * Rules that everything depends on, each in one place:
 *
 *	- The snapshot that becomes the next cursor is the very one that the window
 *	  was read under (callers build it from the same Snapshot).
 *	- event_snapshot_build() makes every cursor.  A server snapshot never lists
 *	  its own transaction as running, which would make a cursor taken by a
 *	  transaction that emits call its own, later events done; so it is added.
 *	- The log is locked before the snapshot is taken: one that is older than a
 *	  rewrite of the table would see it empty (callers open the relation first;
 *	  window_scan() asserts the lock).
 *	- Inside a window events go by id.  An id is drawn while its row is locked,
 *	  so between transactions that is the order of changes of each row.  Order
 *	  by transaction id would not be.
 *
 * The log is read by direct index scans: an index range from the cursor's xmax,
 * and a look-up for each transaction that was running then and is not any
 * more.  So a transaction that stays open for an hour costs its own look-up
 * once, and no planner, with whatever statistics, can choose another way.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/genam.h"
#include "access/htup_details.h"
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
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/xid8.h"

#include "catalog.h"
#include "compat.h"
#include "settings.h"
#include "window.h"

/* rows that window_read_on() looks at, at most */
#define READ_ON_ROWS 10000

/* first room for the ids of a window */
#define INITIAL_IDS 128

static int
compare_uint64(const void *a, const void *b)
{
	uint64		left = *(const uint64 *) a;
	uint64		right = *(const uint64 *) b;

	return (left > right) - (left < right);
}

static int
compare_int64(const void *a, const void *b)
{
	int64		left = *(const int64 *) a;
	int64		right = *(const int64 *) b;

	return (left > right) - (left < right);
}

/*
 * A transaction id of a snapshot with its epoch.  It is at most half of the
 * id space away from the next one.
 */
static uint64
widen_xid(TransactionId xid, FullTransactionId next)
{
	uint64		epoch = EpochFromFullTransactionId(next);

	if (xid > XidFromFullTransactionId(next))
		epoch--;
	return (epoch << 32) | xid;
}

static EventSnapshot *
allocate_snapshot(int nxip)
{
	EventSnapshot *result;

	result = palloc(offsetof(EventSnapshot, xip) + sizeof(uint64) * nxip);
	result->nxip = nxip;
	return result;
}

/*
 * The cursor for a server snapshot: what it sees, less the own transaction.
 *
 * xmax is never raised to take the own xid in: xids between would count as
 * done.  An own xid from xmax on is not seen anyway.
 */
EventSnapshot *
event_snapshot_build(Snapshot snapshot)
{
	FullTransactionId next = ReadNextFullTransactionId();
	FullTransactionId own = GetTopFullTransactionIdIfAny();
	EventSnapshot *result;
	int			n = 0;

	Assert(snapshot->snapshot_type == SNAPSHOT_MVCC);
	Assert(!snapshot->takenDuringRecovery);

	result = allocate_snapshot((int) snapshot->xcnt + 1);
	result->xmin = widen_xid(snapshot->xmin, next);
	result->xmax = widen_xid(snapshot->xmax, next);
	for (uint32 i = 0; i < snapshot->xcnt; i++)
		result->xip[n++] = widen_xid(snapshot->xip[i], next);
	if (FullTransactionIdIsValid(own) &&
		U64FromFullTransactionId(own) >= result->xmin &&
		U64FromFullTransactionId(own) < result->xmax)
		result->xip[n++] = U64FromFullTransactionId(own);
	Assert(!FullTransactionIdIsValid(own) || U64FromFullTransactionId(own) >= result->xmin);
	result->nxip = n;
	qsort(result->xip, n, sizeof(uint64), compare_uint64);
	return result;
}

/*
 * The cursor of somebody who has done nothing yet.
 */
EventSnapshot *
event_snapshot_nothing(void)
{
	EventSnapshot *result = allocate_snapshot(0);

	result->xmin = FirstNormalTransactionId;
	result->xmax = FirstNormalTransactionId;
	return result;
}

EventSnapshot *
event_snapshot_copy(const EventSnapshot *snapshot)
{
	EventSnapshot *result = allocate_snapshot(snapshot->nxip);

	memcpy(result, snapshot, offsetof(EventSnapshot, xip) + sizeof(uint64) * snapshot->nxip);
	return result;
}

/*
 * From the text form of pg_snapshot, "xmin:xmax:xip,xip,...", which the type's
 * output function wrote.
 */
EventSnapshot *
event_snapshot_parse(const char *text)
{
	EventSnapshot *result;
	const char *p;
	char	   *end;
	int			count = 0;

	for (p = text; *p != '\0'; p++)
		count += (*p == ',' || *p == ':');

	result = allocate_snapshot(count);
	result->nxip = 0;
	result->xmin = strtou64(text, &end, 10);
	if (*end != ':')
		elog(ERROR, "malformed snapshot \"%s\"", text);
	result->xmax = strtou64(end + 1, &end, 10);
	if (*end != ':')
		elog(ERROR, "malformed snapshot \"%s\"", text);
	for (p = end + 1; *p != '\0'; p = (*end == ',') ? end + 1 : end)
	{
		result->xip[result->nxip++] = strtou64(p, &end, 10);
		if (end == p || (*end != ',' && *end != '\0'))
			elog(ERROR, "malformed snapshot \"%s\"", text);
	}
	return result;
}

/*
 * To the text form of pg_snapshot.
 */
char *
event_snapshot_text(const EventSnapshot *snapshot)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, UINT64_FORMAT ":" UINT64_FORMAT ":", snapshot->xmin, snapshot->xmax);
	for (int i = 0; i < snapshot->nxip; i++)
		appendStringInfo(&buf, "%s" UINT64_FORMAT, i > 0 ? "," : "", snapshot->xip[i]);
	return buf.data;
}

/*
 * Whether a transaction was done when the snapshot was taken.
 */
bool
event_snapshot_sees(const EventSnapshot *snapshot, uint64 xid)
{
	if (xid < snapshot->xmin)
		return true;
	if (xid >= snapshot->xmax)
		return false;
	return bsearch(&xid, snapshot->xip, snapshot->nxip, sizeof(uint64), compare_uint64) == NULL;
}

bool
event_snapshot_equal(const EventSnapshot *a, const EventSnapshot *b)
{
	if (a == NULL || b == NULL)
		return a == b;
	return a->xmin == b->xmin && a->xmax == b->xmax && a->nxip == b->nxip &&
		memcmp(a->xip, b->xip, sizeof(uint64) * a->nxip) == 0;
}

/*
 * Whether the first snapshot sees everything that the other one sees.
 */
bool
event_snapshot_covers(const EventSnapshot *snapshot, const EventSnapshot *other)
{
	for (int i = 0; i < snapshot->nxip; i++)
	{
		if (event_snapshot_sees(other, snapshot->xip[i]))
			return false;
	}
	for (uint64 xid = snapshot->xmax; xid < other->xmax; xid++)
	{
		if (event_snapshot_sees(other, xid))
			return false;
	}
	return true;
}

/*
 * Whether a position has passed an event of transaction xid.
 */
bool
event_position_passed(const EventPosition *position, uint64 xid, int64 id)
{
	return event_snapshot_sees(position->cursor, xid) ||
		(position->window != NULL && id <= position->last_id &&
		 event_snapshot_sees(position->window, xid));
}

/*
 * The transaction that recorded an event.
 */
uint64
event_slot_txid(TupleTableSlot *slot)
{
	bool		isnull;
	Datum		value = slot_getattr(slot, Anum_event_txid, &isnull);

	Assert(!isnull);
	return U64FromFullTransactionId(DatumGetFullTransactionId(value));
}

static int64
slot_id(TupleTableSlot *slot)
{
	bool		isnull;
	Datum		value = slot_getattr(slot, Anum_event_id, &isnull);

	Assert(!isnull);
	return DatumGetInt64(value);
}

/*
 * One scan of the index on txid, for the keys given.  False if the callback
 * has ended it.
 */
static bool
scan_txids(Relation log, Relation index, Snapshot snapshot, int nkeys, ScanKey keys,
		   const EventPosition *position, const EventSnapshot *upto,
		   WindowCallback callback, void *arg)
{
	IndexScanDesc scan;
	TupleTableSlot *slot = table_slot_create(log, NULL);
	bool		go_on = true;

	scan = pne_index_beginscan(log, index, snapshot, nkeys);
	index_rescan(scan, keys, nkeys, NULL, 0);
	while (go_on && index_getnext_slot(scan, ForwardScanDirection, slot))
	{
		uint64		xid = event_slot_txid(slot);
		int64		id = slot_id(slot);

		CHECK_FOR_INTERRUPTS();
		if (event_snapshot_sees(upto, xid) && !event_position_passed(position, xid, id))
			go_on = callback(slot, id, arg);
	}
	index_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	return go_on;
}

/*
 * Every event between a position and a snapshot, in no particular order.
 *
 * The caller has locked the log before it took the snapshot; upto was built
 * from that snapshot, or is a window that is older.
 */
void
window_scan(Relation log, const EventPosition *position, Snapshot snapshot,
			const EventSnapshot *upto, WindowCallback callback, void *arg)
{
	const EventSnapshot *cursor = position->cursor;
	Relation	index;
	ScanKeyData keys[2];
	bool		go_on;

	Assert(CheckRelationLockedByMe(log, AccessShareLock, true));

	index = index_open(catalog_lookup(false)->log_txid_index, AccessShareLock);

	ScanKeyInit(&keys[0], 1, BTGreaterEqualStrategyNumber, F_XID8GE,
				FullTransactionIdGetDatum(FullTransactionIdFromU64(cursor->xmax)));
	ScanKeyInit(&keys[1], 1, BTLessStrategyNumber, F_XID8LT,
				FullTransactionIdGetDatum(FullTransactionIdFromU64(upto->xmax)));
	go_on = scan_txids(log, index, snapshot, 2, keys, position, upto, callback, arg);

	for (int i = 0; go_on && i < cursor->nxip; i++)
	{
		if (!event_snapshot_sees(upto, cursor->xip[i]))
			continue;
		ScanKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_XID8EQ,
					FullTransactionIdGetDatum(FullTransactionIdFromU64(cursor->xip[i])));
		go_on = scan_txids(log, index, snapshot, 1, keys, position, upto, callback, arg);
	}

	index_close(index, AccessShareLock);
}

typedef struct CollectState
{
	Window	   *window;
	int64		room;
	WindowCallback wanted;		/* or NULL: all are */
	void	   *arg;
} CollectState;

static bool
collect_id(TupleTableSlot *slot, int64 id, void *arg)
{
	CollectState *state = (CollectState *) arg;
	Window	   *window = state->window;

	if (state->wanted != NULL && !state->wanted(slot, id, state->arg))
		return true;
	if (window->nids == state->room)
	{
		state->room *= 2;
		window->ids = repalloc_huge(window->ids, state->room * sizeof(int64));
	}
	window->ids[window->nids++] = id;
	return true;
}

/*
 * An empty window, with one reference, in a context of its own.
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
	window->through = PG_INT64_MAX;
	window->chunk_context = AllocSetContextCreate(context, "event window chunk", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(old);
	return window;
}

/*
 * Read the window between a position and a snapshot: its ids, sorted once.
 *
 * A position inside a window is continued in that same window.  The result has
 * one reference; it lives in a context of its own below parent.
 */
Window *
window_read(Relation log, const EventPosition *position, Snapshot snapshot,
			const EventSnapshot *upto, MemoryContext parent)
{
	return window_read_wanted(log, position, snapshot, upto, parent, NULL, NULL);
}

/*
 * The same of those events only for which a callback returns true; it is called
 * for each event, in no particular order.
 */
Window *
window_read_wanted(Relation log, const EventPosition *position, Snapshot snapshot,
				   const EventSnapshot *upto, MemoryContext parent,
				   WindowCallback wanted, void *arg)
{
	Window	   *window;
	CollectState state;

	if (position->window != NULL)
		upto = position->window;
	window = window_create(parent, position->cursor, upto);
	state.window = window;
	state.room = INITIAL_IDS;
	state.wanted = wanted;
	state.arg = arg;
	window->ids = MemoryContextAlloc(window->context, state.room * sizeof(int64));

	window_scan(log, position, snapshot, upto, collect_id, &state);
	qsort(window->ids, window->nids, sizeof(int64), compare_int64);
	return window;
}

typedef struct ReadOnState
{
	Window	   *window;
	int			limit;
	int			looked_at;
} ReadOnState;

static bool
read_on(TupleTableSlot *slot, int64 id, void *arg)
{
	ReadOnState *state = (ReadOnState *) arg;
	Window	   *window = state->window;
	uint64		xid = event_slot_txid(slot);

	if (event_snapshot_sees(window->upto, xid) && !event_snapshot_sees(window->from, xid))
		window->ids[window->nids++] = id;
	if (window->nids < state->limit && ++state->looked_at < READ_ON_ROWS)
		return true;
	window->through = id;
	return false;
}

/*
 * Read on from a position inside a window: the next ids of that window, limit
 * at most.
 *
 * For who keeps nothing in memory between two visits: window_read() would read
 * the ids of a large window again each time, only to come to the next few.
 * They are looked for by id from the position on, which is as good as it gets
 * where a backlog is worked off.  Where they are far away (a late commit of low
 * ids, before the ids of today) the search gives up, and what it returns ends
 * at the id that it has come to (through).
 */
Window *
window_read_on(Relation log, const EventPosition *position, Snapshot snapshot, int limit,
			   MemoryContext parent)
{
	Window	   *window = window_create(parent, position->cursor, position->window);
	ReadOnState state = {window, limit, 0};

	window->ids = MemoryContextAlloc(window->context, limit * sizeof(int64));
	if (position->last_id < PG_INT64_MAX)
		window_scan_ids(log, snapshot, position->last_id + 1, PG_INT64_MAX, read_on, &state);
	return window;
}

/*
 * A window of events that somebody names by their ids, in ascending order.
 */
Window *
window_from_ids(const int64 *ids, int nids, MemoryContext parent)
{
	EventSnapshot *nothing = event_snapshot_nothing();
	Window	   *window = window_create(parent, nothing, nothing);

	window->nids = nids;
	window->ids = MemoryContextAlloc(window->context, nids * sizeof(int64));
	memcpy(window->ids, ids, nids * sizeof(int64));
	return window;
}

/*
 * The position of who has come to index next, which is not the first one unless
 * the window is empty.  It points into the window.
 */
EventPosition
window_position(const Window *window, int64 next)
{
	EventPosition position = {window->upto, NULL, 0};

	Assert(next > 0 || window->nids == 0);
	if (next < window->nids || window->through != PG_INT64_MAX)
	{
		position.cursor = window->from;
		position.window = window->upto;
		position.last_id = (next < window->nids) ? window->ids[next - 1] : window->through;
	}
	return position;
}

/*
 * A window of one's own in place of a reference to a shared one, without any
 * events in memory.
 */
Window *
window_split(Window *window, MemoryContext parent)
{
	Window	   *result = window_create(parent, window->from, window->upto);

	result->nids = window->nids;
	result->ids = MemoryContextAllocHuge(result->context, window->nids * sizeof(int64));
	memcpy(result->ids, window->ids, window->nids * sizeof(int64));
	window_release(window);
	return result;
}

void
window_release(Window *window)
{
	Assert(window->references > 0);
	if (--window->references == 0)
		MemoryContextDelete(window->context);
}

/*
 * Copy what matching needs out of an event's row.
 */
void
event_from_tuple(Event *event, Relation log, HeapTuple tuple)
{
	TupleDesc	desc = RelationGetDescr(log);
	bool		isnull;
	Datum		value;

	event->tuple = tuple;
	event->id = DatumGetInt64(heap_getattr(tuple, Anum_event_id, desc, &isnull));
	event->name = TextDatumGetCString(heap_getattr(tuple, Anum_event_name, desc, &isnull));
	value = heap_getattr(tuple, Anum_event_created_at, desc, &isnull);
	event->created_at = isnull ? DT_NOBEGIN : DatumGetTimestampTz(value);
	event->size = tuple->t_len;
	value = heap_getattr(tuple, Anum_event_data, desc, &isnull);
	if (!isnull)
		event->size += toast_raw_datum_size(value);
	event->hidden = false;
}

/*
 * Every event with an id between two bounds, included, by id.
 */
void
window_scan_ids(Relation log, Snapshot snapshot, int64 from, int64 to, WindowCallback callback, void *arg)
{
	Relation	index = index_open(catalog_lookup(false)->log_pkey, AccessShareLock);
	IndexScanDesc scan = pne_index_beginscan(log, index, snapshot, 2);
	TupleTableSlot *slot = table_slot_create(log, NULL);
	ScanKeyData keys[2];
	bool		go_on = true;

	ScanKeyInit(&keys[0], 1, BTGreaterEqualStrategyNumber, F_INT8GE, Int64GetDatum(from));
	ScanKeyInit(&keys[1], 1, BTLessEqualStrategyNumber, F_INT8LE, Int64GetDatum(to));
	index_rescan(scan, keys, 2, NULL, 0);
	while (go_on && index_getnext_slot(scan, ForwardScanDirection, slot))
	{
		CHECK_FOR_INTERRUPTS();
		go_on = callback(slot, slot_id(slot), arg);
	}
	index_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	index_close(index, AccessShareLock);
}

static bool
copy_event(TupleTableSlot *slot, int64 id, void *arg)
{
	*(HeapTuple *) arg = ExecCopySlotHeapTuple(slot);
	return false;
}

/*
 * One event's row by its id, copied, or NULL.
 */
HeapTuple
window_fetch_event(Relation log, Snapshot snapshot, int64 id)
{
	HeapTuple	tuple = NULL;

	window_scan_ids(log, snapshot, id, id, copy_event, &tuple);
	return tuple;
}

/*
 * Have the events of a window from index start on in memory: at most limit, or
 * about batch_bytes of them.
 */
void
window_load_chunk(Window *window, Relation log, Snapshot snapshot, int64 start, int limit)
{
	Relation	index = index_open(catalog_lookup(false)->log_pkey, AccessShareLock);
	IndexScanDesc scan = pne_index_beginscan(log, index, snapshot, 1);
	TupleTableSlot *slot = table_slot_create(log, NULL);
	int64		count = Min(window->nids - start, limit);
	Size		bytes = 0;
	MemoryContext old;

	Assert(start < window->nids && limit > 0);

	MemoryContextReset(window->chunk_context);
	window->chunk_changes = catalog_log_changes();
	window->chunk_start = start;
	window->chunk_length = 0;

	old = MemoryContextSwitchTo(window->chunk_context);
	window->chunk = palloc0(sizeof(Event) * count);
	for (int64 i = 0; i < count && bytes < (Size) pne_batch_bytes * 1024; i++)
	{
		Event	   *event = &window->chunk[i];
		ScanKeyData key;

		CHECK_FOR_INTERRUPTS();
		event->id = window->ids[start + i];
		ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_INT8EQ, Int64GetDatum(event->id));
		index_rescan(scan, &key, 1, NULL, 0);
		if (index_getnext_slot(scan, ForwardScanDirection, slot))
		{
			event_from_tuple(event, log, ExecCopySlotHeapTuple(slot));
			bytes += event->size;
		}
		window->chunk_length++;
	}
	MemoryContextSwitchTo(old);

	index_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	index_close(index, AccessShareLock);
}

/*
 * Have on disk whatever the snapshots that were taken so far see, before some
 * of it leaves the server.
 *
 * A commit need not wait for its flush (synchronous_commit = off), and a crash
 * then takes the transaction back.  An id that a client was shown would be
 * given to another event.
 */
void
window_flush_wal(void)
{
	XLogRecPtr	upto = GetXLogInsertRecPtr();
	uint32		offset = upto % XLOG_BLCKSZ;

	/*
	 * At the beginning of a page the position is behind the page's header,
	 * which nobody has written yet: all there is ends before that page.
	 */
	if (offset == (XLogSegmentOffset(upto, wal_segment_size) < XLOG_BLCKSZ ?
				   SizeOfXLogLongPHD : SizeOfXLogShortPHD))
		upto -= offset;
	XLogFlush(upto);
}
