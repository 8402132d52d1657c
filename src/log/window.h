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

#include "base/instant.h"
#include "log/event.h"
#include "log/name_set.h"
#include "log/position.h"

/*
 * A window that was read, or the part of a large one with the lowest ids: its events
 * in the order of delivery.  Handlers that stand at the same cursor share one.
 */
typedef struct Window
{
	MemoryContext context;
	int			references;
	EventSnapshot *from;
	EventSnapshot *upto;
	int64		nevents;
	int64		room;			/* there is memory for so many */
	EventRef   *events;
	NameSet *names;			/* names of its events, or NULL if they were not read */
	int64	   *by_name;		/* indexes of the events, by the numbers of their names, or
								 * NULL: all have the same */
	int64	   *name_ends;		/* where those of each name end in by_name */
	bool		whole;			/* nothing was left out; otherwise the events up to */
	int64		after;			/* the id after were left out */
	int64		through;		/* no event of the window up to this id is missing
								 * here; PG_INT64_MAX: none at all */
	int64		rows;			/* as in EventPosition */
	int64		end;
} Window;

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
