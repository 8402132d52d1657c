/*-------------------------------------------------------------------------
 *
 * call.c
 *		The call of a handler: whether it may be made, for which events, and how.
 *
 * All code of others that is called here, of policies, filters and handlers, runs
 * under the handler's timeout (call_timeout.c).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "miscadmin.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "base/fault.h"
#include "base/loglimit.h"
#include "delivery/call.h"
#include "delivery/call_timeout.h"
#include "delivery/executor_slot.h"
#include "delivery/transaction.h"

/* how often an event is tried again at once after a serialization failure or deadlock */
#define IMMEDIATE_TRIES 3

/*
 * Whether the handler can run now.  If it can, approved is set.  If it cannot, the
 * handler is postponed, and the reason is logged once.  The caller is in a
 * transaction.
 */
bool
call_check_handler(HandlerRun *run)
{
	Handler    *handler = run->definition;
	HandlerState *state = run->state;
	HandlerProblem problem;

	Assert(IsTransactionState());

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
 * Call the handler's function with these events, under its timeout, and count the
 * call.  Call call_timeout_disarm() after the last call of a batch.  The caller is
 * connected to SPI, has an active snapshot, and has called handler_prepare_call() in
 * this transaction.
 */
void
call_handler(HandlerRun *run, Event **events, int nevents, TupleDesc desc, BatchCounters *counters)
{
	Assert(ActiveSnapshotSet());
	FAULT_POINT("before-call");
	handler_counters_call_begins(counters, events, nevents);
	call_timeout_begin_call(handler_timeout(run->definition));
	handler_call(&run->call, events, nevents, desc);
	call_timeout_call_returned();
	handler_counters_call_ends(counters);
}

/*
 * Whether the error is a serialization failure, a deadlock or the like.  Such an error
 * is not caused by the event alone.
 */
bool
call_error_is_rollback(const ErrorData *error)
{
	return ERRCODE_TO_CATEGORY(error->sqlerrcode) == ERRCODE_TRANSACTION_ROLLBACK;
}

/*
 * Whether to try an event again at once after tries retries: the conflict may be over
 * by then.
 */
bool
call_try_again(const ErrorData *error, int tries)
{
	return tries < IMMEDIATE_TRIES && call_error_is_rollback(error);
}

/*
 * Whether the error came while the handler was being dropped.  If so, the error is
 * charged to nobody and freed, and the handler is postponed; if the drop is rolled
 * back, the handler goes on later.
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
 * Set hidden in the events that the handler's owner must not see.  Policies are code
 * of others like the handler, and have the same timeout.  Settings that they change
 * are undone.
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
 * Set in passes which of the events pass the handler's filter, and return how many do.
 * Events that are NULL do not pass.  *suspect is the index of the event that is being
 * tested, and -1 at the end.
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
 * The handler's events could be read: forget an earlier error.
 */
void
call_reading_works(HandlerRun *run)
{
	if (run->state->unreadable != NULL)
		pfree(run->state->unreadable);
	run->state->unreadable = NULL;
}

/*
 * In a PG_CATCH block: an error, for example of a policy, came before the events of a
 * batch were read, or while they were read.  Neither the handler nor an event is the
 * cause, so nothing is charged.  Aborts the transaction, logs a new error once, and
 * postpones this handler.  Others go on, because they may have other events.  context
 * becomes the current memory context.
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
