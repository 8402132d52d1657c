/*-------------------------------------------------------------------------
 *
 * executor_slot.c
 *		This executor: its slot in shared memory, and what it is asked for.
 *
 * Batches need some facts about the process that runs them: what it shows of itself,
 * whether it is requested to stop, and whether its call has to end.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "pgstat.h"
#include "storage/condition_variable.h"
#include "storage/ipc.h"

#include "base/doorbell.h"
#include "base/worker.h"
#include "delivery/executor_slot.h"
#include "delivery/owner.h"

ExecutorSlot *my_slot = NULL;
DatabaseSlot *my_database = NULL;
Bell	   *my_bell = NULL;

/* the postmaster was the first to tell the process to end: the server stops */
static volatile sig_atomic_t stopped_by_server = false;

/*
 * Whether this process is an executor.
 */
bool
executor_is_me(void)
{
	return my_slot != NULL;
}

/*
 * Keep an error message for event_worker_stats.
 */
void
executor_report_error(const char *message)
{
	worker_report_error(&my_slot->worker, message);
}

/*
 * Whether the executor has to stop after the current batch.  If this is called in a
 * transaction, it also checks whether the owner was changed.  In that case a new
 * session is needed: the owner may have lost rights that this session still has, or
 * got other settings.
 */
bool
executor_stop_requested(void)
{
	if (IsTransactionState() && owner_has_changed())
		pg_atomic_write_u32(&my_slot->stop_requested, 1);
	return pg_atomic_read_u32(&my_slot->stop_requested) != 0;
}

/*
 * Whether the handler of the current batch, or of the last one, is being dropped.  Its
 * call has to end, and how the call ends is charged to nobody.  May be called in a
 * signal handler.
 */
bool
executor_call_is_unwanted(void)
{
	return pg_atomic_read_u32(&my_slot->unwanted) != 0;
}

/*
 * Note that the postmaster has told the process to end.  May be called in a signal
 * handler.
 */
void
executor_note_server_stop(void)
{
	stopped_by_server = true;
}

/*
 * Whether the process ends because the server stops.  That may end a call, and the
 * call is not the cause.
 */
bool
executor_is_stopped_by_server(void)
{
	return stopped_by_server;
}

/*
 * Show which batch is being run: the handler, the id of the first event, and the
 * number of events.  Also notes whether that handler is being dropped.
 */
void
executor_report_running(const char *handler, int64 first_event, int nevents)
{
	char		activity[256];

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	strlcpy(my_slot->handler, handler, HANDLER_NAME_SIZE);
	pg_atomic_write_u32(&my_slot->unwanted, shared_calls_are_to_end(my_database, handler) ? 1 : 0);
	worker_set_phase(&my_slot->worker, WORKER_RUNNING);
	LWLockRelease(shared->lock);

	snprintf(activity, sizeof(activity), "event handler %s: %d events from id " INT64_FORMAT,
			 handler, nevents, first_event);
	pgstat_report_activity(STATE_RUNNING, activity);
}

/*
 * Show this executor's owner token.  As long as the slot has it, the token does not
 * count as that of a lost executor.
 */
void
executor_show_token(int64 token)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	my_slot->token = token;
	LWLockRelease(shared->lock);
}

/*
 * A handler's position moved and this is committed: count nevents events, and wake the
 * sessions that wait for progress.
 */
void
executor_progress_committed(int nevents)
{
	pg_atomic_fetch_add_u64(&my_slot->worker.events_handled, nevents);
	ConditionVariableBroadcast(&my_database->progress);
}
