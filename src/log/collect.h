/*-------------------------------------------------------------------------
 *
 * collect.h
 *		The events of a window while it is read.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_COLLECT_H
#define PNE_COLLECT_H

#include "log/event.h"
#include "log/name_set.h"

/*
 * The events with the lowest ids among those that were added, limit at most.
 */
typedef struct EventCollection
{
	int64		limit;
	int64		nevents;		/* how many are kept */
	int64		room;			/* how many there is memory for */
	EventRef   *events;
	NameSet *names;			/* gets the names of the events kept; or NULL */
	bool		ascending;		/* all ids so far came in ascending order */
	bool		overflowed;		/* more came; events is a heap with the largest id on top */
	int64		largest;		/* largest id that was added */
	EventCallback wanted;		/* whether an event belongs here; NULL: all do */
	void	   *arg;
} EventCollection;

extern void collect_begin(EventCollection *collection, int64 limit, bool with_names);
extern bool collect_event(TupleTableSlot *slot, int64 id, void *arg);
extern void collect_again(EventCollection *collection);
extern void collect_end(EventCollection *collection);

#endif							/* PNE_COLLECT_H */
