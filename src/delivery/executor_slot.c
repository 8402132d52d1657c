/*-------------------------------------------------------------------------
 *
 * executor_slot.c
 *		This executor: its slot in shared memory, and what it is asked for.
 *
 * What batches need of the process that runs them: what it shows of itself, and
 * whether it is to leave, or its call is to end.
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

/* the postmaster has told us to end, and nobody else had before: the server stops */
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
 * Keep an error for event_worker_stats.
 */
void
executor_report_error(const char *message)
{
	worker_report_error(&my_slot->worker, message);
}

/*
 * Whether we are to leave, after the batch.  In a transaction, also because the
 * owner is not what it was: then a new session is needed, as it may have lost
 * rights that this one still has, or got other settings.
 */
bool
executor_stop_requested(void)
{
	if (IsTransactionState() && owner_has_changed())
		pg_atomic_write_u32(&my_slot->stop_requested, 1);
	return pg_atomic_read_u32(&my_slot->stop_requested) != 0;
}

/*
 * Whether the handler whose batch is being run, or was last, is being dropped: its
 * call is to end, and how it ends is charged to nobody.  For signal handlers, too.
 */
bool
executor_call_is_unwanted(void)
{
	return pg_atomic_read_u32(&my_slot->unwanted) != 0;
}

/*
 * The postmaster has told the process to end.  For signal handlers.
 */
void
executor_note_server_stop(void)
{
	stopped_by_server = true;
}

/*
 * Whether the process ends because the server stops: that is nobody's doing,
 * though it may end a call.
 */
bool
executor_is_stopped_by_server(void)
{
	return stopped_by_server;
}

/*
 * Show which batch is being run.
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
 * From now on this is what tells our handlers from those of a lost executor.
 */
void
executor_show_token(int64 token)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	my_slot->token = token;
	LWLockRelease(shared->lock);
}

/*
 * A handler's position moved, for good.
 */
void
executor_progress_committed(int nevents)
{
	pg_atomic_fetch_add_u64(&my_slot->worker.events_handled, nevents);
	ConditionVariableBroadcast(&my_database->progress);
}
