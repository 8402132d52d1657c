/*-------------------------------------------------------------------------
 *
 * collect.c
 *		The events of a window while it is read.
 *
 * A window may have any number of events: all that came while handlers were
 * paused, for a year perhaps.  What is kept in memory has a bound, and as a window
 * is worked off by id, what is kept are the lowest ids.  The rest is read later
 * (window.c).
 *
 * Ids mostly come in ascending order, so once there are as many as may be kept,
 * almost all others are found to be too large by one comparison with the largest
 * that is kept.  That is on top of a heap.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "base/catalog.h"
#include "log/collect.h"

/* first room for events */
#define INITIAL_EVENTS 128

/*
 * Nothing is there yet.  Memory comes from the context that is current now.
 */
void
collect_begin(EventCollection *collection, int64 limit, bool with_names)
{
	Assert(limit > 0);
	memset(collection, 0, sizeof(*collection));
	collection->limit = limit;
	collection->room = Min(INITIAL_EVENTS, limit);
	collection->events = palloc(collection->room * sizeof(EventRef));
	collection->ascending = true;
	if (with_names)
		collection->names = name_set_create();
}

/*
 * Move the event at an index of the heap down to where it belongs.
 */
static void
sift_down(EventRef *events, int64 nevents, int64 at)
{
	EventRef	event = events[at];

	for (;;)
	{
		int64		child = 2 * at + 1;

		if (child + 1 < nevents && events[child + 1].id > events[child].id)
			child++;
		if (child >= nevents || events[child].id <= event.id)
			break;
		events[at] = events[child];
		at = child;
	}
	events[at] = event;
}

static void
make_heap(EventCollection *collection)
{
	for (int64 at = collection->nevents / 2 - 1; at >= 0; at--)
		sift_down(collection->events, collection->nevents, at);
	collection->overflowed = true;
}

/*
 * What is to be kept of the event in a slot.
 */
static EventRef
event_to_keep(EventCollection *collection, TupleTableSlot *slot, int64 id)
{
	EventRef	event = event_slot_ref(slot, id);

	if (collection->names != NULL)
	{
		bool		isnull;
		text	   *name = DatumGetTextPP(slot_getattr(slot, Anum_event_name, &isnull));

		event.name = name_set_number(collection->names, VARDATA_ANY(name), (int) VARSIZE_ANY_EXHDR(name));
	}
	return event;
}

/*
 * An event of the window, for a scan; arg is the collection.
 */
bool
collect_event(TupleTableSlot *slot, int64 id, void *arg)
{
	EventCollection *collection = (EventCollection *) arg;

	if (collection->wanted != NULL && !collection->wanted(slot, id, collection->arg))
		return true;
	if (collection->nevents == 0 || id > collection->largest)
		collection->largest = id;
	else
		collection->ascending = false;

	if (collection->nevents == collection->limit)
	{
		if (!collection->overflowed)
			make_heap(collection);
		if (id < collection->events[0].id)
		{
			collection->events[0] = event_to_keep(collection, slot, id);
			sift_down(collection->events, collection->nevents, 0);
		}
		return true;
	}
	if (collection->nevents == collection->room)
	{
		collection->room = Min(collection->room * 2, collection->limit);
		collection->events = repalloc_huge(collection->events, collection->room * sizeof(EventRef));
	}
	collection->events[collection->nevents++] = event_to_keep(collection, slot, id);
	return true;
}

/*
 * Forget what was given, but for the names.
 */
void
collect_again(EventCollection *collection)
{
	collection->nevents = 0;
	collection->ascending = true;
	collection->overflowed = false;
}

static int
compare_events(const void *a, const void *b)
{
	int64		left = ((const EventRef *) a)->id;
	int64		right = ((const EventRef *) b)->id;

	return (left > right) - (left < right);
}

/*
 * All were given: bring those that are kept into the order of their ids, and take
 * no more memory than they need.
 */
void
collect_end(EventCollection *collection)
{
	if (collection->overflowed || !collection->ascending)
		qsort(collection->events, collection->nevents, sizeof(EventRef), compare_events);
	if (collection->nevents < collection->room)
	{
		collection->room = Max(collection->nevents, 1);
		collection->events = repalloc_huge(collection->events, collection->room * sizeof(EventRef));
	}
}
