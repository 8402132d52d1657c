/*-------------------------------------------------------------------------
 *
 * event.c
 *		Events: rows of the log.
 *
 * Which events somebody has to look at is told by a window (window.c), by their
 * ids and where their rows were when it was read.  Here the rows are fetched from
 * there: to descend the index on id for each costs several times what the rest
 * of reading does.  A row that is not there any more, as it was updated, or the
 * table was rewritten, is looked for by its id; and as another event may have
 * come to its place, the id tells whether it is the right one.
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
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/xid8.h"

#include "catalog.h"
#include "compat.h"
#include "event.h"
#include "settings.h"

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
 * An event from the row in a slot, copied into the current memory context.
 */
void
event_from_slot(Event *event, TupleTableSlot *slot)
{
	bool		isnull;
	Datum		value;

	event->id = event_slot_id(slot);
	event->name = TextDatumGetCString(slot_getattr(slot, Anum_event_name, &isnull));
	value = slot_getattr(slot, Anum_event_created_at, &isnull);
	event->created_at = isnull ? DT_NOBEGIN : DatumGetTimestampTz(value);
	event->tuple = ExecCopySlotHeapTuple(slot);
	event->size = event->tuple->t_len;
	value = slot_getattr(slot, Anum_event_data, &isnull);
	if (!isnull)
		event->size += toast_raw_datum_size(value);
	event->hidden = false;
}

/*
 * A scan of the log by id, to be given ranges one after the other.
 */
typedef struct IdScan
{
	Relation	index;
	IndexScanDesc scan;
	TupleTableSlot *slot;
} IdScan;

static void
id_scan_begin(IdScan *by_id, Relation log, Snapshot snapshot)
{
	by_id->index = index_open(catalog_lookup(false)->log_pkey, AccessShareLock);
	by_id->scan = pne_index_beginscan(log, by_id->index, snapshot, 2);
	by_id->slot = table_slot_create(log, NULL);
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
	return index_getnext_slot(by_id->scan, ForwardScanDirection, by_id->slot);
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
	id_scan_range(&by_id, id, id);
	found = id_scan_next(&by_id);
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

void
chunk_free(EventChunk *chunk)
{
	MemoryContextDelete(chunk->context);
	pfree(chunk);
}

/*
 * Find an event where it was, or else by its id; it is in the slot then.
 */
static bool
find_event(IdScan *by_id, TableScanDesc by_place, int64 id, ItemPointer place)
{
	if (place != NULL && table_tuple_tid_valid(by_place, place) &&
		table_tuple_fetch_row_version(by_place->rs_rd, place, by_place->rs_snapshot, by_id->slot) &&
		event_slot_id(by_id->slot) == id)
		return true;
	id_scan_range(by_id, id, id);
	return id_scan_next(by_id);
}

/*
 * Have events in memory, by their ids and, if they are known, their places: of
 * the first ones so many that they are all, or about batch_bytes.  Returns how
 * many those are.  What was in the chunk before is gone.
 */
int
chunk_load(EventChunk *chunk, Relation log, Snapshot snapshot, const int64 *ids, ItemPointer places, int nids)
{
	MemoryContext old = CurrentMemoryContext;
	Size		enough = (Size) pne_batch_bytes * 1024;
	Size		bytes = 0;
	TableScanDesc by_place = table_beginscan_tid(log, snapshot);
	IdScan		by_id;

	chunk_clear(chunk);
	chunk->events = MemoryContextAllocZero(chunk->context, sizeof(Event) * nids);
	id_scan_begin(&by_id, log, snapshot);
	while (chunk->length < nids && bytes < enough)
	{
		int			i = chunk->length++;
		Event	   *event = &chunk->events[i];

		CHECK_FOR_INTERRUPTS();
		event->id = ids[i];
		if (!find_event(&by_id, by_place, ids[i], places != NULL ? &places[i] : NULL))
			continue;
		MemoryContextSwitchTo(chunk->context);
		event_from_slot(event, by_id.slot);
		MemoryContextSwitchTo(old);
		bytes += event->size;
	}
	id_scan_end(&by_id);
	table_endscan(by_place);
	return chunk->length;
}
