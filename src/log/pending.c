/*-------------------------------------------------------------------------
 *
 * pending.c
 *		How many events wait for handlers and consumers, and since when.
 *
 * A user who looks at the statistics of all handlers wants an answer at once, however
 * many handlers there are and however many events wait.  That matters most when much
 * goes wrong, which is when most events wait.  So whatever a query asks for, what it
 * reads of the log is bounded:
 *
 *	- What waits behind a position reaches up to the present, for all positions.  So
 *	  the log is read backward from its end, once for all definitions of a query,
 *	  only as far back as the furthest position, NEWEST_ROWS at most.
 *	- Transactions that were running when a cursor was taken are looked up once
 *	  each, LOOKUP_ROWS in all.
 *	- A position further back gets what was seen, as a count that is not exact.  The
 *	  oldest event that waits is at the other end.  So some rows are read from each
 *	  position on, too: once for all that stand at the same place, AHEAD_ROWS in
 *	  all.
 *
 * Rows that no snapshot sees any more count as rows that were looked at.
 *
 * What was read is kept until the query ends, as ranges of transaction ids (Stretch)
 * that do not overlap.  One query calls the functions behind the views for one
 * definition after the other; they keep it in fn_extra.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/relscan.h"
#include "access/stratnum.h"
#include "access/tableam.h"
#include "access/transam.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/xid8.h"

#include "base/catalog.h"
#include "base/compat.h"
#include "base/index_lookup.h"
#include "log/name_set.h"
#include "log/pending.h"

/* events are counted up to this number */
#define MAX_COUNTED 100000

/*
 * How many rows a query looks at backward from the end of the log, at most.  That is a
 * little more than are counted, because not all rows are events that still exist.
 */
#define NEWEST_ROWS (MAX_COUNTED + MAX_COUNTED / 10)

/* how many it looks at for transactions that were running when a cursor was taken */
#define LOOKUP_ROWS 100000

/* how many it looks at forward from positions that are further back */
#define AHEAD_ROWS 100000

/* descending the index costs about as much as looking at so many rows */
#define DESCENT_COST 10

/* each position gets this share of the rows that are left to be read ahead */
#define AHEAD_SHARE 10

/* if so many events are known behind a position, no more are read */
#define AHEAD_ENOUGH 1000

/* how many events, and stretches, there is room for at first */
#define INITIAL_EVENTS 128
#define INITIAL_STRETCHES 16

/* an event that was read */
typedef struct SeenEvent
{
	uint64		txid;
	int64		id;
	TimestampTz created_at;		/* DT_NOEND if it is null */
	char	   *name_text;		/* NULL if the name has a number */
	NameNumber	name;
} SeenEvent;

/* a range of transaction ids whose events were read */
typedef struct Stretch
{
	uint64		from;
	uint64		to;				/* the first id behind the range */
	bool		whole;			/* all events were read; otherwise some */
	int64		first;			/* the first one's index, */
	int64		nevents;		/* and how many there are */
} Stretch;

typedef struct PendingLook
{
	MemoryContext context;
	Relation	log;			/* only while a count is under way */
	Snapshot	snapshot;		/* likewise */
	EventSnapshot *upto;		/* what the snapshot sees */
	CommandId	command;		/* of this transaction; rows that it deletes are gone */
	NameSet *names;
	SeenEvent  *events;
	int64		nevents;
	int64		room;
	Stretch    *stretches;		/* ascending; no two overlap */
	int			nstretches;
	int			stretch_room;
	int64		newest_left;	/* rows that may still be looked at */
	int64		lookup_left;
	int64		ahead_left;
} PendingLook;

static PendingLook *
look_create(MemoryContext parent, const EventSnapshot *upto, CommandId command)
{
	MemoryContext context = AllocSetContextCreate(parent, "pending events", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	PendingLook *look = palloc0(sizeof(PendingLook));

	look->context = context;
	look->upto = event_snapshot_copy(upto);
	look->command = command;
	look->names = name_set_create();
	look->room = INITIAL_EVENTS;
	look->events = palloc(look->room * sizeof(SeenEvent));
	look->stretch_room = INITIAL_STRETCHES;
	look->stretches = palloc(look->stretch_room * sizeof(Stretch));
	look->newest_left = NEWEST_ROWS;
	look->lookup_left = LOOKUP_ROWS;
	look->ahead_left = AHEAD_ROWS;
	MemoryContextSwitchTo(old);
	return look;
}

/*
 * What the caller's query has read so far.  A function may be called by an expression
 * that lives longer than a query (in PL/pgSQL), so what was read with another snapshot
 * is forgotten.
 */
static PendingLook *
look_of(FmgrInfo *caller)
{
	Snapshot	snapshot = GetActiveSnapshot();
	EventSnapshot *upto = event_snapshot_build(snapshot);
	PendingLook *look = caller->fn_extra;

	if (look != NULL &&
		!(event_snapshot_equal(look->upto, upto) && look->command == snapshot->curcid))
	{
		caller->fn_extra = NULL;
		MemoryContextDelete(look->context);
		look = NULL;
	}
	if (look == NULL)
		caller->fn_extra = look = look_create(caller->fn_mcxt, upto, snapshot->curcid);
	pfree(upto);
	look->snapshot = snapshot;
	return look;
}

/* ----------
 * Reading
 * ----------
 */

static void
keep_event(PendingLook *look, TupleTableSlot *slot, uint64 txid)
{
	SeenEvent  *event;
	bool		isnull;
	Datum		created_at;
	text	   *name = DatumGetTextPP(slot_getattr(slot, Anum_event_name, &isnull));

	if (look->nevents == look->room)
	{
		look->room *= 2;
		look->events = repalloc_huge(look->events, look->room * sizeof(SeenEvent));
	}
	event = &look->events[look->nevents++];
	event->txid = txid;
	event->id = event_slot_id(slot);
	event->name = name_set_number(look->names, VARDATA_ANY(name), (int) VARSIZE_ANY_EXHDR(name));
	event->name_text = NULL;
	if (event->name == NAME_UNKNOWN)
	{
		MemoryContext old = MemoryContextSwitchTo(look->context);

		event->name_text = text_to_cstring(name);
		MemoryContextSwitchTo(old);
	}
	created_at = slot_getattr(slot, Anum_event_created_at, &isnull);
	event->created_at = isnull ? DT_NOEND : DatumGetTimestampTz(created_at);
}

/*
 * The first stretch that ends behind a transaction id.
 */
static int
stretch_behind(const PendingLook *look, uint64 txid)
{
	int			low = 0;
	int			high = look->nstretches;

	while (low < high)
	{
		int			middle = low + (high - low) / 2;

		if (look->stretches[middle].to <= txid)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/*
 * Keep the events from index first on as a stretch for a range of transactions.
 */
static void
keep_stretch(PendingLook *look, uint64 from, uint64 to, bool whole, int64 first, int64 nevents)
{
	int			at = stretch_behind(look, from);

	if (from >= to)
		return;
	if (look->nstretches == look->stretch_room)
	{
		look->stretch_room *= 2;
		look->stretches = repalloc(look->stretches, look->stretch_room * sizeof(Stretch));
	}
	memmove(&look->stretches[at + 1], &look->stretches[at], sizeof(Stretch) * (look->nstretches - at));
	look->stretches[at] = (Stretch) {from, to, whole, first, nevents};
	look->nstretches++;
}

/*
 * Read the events of transactions between two bounds that were not read yet, from the
 * end at which direction begins, and look at as many rows as are left.
 */
static void
read_stretch(PendingLook *look, uint64 from, uint64 to, ScanDirection direction, int64 *left)
{
	static const WantedIndex by_txid = {.nkeys = 1, .keys = {Anum_event_txid}};
	bool		backward = ScanDirectionIsBackward(direction);
	Relation	index = index_open_wanted(look->log, &by_txid);
	TupleTableSlot *slot = table_slot_create(look->log, NULL);
	IndexScanDesc scan = pne_index_beginscan(look->log, index, look->snapshot, 2);
	ScanKeyData keys[2];
	uint64		come_to = backward ? to - 1 : from;
	int64		first = look->nevents;
	int64		of_last = look->nevents;
	bool		ended = false;

	ScanKeyInit(&keys[0], 1, BTGreaterEqualStrategyNumber, F_XID8GE, event_txid_datum(from));
	ScanKeyInit(&keys[1], 1, BTLessStrategyNumber, F_XID8LT, event_txid_datum(to));
	index_rescan(scan, keys, lengthof(keys), NULL, 0);
	*left -= DESCENT_COST;
	while (!ended && *left > 0)
	{
		uint64		txid;

		CHECK_FOR_INTERRUPTS();
		ended = (index_getnext_tid(scan, direction) == NULL);
		if (ended)
			break;
		(*left)--;
		if (!index_fetch_heap(scan, slot))
			continue;
		txid = event_slot_txid(slot);
		if (txid != come_to)
		{
			come_to = txid;
			of_last = look->nevents;
		}
		if (event_snapshot_sees(look->upto, txid))
			keep_event(look, slot, txid);
	}
	index_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	index_close(index, AccessShareLock);

	/* the transaction at which the scan ended may have more events */
	if (ended)
		keep_stretch(look, from, to, true, first, look->nevents - first);
	else
	{
		keep_stretch(look, backward ? come_to + 1 : from, backward ? to : come_to, true, first, of_last - first);
		keep_stretch(look, come_to, come_to + 1, false, of_last, look->nevents - of_last);
	}
}

/*
 * Find the first range between two bounds, in that direction, that was not read yet.
 * Returns false if there is none.
 */
static bool
find_gap(const PendingLook *look, uint64 from, uint64 to, ScanDirection direction,
		 uint64 *gap_from, uint64 *gap_to)
{
	const Stretch *stretches = look->stretches;
	int			i;

	*gap_from = from;
	*gap_to = to;
	if (from >= to)
		return false;
	if (ScanDirectionIsBackward(direction))
	{
		i = stretch_behind(look, to - 1);
		if (i == look->nstretches || stretches[i].from >= to)
			i--;
		for (; i >= 0 && stretches[i].to >= *gap_to; i--)
			*gap_to = stretches[i].from;
		if (i >= 0)
			*gap_from = Max(from, stretches[i].to);
	}
	else
	{
		i = stretch_behind(look, from);
		for (; i < look->nstretches && stretches[i].from <= *gap_from; i++)
			*gap_from = stretches[i].to;
		if (i < look->nstretches)
			*gap_to = Min(to, stretches[i].from);
	}
	return *gap_from < *gap_to;
}

/*
 * Read all events of transactions between two bounds, the newest ones first.  Returns
 * false if there are too many.
 */
static bool
cover(PendingLook *look, uint64 from, uint64 to, int64 *left)
{
	uint64		gap_from;
	uint64		gap_to;

	while (find_gap(look, from, to, BackwardScanDirection, &gap_from, &gap_to))
	{
		if (*left <= 0)
			return false;
		read_stretch(look, gap_from, gap_to, BackwardScanDirection, left);
	}
	for (int i = stretch_behind(look, from); i < look->nstretches && look->stretches[i].from < to; i++)
	{
		if (!look->stretches[i].whole)
			return false;
	}
	return true;
}

/*
 * How many events are known from one transaction on, up to the first transaction that
 * was not read.  The count may stop where there are enough.
 */
static int64
known_ahead(const PendingLook *look, uint64 from)
{
	uint64		end = from;
	int64		known = 0;

	for (int i = stretch_behind(look, from);
		 i < look->nstretches && look->stretches[i].from <= end && known < AHEAD_ENOUGH; i++)
	{
		const Stretch *stretch = &look->stretches[i];

		for (int64 j = stretch->first; j < stretch->first + stretch->nevents; j++)
			known += (look->events[j].txid >= from);
		end = stretch->to;
	}
	return known;
}

/*
 * Read some of the events from one transaction on, unless some are known.
 */
static void
read_ahead(PendingLook *look, uint64 from)
{
	int64		share = look->ahead_left / AHEAD_SHARE;
	int64		left = share;
	uint64		gap_from;
	uint64		gap_to;

	while (left > 0 && known_ahead(look, from) < AHEAD_ENOUGH &&
		   find_gap(look, from, look->upto->xmax, ForwardScanDirection, &gap_from, &gap_to))
		read_stretch(look, gap_from, gap_to, ForwardScanDirection, &left);
	look->ahead_left -= share - left;
}

/* a search for the next event behind a position inside a window */
typedef struct NextSearch
{
	const EventPattern *pattern;
	const EventPosition *position;
	const EventSnapshot *upto;
	int64		left;
	TimestampTz created_at;		/* of the event that was found */
} NextSearch;

static bool
look_at_next(TupleTableSlot *slot, int64 id, void *arg)
{
	NextSearch *search = (NextSearch *) arg;
	uint64		txid = event_slot_txid(slot);
	bool		isnull;
	char	   *name;
	Datum		created_at;

	if (--search->left <= 0)
		return false;
	if (!event_snapshot_sees(search->upto, txid) || event_position_passed(search->position, txid, id))
		return true;
	name = TextDatumGetCString(slot_getattr(slot, Anum_event_name, &isnull));
	if (match_name(search->pattern, name))
	{
		created_at = slot_getattr(slot, Anum_event_created_at, &isnull);
		if (!isnull)
			search->created_at = DatumGetTimestampTz(created_at);
	}
	pfree(name);
	return search->created_at == DT_NOEND;
}

/*
 * The time of the next event behind a position inside a window, or DT_NOEND.  In the
 * order of transactions such a window begins with everything that was passed.
 */
static TimestampTz
next_in_window(PendingLook *look, const EventPattern *pattern, const EventPosition *position)
{
	int64		share = look->ahead_left / AHEAD_SHARE;
	NextSearch search = {pattern, position, look->upto, share, DT_NOEND};

	if (position->last_id < PG_INT64_MAX && share > 0)
		event_scan_ids(look->log, look->snapshot, position->last_id + 1, PG_INT64_MAX, look_at_next, &search);
	look->ahead_left -= share - search.left;
	return search.created_at;
}

/* ----------
 * Counting
 * ----------
 */

/*
 * Count what waits behind a position, among all that was read.
 */
static void
count_seen(const PendingLook *look, const EventPattern *pattern, const EventPosition *position, Pending *pending)
{
	WantedNames *wanted = match_names(pattern, look->names);

	/* every transaction before the cursor's xmin has ended */
	for (int i = stretch_behind(look, position->cursor->xmin); i < look->nstretches; i++)
	{
		const Stretch *stretch = &look->stretches[i];

		for (int64 j = stretch->first; j < stretch->first + stretch->nevents; j++)
		{
			const SeenEvent *event = &look->events[j];

			if (!wanted->names[event->name] ||
				event_position_passed(position, event->txid, event->id) ||
				(event->name_text != NULL && !match_name(pattern, event->name_text)))
				continue;
			pending->count++;
			pending->oldest = Min(pending->oldest, event->created_at);
		}
	}
	pfree(wanted);
}

/*
 * What waits behind a position, according to the active snapshot, for the function
 * that was called with caller.  The log was locked before the snapshot was taken.
 */
Pending
pending_count(FmgrInfo *caller, Relation log, const EventPattern *pattern, const EventPosition *position)
{
	PendingLook *look = look_of(caller);
	const EventSnapshot *cursor = position->cursor;
	Pending		pending = {0, true, DT_NOEND};

	Assert(ActiveSnapshotSet());
	look->log = log;
	pending.exact = cover(look, cursor->xmax, look->upto->xmax, &look->newest_left);
	for (int i = 0; i < cursor->nxip; i++)
	{
		uint64		txid = cursor->xip[i];

		if (event_snapshot_sees(look->upto, txid) &&
			!cover(look, txid, txid + 1, &look->lookup_left))
			pending.exact = false;
	}
	if (!pending.exact && position->window == NULL)
		read_ahead(look, cursor->xmax);
	else if (!pending.exact)
		pending.oldest = next_in_window(look, pattern, position);

	count_seen(look, pattern, position, &pending);
	if (pending.count > MAX_COUNTED)
	{
		pending.count = MAX_COUNTED;
		pending.exact = false;
	}
	look->log = NULL;
	look->snapshot = NULL;
	return pending;
}
