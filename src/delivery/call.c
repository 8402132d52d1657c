/*-------------------------------------------------------------------------
 *
 * call.c
 *		The call of a handler: whether it may be made, for which events, and how.
 *
 * Everything here that is foreign code, of a policy, a filter or the handler, runs
 * under the handler's timeout (call_timeout.c).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "miscadmin.h"
#include "utils/guc.h"
#include "utils/memutils.h"

#include "base/fault.h"
#include "base/loglimit.h"
#include "delivery/call.h"
#include "delivery/call_timeout.h"
#include "delivery/executor_slot.h"
#include "delivery/transaction.h"

/* how often a serialization failure or deadlock is tried again at once */
#define IMMEDIATE_TRIES 3

/*
 * Whether the handler can run now.  If not it is left alone for a while, and
 * the reason is logged once.
 */
bool
call_check_handler(HandlerRun *run)
{
	Handler    *handler = run->definition;
	HandlerState *state = run->state;
	HandlerProblem problem;

	run->approved = handler_approve(handler, &problem);
	if (OidIsValid(run->approved))
	{
		if (state->problem != NULL)
		{
			if (loglimit_allows(LOG_TOPIC_HANDLERS))
				ereport(LOG,
						(errmsg("event handler \"%s\" goes on", handler->name)));
			pfree(state->problem);
			state->problem = NULL;
		}
		return true;
	}

	handler_run_postpone(run);
	if (state->problem == NULL || strcmp(state->problem, problem.message) != 0)
	{
		if (state->problem != NULL)
			pfree(state->problem);
		state->problem = MemoryContextStrdup(TopMemoryContext, problem.message);
		if (loglimit_allows(LOG_TOPIC_HANDLERS))
			ereport(LOG,
					(errcode(problem.sqlstate),
					 errmsg("event handler \"%s\" is suspended: %s", handler->name, problem.message),
					 errhint("%s", problem.hint)));
	}
	return false;
}

/*
 * Call the handler's function under its timeout.  After the last call of a batch
 * call_timeout_disarm() is to follow.
 */
void
call_handler(HandlerRun *run, Event **events, int nevents, TupleDesc desc, BatchCounters *counters)
{
	FAULT_POINT("before-call");
	handler_counters_call_begins(counters, events, nevents);
	call_timeout_begin_call(handler_timeout(run->definition));
	handler_call(&run->call, events, nevents, desc);
	call_timeout_call_returned();
	handler_counters_call_ends(counters);
}

/*
 * Whether it was a serialization failure, a deadlock or the like: not the event's
 * doing alone.
 */
bool
call_error_is_rollback(const ErrorData *error)
{
	return ERRCODE_TO_CATEGORY(error->sqlerrcode) == ERRCODE_TRANSACTION_ROLLBACK;
}

/*
 * Whether to try an event again at once: what was in the way may be gone by then.
 */
bool
call_try_again(const ErrorData *error, int tries)
{
	return tries < IMMEDIATE_TRIES && call_error_is_rollback(error);
}

/*
 * Whether an error came while the handler was being dropped: then it is nobody's,
 * and gone.  Should the drop not be committed, the handler goes on later.
 */
bool
call_was_unwanted(HandlerRun *run, ErrorData *error)
{
	if (!executor_call_is_unwanted())
		return false;
	FreeErrorData(error);
	handler_run_postpone(run);
	return true;
}

/*
 * Find out which events the handler's owner is not to see.  The policies are as
 * foreign as the handler's code, and have as long; what they set ends with them,
 * too.
 */
void
call_apply_row_security(HandlerRun *run, Relation log, Event *events, int nevents)
{
	Oid			role = GetUserId();
	int			nest_level;

	if (!match_is_restricted(log))
		return;
	call_timeout_begin_call(handler_timeout(run->definition));
	nest_level = NewGUCNestLevel();
	match_row_security(log, events, nevents);
	handler_undo_settings(nest_level, role);
	call_timeout_disarm();
}

/*
 * Which events of the batch pass the handler's filter, and how many.  Those that
 * are NULL do not.  The one that is being looked at is the suspect.
 */
int
call_filter_events(HandlerRun *run, Event **events, int nevents, TupleDesc desc, bool *passes, int *suspect)
{
	bool		has_filter = (run->definition->pattern.filter != (Datum) 0);
	int			count = 0;

	if (has_filter)
		call_timeout_begin_call(handler_timeout(run->definition));
	for (int i = 0; i < nevents; i++)
	{
		*suspect = i;
		CHECK_FOR_INTERRUPTS();
		passes[i] = events[i] != NULL &&
			match_filter(&run->definition->pattern, events[i]->tuple, desc);
		count += passes[i];
	}
	*suspect = -1;
	if (has_filter)
		call_timeout_disarm();
	return count;
}

/*
 * The events of the handler can be read (again).
 */
void
call_reading_works(HandlerRun *run)
{
	if (run->state->unreadable != NULL)
		pfree(run->state->unreadable);
	run->state->unreadable = NULL;
}

/*
 * In a PG_CATCH block: before the events of a batch were read, or while they were,
 * there was an error; of a policy, for example.  Nothing of that was the doing
 * of the handler or of an event, so nothing is charged; and it is this handler's
 * alone, as others may have other events.
 */
void
call_reading_failed(HandlerRun *run, MemoryContext context)
{
	HandlerState *state = run->state;
	ErrorData  *error = transaction_abort(context);
	const char *message = error->message ? error->message : "";

	if (call_was_unwanted(run, error))
		return;
	executor_report_error(message);
	if (state->unreadable == NULL || strcmp(state->unreadable, message) != 0)
	{
		call_reading_works(run);
		state->unreadable = MemoryContextStrdup(TopMemoryContext, message);
		if (loglimit_allows(LOG_TOPIC_HANDLERS))
			ereport(LOG,
					(errcode(error->sqlerrcode),
					 errmsg("the events of event handler \"%s\" cannot be read: %s", run->definition->name, message),
					 errhint("They wait, and are tried again. Look at the policies on notification_events, and at who has it locked.")));
	}
	handler_run_postpone(run);
	FreeErrorData(error);
}
