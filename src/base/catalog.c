/*-------------------------------------------------------------------------
 *
 * catalog.c
 *		Where the extension lives in this database, SQL on its own tables, and
 *		what CREATE EXTENSION and a copied database need.
 *
 * IDENTITY: the extension's tables belong to the extension's owner, a
 * superuser, and nobody else has any right on them.  So statements on them run
 * as that owner, wherever they are needed: in an executor whose session is an
 * ordinary role's, or in a function that such a role calls.  Four rules keep
 * that from being a way to a superuser's rights:
 *
 *	- the text of a statement qualifies everything, operators included, so that
 *	  no search_path can slip anything in;
 *	- its tables are the extension's by their oids, whatever the owner of the
 *	  schema has done with their names (bound_sql.c);
 *	- it runs under SECURITY_RESTRICTED_OPERATION, so that nothing is left
 *	  behind for later;
 *	- it is refused where the table has a trigger that is not ours, on the log
 *	  one that an INSERT fires: whoever has the TRIGGER privilege, which GRANT
 *	  ALL gives, could else have own code run as the owner.  The table's lock, held until the end of the
 *	  transaction, keeps such a trigger from coming in between.
 *
 * GUARD: while such a statement runs, and only then, the guard triggers let
 * rows of the own tables change.
 *
 * All that is changed is changed by such statements.  Only a row of the handlers'
 * progress is locked without one (progress.c), which asks for no right and runs
 * nobody's code, under the same condition: internal_open() refuses a foreign trigger.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
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

/* what is special about each of the own tables */
typedef struct InternalTableProperties
{
	const char *name;
	bool		restorable;		/* a restore may insert rows ... */
	bool		definitions;	/* ... and those belong to no database: they
								 * have a column of that name */
	bool		numbered;		/* ... and get a number here: they have such a
								 * column, too */
	const char *functions;		/* what to change it with */
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

/* invalidations of all tables and schemas, and those that concerned the log */
static uint64 invalidations = 0;
static uint64 log_changes = 0;

/* statements of ours that are being executed; the guard lets them pass */
static int	internal_depth = 0;

PG_FUNCTION_INFO_V1(pne_guard);

static void
catalog_relcache_callback(Datum arg, Oid relid)
{
	/* which table a lookup under way is going to find nobody knows yet */
	invalidations++;
	if (relid == InvalidOid || relid == catalog.log)
	{
		catalog_valid = false;
		log_changes++;
	}
}

static void
catalog_syscache_callback(Datum arg, int cacheid, uint32 hashvalue)
{
	catalog_valid = false;
	invalidations++;
}

/*
 * Counts what happened to the log's definition.  While the log is locked and
 * this does not change, copies of its rows may be read with its descriptor.
 */
uint64
catalog_log_changes(void)
{
	return log_changes;
}

/*
 * Read the extension's row; false if it is not installed.
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
 * A relation of the extension in its schema: find out which.
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
 * A function of the extension in its schema: the same.
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
 * Find the extension's objects among its members.  Whoever owns the schema can
 * put a namesake there when one of them is elsewhere for a moment, but only
 * the extension's owner can make that a member.
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
 * Where the extension lives: looked up once, and again after something
 * happened to the log or to a schema.
 *
 * Returns NULL where it is not installed (or just being dropped) and
 * missing_ok; else that is an error.  The result is good until the next
 * catalog access of the caller.
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
				 errhint("CREATE EXTENSION %s installs it; where it is installed, its table \"%s\" or an internal one was renamed or dropped.",
						 EXTENSION_NAME, LOG_NAME)));
	}

	/* of what changed meanwhile we know nothing */
	catalog = found;
	catalog_valid = (invalidations == before);
	return &catalog;
}

/*
 * Whether the extension is installed, by its row alone.
 *
 * Workers are rung at a commit before its invalidations are sent, so for a
 * moment catalog_lookup() may find a mixture of what was and what is.  The row
 * is read with a new snapshot and so is what it is.
 */
bool
catalog_extension_exists(void)
{
	EventCatalog ignored;

	return lookup_extension(&ignored);
}

/*
 * Open and lock the log for reading; NULL where it is not there, or not all of
 * the extension is.
 */
Relation
catalog_open_log(void)
{
	Oid			previous = InvalidOid;

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

		/* dropped while we waited for the lock; and created again? */
		previous = relid;
	}
}

/*
 * Open one of the own tables, locked until the end of the transaction.  If it
 * has a trigger that is not ours, name (of NAMEDATALEN bytes) is set to its name,
 * else to "".  On the log, to which others may put triggers, those count that
 * fire for an INSERT, enabled or not.  One with a condition is never ours: that
 * can be any code, whichever function the trigger calls.
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
 * Whether a table has a trigger that is not ours, and its name.  Locks the table
 * until the end of the transaction, so that none comes in between.
 */
bool
catalog_foreign_trigger(InternalTable table, char *name)
{
	table_close(open_internal(table, name), NoLock);
	return name[0] != '\0';
}

/*
 * Open one of the own tables to change it, locked until the end of the
 * transaction.  Refuses one that has a trigger which is not ours.
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
 * The text that a kept plan was made of.
 */
static const char *
plan_text(SPIPlanPtr plan)
{
	return ((CachedPlanSource *) linitial(SPI_plan_get_plan_sources(plan)))->query_string;
}

/*
 * Plan a statement for the present schema, unless it is already, and bind it.
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
	/* an error before this would have freed it */
	statement->plan = plan;
	statement->plan_owner = where->owner;
	strlcpy(statement->plan_schema, where->schema_name, NAMEDATALEN);
	bound->sql = plan_text(statement->plan);
	pfree(sql.data);
}

/*
 * Execute a statement on the own tables, as the extension's owner.  It means
 * the tables of catalog_lookup(), whatever their names mean when it is
 * analyzed (bound_sql.c).
 *
 * The caller is connected to SPI and has an active snapshot.  limit 0 is no
 * limit.  Returns how many rows were processed; what they hold is in
 * SPI_tuptable, to be read with internal_value().
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

	GetUserIdAndSecContext(&save_user, &save_context);
	bound_sql_begin(&bound);

	PG_TRY();
	{
		SetUserIdAndSecContext(where->owner,
							   save_context | SECURITY_LOCAL_USERID_CHANGE | SECURITY_RESTRICTED_OPERATION);
		internal_depth++;

		if (statement->target != TABLE_NONE)
			table_close(internal_open(statement->target), NoLock);
		/* what was waited for may have changed it */
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
 * Insert a row of a table whose rows are numbered, with a statement that does
 * nothing if it cannot; find tells, from the same values, whether what the row
 * is about is there already.  Returns false then.
 *
 * Numbers are drawn from a sequence, which knows nothing of rows that came with
 * theirs past the guard.  Those numbers are left out.
 */
bool
internal_insert_numbered(InternalStatement *insert, Datum *values, const char *nulls, InternalStatement *find)
{
	do
	{
		/* first of all: to insert waits for who changes that at the moment */
		if (internal_execute(find, values, nulls, 1) > 0)
			return false;
	} while (internal_execute(insert, values, nulls, 0) == 0);
	return true;
}

/*
 * A column (from 1) of a row (from 0) that internal_execute() has returned.
 */
Datum
internal_value(int row, int column, bool *isnull)
{
	Assert(SPI_tuptable != NULL && (uint64) row < SPI_processed);
	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column, isnull);
}

/*
 * The same as text, NULL for null, in the current memory context.
 */
char *
internal_text(int row, int column)
{
	return SPI_getvalue(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column);
}

/*
 * Ids as an argument for internal_execute(): an array, in the current memory context.
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
 * What is special about a table that has the guard.
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

static HeapTuple
set_column(HeapTuple tuple, Relation rel, int column, Datum value)
{
	bool		isnull = false;

	return heap_modify_tuple_by_cols(tuple, RelationGetDescr(rel), 1, &column, &value, &isnull);
}

/*
 * Guard of the own tables: no change but by internal_execute().
 *
 * INSERT is open to the tables' owner, because a restore comes that way; the
 * definitions that it brings belong to no database, so they are dormant until
 * activate_events(), and get numbers of this one.  A subscriber's copy of the tables is its own: what a
 * publisher sends for them is skipped.
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
 * The install_id of this installation.  The caller is connected to SPI and
 * has an active snapshot.
 */
void
catalog_install_id(pg_uuid_t *install_id)
{
	static InternalStatement select_incarnation = {
		.sql = "SELECT i.install_id FROM @s._event_install i",
		.target = TABLE_NONE,
	};
	bool		isnull;

	if (internal_execute(&select_incarnation, NULL, NULL, 1) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" is empty", internal_table_properties[TABLE_INSTALL].name),
				 errhint("Drop the extension and create it again.")));
	*install_id = *DatumGetUUIDP(internal_value(0, 1, &isnull));
}

/*
 * Whether the current role may look at what belongs to an owner of handlers or
 * consumers.
 */
bool
catalog_owner_is_visible(Oid owner)
{
	return has_privs_of_role(GetUserId(), ROLE_PG_MONITOR) ||
		(OidIsValid(owner) && has_privs_of_role(GetUserId(), owner));
}

/*
 * Names the SQL functions that change what is in an own table, for hints.
 */
const char *
internal_table_functions(InternalTable table)
{
	return internal_table_properties[table].functions;
}
