/*-------------------------------------------------------------------------
 *
 * transaction.c
 *		The transactions of an executor.
 *
 * Each runs as the handlers' owner, whose session this is.  What it waits for at
 * its commit is the session's default (pg_notify_events.synchronous_commit).
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

/* current when the transaction was started, and again when it has ended */
static MemoryContext outer_context = NULL;

static bool never_wait = false;
static Instant stop_until = INSTANT_NEVER;

/*
 * From now on commits wait for neither disk nor standby, and what else there is
 * to do has to be done in so many ms (0: nobody watches).
 */
void
transaction_never_wait(int timeout)
{
	never_wait = true;
	if (timeout > 0)
		stop_until = instant_in(timeout);
}

/*
 * What our commits wait for.  It is the session's default, not set for each
 * transaction: where a transaction has set nothing, the end of a call has no
 * settings to look through (handler_undo_settings).
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
	outer_context = CurrentMemoryContext;
	set_synchronous_commit();
	SetCurrentStatementStartTimestamp();
	/* each commit ends that of its transaction */
	if (stop_until != INSTANT_NEVER)
		call_timeout_arm((int) Max(instant_ms_left(instant_now(), stop_until), 1));
	StartTransactionCommand();
}

/*
 * Start a transaction of an executor, with SPI and a snapshot.  The log is
 * locked first: a snapshot from before a rewrite of it would see no events.
 * Where somebody keeps it locked that is an error soon, as the place may be wanted.
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
 * The same for what concerns own tables only, whoever has the log locked.
 */
void
transaction_start_own(void)
{
	begin();
	SPI_connect();
	PushActiveSnapshot(GetTransactionSnapshot());
}

/*
 * The same, to write progress.  False, and no transaction, where that would have
 * to wait for a lock, or the extension is not there any more.
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
 * Commit it.  Deferred triggers are the handler's doing, so its timeout (in
 * ms, 0 for none) is on until they are through; the commit itself has none
 * (crash_guard.c).
 */
void
transaction_commit(int timeout)
{
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
 * In a PG_CATCH block: take the error, abort the transaction.
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
