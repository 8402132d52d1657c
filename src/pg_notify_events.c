/*-------------------------------------------------------------------------
 *
 * pg_notify_events.c
 *		Loading the library: settings, shared memory, the launcher, and hooks
 *		that notice what no row of ours tells.
 *
 * Preloaded, it has workers.  Loaded into a session only, by the first call of
 * one of its functions, it records events and announces them, and says so where
 * more is asked of it.
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

/* the locks of slots, of event names and of channels */
#define TRANCHE_NAME "pg_notify_events"
#define LOCKS 3

static shmem_request_hook_type prev_shmem_request_hook = NULL;
static shmem_startup_hook_type prev_shmem_startup_hook = NULL;
static object_access_hook_type prev_object_access_hook = NULL;
static ProcessUtility_hook_type prev_process_utility_hook = NULL;

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
 * The extension was dropped in a database, and that is committed.
 */
static void
extension_dropped(Oid dboid)
{
	event_counters_forget_database(dboid);
	channel_forget_database(dboid, false);
}

/*
 * A database that is made may be the copy of one with the extension, and when
 * the extension is dropped its workers have to go.  Both would be noticed by
 * polling; this makes it soon, when the transaction commits.  And internal tables
 * take no triggers, and of settings of roles and databases that are altered nobody
 * else would hear.
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
 * COMMIT PREPARED makes events visible, and frees consumers like ROLLBACK
 * PREPARED, and no callback of the transaction that did all that runs.  Without
 * this, such events would wait for the listener's poll: a naptime, instead of
 * some milliseconds.
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

	/* pg_upgrade wants nobody to touch the data */
	if (!IsBinaryUpgrade)
		launcher_register();
}
