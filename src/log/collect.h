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
 * Of the events that were given, those with the lowest ids: limit at most.
 */
typedef struct EventCollection
{
	int64		limit;
	int64		nevents;		/* that are kept */
	int64		room;			/* for so many there is memory */
	EventRef   *events;
	NameSet *names;			/* where the names of those that are kept go; or NULL */
	bool		ascending;		/* all ids so far */
	bool		overflowed;		/* there were more; events is a heap, the largest id on top */
	int64		largest;		/* id that was given */
	EventCallback wanted;		/* whether an event belongs here; NULL: all do */
	void	   *arg;
} EventCollection;

extern void collect_begin(EventCollection *collection, int64 limit, bool with_names);
extern bool collect_event(TupleTableSlot *slot, int64 id, void *arg);
extern void collect_again(EventCollection *collection);
extern void collect_end(EventCollection *collection);

#endif							/* PNE_COLLECT_H */
