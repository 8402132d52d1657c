/*-------------------------------------------------------------------------
 *
 * settings.c
 *		All settings of pg_notify_events.
 *
 * Each setting has the narrowest context that can work.  Settings that workers
 * read are PGC_SIGHUP.  Settings that an emitting session reads and only a
 * superuser may change are PGC_SUSET, so that ALTER DATABASE ... SET works for
 * them.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <limits.h>

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_db_role_setting.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/rel.h"
#include "utils/varlena.h"

#include "base/compat.h"
#include "base/settings.h"

bool		pne_enabled = true;
char	   *pne_databases = NULL;
int			pne_announce = ANNOUNCE_RELAY;
char	   *pne_channel = NULL;
int			pne_payload = PAYLOAD_NAME;
bool		pne_partition_root = false;
int			pne_max_executors = 4;
int			pne_max_handler_timeout = 3600000;
int			pne_executor_idle_timeout = 0;
int			pne_batch_time = 100;
int			pne_batch_bytes = 16 * 1024;
int			pne_naptime = 1000;
int			pne_synchronous_commit = SYNCHRONOUS_COMMIT_OFF;
double		pne_queue_usage_limit = 0.5;
bool		pne_superuser_handlers = true;

/* the setting "databases", parsed; the names are sorted */
typedef struct NamedDatabases
{
	bool		all;
	int			count;
	NameData	names[FLEXIBLE_ARRAY_MEMBER];
} NamedDatabases;

static NamedDatabases *named_databases = NULL;

static const struct config_enum_entry announce_options[] = {
	{"relay", ANNOUNCE_RELAY, false},
	{"direct", ANNOUNCE_DIRECT, false},
	{"off", ANNOUNCE_OFF, false},
	{NULL, 0, false}
};

static const struct config_enum_entry payload_options[] = {
	{"name", PAYLOAD_NAME, false},
	{"id", PAYLOAD_ID, false},
	{"json", PAYLOAD_JSON, false},
	{NULL, 0, false}
};

/* the values of the server's own synchronous_commit */
static const struct config_enum_entry synchronous_commit_options[] = {
	{"local", SYNCHRONOUS_COMMIT_LOCAL_FLUSH, false},
	{"remote_write", SYNCHRONOUS_COMMIT_REMOTE_WRITE, false},
	{"remote_apply", SYNCHRONOUS_COMMIT_REMOTE_APPLY, false},
	{"on", SYNCHRONOUS_COMMIT_ON, false},
	{"off", SYNCHRONOUS_COMMIT_OFF, false},
	{NULL, 0, false}
};

/*
 * Check the setting "channel": it must be a name that pg_notify() accepts, 1 to
 * 63 bytes.
 */
static bool
check_channel(char **newval, void **extra, GucSource source)
{
	size_t		length = strlen(*newval);

	if (length == 0 || length >= NAMEDATALEN)
	{
		GUC_check_errdetail("A channel name has 1 to %d bytes.", NAMEDATALEN - 1);
		return false;
	}
	return true;
}

/*
 * Compare two names, for qsort() and bsearch().
 */
static int
compare_names(const void *a, const void *b)
{
	return strncmp(NameStr(*(const NameData *) a), NameStr(*(const NameData *) b), NAMEDATALEN);
}

/*
 * Check the setting "databases": the list must parse.  Whether the databases
 * exist is not known here.  The parsed list is kept with the setting, because
 * it is needed for each event.
 */
static bool
check_databases(char **newval, void **extra, GucSource source)
{
	char	   *raw = pstrdup(*newval);
	List	   *names;
	NamedDatabases *parsed;
	ListCell   *lc;
	bool		all = (strcmp(*newval, "*") == 0);

	if (!SplitIdentifierString(raw, ',', &names) && !all)
	{
		GUC_check_errdetail("List syntax is invalid.");
		list_free(names);
		pfree(raw);
		return false;
	}
	parsed = pne_guc_malloc(offsetof(NamedDatabases, names) + sizeof(NameData) * (Size) list_length(names));
	if (parsed != NULL)
	{
		parsed->all = all;
		parsed->count = 0;
		foreach(lc, names)
			namestrcpy(&parsed->names[parsed->count++], lfirst(lc));
		qsort(parsed->names, parsed->count, sizeof(NameData), compare_names);
	}
	list_free(names);
	pfree(raw);
	*extra = parsed;
	return parsed != NULL;
}

/*
 * Use the parsed list from now on.
 */
static void
assign_databases(const char *newval, void *extra)
{
	named_databases = extra;
}

/*
 * Returns the name of the configured synchronous_commit, as set_config_option()
 * takes it.
 */
const char *
settings_synchronous_commit_name(void)
{
	for (const struct config_enum_entry *option = synchronous_commit_options; option->name; option++)
	{
		if (option->val == pne_synchronous_commit)
			return option->name;
	}
	elog(ERROR, "unexpected synchronous_commit: %d", pne_synchronous_commit);
	return NULL;				/* keep compiler quiet */
}

/*
 * Returns whether the setting "databases" includes this database.
 */
static bool
is_named(const NameData *datname)
{
	return named_databases->all ||
		bsearch(datname, named_databases->names, named_databases->count, sizeof(NameData), compare_names) != NULL;
}

/*
 * Returns whether a database gets a listener if it has the extension.
 */
bool
settings_serve_database(Form_pg_database database)
{
	/* a limit below -1 marks a database whose DROP DATABASE was interrupted */
	return pne_enabled && database->datallowconn && !database->datistemplate &&
		database->datconnlimit >= -1 && is_named(&database->datname);
}

/*
 * Returns what ALTER DATABASE ...  SET has set for this database, as a text to
 * be compared with an earlier one.  Must be called in a transaction.
 */
char *
settings_of_database(void)
{
	Relation	rel = table_open(DbRoleSettingRelationId, AccessShareLock);
	ScanKeyData keys[2];
	SysScanDesc scan;
	HeapTuple	tuple;
	char	   *result = NULL;

	ScanKeyInit(&keys[0], Anum_pg_db_role_setting_setdatabase, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(MyDatabaseId));
	ScanKeyInit(&keys[1], Anum_pg_db_role_setting_setrole, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(InvalidOid));
	scan = systable_beginscan(rel, DbRoleSettingDatidRolidIndexId, true, NULL, lengthof(keys), keys);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		bool		isnull;
		Datum		value = heap_getattr(tuple, Anum_pg_db_role_setting_setconfig,
										 RelationGetDescr(rel), &isnull);

		if (!isnull)
			result = OidOutputFunctionCall(F_ARRAY_OUT, value);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return result != NULL ? result : pstrdup("");
}

/*
 * Define all settings.  Called once, when the library is loaded.
 */
void
settings_init(void)
{
	DefineCustomEnumVariable("pg_notify_events.announce",
							 "Who announces events to LISTEN clients.",
							 "\"relay\": the listener process after commit; "
							 "\"direct\": the emitting transaction; \"off\": nobody.",
							 &pne_announce,
							 ANNOUNCE_RELAY,
							 announce_options,
							 PGC_SUSET,
							 0,
							 NULL, NULL, NULL);

	DefineCustomIntVariable("pg_notify_events.batch_bytes",
							"A batch ends at about this much event data.",
							NULL,
							&pne_batch_bytes,
							16 * 1024,
							64,
							MAX_KILOBYTES,
							PGC_SIGHUP,
							GUC_UNIT_KB,
							NULL, NULL, NULL);

	DefineCustomIntVariable("pg_notify_events.batch_time",
							"A batch ends after this time.",
							NULL,
							&pne_batch_time,
							100,
							1,
							INT_MAX,
							PGC_SIGHUP,
							GUC_UNIT_MS,
							NULL, NULL, NULL);

	DefineCustomStringVariable("pg_notify_events.channel",
							   "Channel on which events are announced.",
							   NULL,
							   &pne_channel,
							   "event_notification",
							   PGC_SUSET,
							   0,
							   check_channel, NULL, NULL);

	DefineCustomStringVariable("pg_notify_events.databases",
							   "Databases that are served.",
							   "A comma-separated list of names, or * for all.",
							   &pne_databases,
							   "*",
							   PGC_SIGHUP,
							   GUC_LIST_INPUT,
							   check_databases, assign_databases, NULL);

	DefineCustomBoolVariable("pg_notify_events.enabled",
							 "Whether the background workers serve any database.",
							 NULL,
							 &pne_enabled,
							 true,
							 PGC_SIGHUP,
							 0,
							 NULL, NULL, NULL);

	DefineCustomIntVariable("pg_notify_events.executor_idle_timeout",
							"An executor without work exits after this time.",
							"0 means never.",
							&pne_executor_idle_timeout,
							0,
							0,
							INT_MAX,
							PGC_SIGHUP,
							GUC_UNIT_MS,
							NULL, NULL, NULL);

	DefineCustomIntVariable("pg_notify_events.max_executors",
							"Executors in the whole cluster.",
							"If more owners have handlers, they take turns.",
							&pne_max_executors,
							4,
							1,
							MAX_EXECUTORS,
							PGC_SIGHUP,
							0,
							NULL, NULL, NULL);

	DefineCustomIntVariable("pg_notify_events.max_handler_timeout",
							"Upper limit of a handler's timeout.",
							"A call keeps an executor from other owners no longer than this.",
							&pne_max_handler_timeout,
							3600000,
							1,
							INT_MAX,
							PGC_SIGHUP,
							GUC_UNIT_MS,
							NULL, NULL, NULL);

	DefineCustomIntVariable("pg_notify_events.naptime",
							"Time after which the listener looks at the log when nothing wakes it.",
							NULL,
							&pne_naptime,
							1000,
							10,
							INT_MAX / 2,
							PGC_SIGHUP,
							GUC_UNIT_MS,
							NULL, NULL, NULL);

	DefineCustomBoolVariable("pg_notify_events.partition_root",
							 "Whether events of a partition name the partitioned table.",
							 NULL,
							 &pne_partition_root,
							 false,
							 PGC_SUSET,
							 0,
							 NULL, NULL, NULL);

	DefineCustomEnumVariable("pg_notify_events.payload",
							 "What an announcement carries.",
							 "\"name\": the event's name; \"id\": its id; \"json\": id, name and data.",
							 &pne_payload,
							 PAYLOAD_NAME,
							 payload_options,
							 PGC_SUSET,
							 0,
							 NULL, NULL, NULL);

	DefineCustomRealVariable("pg_notify_events.queue_usage_limit",
							 "If more than this share of the notification queue is in use, the listener makes a direct announcement.",
							 NULL,
							 &pne_queue_usage_limit,
							 0.5,
							 0.0,
							 1.0,
							 PGC_SIGHUP,
							 0,
							 NULL, NULL, NULL);

	DefineCustomBoolVariable("pg_notify_events.superuser_handlers",
							 "Whether handlers may run as a superuser.",
							 NULL,
							 &pne_superuser_handlers,
							 true,
							 PGC_SIGHUP,
							 0,
							 NULL, NULL, NULL);

	DefineCustomEnumVariable("pg_notify_events.synchronous_commit",
							 "Synchronization level of handler batches.",
							 "Effects and progress are lost together or not at all, at any level.",
							 &pne_synchronous_commit,
							 SYNCHRONOUS_COMMIT_OFF,
							 synchronous_commit_options,
							 PGC_SIGHUP,
							 0,
							 NULL, NULL, NULL);

	MarkGUCPrefixReserved("pg_notify_events");
}
