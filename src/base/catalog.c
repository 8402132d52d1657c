/*-------------------------------------------------------------------------
 *
 * catalog.c
 *		Finds the extension's objects in this database, and executes SQL on its
 *		internal tables.
 *
 * IDENTITY: the extension's tables belong to the extension's owner, a
 * superuser, and no other role has rights on them.  Statements on them run as
 * that owner, wherever they are needed: in an executor whose session belongs to
 * an ordinary role, or in a function that such a role calls.  Four rules keep a
 * role from gaining a superuser's rights this way:
 *
 *	- the text of a statement qualifies everything, operators included, so that
 *	  no search_path can change its meaning;
 *	- its tables are the extension's by their oids, whatever the owner of the
 *	  schema has done with their names (bound_sql.c);
 *	- it runs under SECURITY_RESTRICTED_OPERATION, so that it leaves nothing
 *	  behind that runs later;
 *	- it is refused if the table has a trigger that is not the extension's; on
 *	  the log, if an INSERT fires that trigger.  Otherwise a role with the
 *	  TRIGGER privilege, which GRANT ALL includes, could have its own code run
 *	  as the owner.  The lock on the table, held until the end of the
 *	  transaction, keeps such a trigger from being created in between.
 *
 * GUARD: the guard triggers let rows of the internal tables change only while
 * such a statement runs.
 *
 * Every change is made by such statements.  The one exception is that
 * progress.c locks a row of the handlers' progress directly.  That needs no
 * right and runs no foreign code, and the same condition holds: internal_open()
 * refuses a table with a foreign trigger.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_class.h"
#include "catalog/pg_database.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_depend.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "commands/extension.h"
#include "commands/sequence.h"
#include "commands/trigger.h"
#include "miscadmin.h"
#include "replication/logicalworker.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "base/arguments.h"
#include "base/bound_sql.h"
#include "base/catalog.h"
#include "base/compat.h"
#include "base/doorbell.h"
#include "base/fault.h"

#define EXTENSION_NAME "pg_notify_events"

/* what is special about each of the internal tables */
typedef struct InternalTableProperties
{
	const char *name;
	bool		restorable;		/* a restore may insert rows */
	bool		definitions;	/* its column "database" is cleared in restored
								 * rows: they belong to no database yet */
	bool		numbered;		/* its column "number" is set anew in restored
								 * rows */
	const char *functions;		/* the SQL functions that change it */
} InternalTableProperties;

#define HANDLER_FUNCTIONS "create_event_handler(), alter_event_handler() and drop_event_handler()"
#define CONSUMER_FUNCTIONS "create_event_consumer() and drop_event_consumer()"
#define CHANNEL_FUNCTIONS "listen_event_channel() and unlisten_event_channel()"

static const InternalTableProperties internal_table_properties[INTERNAL_TABLES] = {
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
 * How many internal statements are being executed; if any, the guard lets
 * changes pass.
 */
static int	internal_depth = 0;

PG_FUNCTION_INFO_V1(pne_guard);

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
 * Open one of the internal tables with RowExclusiveLock, which is kept until
 * the end of the transaction.  name, of NAMEDATALEN bytes, is set to the name
 * of a trigger of it that is not the extension's, or to "" if there is none.
 *
 * Others may create triggers on the log.  There, a trigger counts if it fires
 * for an INSERT, whether it is enabled or not.  A trigger with a condition is
 * never the extension's: the condition can be any code, whichever function the
 * trigger calls.
 */
static Relation
open_internal(InternalTable table, char *name)
{
	const EventCatalog *where = catalog_lookup(false);
	Oid			ours = (table == TABLE_LOG) ? where->row_function : where->guard_function;
	Relation	rel = table_open(where->internal_tables[table], RowExclusiveLock);
	bool		found = false;

	name[0] = '\0';
	for (int i = 0; rel->trigdesc != NULL && i < rel->trigdesc->numtriggers && !found; i++)
	{
		Trigger    *trigger = &rel->trigdesc->triggers[i];

		found = (trigger->tgfoid != ours || trigger->tgqual != NULL) &&
			(table != TABLE_LOG || TRIGGER_FOR_INSERT(trigger->tgtype));
		if (found)
			strlcpy(name, trigger->tgname, NAMEDATALEN);
	}
	return rel;
}

/*
 * Returns whether a table has a trigger that is not the extension's, and its
 * name in name, of NAMEDATALEN bytes.  The table stays locked until the end of
 * the transaction, so that no trigger can be created meanwhile.
 */
bool
catalog_foreign_trigger(InternalTable table, char *name)
{
	table_close(open_internal(table, name), NoLock);
	return name[0] != '\0';
}

/*
 * Open one of the internal tables for a change, with RowExclusiveLock, which is
 * kept until the end of the transaction.  Raises an error if it has a trigger
 * that is not the extension's.
 */
Relation
internal_open(InternalTable table)
{
	char		name[NAMEDATALEN];
	Relation	rel = open_internal(table, name);

	if (name[0] != '\0')
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" has a trigger \"%s\" that is not the extension's",
						internal_table_properties[table].name, name),
				 errdetail("It would run as the owner of pg_notify_events."),
				 errhint("Drop it, or the foreign key that it belongs to, and revoke the TRIGGER or REFERENCES privilege that let it be created.")));
	return rel;
}

/*
 * Returns the text that a saved plan was made from.
 */
static const char *
plan_text(SPIPlanPtr plan)
{
	return ((CachedPlanSource *) linitial(SPI_plan_get_plan_sources(plan)))->query_string;
}

/*
 * Plan a statement for the current name of the schema, unless its saved plan is
 * for that name and owner already, and set the text of bound.
 */
static void
prepare_statement(InternalStatement *statement, const EventCatalog *where, BoundSql *bound)
{
	StringInfoData sql;
	const char *schema;
	SPIPlanPtr	plan;

	if (statement->plan != NULL &&
		statement->plan_owner == where->owner &&
		strcmp(statement->plan_schema, where->schema_name) == 0)
	{
		bound->sql = plan_text(statement->plan);
		return;
	}

	if (statement->plan != NULL)
	{
		SPI_freeplan(statement->plan);
		statement->plan = NULL;
	}

	schema = quote_identifier(where->schema_name);
	initStringInfo(&sql);
	for (const char *p = statement->sql; *p != '\0'; p++)
	{
		if (p[0] == '@' && p[1] == 's')
		{
			appendStringInfoString(&sql, schema);
			p++;
		}
		else
			appendStringInfoChar(&sql, *p);
	}

	bound->sql = sql.data;
	plan = SPI_prepare(sql.data, statement->nargs, statement->argtypes);
	if (plan == NULL)
		elog(ERROR, "could not prepare \"%s\": %s", sql.data, SPI_result_code_string(SPI_result));
	bound_sql_require_check(bound);
	SPI_keepplan(plan);
	/* before this point, an error frees the plan */
	statement->plan = plan;
	statement->plan_owner = where->owner;
	strlcpy(statement->plan_schema, where->schema_name, NAMEDATALEN);
	bound->sql = plan_text(statement->plan);
	pfree(sql.data);
}

/*
 * Execute a statement on the internal tables, as the extension's owner.  It
 * acts on the tables of catalog_lookup(), whatever their names mean when it is
 * analyzed (bound_sql.c).
 *
 * limit is the maximum number of rows; 0 means no limit.  Returns how many rows
 * were processed.  SPI_tuptable holds their values, to be read with
 * internal_value().  The caller must be connected to SPI and have an active
 * snapshot.  Raises an error if the table to be changed has a foreign trigger.
 */
int
internal_execute(InternalStatement *statement, Datum *values, const char *nulls, long limit)
{
	const EventCatalog *where = catalog_lookup(false);
	Oid			tables[INTERNAL_TABLES];
	BoundSql	bound = {.tables = tables, .ntables = INTERNAL_TABLES};
	Oid			save_user;
	int			save_context;
	int			result = 0;

	Assert(ActiveSnapshotSet());

	GetUserIdAndSecContext(&save_user, &save_context);
	bound_sql_begin(&bound);

	PG_TRY();
	{
		SetUserIdAndSecContext(where->owner,
							   save_context | SECURITY_LOCAL_USERID_CHANGE | SECURITY_RESTRICTED_OPERATION);
		internal_depth++;

		if (statement->target != TABLE_NONE)
			table_close(internal_open(statement->target), NoLock);
		/* the objects may have changed while we waited for the lock */
		where = catalog_lookup(false);
		memcpy(tables, where->internal_tables, sizeof(tables));
		if (statement->target != TABLE_NONE)
			bound.target = tables[statement->target];
		prepare_statement(statement, where, &bound);
		result = SPI_execute_plan(statement->plan, values, nulls, false, limit);
	}
	PG_FINALLY();
	{
		internal_depth--;
		bound_sql_end(&bound);
		SetUserIdAndSecContext(save_user, save_context);
	}
	PG_END_TRY();

	if (result < 0)
		elog(ERROR, "could not execute \"%s\": %s", statement->sql, SPI_result_code_string(result));
	return (int) SPI_processed;
}

/*
 * Insert a row into a table whose rows are numbered.  Returns false if there is
 * a row for the same thing already.
 *
 * insert is a statement that inserts nothing on a conflict.  find tells, from
 * the same values, whether there is such a row.  Numbers are drawn from a
 * sequence, which does not know of rows that were inserted with their numbers
 * past the guard.  If the insert meets such a number, it is repeated with the
 * next one.
 */
bool
internal_insert_numbered(InternalStatement *insert, Datum *values, const char *nulls, InternalStatement *find)
{
	do
	{
		/*
		 * Look first: an insert would wait for a transaction that is changing
		 * such a row.
		 */
		if (internal_execute(find, values, nulls, 1) > 0)
			return false;
	} while (internal_execute(insert, values, nulls, 0) == 0);
	return true;
}

/*
 * Returns a column (from 1) of a row (from 0) that internal_execute() has
 * returned.
 */
Datum
internal_value(int row, int column, bool *isnull)
{
	Assert(SPI_tuptable != NULL && (uint64) row < SPI_processed);
	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column, isnull);
}

/*
 * Returns the same as text in the current memory context, or NULL for null.
 */
char *
internal_text(int row, int column)
{
	Assert(SPI_tuptable != NULL && (uint64) row < SPI_processed);

	return SPI_getvalue(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column);
}

/*
 * Returns ids as an array in the current memory context, to be used as an
 * argument of internal_execute().
 */
Datum
internal_ids(const int64 *ids, int nids)
{
	Datum	   *elements = palloc(sizeof(Datum) * nids);

	for (int i = 0; i < nids; i++)
		elements[i] = Int64GetDatum(ids[i]);
	return PointerGetDatum(construct_array(elements, nids, INT8OID, sizeof(int64),
										   FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
}

/*
 * Returns the properties of a table that has the guard trigger.
 */
static const InternalTableProperties *
guarded_table(Relation rel)
{
	for (int i = 0; i < INTERNAL_TABLES; i++)
	{
		if (strcmp(RelationGetRelationName(rel), internal_table_properties[i].name) == 0)
			return &internal_table_properties[i];
	}
	ereport(ERROR,
			(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
			 errmsg("_guard() is a trigger of the tables of pg_notify_events only")));
	return NULL;				/* keep compiler quiet */
}

/*
 * Returns a copy of a row with one column set to a value that is not null.
 */
static HeapTuple
set_column(HeapTuple tuple, Relation rel, int column, Datum value)
{
	bool		isnull = false;

	return heap_modify_tuple_by_cols(tuple, RelationGetDescr(rel), 1, &column, &value, &isnull);
}

/*
 * The trigger function that guards the internal tables.  It lets rows change
 * only while internal_execute() runs.
 *
 * INSERT is also open to the owner of the table, because a restore inserts rows
 * that way.  Definitions that a restore brings belong to no database.  They are
 * inactive until activate_events() is called, and they get numbers of this
 * database.  A subscriber has its own state: what a publisher sends for these
 * tables is skipped.
 */
Datum
pne_guard(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;
	const InternalTableProperties *table;
	Relation	rel;
	HeapTuple	tuple;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("_guard() must be called as a trigger")));

	rel = trigdata->tg_relation;
	tuple = TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event) ?
		trigdata->tg_newtuple : trigdata->tg_trigtuple;

	if (internal_depth > 0)
		return PointerGetDatum(tuple);
	if (TRIGGER_FIRED_FOR_ROW(trigdata->tg_event) && IsLogicalWorker())
		return PointerGetDatum(NULL);

	table = guarded_table(rel);
	if (TRIGGER_FIRED_BY_INSERT(trigdata->tg_event) && table->restorable &&
		object_ownercheck(RelationRelationId, RelationGetRelid(rel), GetUserId()))
	{
		if (table->definitions)
		{
			tuple = set_column(tuple, rel, SPI_fnumber(RelationGetDescr(rel), "database"),
							   ObjectIdGetDatum(InvalidOid));
		}
		if (table->numbered)
		{
			int			column = SPI_fnumber(RelationGetDescr(rel), "number");

			tuple = set_column(tuple, rel, column,
							   Int64GetDatum(nextval_internal(pne_identity_sequence(rel, column), false)));
		}
		return PointerGetDatum(tuple);
	}

	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("table \"%s\" is changed by the functions of pg_notify_events only",
					RelationGetRelationName(rel)),
			 errhint("See %s.", table->functions)));
	return (Datum) 0;			/* keep compiler quiet */
}

/*
 * Read the install id of this installation.  The caller must be connected to
 * SPI and have an active snapshot.
 */
void
catalog_install_id(pg_uuid_t *install_id)
{
	static InternalStatement select_install_id = {
		.sql = "SELECT i.install_id FROM @s._event_install i",
		.target = TABLE_NONE,
	};
	bool		isnull;

	if (internal_execute(&select_install_id, NULL, NULL, 1) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" is empty", internal_table_properties[TABLE_INSTALL].name),
				 errhint("Drop the extension and create it again.")));
	*install_id = *DatumGetUUIDP(internal_value(0, 1, &isnull));
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
