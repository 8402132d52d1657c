/*-------------------------------------------------------------------------
 *
 * session.c
 *		The executor's session between two batches.
 *
 * It is an ordinary session of the owner, in which a handler may leave what it
 * likes.  Nothing of that is there when the next batch begins.
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

/* what is dropped with a session may have to wait for a lock, so long, in ms */
#define DISCARD_TIMEOUT_MS 5000

/* and is tried again after this, in ms */
#define DISCARD_RETRY_MS 1000

static void
discard_session(void)
{
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	PortalHashTableDeleteAll();
	if (GetSessionUserId() != my_slot->owner)
		SetPGVariable("session_authorization", NIL, false);
	if (GetUserId() != my_slot->owner)
		SetPGVariable("role", NIL, false);
	ResetAllOptions();
	/* nobody waits for a standby to hear of temporary tables that are gone */
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
 * Try to; false with a log line where that fails.
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
					 errhint("It gives its place to others, and goes on when it can.")));
		worker_report_error(&my_slot->worker, error->message ? error->message : "");
		FreeErrorData(error);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	return done;
}

/*
 * Leave nothing of a batch behind in the session: what DISCARD ALL does, but
 * for the plans, which the next batch needs.
 *
 * That may have to wait for somebody's lock, as what is dropped with a temporary
 * object need not be temporary.  Nothing else of the owner's is run before it is
 * done, but the place is for others; and as ending the process would wait for
 * the same lock, and another one could come to the same end, it stays until it
 * is done, and then leaves after this turn.
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
	/* not here: an attempt may have to be recorded still */
	pg_atomic_write_u32(&my_slot->stop_requested, 1);
}
