/*-------------------------------------------------------------------------
 *
 * handler_run.c
 *		A handler while its executor runs it: its position and its state.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "base/loglimit.h"
#include "base/settings.h"
#include "delivery/handler_run.h"
#include "handler/retry_table.h"

/*
 * End the guard: none of the remaining events can be the one that ended the lost
 * executor.
 */
static void
end_guard(HandlerRun *run)
{
	run->state->guarded_events = 0;
	if (loglimit_allows(LOG_TOPIC_HANDLERS))
		ereport(LOG,
				(errmsg("event handler \"%s\" goes on with whole batches", run->definition->name)));
}

/*
 * Count nevents events that the handler has passed, whether it handled, refused or
 * failed them.
 */
void
handler_run_note_passed(HandlerRun *run, int nevents)
{
	HandlerState *state = run->state;

	if (run->definition->group_end == NO_GROUP)
		state->one_by_one = false;
	if (state->guarded_events == 0)
		return;
	state->guarded_events -= Min(nevents, state->guarded_events);
	if (state->guarded_events == 0)
		end_guard(run);
}

/*
 * The handler has finished a window.  End the guard if the handler has now passed all
 * events that existed when the guard began.
 */
static void
note_window_end(HandlerRun *run)
{
	const EventSnapshot *upto = run->state->guarded_upto;
	const EventPosition *position = &run->position;

	/* checked only if the cursor is later, because then the check is cheap */
	if (run->state->guarded_events > 0 && position->window == NULL && position->cursor->xmax >= upto->xmax &&
		event_snapshot_covers(position->cursor, upto))
		end_guard(run);
}

/*
 * The handler cannot run now, and there may be no wake-up when that changes.  Give it
 * no turn before one naptime has passed.
 */
void
handler_run_postpone(HandlerRun *run)
{
	run->not_before = instant_in(pne_naptime);
}

/*
 * Move the handler's position behind its window, or behind the part of it that was
 * read, and release the window.  The handler must have a window.
 */
void
handler_run_finish_window(HandlerRun *run)
{
	EventPosition come_to = window_position(run->window, run->window->nevents);
	EventPosition previous = run->position;
	MemoryContext old = MemoryContextSwitchTo(run->context);

	run->position = event_position_copy(&come_to);
	event_position_free(&previous);
	MemoryContextSwitchTo(old);
	window_release(run->window);
	run->window = NULL;
	if (run->names != NULL)
		pfree(run->names);
	run->names = NULL;
	run->next = 0;
	if (run->ahead_since == 0)
		run->ahead_since = instant_now();
	note_window_end(run);
}

/*
 * Whether the next part of the handler's window is to be read.
 */
bool
handler_run_is_inside_window(const HandlerRun *run)
{
	return run->window == NULL && run->position.window != NULL;
}

/*
 * Move the handler to index next of its window, past events that do not concern it.
 * nevents is how many events were examined.  The position is not stored.
 */
void
handler_run_pass_over(HandlerRun *run, int64 next, int nevents)
{
	if (next == run->next)
		return;
	run->next = next;
	run->state->unstored += nevents;
	if (run->ahead_since == 0)
		run->ahead_since = instant_now();
}

/*
 * Whether the handler has to wait for a retry before it may continue: it is ordered,
 * and a retry waits.
 */
bool
handler_run_is_held(const HandlerRun *run)
{
	return run->definition->ordered && run->next_retry_at != DT_NOEND;
}

/*
 * Whether the handler may be run now: its definition is current, and it neither is
 * postponed nor waits for its next trial.
 */
bool
handler_run_may_run(const HandlerRun *run)
{
	Instant		now = instant_now();

	return !run->stale && run->not_before <= now && run->state->next_trial_at <= now;
}

/*
 * Move on to the next event of the window whose name concerns the handler.  Returns
 * false if there is none; the window is then finished and released.  The handler must
 * have a window.
 */
bool
handler_run_seek(HandlerRun *run)
{
	Window	   *window = run->window;

	Assert(window != NULL);

	/* only the first time: after each turn the handler stands at such an event */
	if (run->names == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(run->context);
		int64		next;

		run->names = match_names(&run->definition->pattern, window->names);
		MemoryContextSwitchTo(old);
		(void) window_find(window, run->next, run->names, 0, &next);
		handler_run_pass_over(run, next, 0);
	}
	if (run->next < window->nevents)
		return true;
	handler_run_finish_window(run);
	return false;
}

/*
 * Read when the handler's first waiting retry is due.  The caller is connected to SPI
 * and has an active snapshot.
 */
void
handler_run_read_next_retry(HandlerRun *run)
{
	Assert(ActiveSnapshotSet());
	run->next_retry_at = retry_earliest(run->definition);
}
