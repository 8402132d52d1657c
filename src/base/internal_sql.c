/*-------------------------------------------------------------------------
 *
 * internal_sql.c
 *		Executes SQL on the internal tables, and lets nothing else change them.
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

#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_class.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "replication/logicalworker.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "base/bound_sql.h"
#include "base/catalog.h"
#include "base/compat.h"
#include "base/internal_sql.h"

PG_FUNCTION_INFO_V1(pne_guard);

/*
 * How many internal statements are being executed; if any, the guard lets
 * changes pass.
 */
static int	internal_depth = 0;

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
internal_foreign_trigger(InternalTable table, char *name)
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
internal_install_id(pg_uuid_t *install_id)
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
