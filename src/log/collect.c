/*-------------------------------------------------------------------------
 *
 * collect.c
 *		The events of a window while it is read.
 *
 * A window may have any number of events, for example all that came while handlers
 * were paused for a year.  The number of events kept in memory has a bound.  A window
 * is worked off by id, so the lowest ids are kept.  The rest is read later (window.c).
 *
 * Ids mostly come in ascending order.  So once the bound is reached, one comparison
 * with the largest id kept shows for almost all other events that they are too large.
 * The largest id is on top of a heap.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "base/catalog.h"
#include "base/compat.h"
#include "log/collect.h"

/* how many events there is room for at first */
#define INITIAL_EVENTS 128

/*
 * Begin an empty collection.  Its memory comes from the current context.
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
 * What is kept of the event in a slot.
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
 * Add an event of the window, if it belongs there.  A callback for a scan; arg is the
 * collection.
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
 * Forget all events, but not the names.
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
 * All events were added: sort those that are kept by id.  Room that they do not
 * need is not given back, because the next window of that size would fault in new
 * memory, which takes a tenth of the processor time of reading and handling them.
 */
void
collect_end(EventCollection *collection)
{
	if (collection->overflowed || !collection->ascending)
		qsort(collection->events, collection->nevents, sizeof(EventRef), compare_events);
}
