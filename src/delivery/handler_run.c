/*-------------------------------------------------------------------------
 *
 * handler_run.c
 *		A handler as its executor runs it: where it stands, and how it fares.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "base/loglimit.h"
#include "base/settings.h"
#include "delivery/handler_run.h"
#include "handler/retry_table.h"

/*
 * No event that is left can be the one that ended the lost executor.
 */
static void
end_phase(HandlerRun *run)
{
	run->state->guarded_events = 0;
	if (loglimit_allows(LOG_TOPIC_HANDLERS))
		ereport(LOG,
				(errmsg("event handler \"%s\" goes on with whole batches", run->definition->name)));
}

/*
 * The handler is through with so many events, whatever came of them.
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
		end_phase(run);
}

/*
 * The handler is through with a window: perhaps with all that there was when it
 * was taken up.
 */
static void
note_window_end(HandlerRun *run)
{
	const EventSnapshot *upto = run->state->guarded_upto;
	const EventPosition *position = &run->position;

	/* asked only where the cursor is later, which makes it a short question */
	if (run->state->guarded_events > 0 && position->window == NULL && position->cursor->xmax >= upto->xmax &&
		event_snapshot_covers(position->cursor, upto))
		end_phase(run);
}

/*
 * Nothing can be done for the handler now, and nobody may ring when that
 * changes: look again later.
 */
void
handler_run_postpone(HandlerRun *run)
{
	run->not_before = instant_in(pne_naptime);
}

/*
 * The handler is through with its window, or with what was read of it.
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
 * The handler moves to index next of its window, past events that do not concern
 * it: nevents of them were looked at.
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
 * Whether the handler has to wait for a retry before it may go on.
 */
bool
handler_run_is_held(const HandlerRun *run)
{
	return run->definition->ordered && run->next_retry_at != DT_NOEND;
}

/*
 * Whether the handler may be run now.
 */
bool
handler_run_may_run(const HandlerRun *run)
{
	Instant		now = instant_now();

	return !run->stale && run->not_before <= now && run->state->next_trial_at <= now;
}

/*
 * Move on to the next event of the window that concerns the handler by its name.
 * False if there is none: then the window is finished.
 */
bool
handler_run_seek(HandlerRun *run)
{
	Window	   *window = run->window;

	/* after each turn it stands at such an event */
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
 * Note when the first of the handler's retries is due.  The caller has an active
 * snapshot.
 */
void
handler_run_read_next_retry(HandlerRun *run)
{
	run->next_retry_at = retry_earliest(run->definition);
}
