/*-------------------------------------------------------------------------
 *
 * runs.c
 *		The handlers of an executor's owner in memory, and the windows they
 *		share.
 *
 * A definition is read again where it has changed, and only there: what is in
 * memory of the others, windows above all, stays.  Which owners a change concerns
 * is counted in shared memory, so that one owner's changes have no other owner's
 * executor look at anything.
 *
 * There is one copy of a window, whoever stands in it.  Who comes to stand where
 * a window begins, or inside, takes the one that is there.  If that leaves out
 * what is still to be done for him, all others move to the one that is read for
 * him.
 *
 * Of a large window there may be several parts, for handlers that are far from
 * each other.  All together they have a bound: who reads the first gets half of
 * that, the next half of what is left.  So there is something left for who comes
 * last, and a slow handler in a large part leaves enough to the others.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "base/fault.h"
#include "delivery/backoff.h"
#include "delivery/runs.h"

/* a window is read with so many events at least, whatever others take */
#define LEAST_EVENTS 1000

/* the handlers of the owner that are to run, by name, as of definitions_seen */
static MemoryContext runs_context = NULL;
static List *runs = NIL;
static uint32 definitions_seen = 0;

/* a HandlerState for each handler that was run; in TopMemoryContext */
static List *states = NIL;

/* windows, of each of which this holds a reference */
static MemoryContext windows_context = NULL;
static List *windows = NIL;

/* what is known by a handler's name */
typedef struct KnownHandler
{
	char		name[HANDLER_NAME_SIZE];
	HandlerRun *run;			/* unless it is none, or stays */
	HandlerState *state;		/* the last one; or NULL */
} KnownHandler;

/*
 * Once per executor.
 */
void
runs_init(void)
{
	runs_context = AllocSetContextCreate(TopMemoryContext, "event handlers", ALLOCSET_DEFAULT_SIZES);
	windows_context = AllocSetContextCreate(TopMemoryContext, "event windows", ALLOCSET_DEFAULT_SIZES);
}

/*
 * The handlers that are to run; valid until the next runs_follow().
 */
List *
runs_all(void)
{
	return runs;
}

/*
 * How all handlers fare that were run here.
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
 * Forget a handler, but for how it fares.
 */
static void
forget_run(HandlerRun *run)
{
	if (run->window != NULL)
		window_release(run->window);
	MemoryContextDelete(run->context);
}

/*
 * After an error: forget all handlers and windows; the next look reads them
 * again.
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
 * All that is known, by name, in the current memory context.
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
 * Find what is known of how a handler fares.  Another definition may do better:
 * it is taken up anew, and need not wait for a probe; and another executor may
 * have run the handler meanwhile.
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
 * Read a handler's definition.  NULL where it is not to run any more.
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
 * Whether what is in memory of a handler is what is stored.
 */
static bool
is_current(const HandlerRun *run, const Handler *stored)
{
	return !run->stale && run->definition->created == stored->created &&
		run->definition->version == stored->version;
}

/*
 * Read which handlers the owner has now, and the definitions of those that have
 * changed.  What cannot run at all, paused or dormant, is left out.
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

	/* from here on nothing throws */
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
 * Follow the definitions of the owner's handlers.  The caller is connected to SPI,
 * and the current memory context is one for the round.
 */
void
runs_follow(DatabaseSlot *database, Oid owner)
{
	uint32		definitions = shared_definitions_of(database, owner);

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
 * Whether a window has what comes next behind a position.
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
 * Of the handlers that are to go on inside the same window, the position of the
 * one that is farthest behind, but no so far that those limit events that it needs
 * next might leave nothing to who is at the position given.
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
 * Have a handler stand in a window at index next.
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
 * A window that has all that another copy has of it was read: who stands in that
 * moves over.
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
		/* its turn may come before it is looked at again */
		(void) handler_run_seek(run);
	}
}

/*
 * Give a handler a window: one that is there for others, or a new one.
 */
void
runs_take_window(HandlerRun *run, Relation log, Snapshot snapshot, const EventSnapshot *upto)
{
	EventPosition position = run->position;
	Window	   *window = find_window(&position);

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
		 * Nothing there.  That the position is ahead now is not worth storing,
		 * unless it was inside a window.
		 */
		Instant		ahead_since = run->ahead_since;
		bool		was_inside = (position.window != NULL);

		handler_run_finish_window(run);
		if (!was_inside)
			run->ahead_since = ahead_since;
	}
}

/*
 * Drop the windows that no handler stands in any more.
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
