/*-------------------------------------------------------------------------
 *
 * event.c
 *		Events: rows of the log.
 *
 * Which events somebody has to look at is told by a window (window.c), by their
 * ids and where their rows were when it was read.  Here the rows are fetched from
 * there: to descend the index on id for each costs several times what the rest
 * of reading does.  A row that is not there any more, as it was updated, or the
 * table was rewritten, is looked for by its id; so is one that had been updated on
 * its page before, which heap does not begin with.  And as another event may have
 * come to a place, the id tells whether it is the right one.
 *
 * A handler's events may be far from each other, with those of others between,
 * and then much of the time goes by waiting for memory.  So the processor is told
 * of rows some while before they are read.
 *
 * The caller has locked the log before he took the snapshot.
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
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "storage/buf_internals.h"
#include "storage/bufmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/xid8.h"

#include "base/catalog.h"
#include "base/compat.h"
#include "base/index_lookup.h"
#include "base/settings.h"
#include "log/event.h"

/*
 * So many rows before they are read the processor is told of so many: at once,
 * as each waits for its page to be found, and those of some can be looked for at
 * the same time.
 */
#define PREFETCH_ROWS 8

/* bytes that most processors fetch at once; a row with little data lies in two */
#define CACHE_LINE 64

#ifdef __GNUC__
#define prefetch(address) __builtin_prefetch(address)
#else
#define prefetch(address) ((void) (address))
#endif

/*
 * Transactions and ids of events as arguments for internal_execute(), and back.
 */
Datum
event_txid_datum(uint64 txid)
{
	return FullTransactionIdGetDatum(FullTransactionIdFromU64(txid));
}

uint64
event_txid_from_datum(Datum value)
{
	return U64FromFullTransactionId(DatumGetFullTransactionId(value));
}

Datum
event_txids_datum(const EventIdentity *events, int nevents)
{
	Datum	   *elements = palloc(sizeof(Datum) * nevents);

	for (int i = 0; i < nevents; i++)
		elements[i] = event_txid_datum(events[i].txid);
	return PointerGetDatum(construct_array(elements, nevents, XID8OID, sizeof(FullTransactionId),
										   FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
}

Datum
event_ids_datum(const EventIdentity *events, int nevents)
{
	int64	   *ids = palloc(sizeof(int64) * nevents);

	for (int i = 0; i < nevents; i++)
		ids[i] = events[i].id;
	return internal_ids(ids, nevents);
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
	return event_txid_from_datum(value);
}

/*
 * Its id.
 */
int64
event_slot_id(TupleTableSlot *slot)
{
	bool		isnull;
	Datum		value = slot_getattr(slot, Anum_event_id, &isnull);

	Assert(!isnull);
	return DatumGetInt64(value);
}

/*
 * To find the event in a slot, whose id is known, again.
 */
EventRef
event_slot_ref(TupleTableSlot *slot, int64 id)
{
	EventRef	ref = {.id = id, .tid = slot->tts_tid};

	if (TTS_IS_BUFFERTUPLE(slot))
	{
		BufferHeapTupleTableSlot *buffered = (BufferHeapTupleTableSlot *) slot;

		if (BufferIsValid(buffered->buffer) && !BufferIsLocal(buffered->buffer))
			ref.row = (const char *) buffered->base.tuple->t_data;
	}
	return ref;
}

/*
 * To find an event of which only the id is known.
 */
EventRef
event_ref(int64 id)
{
	EventRef	ref = {.id = id};

	ItemPointerSetInvalid(&ref.tid);
	return ref;
}

/*
 * A scan that goes through the table page by page waits for memory with each row:
 * they are far enough from each other for that.  So when it comes to the next page,
 * have the processor fetch all of it at once.  *block is where the row before was;
 * InvalidBlockNumber at first.
 */
void
event_prefetch_page(TupleTableSlot *slot, BlockNumber *block)
{
	BlockNumber previous = *block;

	*block = ItemPointerGetBlockNumber(&slot->tts_tid);
	if (*block == previous + 1 && TTS_IS_BUFFERTUPLE(slot))
	{
		Buffer		buffer = ((BufferHeapTupleTableSlot *) slot)->buffer;

		if (BufferIsValid(buffer) && !BufferIsLocal(buffer))
		{
			const char *page = BufferBlocks + (Size) (buffer - 1) * BLCKSZ;

			for (int at = 0; at < BLCKSZ; at += CACHE_LINE)
				prefetch(page + at);
		}
	}
}

/*
 * The row in a slot as an event, without what has to be read to be known: its name
 * and time.  Copied into the current memory context.
 */
void
event_copy_row(Event *event, TupleTableSlot *slot)
{
	bool		isnull;
	Datum		value;

	memset(event, 0, sizeof(Event));
	event->id = event_slot_id(slot);
	event->txid = event_slot_txid(slot);
	event->tuple = ExecCopySlotHeapTuple(slot);
	event->size = event->tuple->t_len;
	value = slot_getattr(slot, Anum_event_data, &isnull);
	if (!isnull)
		event->size += toast_raw_datum_size(value);
}

/*
 * An event from the row in a slot, copied into the current memory context.
 */
void
event_from_slot(Event *event, TupleTableSlot *slot)
{
	bool		isnull;
	Datum		value;

	event_copy_row(event, slot);
	event->name = TextDatumGetCString(slot_getattr(slot, Anum_event_name, &isnull));
	value = slot_getattr(slot, Anum_event_created_at, &isnull);
	event->created_at = isnull ? DT_NOBEGIN : DatumGetTimestampTz(value);
}

/*
 * A scan of the log by id, to be given ranges one after the other.
 */
typedef struct IdScan
{
	Relation	index;
	IndexScanDesc scan;
	TupleTableSlot *slot;
	BlockNumber block;			/* of the row in it */
} IdScan;

static void
id_scan_begin(IdScan *by_id, Relation log, Snapshot snapshot)
{
	static const WantedIndex wanted = {.nkeys = 1, .keys = {Anum_event_id}};

	by_id->index = index_open_wanted(log, &wanted);
	by_id->scan = pne_index_beginscan(log, by_id->index, snapshot, 2);
	by_id->slot = table_slot_create(log, NULL);
	by_id->block = InvalidBlockNumber;
}

/*
 * What comes next are the events with ids between two bounds, included.
 */
static void
id_scan_range(IdScan *by_id, int64 from, int64 to)
{
	ScanKeyData keys[2];

	ScanKeyInit(&keys[0], 1, BTGreaterEqualStrategyNumber, F_INT8GE, Int64GetDatum(from));
	ScanKeyInit(&keys[1], 1, BTLessEqualStrategyNumber, F_INT8LE, Int64GetDatum(to));
	index_rescan(by_id->scan, keys, lengthof(keys), NULL, 0);
}

/*
 * The next event, by id, is in the slot; false if there is none.
 */
static bool
id_scan_next(IdScan *by_id)
{
	CHECK_FOR_INTERRUPTS();
	if (!index_getnext_slot(by_id->scan, ForwardScanDirection, by_id->slot))
		return false;
	event_prefetch_page(by_id->slot, &by_id->block);
	return true;
}

/*
 * One event, in the slot; false if it is not there.
 */
static bool
id_scan_find(IdScan *by_id, int64 id)
{
	id_scan_range(by_id, id, id);
	return id_scan_next(by_id);
}

static void
id_scan_end(IdScan *by_id)
{
	index_endscan(by_id->scan);
	ExecDropSingleTupleTableSlot(by_id->slot);
	index_close(by_id->index, AccessShareLock);
}

/*
 * Every event with an id between two bounds, included, by id.
 */
void
event_scan_ids(Relation log, Snapshot snapshot, int64 from, int64 to, EventCallback callback, void *arg)
{
	IdScan		by_id;

	id_scan_begin(&by_id, log, snapshot);
	id_scan_range(&by_id, from, to);
	while (id_scan_next(&by_id) && callback(by_id.slot, event_slot_id(by_id.slot), arg))
		;
	id_scan_end(&by_id);
}

/*
 * One event by its id, in the current memory context.  False if it is not there.
 */
bool
event_fetch(Event *event, Relation log, Snapshot snapshot, int64 id)
{
	IdScan		by_id;
	bool		found;

	id_scan_begin(&by_id, log, snapshot);
	found = id_scan_find(&by_id, id);
	if (found)
		event_from_slot(event, by_id.slot);
	id_scan_end(&by_id);
	return found;
}

/*
 * Room for events, in a context of its own below parent.
 */
EventChunk *
chunk_create(MemoryContext parent)
{
	MemoryContext context = AllocSetContextCreate(parent, "events", ALLOCSET_DEFAULT_SIZES);
	EventChunk *chunk = MemoryContextAllocZero(parent, sizeof(EventChunk));

	chunk->context = context;
	return chunk;
}

/*
 * Forget the events.
 */
void
chunk_clear(EventChunk *chunk)
{
	MemoryContextReset(chunk->context);
	chunk->events = NULL;
	chunk->length = 0;
}

/*
 * Have the processor fetch what reading these rows will look at: the buffers'
 * headers, those of the pages, the line pointers and the rows.  By then a buffer
 * may hold another page; that costs time only.  It must be inlined: a call that
 * has no effect but this is left out by gcc.
 */
static pg_attribute_always_inline void
prefetch_rows(const EventRef *refs, int nrefs)
{
	for (int i = 0; i < nrefs; i++)
	{
		const EventRef *ref = &refs[i];
		const char *page;
		Size		at;

		if (ref->row == NULL)
			continue;
		at = (Size) (ref->row - BufferBlocks);
		page = ref->row - at % BLCKSZ;
		prefetch(ref->row);
		prefetch(ref->row + CACHE_LINE);
		prefetch(page);
		prefetch(page + SizeOfPageHeaderData +
				 (ItemPointerGetOffsetNumber(&ref->tid) - 1) * sizeof(ItemIdData));
		prefetch(GetBufferDescriptor((uint32) (at / BLCKSZ)));
	}
}

/*
 * Reading rows of the log where they were.
 */
typedef struct PlaceScan
{
	TableScanDesc places;
	IndexFetchTableData *fetch;
} PlaceScan;

static void
place_scan_begin(PlaceScan *by_place, Relation log, Snapshot snapshot)
{
	by_place->places = table_beginscan_tid(log, snapshot);
	by_place->fetch = pne_index_fetch_begin(log);
}

static void
place_scan_end(PlaceScan *by_place)
{
	table_index_fetch_end(by_place->fetch);
	table_endscan(by_place->places);
}

/*
 * The event in the slot, if it is where it was.
 */
static bool
fetch_where_it_was(PlaceScan *by_place, const EventRef *ref, TupleTableSlot *slot)
{
	ItemPointerData place = ref->tid;
	bool		more = false;

	if (!ItemPointerIsValid(&place) || !table_tuple_tid_valid(by_place->places, &place))
		return false;
	return table_index_fetch_tuple(by_place->fetch, &place, by_place->places->rs_snapshot, slot, &more, NULL) &&
		event_slot_id(slot) == ref->id;
}

/*
 * Reading events, one after the other, where they were or else by their ids.
 */
typedef struct RefScan
{
	const EventRef *refs;
	int			nrefs;
	PlaceScan	by_place;
	IdScan		by_id;
} RefScan;

static void
ref_scan_begin(RefScan *scan, Relation log, Snapshot snapshot, const EventRef *refs, int nrefs)
{
	scan->refs = refs;
	scan->nrefs = nrefs;
	place_scan_begin(&scan->by_place, log, snapshot);
	id_scan_begin(&scan->by_id, log, snapshot);
}

/*
 * The event with index i, the one behind the last, in the slot of by_id; false if
 * it is not there.
 */
static bool
ref_scan_find(RefScan *scan, int i)
{
	const EventRef *refs = scan->refs;
	int			ahead = scan->nrefs - i - PREFETCH_ROWS;

	CHECK_FOR_INTERRUPTS();
	if (i % PREFETCH_ROWS == 0 && ahead > 0)
		prefetch_rows(refs + i + PREFETCH_ROWS, Min(PREFETCH_ROWS, ahead));
	return fetch_where_it_was(&scan->by_place, &refs[i], scan->by_id.slot) ||
		id_scan_find(&scan->by_id, refs[i].id);
}

static void
ref_scan_end(RefScan *scan)
{
	id_scan_end(&scan->by_id);
	place_scan_end(&scan->by_place);
}

/*
 * Every event of some that is still there, in the order given.  Returns how many of
 * them it has come past, the one included for which the callback has ended it.
 */
int
event_scan_refs(Relation log, Snapshot snapshot, const EventRef *refs, int nrefs,
				EventCallback callback, void *arg)
{
	RefScan		scan;
	int			next = 0;
	bool		go_on = true;

	ref_scan_begin(&scan, log, snapshot, refs, nrefs);
	while (go_on && next < nrefs)
	{
		int			i = next++;

		if (ref_scan_find(&scan, i))
			go_on = callback(scan.by_id.slot, refs[i].id, arg);
	}
	ref_scan_end(&scan);
	return next;
}

/*
 * Have events in memory: of the first ones so many that they are all, or about
 * batch_bytes.  Returns how many those are.  What was in the chunk before is gone.
 */
int
chunk_load(EventChunk *chunk, Relation log, Snapshot snapshot, const EventRef *refs, int nrefs)
{
	MemoryContext old = CurrentMemoryContext;
	Size		enough = (Size) pne_batch_bytes * 1024;
	Size		bytes = 0;
	RefScan		scan;

	chunk_clear(chunk);
	chunk->events = MemoryContextAllocZero(chunk->context, sizeof(Event) * nrefs);
	ref_scan_begin(&scan, log, snapshot, refs, nrefs);
	while (chunk->length < nrefs && bytes < enough)
	{
		int			i = chunk->length++;
		Event	   *event = &chunk->events[i];

		event->id = refs[i].id;
		if (!ref_scan_find(&scan, i))
			continue;
		MemoryContextSwitchTo(chunk->context);
		event_from_slot(event, scan.by_id.slot);
		MemoryContextSwitchTo(old);
		bytes += event->size;
	}
	ref_scan_end(&scan);
	return chunk->length;
}
