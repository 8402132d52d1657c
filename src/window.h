/*-------------------------------------------------------------------------
 *
 * window.h
 *		The snapshot cursor over the log.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_WINDOW_H
#define PNE_WINDOW_H

#include "access/htup.h"
#include "executor/tuptable.h"
#include "utils/relcache.h"
#include "utils/snapshot.h"

/*
 * A snapshot that outlives its transaction: the C form of pg_snapshot, with
 * top-level transaction ids that include the epoch.
 */
typedef struct EventSnapshot
{
	uint64		xmin;			/* every xid before it is done */
	uint64		xmax;			/* no xid from it on is done */
	int			nxip;
	uint64		xip[FLEXIBLE_ARRAY_MEMBER]; /* running between, ascending */
} EventSnapshot;

/*
 * How far somebody has come: every event whose transaction cursor sees is
 * done; where there is a window, so are those that it sees up to last_id.
 */
typedef struct EventPosition
{
	EventSnapshot *cursor;
	EventSnapshot *window;		/* or NULL */
	int64		last_id;
} EventPosition;

typedef struct Event
{
	int64		id;
	TimestampTz created_at;		/* DT_NOBEGIN: null */
	Size		size;			/* bytes of the row, detoasted or not as stored */
	char	   *name;
	bool		hidden;			/* row security hides it from the handlers' owner */
	HeapTuple	tuple;			/* NULL: deleted since the window was read */
} Event;

/*
 * A window that was read: the ids of its events in the order of delivery, and
 * a chunk of the events themselves.  Handlers that stand at the same cursor
 * share one.
 */
typedef struct Window
{
	MemoryContext context;
	int			references;
	EventSnapshot *from;
	EventSnapshot *upto;
	int64		nids;
	int64	   *ids;
	int64		through;		/* no event of the window up to this id is missing
								 * in ids; PG_INT64_MAX: none at all */
	MemoryContext chunk_context;
	uint64		chunk_changes;	/* catalog_log_changes() when it was loaded */
	int64		chunk_start;	/* index of its first event in ids */
	int			chunk_length;
	Event	   *chunk;
} Window;

/* events in memory at once, if no batch is larger */
#define WINDOW_CHUNK_EVENTS 1000

/* called for each event of a scan; false ends it */
typedef bool (*WindowCallback) (TupleTableSlot *slot, int64 id, void *arg);

extern EventSnapshot *event_snapshot_build(Snapshot snapshot);
extern EventSnapshot *event_snapshot_nothing(void);
extern EventSnapshot *event_snapshot_copy(const EventSnapshot *snapshot);
extern EventSnapshot *event_snapshot_parse(const char *text);
extern char *event_snapshot_text(const EventSnapshot *snapshot);
extern bool event_snapshot_equal(const EventSnapshot *a, const EventSnapshot *b);
extern bool event_snapshot_sees(const EventSnapshot *snapshot, uint64 xid);
extern bool event_snapshot_covers(const EventSnapshot *snapshot, const EventSnapshot *other);

extern bool event_position_passed(const EventPosition *position, uint64 xid, int64 id);
extern uint64 event_slot_txid(TupleTableSlot *slot);

extern void window_scan(Relation log, const EventPosition *position, Snapshot snapshot,
						const EventSnapshot *upto, WindowCallback callback, void *arg);
extern Window *window_read(Relation log, const EventPosition *position, Snapshot snapshot,
						   const EventSnapshot *upto, MemoryContext parent);
extern Window *window_read_wanted(Relation log, const EventPosition *position, Snapshot snapshot,
								  const EventSnapshot *upto, MemoryContext parent,
								  WindowCallback wanted, void *arg);
extern Window *window_read_on(Relation log, const EventPosition *position, Snapshot snapshot,
							  int limit, MemoryContext parent);
extern Window *window_from_ids(const int64 *ids, int nids, MemoryContext parent);
extern EventPosition window_position(const Window *window, int64 next);
extern void window_load_chunk(Window *window, Relation log, Snapshot snapshot, int64 start, int limit);
extern Window *window_split(Window *window, MemoryContext parent);
extern void window_release(Window *window);
extern void window_scan_ids(Relation log, Snapshot snapshot, int64 from, int64 to,
							WindowCallback callback, void *arg);
extern HeapTuple window_fetch_event(Relation log, Snapshot snapshot, int64 id);
extern void event_from_tuple(Event *event, Relation log, HeapTuple tuple);
extern void window_flush_wal(void);

#endif							/* PNE_WINDOW_H */
