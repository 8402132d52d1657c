/*-------------------------------------------------------------------------
 *
 * event.h
 *		Events: rows of the log.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_EVENT_H
#define PNE_EVENT_H

#include "access/htup.h"
#include "executor/tuptable.h"
#include "storage/block.h"
#include "utils/relcache.h"
#include "utils/snapshot.h"
#include "utils/timestamp.h"

#include "log/name_set.h"

/*
 * Identifies an event that a table remembers.  An id can return, after TRUNCATE ...
 * RESTART IDENTITY or setval().  An id with its transaction cannot.
 */
typedef struct EventIdentity
{
	int64		id;
	uint64		txid;			/* 0: of no event */
} EventIdentity;

typedef struct Event
{
	int64		id;
	uint64		txid;			/* as in EventIdentity */
	TimestampTz created_at;		/* DT_NOBEGIN: null */
	Size		size;			/* bytes of the row as stored */
	char	   *name;
	bool		hidden;			/* row security hides it from the handler's owner */
	HeapTuple	tuple;			/* NULL: deleted since the window was read */
} Event;

/*
 * An event that is not in memory, and where its row was when it was seen.
 */
typedef struct EventRef
{
	int64		id;
	const char *row;			/* in shared buffers, or NULL; not to be read */
	ItemPointerData tid;		/* in the table, or invalid */
	NameNumber	name;			/* in a window with names */
} EventRef;

/*
 * Events in memory, in ascending order of their ids.
 */
typedef struct EventChunk
{
	MemoryContext context;		/* of the events */
	int			length;
	Event	   *events;
} EventChunk;

/* called for each event of a scan; false ends it */
typedef bool (*EventCallback) (TupleTableSlot *slot, int64 id, void *arg);

extern Datum event_txid_datum(uint64 txid);
extern uint64 event_txid_from_datum(Datum value);
extern Datum event_txids_datum(const EventIdentity *events, int nevents);
extern Datum event_ids_datum(const EventIdentity *events, int nevents);
extern uint64 event_slot_txid(TupleTableSlot *slot);
extern int64 event_slot_id(TupleTableSlot *slot);
extern EventRef event_slot_ref(TupleTableSlot *slot, int64 id);
extern EventRef event_ref(int64 id);
extern void event_prefetch_page(TupleTableSlot *slot, BlockNumber *block);
extern void event_copy_row(Event *event, TupleTableSlot *slot);
extern void event_from_slot(Event *event, TupleTableSlot *slot);
extern void event_scan_ids(Relation log, Snapshot snapshot, int64 from, int64 to,
						   EventCallback callback, void *arg);
extern int	event_scan_refs(Relation log, Snapshot snapshot, const EventRef *refs, int nrefs,
							EventCallback callback, void *arg);
extern bool event_fetch(Event *event, Relation log, Snapshot snapshot, int64 id);
extern EventChunk *chunk_create(MemoryContext parent);
extern void chunk_clear(EventChunk *chunk);
extern int	chunk_load(EventChunk *chunk, Relation log, Snapshot snapshot,
					   const EventRef *refs, int nrefs);

#endif							/* PNE_EVENT_H */
