/*-------------------------------------------------------------------------
 *
 * window.h
 *		The snapshot cursor over the log.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_WINDOW_H
#define PNE_WINDOW_H

#include "utils/relcache.h"
#include "utils/snapshot.h"
#include "utils/timestamp.h"

#include "base/instant.h"
#include "log/event.h"
#include "log/name_set.h"

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
	int64		rows;			/* so many a scan of the window by txid looks at; 0: nobody knows */
	int64		end;			/* if rows is known: no event of the window is behind this id */
} EventPosition;

/*
 * A window that was read, or of a large one the part with the lowest ids: its
 * events in the order of delivery.  Handlers that stand at the same cursor share
 * one.
 */
typedef struct Window
{
	MemoryContext context;
	int			references;
	EventSnapshot *from;
	EventSnapshot *upto;
	int64		nevents;
	EventRef   *events;
	EventNames *names;			/* of its events, or NULL: they were not read */
	int64	   *by_name;		/* indexes of the events, by the numbers of their names, or
								 * NULL: all have the same */
	int64	   *name_ends;		/* where in there those of each name end */
	bool		whole;			/* nothing of it was left out; else those up to the */
	int64		after;			/* id after were */
	int64		through;		/* no event of the window up to this id is missing
								 * here; PG_INT64_MAX: none at all */
	int64		rows;			/* as in EventPosition */
	int64		end;
} Window;

extern EventSnapshot *event_snapshot_build(Snapshot snapshot);
extern EventSnapshot *event_snapshot_before(uint64 xid);
extern EventSnapshot *event_snapshot_nothing(void);
extern EventSnapshot *event_snapshot_copy(const EventSnapshot *snapshot);
extern EventSnapshot *event_snapshot_parse(const char *text);
extern char *event_snapshot_text(const EventSnapshot *snapshot);
extern bool event_snapshot_equal(const EventSnapshot *a, const EventSnapshot *b);
extern bool event_snapshot_sees(const EventSnapshot *snapshot, uint64 xid);
extern bool event_snapshot_covers(const EventSnapshot *snapshot, const EventSnapshot *other);
extern EventSnapshot *event_snapshot_common(const EventSnapshot *a, const EventSnapshot *b);
extern bool event_snapshot_sees_nothing(const EventSnapshot *snapshot);

extern EventPosition event_position_copy(const EventPosition *position);
extern void event_position_free(EventPosition *position);
extern bool event_position_passed(const EventPosition *position, uint64 xid, int64 id);

extern int64 window_bound(void);
extern void window_scan(Relation log, const EventPosition *position, Snapshot snapshot,
						const EventSnapshot *upto, EventCallback callback, void *arg);
extern void window_scan_back(Relation log, const EventPosition *position, Snapshot snapshot,
							 const EventSnapshot *upto, EventCallback callback, void *arg);
extern Window *window_read(Relation log, const EventPosition *position, Snapshot snapshot,
						   const EventSnapshot *upto, MemoryContext parent, Instant deadline);
extern Window *window_read_names(Relation log, const EventPosition *position, Snapshot snapshot,
								 const EventSnapshot *upto, MemoryContext parent, int64 limit);
extern Window *window_read_wanted(Relation log, const EventPosition *position, Snapshot snapshot,
								  const EventSnapshot *upto, MemoryContext parent,
								  EventCallback wanted, void *arg);
extern int	window_find(const Window *window, int64 i, const WantedNames *wanted, int limit,
						int64 *indexes);
extern int64 window_behind(const Window *window, int64 id);
extern EventPosition window_position(const Window *window, int64 next);
extern void window_release(Window *window);
extern void window_flush_wal(void);
extern void window_flush_events(const EventIdentity *events, int nevents);

#endif							/* PNE_WINDOW_H */
