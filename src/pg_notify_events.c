/*-------------------------------------------------------------------------
 *
 * pg_notify_events.c
 *		Loads the library: settings, shared memory, the launcher, and hooks for
 *		changes that no row of the extension's tables shows.
 *
 * If the library is preloaded, there are workers.  Otherwise the first call of
 * one of its functions loads it into a session.  Then it can record and announce
 * events; functions that need workers raise an error.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/objectaccess.h"
#include "catalog/pg_database.h"
#include "catalog/pg_db_role_setting.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_trigger.h"
#include "commands/extension.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/shmem.h"
#include "tcop/utility.h"

#include "base/bound_sql.h"
#include "base/compat.h"
#include "base/doorbell.h"
#include "base/internal_trigger.h"
#include "base/settings.h"
#include "base/shared.h"
#include "delivery/owner.h"
#include "handler/event_counters.h"
#include "handler/handler_counters.h"
#include "launcher.h"
#include "listener/channel.h"

PNE_MODULE_MAGIC;

/*
 * The locks of the slots, of the counters of events, and of the counters of
 * channels.
 */
#define TRANCHE_NAME "pg_notify_events"
#define LOCKS 3

static shmem_request_hook_type prev_shmem_request_hook = NULL;
static shmem_startup_hook_type prev_shmem_startup_hook = NULL;
static object_access_hook_type prev_object_access_hook = NULL;
static ProcessUtility_hook_type prev_process_utility_hook = NULL;

/*
 * Hook: request shared memory and locks.
 */
static void
shmem_request(void)
{
	if (prev_shmem_request_hook)
		prev_shmem_request_hook();

	RequestAddinShmemSpace(shared_shmem_size());
	RequestAddinShmemSpace(handler_counters_shmem_size());
	RequestAddinShmemSpace(event_counters_shmem_size());
	RequestAddinShmemSpace(channel_shmem_size());
	RequestNamedLWLockTranche(TRANCHE_NAME, LOCKS);
}

/*
 * Hook: create the segments of shared memory, or attach to them.
 */
static void
shmem_startup(void)
{
	LWLockPadded *locks;

	if (prev_shmem_startup_hook)
		prev_shmem_startup_hook();

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	locks = GetNamedLWLockTranche(TRANCHE_NAME);
	shared_shmem_startup(&locks[0].lock);
	handler_counters_shmem_startup(locks[0].lock.tranche);
	event_counters_shmem_startup(&locks[1].lock);
	channel_shmem_startup(&locks[2].lock);
	LWLockRelease(AddinShmemInitLock);
}

/*
 * Forget what is counted in a database.  Called after the commit of a
 * transaction that has dropped the extension there.  Does not throw.
 */
static void
extension_dropped(Oid dboid)
{
	event_counters_forget_database(dboid);
	channel_forget_database(dboid, false);
}

/*
 * Hook for changes of objects.
 *
 * A new database may be the copy of one with the extension.  When the extension
 * is dropped, its workers must exit.  Polling would find both; this makes it
 * happen soon after the commit.  The hook also refuses triggers on internal
 * tables, and notices changed settings of roles and databases, of which nothing
 * else tells.
 */
static void
object_access(ObjectAccessType access, Oid class_id, Oid object_id, int sub_id, void *arg)
{
	if (prev_object_access_hook)
		prev_object_access_hook(access, class_id, object_id, sub_id, arg);

	if (class_id == DatabaseRelationId && (access == OAT_POST_CREATE || access == OAT_DROP))
		doorbell_at_commit(RING_LAUNCHER);
	else if (class_id == ExtensionRelationId && access == OAT_DROP &&
			 object_id == get_extension_oid("pg_notify_events", true))
		doorbell_at_commit(RING_DROPPED);
	else if (class_id == TriggerRelationId && access == OAT_POST_CREATE)
		internal_trigger_created(object_id);
	else if (class_id == DbRoleSettingRelationId && access == OAT_POST_ALTER)
		owner_settings_altered();
}

/*
 * Hook for utility statements: rings the bells after COMMIT PREPARED and
 * ROLLBACK PREPARED.
 *
 * COMMIT PREPARED makes events visible, and both statements free consumers.  No
 * callback of the prepared transaction runs then.  Without this hook, such
 * events would wait for the listener's poll, up to a naptime instead of some
 * milliseconds.
 */
static void
process_utility(PlannedStmt *pstmt, const char *query, bool read_only_tree,
				ProcessUtilityContext context, ParamListInfo params,
				QueryEnvironment *environment, DestReceiver *dest, QueryCompletion *completion)
{
	Node	   *statement = pstmt->utilityStmt;
	bool		ends_prepared = IsA(statement, TransactionStmt) &&
		(((TransactionStmt *) statement)->kind == TRANS_STMT_COMMIT_PREPARED ||
		 ((TransactionStmt *) statement)->kind == TRANS_STMT_ROLLBACK_PREPARED);

	if (prev_process_utility_hook)
		prev_process_utility_hook(pstmt, query, read_only_tree, context, params, environment,
								  dest, completion);
	else
		standard_ProcessUtility(pstmt, query, read_only_tree, context, params, environment,
								dest, completion);

	if (ends_prepared)
		doorbell_at_commit(RING_EVENTS | RING_CONSUMERS);
}

/*
 * Called when the library is loaded.
 */
void
_PG_init(void)
{
	settings_init();
	bound_sql_init();

	if (!process_shared_preload_libraries_in_progress)
		return;

	prev_shmem_request_hook = shmem_request_hook;
	shmem_request_hook = shmem_request;
	prev_shmem_startup_hook = shmem_startup_hook;
	shmem_startup_hook = shmem_startup;
	extension_dropped_hook = extension_dropped;
	prev_object_access_hook = object_access_hook;
	object_access_hook = object_access;
	prev_process_utility_hook = ProcessUtility_hook;
	ProcessUtility_hook = process_utility;

	/* nothing may change the data during pg_upgrade */
	if (!IsBinaryUpgrade)
		launcher_register();
}
