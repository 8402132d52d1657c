/*-------------------------------------------------------------------------
 *
 * session.c
 *		Cleans the executor's session after a batch.
 *
 * It is an ordinary session of the owner, in which a handler may leave anything
 * behind.  Nothing of that is there when the next batch begins.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "commands/async.h"
#include "commands/prepare.h"
#include "commands/sequence.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "utils/guc.h"
#include "utils/portal.h"
#include "utils/snapmgr.h"

#include "base/doorbell.h"
#include "base/fault.h"
#include "base/worker.h"
#include "delivery/call_timeout.h"
#include "delivery/executor_slot.h"
#include "delivery/session.h"
#include "delivery/transaction.h"

/* dropping the objects of a session may have to wait for a lock, for so long, in ms */
#define DISCARD_TIMEOUT_MS 5000

/* after a failure the session is cleaned again after this, in ms */
#define DISCARD_RETRY_MS 1000

static void
discard_session(void)
{
	Assert(!IsTransactionState());

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	PortalHashTableDeleteAll();
	if (GetSessionUserId() != my_slot->owner)
		SetPGVariable("session_authorization", NIL, false);
	if (GetUserId() != my_slot->owner)
		SetPGVariable("role", NIL, false);
	ResetAllOptions();
	/* no commit that only drops temporary tables has to wait for a standby */
	(void) set_config_option("synchronous_commit", "off",
							 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0, false);
	DropAllPreparedStatements();
	Async_UnlistenAll();
	LockReleaseAll(USER_LOCKMETHOD, true);
	ResetTempTableNamespace();
	ResetSequenceCaches();
	if (GetSessionUserId() != my_slot->owner || GetUserId() != my_slot->owner)
		elog(ERROR, "session of role %u is that of role %u", my_slot->owner, GetUserId());
	PopActiveSnapshot();
	CommitTransactionCommand();
}

/*
 * Try to clean the session.  Returns false if that fails, and logs the error on
 * request.
 */
static bool
try_discard_session(bool log_failure)
{
	MemoryContext context = CurrentMemoryContext;
	volatile bool done = false;

	PG_TRY();
	{
		call_timeout_arm(DISCARD_TIMEOUT_MS);
		FAULT_POINT("before-discard");
		discard_session();
		call_timeout_disarm();
		call_timeout_stop_watch();
		done = true;
	}
	PG_CATCH();
	{
		ErrorData  *error = transaction_abort(context);

		if (log_failure)
			ereport(LOG,
					(errcode(error->sqlerrcode),
					 errmsg("executor cannot clean its session after event handler \"%s\": %s",
							my_slot->handler, error->message ? error->message : ""),
					 errhint("The executor offers its slot to other owners, and tries again until it succeeds.")));
		worker_report_error(&my_slot->worker, error->message ? error->message : "");
		FreeErrorData(error);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	return done;
}

/*
 * Remove everything that a batch has left behind in the session.  This is what DISCARD
 * ALL does, except that plans stay, because the next batch needs them.
 *
 * This may have to wait for another session's lock, because what is dropped with a
 * temporary object need not be temporary.  No other code of the owner runs before it
 * is done, but the executor slot is offered to other owners.  Ending the process would
 * not help: that would wait for the same lock, and another executor could get into the
 * same state.  So the process stays until the session is clean, and then stops after
 * this turn.
 */
void
session_discard(void)
{
	if (try_discard_session(true))
		return;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	my_slot->stuck = true;
	LWLockRelease(shared->lock);
	worker_enter_phase(&my_slot->worker, WORKER_BACKING_OFF, "cannot clean its session");
	doorbell_ring_launcher();
	do
	{
		Instant		until = instant_in(DISCARD_RETRY_MS);

		while (instant_now() < until)
		{
			(void) doorbell_answer(my_bell);
			worker_sleep(my_bell, until);
		}
	} while (!try_discard_session(false));
	/* do not stop here: an attempt may still have to be recorded */
	pg_atomic_write_u32(&my_slot->stop_requested, 1);
}
