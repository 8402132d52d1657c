/*-------------------------------------------------------------------------
 *
 * catalog.c
 *		Finds the extension's objects in this database.
 *
 * The objects are found among the extension's members, not by their names alone,
 * and remembered until something about them changes.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_class.h"
#include "catalog/pg_depend.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "base/catalog.h"
#include "base/compat.h"

#define EXTENSION_NAME "pg_notify_events"

#define HANDLER_FUNCTIONS "create_event_handler(), alter_event_handler() and drop_event_handler()"
#define CONSUMER_FUNCTIONS "create_event_consumer() and drop_event_consumer()"
#define CHANNEL_FUNCTIONS "listen_event_channel() and unlisten_event_channel()"

const InternalTableProperties internal_table_properties[INTERNAL_TABLES] = {
	[TABLE_LOG] = {LOG_NAME, true, false, false, "notify_event()"},
	[TABLE_INSTALL] = {"_event_install", false, false, false, HANDLER_FUNCTIONS},
	[TABLE_ANNOUNCER] = {"_event_announcer", false, false, false, HANDLER_FUNCTIONS},
	[TABLE_HANDLERS] = {"_event_handlers", true, true, true, HANDLER_FUNCTIONS},
	[TABLE_PROGRESS] = {"_event_handler_progress", true, false, false, HANDLER_FUNCTIONS},
	[TABLE_FAILURES] = {"_event_handler_failures", true, false, false, HANDLER_FUNCTIONS},
	[TABLE_RETRIES] = {"_event_retries", true, false, false, HANDLER_FUNCTIONS},
	[TABLE_CONSUMERS] = {"_event_consumers", true, true, true, CONSUMER_FUNCTIONS},
	[TABLE_CONSUMER_PROGRESS] = {"_event_consumer_progress", true, false, false, CONSUMER_FUNCTIONS},
	[TABLE_CONSUMER_RETRIES] = {"_event_consumer_retries", true, false, false, CONSUMER_FUNCTIONS},
	[TABLE_CHANNELS] = {"_event_channels", true, true, false, CHANNEL_FUNCTIONS},
};

static EventCatalog catalog;
static bool catalog_valid = false;

/* invalidations of any table or schema, and those that concern the log */
static uint64 invalidations = 0;
static uint64 log_changes = 0;

/*
 * A table's relcache entry was invalidated.
 */
static void
catalog_relcache_callback(Datum arg, Oid relid)
{
	/*
	 * Count every table: a lookup that is under way may not have found its
	 * table yet.
	 */
	invalidations++;
	if (relid == InvalidOid || relid == catalog.log)
	{
		catalog_valid = false;
		log_changes++;
	}
}

/*
 * A schema was invalidated.
 */
static void
catalog_syscache_callback(Datum arg, int cacheid, uint32 hashvalue)
{
	catalog_valid = false;
	invalidations++;
}

/*
 * Returns a counter of the changes of the log's definition.  While the caller
 * holds a lock on the log and the counter does not change, copies of its rows
 * may be read with its descriptor.
 */
uint64
catalog_log_changes(void)
{
	return log_changes;
}

/*
 * Read the extension's row of pg_extension with a new snapshot.  Returns false
 * if the extension is not installed.
 */
static bool
lookup_extension(EventCatalog *into)
{
	Relation	rel;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		found;

	rel = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyInit(&key, Anum_pg_extension_extname, BTEqualStrategyNumber, F_NAMEEQ,
				CStringGetDatum(EXTENSION_NAME));
	scan = systable_beginscan(rel, ExtensionNameIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	found = HeapTupleIsValid(tuple);
	if (found)
	{
		Form_pg_extension form = (Form_pg_extension) GETSTRUCT(tuple);

		into->extension = form->oid;
		into->owner = form->extowner;
		into->schema = form->extnamespace;
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return found;
}

/*
 * Note the oid of a member relation if it is one of the internal tables.
 */
static void
lookup_relation(EventCatalog *into, Oid relid)
{
	char	   *name = get_rel_name(relid);

	if (name == NULL || get_rel_relkind(relid) != RELKIND_RELATION ||
		get_rel_namespace(relid) != into->schema)
		return;
	for (int i = 0; i < INTERNAL_TABLES; i++)
	{
		if (strcmp(name, internal_table_properties[i].name) == 0)
			into->internal_tables[i] = relid;
	}
}

/*
 * Note the oid of a member function if it is a trigger function of the internal
 * tables or of the log.
 */
static void
lookup_function(EventCatalog *into, Oid function)
{
	char	   *name = get_func_name(function);

	if (name == NULL || get_func_namespace(function) != into->schema)
		return;
	if (strcmp(name, "_guard") == 0)
		into->guard_function = function;
	else if (strcmp(name, "_notification_event_row") == 0)
		into->row_function = function;
}

/*
 * Find the extension's objects among its members.  Looking them up by name
 * alone would not be safe: if one is moved to another schema for a moment, the
 * owner of the extension's schema can create another object with its name
 * there.  Only the extension's owner can make such an object a member.
 */
static void
lookup_members(EventCatalog *into)
{
	Relation	rel = table_open(DependRelationId, AccessShareLock);
	ScanKeyData keys[2];
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&keys[0], Anum_pg_depend_refclassid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(ExtensionRelationId));
	ScanKeyInit(&keys[1], Anum_pg_depend_refobjid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(into->extension));
	scan = systable_beginscan(rel, DependReferenceIndexId, true, NULL, lengthof(keys), keys);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_depend member = (Form_pg_depend) GETSTRUCT(tuple);

		if (member->deptype != DEPENDENCY_EXTENSION)
			continue;
		if (member->classid == RelationRelationId)
			lookup_relation(into, member->objid);
		else if (member->classid == ProcedureRelationId)
			lookup_function(into, member->objid);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
}

/*
 * Returns the oids of the extension's objects.  They are cached until the log
 * or a schema changes.
 *
 * If the extension is not installed, not complete, or just being dropped,
 * returns NULL if missing_ok, else raises an error.  The result is valid until
 * the caller's next catalog access.  Must be called in a transaction.
 */
const EventCatalog *
catalog_lookup(bool missing_ok)
{
	static bool registered = false;
	EventCatalog found;
	char	   *schema_name = NULL;
	bool		complete = false;
	uint64		before = invalidations;

	if (catalog_valid)
		return &catalog;

	if (!registered)
	{
		CacheRegisterRelcacheCallback(catalog_relcache_callback, (Datum) 0);
		CacheRegisterSyscacheCallback(NAMESPACEOID, catalog_syscache_callback, (Datum) 0);
		registered = true;
	}

	memset(&found, 0, sizeof(found));
	if (lookup_extension(&found))
		schema_name = get_namespace_name(found.schema);
	if (schema_name != NULL)
	{
		strlcpy(found.schema_name, schema_name, NAMEDATALEN);
		lookup_members(&found);
		found.log = found.internal_tables[TABLE_LOG];
		found.log_type = get_rel_type_id(found.log);
		found.log_array_type = get_array_type(found.log_type);
		complete = OidIsValid(found.guard_function) && OidIsValid(found.row_function);
		for (int i = 0; i < INTERNAL_TABLES; i++)
			complete = complete && OidIsValid(found.internal_tables[i]);
	}
	if (!complete)
	{
		if (missing_ok)
			return NULL;
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("extension \"%s\" is not installed in database \"%s\"",
						EXTENSION_NAME, get_database_name(MyDatabaseId)),
				 errhint("CREATE EXTENSION %s installs it. If it is installed, its table \"%s\" or an internal table was renamed or dropped.",
						 EXTENSION_NAME, LOG_NAME)));
	}

	/* if anything changed meanwhile, look it up again the next time */
	catalog = found;
	catalog_valid = (invalidations == before);
	return &catalog;
}

/*
 * Returns whether the extension is installed, by its row alone.  Must be called
 * in a transaction.
 *
 * A commit wakes workers before it sends its invalidations, so for a moment
 * catalog_lookup() may find a mixture of the old and the new state.  The row is
 * read with a new snapshot and is therefore current.
 */
bool
catalog_extension_exists(void)
{
	EventCatalog ignored;

	return lookup_extension(&ignored);
}

/*
 * Open the log with AccessShareLock.  Returns NULL if the extension is not
 * installed or not complete.  Must be called in a transaction.
 */
Relation
catalog_open_log(void)
{
	Oid			previous = InvalidOid;

	Assert(IsTransactionState());

	for (;;)
	{
		const EventCatalog *where = catalog_lookup(true);
		Relation	log;
		Oid			relid;

		if (where == NULL || where->log == previous)
			return NULL;
		relid = where->log;
		log = try_table_open(relid, AccessShareLock);
		if (log != NULL)
			return log;

		/*
		 * It was dropped while we waited for the lock.  Look whether it was
		 * created again.
		 */
		previous = relid;
	}
}

/*
 * Returns whether the current role may see what belongs to an owner of handlers
 * or consumers.  InvalidOid stands for an owner that is not known.
 */
bool
catalog_owner_is_visible(Oid owner)
{
	return has_privs_of_role(GetUserId(), ROLE_PG_MONITOR) ||
		(OidIsValid(owner) && has_privs_of_role(GetUserId(), owner));
}

/*
 * Returns the names of the SQL functions that change an internal table, for
 * hints.
 */
const char *
internal_table_functions(InternalTable table)
{
	return internal_table_properties[table].functions;
}
