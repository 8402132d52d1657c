/*-------------------------------------------------------------------------
 *
 * transaction.c
 *		The transactions of an executor.
 *
 * Each transaction runs as the handlers' owner, whose session this is.  What it waits
 * for at commit is set as the session's default (pg_notify_events.synchronous_commit).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "base/catalog.h"
#include "base/instant.h"
#include "base/settings.h"
#include "base/worker.h"
#include "delivery/call_timeout.h"
#include "delivery/transaction.h"

/* the current context before the transaction, and again after it has ended */
static MemoryContext outer_context = NULL;

static bool never_wait = false;
static Instant stop_until = INSTANT_NEVER;

/*
 * From now on commits wait for neither disk nor standby.  Everything that remains must
 * be done in timeout ms; 0: no limit.
 */
void
transaction_never_wait(int timeout)
{
	never_wait = true;
	stop_until = timeout > 0 ? instant_in(timeout) : INSTANT_NEVER;
}

/*
 * Set what our commits wait for.  It is the session's default and is not set in each
 * transaction.  If a transaction has changed no setting, there are none to undo at the
 * end of a call (handler_undo_settings).
 */
static void
set_synchronous_commit(void)
{
	static const char *current = NULL;
	const char *wanted = never_wait ? "off" : settings_synchronous_commit_name();

	if (current != NULL && strcmp(current, wanted) == 0)
		return;
	SetConfigOption("synchronous_commit", wanted, PGC_USERSET, PGC_S_OVERRIDE);
	current = wanted;
}

static void
begin(void)
{
	Assert(!IsTransactionState());

	outer_context = CurrentMemoryContext;
	set_synchronous_commit();
	SetCurrentStatementStartTimestamp();
	/* armed for each transaction, because a commit disarms it */
	if (stop_until != INSTANT_NEVER)
		call_timeout_arm((int) Max(instant_ms_left(instant_now(), stop_until), 1));
	StartTransactionCommand();
}

/*
 * Start a transaction of an executor, connect to SPI and set an active snapshot.  The
 * log is locked before that: a snapshot from before a rewrite of the log would see no
 * events.  If another session keeps the log locked, this throws an error soon, because
 * the executor slot may be wanted.  Ends with transaction_commit() or
 * transaction_abort().
 */
void
transaction_start(void)
{
	begin();
	worker_lock_table(catalog_lookup(false)->log);
	SPI_connect();
	PushActiveSnapshot(GetTransactionSnapshot());
}

/*
 * The same for a transaction that uses internal tables only.  It does not lock the
 * log.
 */
void
transaction_start_own(void)
{
	begin();
	SPI_connect();
	PushActiveSnapshot(GetTransactionSnapshot());
}

/*
 * The same for a transaction that writes progress.  Returns false, and starts no
 * transaction, if that would have to wait for a lock or the extension does not exist
 * any more.
 */
bool
transaction_start_if_free(void)
{
	const EventCatalog *catalog;

	begin();
	catalog = catalog_lookup(true);
	if (catalog == NULL ||
		!ConditionalLockRelationOid(catalog->internal_tables[TABLE_PROGRESS], RowExclusiveLock))
	{
		CommitTransactionCommand();
		return false;
	}
	SPI_connect();
	PushActiveSnapshot(GetTransactionSnapshot());
	return true;
}

/*
 * Commit the transaction.  Deferred triggers run code of the handler.  So its timeout,
 * in ms, applies until they are through; 0: there is no timeout.  The commit itself
 * has none (crash_guard.c).
 */
void
transaction_commit(int timeout)
{
	Assert(ActiveSnapshotSet());

	PopActiveSnapshot();
	SPI_finish();
	if (timeout > 0)
		call_timeout_begin_call(timeout);
	CommitTransactionCommand();
	if (timeout > 0)
		call_timeout_disarm();
	call_timeout_stop_watch();
	MemoryContextSwitchTo(outer_context);
}

/*
 * In a PG_CATCH block: take the error and abort the transaction.  Returns the error,
 * in the given memory context, which becomes the current one.
 */
ErrorData *
transaction_abort(MemoryContext context)
{
	ErrorData  *error;

	HOLD_INTERRUPTS();
	call_timeout_disarm();
	call_timeout_stop_watch();
	MemoryContextSwitchTo(context);
	error = CopyErrorData();
	FlushErrorState();
	AbortOutOfAnyTransaction();
	MemoryContextSwitchTo(context);
	RESUME_INTERRUPTS();
	return error;
}
