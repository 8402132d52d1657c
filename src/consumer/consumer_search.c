/*-------------------------------------------------------------------------
 *
 * consumer_search.c
 *		The search for a consumer's events.
 *
 * A search goes on from a position by window, and inside a window by id.  It looks at
 * each event once: its name, whether row security lets the consumer's owner see it,
 * the filter.  An event for which the filter fails is given to the client, which may
 * judge it: it must neither block the consumer nor get lost.
 *
 * A backlog is one large window, and each search takes a few events of it.  Reading
 * all of it each time would take a time that grows with the square of the backlog.  So
 * it is read on by id from the position, and each row is read once.  The row is
 * matched where it lies and copied if its name matches.  It is put into the result
 * some rows later, while the processor still has it in its cache.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "miscadmin.h"
#include "utils/rel.h"
#include "utils/timeout.h"

#include "base/catalog.h"
#include "base/compat.h"
#include "base/settings.h"
#include "consumer/consumer_search.h"

/* a search ends after this time, in ms; or so long after the last event that it found */
#define SEARCH_MS 1000
#define CONTENT_MS 100

/*
 * ... and after this share of what is left of a timeout, so that a client which polls
 * with a short timeout makes progress, even if few events match
 */
#define SHARE_OF_TIMEOUT 3

/*
 * How many events are read at a time: at first, if time is short; and at most, unless
 * more are wanted.
 */
#define HURRIED_STEP 32
#define MAX_STEP 1000

/*
 * How many rows are copied before they are examined.  Under row security it is
 * MAX_STEP, because that takes a statement.
 */
#define FEW_CANDIDATES 32

/*
 * How many rows reading on looks at, at most, to find one step's events.  If those of
 * the window are further away, it gives up.
 */
#define READ_ON_ROWS 10000

/* a step may be larger than the last one if there is time for so many like that */
#define STEPS_TO_GO 4

/*
 * When the first active timeout will end the statement, or INSTANT_NEVER.
 */
static Instant
statement_ends_at(void)
{
	static const TimeoutId timeouts[] = {PNE_STATEMENT_TIMEOUTS};
	TimestampTz result = DT_NOEND;

	for (int i = 0; i < (int) lengthof(timeouts); i++)
	{
		if (get_timeout_active(timeouts[i]))
			result = Min(result, get_timeout_finish_time(timeouts[i]));
	}
	return instant_of_time(result);
}

/*
 * The search begins: set the deadlines by which it ends.
 */
static void
set_deadlines(EventSearch *search)
{
	Instant		now = instant_now();
	Instant		statement = statement_ends_at();

	search->ends_at = instant_after(now, SEARCH_MS);
	search->content_at = INSTANT_NEVER;
	search->hurried = (statement != INSTANT_NEVER);
	if (search->hurried)
	{
		search->ends_at = Min(search->ends_at, now + (statement - now) / SHARE_OF_TIMEOUT);
		search->step = Min(search->step, HURRIED_STEP);
	}
}

static bool
time_is_up(const EventSearch *search)
{
	Instant		now = instant_now();

	return now >= search->ends_at || now >= search->content_at;
}

/*
 * Mark the candidates that row security hides from the consumer's owner, whose
 * policies hold for every client.  Returns whether row security applies.
 */
static bool
hide_candidates(EventSearch *search)
{
	Oid			save_user;
	int			save_context;
	volatile bool restricted = false;

	GetUserIdAndSecContext(&save_user, &save_context);
	PG_TRY();
	{
		SetUserIdAndSecContext(search->consumer->owner,
							   save_context | SECURITY_LOCAL_USERID_CHANGE | SECURITY_RESTRICTED_OPERATION);
		restricted = match_is_restricted(search->log);
		if (restricted && search->ncandidates > 0)
			match_row_security(search->log, search->candidates, search->ncandidates);
	}
	PG_FINALLY();
	{
		SetUserIdAndSecContext(save_user, save_context);
	}
	PG_END_TRY();
	return restricted;
}

/*
 * Prepare a search from a consumer's position, for limit events at most.  The log was
 * locked before the snapshot was taken.  Results are in the current memory context.
 */
void
search_begin(EventSearch *search, const Consumer *consumer, Relation log, Snapshot snapshot, int limit)
{
	memset(search, 0, sizeof(*search));
	search->consumer = consumer;
	search->log = log;
	search->snapshot = snapshot;
	search->upto = event_snapshot_build(snapshot);
	search->position = event_position_copy(&consumer->position);
	search->limit = limit;
	search->step = limit;
	search->max_bytes = (Size) pne_batch_bytes * 1024;
	search->found = palloc(sizeof(FoundEvent) * limit);
	search->context = AllocSetContextCreate(CurrentMemoryContext, "event candidates", ALLOCSET_DEFAULT_SIZES);
	search->max_candidates = hide_candidates(search) ? MAX_STEP : FEW_CANDIDATES;
	search->candidates = palloc(sizeof(Event) * search->max_candidates);
}

/*
 * End a search.  What was found stays.
 */
void
search_end(EventSearch *search)
{
	pfree(search->candidates);
	MemoryContextDelete(search->context);
}

static bool
search_is_full(const EventSearch *search)
{
	return search->nfound == search->limit || search->bytes >= search->max_bytes;
}

/*
 * Put the row of an event into a tuplestore.
 */
void
search_put(const EventSearch *search, Tuplestorestate *store, HeapTuple tuple)
{
	TupleDesc	desc = RelationGetDescr(search->log);
	Datum	   *values;
	bool	   *nulls;

	if (HeapTupleHeaderGetNatts(tuple->t_data) == desc->natts)
	{
		tuplestore_puttuple(store, tuple);
		return;
	}
	/* add the columns that are younger than the row */
	values = palloc(sizeof(Datum) * desc->natts);
	nulls = palloc(sizeof(bool) * desc->natts);
	heap_deform_tuple(tuple, desc, values, nulls);
	tuplestore_putvalues(store, desc, values, nulls);
	pfree(values);
	pfree(nulls);
}

/*
 * Take back what was put into the tuplestore.
 */
static void
take_back(EventSearch *search)
{
	TupleTableSlot *slot = MakeSingleTupleTableSlot(RelationGetDescr(search->log), &TTSOpsMinimalTuple);

	for (int i = 0; i < search->nfound; i++)
	{
		if (!tuplestore_gettupleslot(search->store, true, false, slot))
			elog(ERROR, "event %lld is not where it was put", (long long) search->found[i].identity.id);
		search->found[i].tuple = ExecCopySlotHeapTuple(slot);
	}
	ExecDropSingleTupleTableSlot(slot);
	tuplestore_clear(search->store);
	search->store = NULL;
}

/*
 * A candidate is found.  Events behind the end of a window became visible later and
 * may have lower ids; then everything that was found has to be sorted.
 */
static void
take_candidate(EventSearch *search, const Event *candidate)
{
	FoundEvent *found = &search->found[search->nfound];

	if (search->store != NULL && search->nfound > 0 && found[-1].identity.id > candidate->id)
		take_back(search);
	search->nfound++;
	found->identity.id = candidate->id;
	found->identity.txid = candidate->txid;
	found->tuple = NULL;
	if (search->store != NULL)
		search_put(search, search->store, candidate->tuple);
	else
		found->tuple = heap_copytuple(candidate->tuple);
	search->bytes += candidate->size;
}

/*
 * Take those candidates that may be seen and, if match is set, that pass the filter.
 * Row security comes first, so that a filter cannot reveal what it hides.  Returns
 * false if it ended before the last candidate, because enough were found or the time
 * is up.  *id is then the id of the last one that was examined.
 */
static bool
judge_candidates(EventSearch *search, bool match, int64 *id)
{
	int			ncandidates = search->ncandidates;
	bool		go_on = true;
	int			next = 0;

	if (ncandidates == 0)
		return true;
	(void) hide_candidates(search);
	while (next < ncandidates && go_on)
	{
		const Event *candidate = &search->candidates[next++];

		CHECK_FOR_INTERRUPTS();
		if (!candidate->hidden &&
			(!match || match_filter_or_error(&search->consumer->pattern, candidate->tuple,
											 RelationGetDescr(search->log))))
			take_candidate(search, candidate);
		else
			search->choosy = true;
		go_on = !search_is_full(search) && !(match && search->hurried && time_is_up(search));
	}
	search->ncandidates = 0;
	search->candidate_bytes = 0;
	MemoryContextReset(search->context);
	if (next == ncandidates)
		return true;
	*id = search->candidates[next - 1].id;
	return false;
}

static void
add_candidate(EventSearch *search, TupleTableSlot *slot)
{
	Event	   *candidate = &search->candidates[search->ncandidates++];
	MemoryContext old = MemoryContextSwitchTo(search->context);

	event_copy_row(candidate, slot);
	MemoryContextSwitchTo(old);
	search->candidate_bytes += candidate->size;
}

/*
 * Whether there is room for more candidates.  As long as none was refused, no more are
 * read than are wanted.
 */
static bool
wants_candidates(const EventSearch *search)
{
	int			wanted = search->max_candidates;

	if (!search->choosy)
		wanted = Min(wanted, search->limit - search->nfound);
	return search->ncandidates < wanted && search->bytes + search->candidate_bytes < search->max_bytes;
}

typedef struct ListedState
{
	EventSearch *search;
	const EventIdentity *next;	/* of the list */
	const EventIdentity *end;	/* of the list */
	int64		id;				/* of the one that was looked at last */
	bool		ended;			/* with that one */
} ListedState;

static bool
look_at_listed(TupleTableSlot *slot, int64 id, void *arg)
{
	ListedState *state = (ListedState *) arg;
	uint64		txid = event_slot_txid(slot);

	while (state->next < state->end &&
		   (state->next->id < id || (state->next->id == id && state->next->txid != txid)))
		state->next++;
	if (state->next < state->end && state->next->id == id)
		add_candidate(state->search, slot);
	state->id = id;
	state->ended = !wants_candidates(state->search) &&
		(!judge_candidates(state->search, false, &state->id) || search_is_full(state->search));
	return !state->ended;
}

/*
 * Find the events of a list, which are in ascending order of their ids and no more
 * than the limit: each that is there and may be seen, if it is still the same.
 * Several may have one id: that has returned, and all but one of them are gone.
 * Returns how many of the list were looked at.
 */
int
search_listed(EventSearch *search, const EventIdentity *listed, int nlisted)
{
	EventRef   *refs = palloc(sizeof(EventRef) * nlisted);
	ListedState state = {.search = search, .next = listed, .end = listed + nlisted};
	int			nrefs = 0;
	int			nlooked = nlisted;

	for (int i = 0; i < nlisted; i++)
	{
		if (i == 0 || listed[i].id != listed[i - 1].id)
			refs[nrefs++] = event_ref(listed[i].id);
	}
	(void) event_scan_refs(search->log, search->snapshot, refs, nrefs, look_at_listed, &state);
	if (!judge_candidates(search, false, &state.id) || state.ended)
	{
		while (nlooked > 0 && listed[nlooked - 1].id > state.id)
			nlooked--;
	}
	pfree(refs);
	return nlooked;
}

/*
 * Look at an event of the window: it is a candidate if its name fits.  *id is that of
 * this one, and becomes that of an earlier one if the search ends with it; false if
 * it ends.
 */
static bool
look_at_event(EventSearch *search, TupleTableSlot *slot, int64 *id)
{
	bool		isnull;

	search->passed++;
	if (match_name_datum(&search->consumer->pattern, slot_getattr(slot, Anum_event_name, &isnull)))
		add_candidate(search, slot);
	if (wants_candidates(search))
		return true;
	return judge_candidates(search, true, id) && !search_is_full(search);
}

/*
 * A step has ended: decide how large the next one may be.  Steps become larger if few
 * events match, but not if policies and filters are slow and time is short.
 */
static void
adapt_step(EventSearch *search, Instant began, int found_before)
{
	Instant		now = instant_now();

	if (search->nfound > found_before)
		search->content_at = instant_after(now, CONTENT_MS);
	if (!search->hurried || (now - began) * STEPS_TO_GO < search->ends_at - now)
		search->step = Max(search->step, Min(search->step * 2, MAX_STEP));
}

typedef struct ReadOnState
{
	EventSearch *search;
	int			nrows;
	int			nevents;		/* of the window */
	int64		last_id;
	bool		ended;			/* before there were no more rows */
} ReadOnState;

static bool
look_at_row(TupleTableSlot *slot, int64 id, void *arg)
{
	ReadOnState *state = (ReadOnState *) arg;
	EventSearch *search = state->search;
	const EventPosition *position = &search->position;
	uint64		xid = event_slot_txid(slot);

	state->last_id = id;
	state->nrows++;
	if (event_snapshot_sees(position->window, xid) && !event_snapshot_sees(position->cursor, xid))
	{
		state->nevents++;
		state->ended = !look_at_event(search, slot, &state->last_id);
	}
	state->ended = state->ended || state->nrows == READ_ON_ROWS || state->nevents == search->step;
	return !state->ended;
}

/*
 * Read on from a position inside a window, for one step, and move the position.
 * Returns whether that found any event of the window.
 */
static bool
read_on(EventSearch *search)
{
	EventPosition *position = &search->position;
	Instant		began = instant_now();
	int			found_before = search->nfound;
	ReadOnState state = {.search = search};

	if (position->last_id < PG_INT64_MAX)
		event_scan_ids(search->log, search->snapshot, position->last_id + 1, PG_INT64_MAX,
					   look_at_row, &state);
	if (!judge_candidates(search, true, &state.last_id))
		state.ended = true;
	if (state.ended)
		position->last_id = state.last_id;
	else
	{
		pfree(position->cursor);
		position->cursor = position->window;
		position->window = NULL;
		position->last_id = 0;
		position->rows = 0;
	}
	adapt_step(search, began, found_before);
	return state.nevents > 0;
}

typedef struct GoThroughState
{
	EventSearch *search;
	int64		last_id;
	bool		ended;			/* with that one */
} GoThroughState;

static bool
look_at_ref(TupleTableSlot *slot, int64 id, void *arg)
{
	GoThroughState *state = (GoThroughState *) arg;

	state->last_id = id;
	state->ended = !look_at_event(state->search, slot, &state->last_id);
	return !state->ended;
}

/*
 * Go through a window that was read, from its beginning, until enough events are found
 * or the time is up, and move the position there.
 */
static void
go_through(EventSearch *search, const Window *window)
{
	int64		next = 0;
	EventPosition come_to;

	while (next < window->nevents && (next == 0 || !(search_is_full(search) || time_is_up(search))))
	{
		Instant		began = instant_now();
		int			found_before = search->nfound;
		GoThroughState state = {.search = search};

		next += event_scan_refs(search->log, search->snapshot, window->events + next,
								(int) Min(window->nevents - next, search->step), look_at_ref, &state);
		if (!judge_candidates(search, true, &state.last_id) || state.ended)
			next = window_behind(window, state.last_id);
		adapt_step(search, began, found_before);
	}
	come_to = window_position(window, next);
	come_to = event_position_copy(&come_to);
	event_position_free(&search->position);
	search->position = come_to;
}

/*
 * Move the position into the window that begins here, before all of its events.
 */
static void
enter_window(EventSearch *search)
{
	search->position.window = event_snapshot_copy(search->upto);
	search->position.last_id = PG_INT64_MIN;
}

/*
 * Read the window that the position is in, or else the next one.  Returns NULL if the
 * statement would be cancelled before the end of that; then the position is inside the
 * window in any case.
 */
static Window *
read_whole(EventSearch *search)
{
	EventPosition *position = &search->position;
	Instant		now = instant_now();
	Instant		deadline = search->hurried ? now + (search->ends_at - now) / 2 : INSTANT_NEVER;
	Window	   *window = window_read(search->log, position, search->snapshot, search->upto,
									 CurrentMemoryContext, deadline);

	if (window == NULL && position->window == NULL)
		enter_window(search);
	return window;
}

/*
 * Find further events from the position on, and move the position.
 *
 * A window that was begun is finished before the next one is opened.  It is read on by
 * id from the position.  If that finds nothing, its rest is read as a whole.  If there
 * is no time for that, it is read on by id nevertheless: then one search after the
 * other comes nearer to its next event.
 *
 * A window with all events need not be read to know where it begins.
 */
void
search_log(EventSearch *search)
{
	bool		leads_on = true;
	bool		too_large = false;

	set_deadlines(search);
	for (;;)
	{
		EventPosition *position = &search->position;
		Window	   *window;

		search->finished = (position->window == NULL && event_snapshot_equal(position->cursor, search->upto));
		if (search->finished || search_is_full(search) || time_is_up(search))
			break;

		if (position->window == NULL && event_snapshot_sees_nothing(position->cursor))
			enter_window(search);
		if (position->window != NULL && (leads_on || too_large))
		{
			leads_on = read_on(search);
			continue;
		}
		window = read_whole(search);
		if (window == NULL)
		{
			too_large = true;
			continue;
		}
		go_through(search, window);
		leads_on = (window->nevents > 0);
		window_release(window);
	}
}
