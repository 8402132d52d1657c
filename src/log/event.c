/*-------------------------------------------------------------------------
 *
 * event.c
 *		Events: rows of the log.
 *
 * A window tells which events a reader has to look at, by their ids and by where their
 * rows were when it was read (window.c).  The rows are fetched from there: to descend
 * the index on id for each would cost several times as much as the rest of reading.  A
 * row that is gone from there, because it was updated or the table was rewritten, is
 * looked up by its id.  So is one that had been updated on its page before, because
 * heap does not begin with it.  Another event may have come to the same place, so the
 * id tells whether the row is the right one.
 *
 * A handler's events may be far from each other, with other events in between.  Much
 * of the time then goes into waiting for memory.  So the processor is told about rows
 * some time before they are read.
 *
 * The caller has locked the log before it took the snapshot.
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
#include "base/internal_sql.h"
#include "base/settings.h"
#include "log/event.h"

/*
 * How many rows ahead the processor is told, and about how many rows at once: each
 * waits until its page is found, and some can be looked up at the same time.
 */
#define PREFETCH_ROWS 8

/* bytes that most processors fetch at once; a row with little data spans two */
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
 * The id of an event.
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
 * A reference by which the event in a slot, whose id is known, is found again.
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
 * A reference to an event of which only the id is known.
 */
EventRef
event_ref(int64 id)
{
	EventRef	ref = {.id = id};

	ItemPointerSetInvalid(&ref.tid);
	return ref;
}

/*
 * A scan that goes through the table page by page waits for memory with each row,
 * because rows are far enough from each other.  So when it comes to the next page,
 * have the processor fetch all of it at once.  *block is the block of the row before;
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
 * Copy the row in a slot into the current memory context as an event, but do not
 * extract its name and time.
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
 * A scan of the log by id, over several ranges one after the other.
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
 * Continue with the events whose ids are between two bounds, included.
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
 * Put the next event by id into the slot; returns false if there is none.
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
 * Put one event into the slot; returns false if it does not exist.
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
 * Scan the events whose ids are between two bounds, included, by id.
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
 * Fetch one event by its id into the current memory context.  Returns false if it does
 * not exist.
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
 * Create room for events, in a context of its own below parent.
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
 * Have the processor fetch what reading these rows will look at: the buffers' headers,
 * the pages' headers, the line pointers and the rows.  A buffer may hold another page
 * by then; that only costs time.  The function must be inlined: gcc leaves out a call
 * that has no other effect.
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
 * Reads rows of the log by their tids.
 */
typedef struct RowScan
{
	TableScanDesc places;
	IndexFetchTableData *fetch;
} RowScan;

static void
place_scan_begin(RowScan *by_row, Relation log, Snapshot snapshot)
{
	by_row->places = table_beginscan_tid(log, snapshot);
	by_row->fetch = pne_index_fetch_begin(log);
}

static void
place_scan_end(RowScan *by_row)
{
	table_index_fetch_end(by_row->fetch);
	table_endscan(by_row->places);
}

/*
 * Put the event into the slot if it is where it was.
 */
static bool
fetch_where_it_was(RowScan *by_row, const EventRef *ref, TupleTableSlot *slot)
{
	ItemPointerData place = ref->tid;
	bool		more = false;

	if (!ItemPointerIsValid(&place) || !table_tuple_tid_valid(by_row->places, &place))
		return false;
	return table_index_fetch_tuple(by_row->fetch, &place, by_row->places->rs_snapshot, slot, &more, NULL) &&
		event_slot_id(slot) == ref->id;
}

/*
 * Reads events one after the other, by their tids or else by their ids.
 */
typedef struct RefScan
{
	const EventRef *refs;
	int			nrefs;
	RowScan	by_row;
	IdScan		by_id;
} RefScan;

static void
ref_scan_begin(RefScan *scan, Relation log, Snapshot snapshot, const EventRef *refs, int nrefs)
{
	scan->refs = refs;
	scan->nrefs = nrefs;
	place_scan_begin(&scan->by_row, log, snapshot);
	id_scan_begin(&scan->by_id, log, snapshot);
}

/*
 * Put the event with index i, which follows the last one, into the slot of by_id;
 * returns false if it does not exist.
 */
static bool
ref_scan_find(RefScan *scan, int i)
{
	const EventRef *refs = scan->refs;
	int			ahead = scan->nrefs - i - PREFETCH_ROWS;

	CHECK_FOR_INTERRUPTS();
	if (i % PREFETCH_ROWS == 0 && ahead > 0)
		prefetch_rows(refs + i + PREFETCH_ROWS, Min(PREFETCH_ROWS, ahead));
	return fetch_where_it_was(&scan->by_row, &refs[i], scan->by_id.slot) ||
		id_scan_find(&scan->by_id, refs[i].id);
}

static void
ref_scan_end(RefScan *scan)
{
	id_scan_end(&scan->by_id);
	place_scan_end(&scan->by_row);
}

/*
 * Scan those of some events that still exist, in the given order.  Returns how many of
 * them were passed, including the one for which the callback has ended the scan.
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
 * Load events into memory: the first ones, until all are loaded or there is about
 * batch_bytes of data.  Returns how many.  What the chunk had before is gone.
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
