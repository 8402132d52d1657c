/*-------------------------------------------------------------------------
 *
 * runs.c
 *		The handlers of an executor's owner in memory, and the windows they share.
 *
 * A definition is read again if it has changed, and only then.  What is in memory of
 * the other handlers stays, above all their windows.  Shared memory counts the changes
 * per owner, so changes of one owner cost the executors of other owners nothing.
 *
 * There is one copy of a window, however many handlers stand in it.  A handler that
 * reaches the beginning of a window, or a place inside of it, takes the copy that is
 * there.  If that copy lacks what the handler still has to do, a new one is read for
 * it, and all other handlers move to the new one.
 *
 * There may be several parts of a large window, for handlers that are far from each
 * other.  Together they have a bound.  The first part that is read gets half of the
 * bound, the next one half of what is left.  So something is left for the last
 * handler, and a slow handler in a large part leaves enough to the others.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "base/fault.h"
#include "delivery/backoff.h"
#include "delivery/runs.h"

/* the least number of events a window may be read with, whatever other windows hold */
#define LEAST_EVENTS 1000

/* the owner's handlers that are to run, by name, as of definitions_seen */
static MemoryContext runs_context = NULL;
static List *runs = NIL;
static uint32 definitions_seen = 0;

/* a HandlerState for each handler that has been run here; in TopMemoryContext */
static List *states = NIL;

/* the windows in memory; the list holds a reference to each of them */
static MemoryContext windows_context = NULL;
static List *windows = NIL;

/* what is in memory of a handler, by its name */
typedef struct KnownHandler
{
	char		name[HANDLER_NAME_SIZE];
	HandlerRun *run;			/* to be forgotten; NULL if there is none, or it stays */
	HandlerState *state;		/* the last one of that name; or NULL */
} KnownHandler;

/*
 * Create the memory contexts.  Called once per executor.
 */
void
runs_init(void)
{
	runs_context = AllocSetContextCreate(TopMemoryContext, "event handlers", ALLOCSET_DEFAULT_SIZES);
	windows_context = AllocSetContextCreate(TopMemoryContext, "event windows", ALLOCSET_DEFAULT_SIZES);
}

/*
 * The handlers that are to run, as a list of HandlerRun.  Valid until the next
 * runs_follow() or runs_forget().
 */
List *
runs_all(void)
{
	return runs;
}

/*
 * The states of all handlers that have been run here, as a list of HandlerState.  The
 * caller may remove elements.
 */
List **
runs_states(void)
{
	return &states;
}

/* ----------
 * Definitions
 * ----------
 */

/*
 * Forget a handler, except its state.
 */
static void
forget_run(HandlerRun *run)
{
	if (run->window != NULL)
		window_release(run->window);
	MemoryContextDelete(run->context);
}

/*
 * After an error: forget all handlers and windows.  The next runs_follow() reads them
 * again.  The states stay.
 */
void
runs_forget(void)
{
	runs = NIL;
	MemoryContextReset(runs_context);
	windows = NIL;
	MemoryContextReset(windows_context);
}

static KnownHandler *
known_handler(HTAB *known, const char *name, HASHACTION action)
{
	bool		found;
	KnownHandler *handler = hash_search(known, name, action, &found);

	if (handler != NULL && !found)
	{
		handler->run = NULL;
		handler->state = NULL;
	}
	return handler;
}

/*
 * A hash table of all handlers in memory by name, in the current memory context.
 * Marks all states as gone.
 */
static HTAB *
known_handlers(void)
{
	HASHCTL		info = {.keysize = HANDLER_NAME_SIZE, .entrysize = sizeof(KnownHandler), .hcxt = CurrentMemoryContext};
	HTAB	   *known = hash_create("known event handlers", list_length(states) + 1, &info,
									HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
	ListCell   *lc;

	foreach(lc, states)
	{
		HandlerState *state = lfirst(lc);

		state->gone = true;
		known_handler(known, state->name, HASH_ENTER)->state = state;
	}
	foreach(lc, runs)
	{
		HandlerRun *run = lfirst(lc);

		known_handler(known, run->definition->name, HASH_ENTER)->run = run;
	}
	return known;
}

/*
 * Find or create the handler's state.  If the definition has changed, the handler is
 * to be claimed again, and what is stored of a back-off is loaded again: another
 * executor may have run the handler meanwhile, and a new definition may work, so it
 * does not wait for the next trial.
 */
static void
find_state(HandlerRun *run, HandlerState *state)
{
	const Handler *handler = run->definition;

	if (state == NULL || state->created != handler->created)
	{
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

		state = palloc0(sizeof(HandlerState));
		strlcpy(state->name, handler->name, HANDLER_NAME_SIZE);
		state->created = handler->created;
		states = lappend(states, state);
		MemoryContextSwitchTo(old);
	}
	state->gone = false;
	state->unstored = 0;
	run->state = state;
	if (state->version != handler->version)
	{
		state->version = handler->version;
		state->claimed = false;
		backoff_load(run);
	}
}

static bool
is_to_run(const Handler *handler)
{
	return !handler->paused && !handler->dormant;
}

/*
 * Read a handler's definition.  Returns NULL if the handler is not to run any more.
 */
static HandlerRun *
load_run(const char *name, Oid owner, HandlerState *state)
{
	MemoryContext context = AllocSetContextCreate(runs_context, "event handler", ALLOCSET_SMALL_SIZES);
	List	   *handlers = handler_load(name, owner, context);
	HandlerRun *run = MemoryContextAllocZero(context, sizeof(HandlerRun));
	MemoryContext old;

	if (handlers == NIL || !is_to_run(linitial(handlers)))
	{
		MemoryContextDelete(context);
		return NULL;
	}
	run->context = context;
	run->definition = linitial(handlers);
	old = MemoryContextSwitchTo(context);
	run->position = event_position_copy(&run->definition->position);
	MemoryContextSwitchTo(old);
	find_state(run, state);
	return run;
}

/*
 * Whether what is in memory of a handler agrees with what is stored.
 */
static bool
is_current(const HandlerRun *run, const Handler *stored)
{
	return !run->stale && run->definition->created == stored->created &&
		run->definition->version == stored->version;
}

/*
 * Read which handlers the owner has now, and the definitions of those that have
 * changed.  Paused and dormant handlers cannot run at all and are left out.
 */
static void
load_runs(Oid owner)
{
	HTAB	   *known = known_handlers();
	List	   *stored = handler_load_without_filters(owner, CurrentMemoryContext);
	List	   *current = NIL;
	List	   *previous = runs;
	ListCell   *lc;

	foreach(lc, stored)
	{
		Handler    *handler = lfirst(lc);
		KnownHandler *entry = known_handler(known, handler->name, HASH_ENTER);
		HandlerRun *run = entry->run;
		MemoryContext old;

		if (!is_to_run(handler))
		{
			HandlerRun	left_out = {.definition = handler};

			find_state(&left_out, entry->state);
			continue;
		}
		if (run != NULL && is_current(run, handler))
		{
			entry->run = NULL;
			run->state->gone = false;
		}
		else
			run = load_run(handler->name, owner, entry->state);
		if (run == NULL)
			continue;
		handler_run_read_next_retry(run);

		old = MemoryContextSwitchTo(runs_context);
		current = lappend(current, run);
		MemoryContextSwitchTo(old);
	}

	/* from here on nothing can throw an error */
	runs = current;
	foreach(lc, previous)
	{
		HandlerRun *run = lfirst(lc);

		if (known_handler(known, run->definition->name, HASH_FIND)->run != NULL)
			forget_run(run);
	}
	list_free(previous);
}

static bool
any_stale(void)
{
	ListCell   *lc;

	foreach(lc, runs)
	{
		if (((HandlerRun *) lfirst(lc))->stale)
			return true;
	}
	return false;
}

/*
 * Update the handlers in memory if definitions of the owner's handlers have changed.
 * The caller is in a transaction and connected to SPI.  The current memory context is
 * one that lives for the round.
 */
void
runs_follow(DatabaseSlot *database, Oid owner)
{
	uint32		definitions = shared_definitions_of(database, owner);

	Assert(IsTransactionState());

	if (runs != NIL && definitions == definitions_seen && !any_stale())
		return;
	FAULT_POINT("before-load");
	PushActiveSnapshot(GetTransactionSnapshot());
	load_runs(owner);
	PopActiveSnapshot();
	definitions_seen = definitions;
}

/* ----------
 * Windows
 * ----------
 */

/*
 * Whether a window has the events that follow a position.
 */
static bool
window_serves(const Window *window, const EventPosition *position)
{
	if (!event_snapshot_equal(window->from, position->cursor))
		return false;
	if (position->window == NULL)
		return window->whole;
	return event_snapshot_equal(window->upto, position->window) &&
		(window->whole || window->after <= position->last_id) &&
		(window->through == PG_INT64_MAX || window->through > position->last_id);
}

static Window *
find_window(const EventPosition *position)
{
	ListCell   *lc;

	foreach(lc, windows)
	{
		if (window_serves(lfirst(lc), position))
			return lfirst(lc);
	}
	return NULL;
}

/*
 * How many events the next window may have.
 */
static int64
window_limit(void)
{
	int64		left = 2 * window_bound();
	ListCell   *lc;

	foreach(lc, windows)
		left -= ((Window *) lfirst(lc))->room;
	return Max(left / 2, LEAST_EVENTS);
}

/*
 * Where to begin reading for a handler at the given position.  This is the hindmost
 * position of the handlers that are to continue inside the same window.  But it is not
 * so far behind that the limit of events could be used up before the given position.
 */
static EventPosition
hindmost_position(EventPosition position, int64 limit)
{
	int64		farthest = position.last_id > PG_INT64_MIN + limit ? position.last_id - limit / 2 : PG_INT64_MIN;
	ListCell   *lc;

	foreach(lc, runs)
	{
		HandlerRun *run = lfirst(lc);
		const EventPosition *other = &run->position;

		if (handler_run_is_inside_window(run) && other->last_id < position.last_id && other->last_id >= farthest &&
			event_snapshot_equal(other->cursor, position.cursor) &&
			event_snapshot_equal(other->window, position.window))
			position.last_id = other->last_id;
	}
	return position;
}

/*
 * Put a handler at index next of a window.  Releases the window it had.
 */
static void
enter_window(HandlerRun *run, Window *window, int64 next)
{
	window->references++;
	if (run->window != NULL)
		window_release(run->window);
	run->window = window;
	run->next = next;
	if (run->names != NULL)
		pfree(run->names);
	run->names = NULL;
}

/*
 * A window was read that has everything of some other copies of it: move the handlers
 * that stand in those copies to the new one.
 */
static void
unite_windows(Window *window)
{
	ListCell   *lc;

	foreach(lc, runs)
	{
		HandlerRun *run = lfirst(lc);
		Window	   *copy = run->window;
		int64		next;

		if (copy == NULL || copy == window ||
			(!window->whole && (copy->whole || copy->after < window->after)) ||
			copy->through > window->through ||
			!event_snapshot_equal(copy->from, window->from) ||
			!event_snapshot_equal(copy->upto, window->upto))
			continue;
		if (run->next > 0)
			next = window_behind(window, copy->events[run->next - 1].id);
		else
			next = copy->whole ? 0 : window_behind(window, copy->after);
		enter_window(run, window, next);
		/* its turn may come before find_work() looks at it again */
		(void) handler_run_seek(run);
	}
}

/*
 * Give a handler without a window the next one: one that is there for other handlers,
 * or a new one, read from the log with the snapshot.  upto is that snapshot as an
 * EventSnapshot.  If the window has no events, it is finished at once, and the handler
 * has no window after this.
 */
void
runs_take_window(HandlerRun *run, Relation log, Snapshot snapshot, const EventSnapshot *upto)
{
	EventPosition position = run->position;
	Window	   *window = find_window(&position);

	Assert(run->window == NULL);

	if (window == NULL)
	{
		int64		limit = window_limit();
		EventPosition from = hindmost_position(position, limit);
		MemoryContext old;

		window = window_read_names(log, &from, snapshot, upto, windows_context, limit);
		old = MemoryContextSwitchTo(windows_context);
		windows = lappend(windows, window);
		MemoryContextSwitchTo(old);
		if (position.window != NULL)
			unite_windows(window);
	}
	enter_window(run, window, position.window != NULL ? window_behind(window, position.last_id) : 0);

	if (run->window->nevents == 0)
	{
		/*
		 * There are no events.  The position is ahead now, but that is not worth
		 * storing unless it was inside a window.
		 */
		Instant		ahead_since = run->ahead_since;
		bool		was_inside = (position.window != NULL);

		handler_run_finish_window(run);
		if (!was_inside)
			run->ahead_since = ahead_since;
	}
}

/*
 * Release the windows that no handler stands in any more.
 */
void
runs_release_windows(void)
{
	ListCell   *lc;

	foreach(lc, windows)
	{
		Window	   *window = lfirst(lc);

		if (window->references > 1)
			continue;
		windows = foreach_delete_current(windows, lc);
		window_release(window);
	}
}
