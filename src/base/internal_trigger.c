/*-------------------------------------------------------------------------
 *
 * internal_trigger.c
 *		Keeps foreign triggers off the extension's internal tables.
 *
 * The privileges TRIGGER and REFERENCES, which GRANT ALL includes, let a role
 * create a trigger on these tables.  A foreign key also creates triggers on the
 * table that it refers to.  Internal statements refuse a table with such a
 * trigger (internal_sql.c), so the workers could not go on.  Therefore no such
 * trigger can be created while the library is preloaded.  A role that may change
 * system catalogs (allow_system_table_mods) may create them here, too.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/indexing.h"
#include "catalog/pg_trigger.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"

#include "base/catalog.h"
#include "base/internal_trigger.h"

/*
 * Returns whether a table is one of the internal tables that only internal
 * statements change: any but the log.
 */
static bool
is_internal_table(const EventCatalog *where, Oid relid)
{
	for (int i = 0; i < INTERNAL_TABLES; i++)
	{
		if (i != TABLE_LOG && where->internal_tables[i] == relid)
			return true;
	}
	return false;
}

/*
 * Raise an error if a trigger that was created just now is on an internal table
 * and is not the extension's.  Called from the object access hook.
 */
void
internal_trigger_created(Oid trigger)
{
	const EventCatalog *where;
	Relation	rel;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	/* if the extension is not complete, it is being created or restored */
	if (allowSystemTableMods || IsBinaryUpgrade || (where = catalog_lookup(true)) == NULL)
		return;
	if (creating_extension && CurrentExtensionObject == where->extension)
		return;

	rel = table_open(TriggerRelationId, AccessShareLock);
	ScanKeyInit(&key, Anum_pg_trigger_oid, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(trigger));
	scan = systable_beginscan(rel, TriggerOidIndexId, true, SnapshotSelf, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		Form_pg_trigger form = (Form_pg_trigger) GETSTRUCT(tuple);

		/* a condition can be any code, whichever function the trigger calls */
		if ((form->tgfoid != where->guard_function || !heap_attisnull(tuple, Anum_pg_trigger_tgqual, NULL)) &&
			is_internal_table(where, form->tgrelid))
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 OidIsValid(form->tgconstrrelid) ?
					 errmsg("cannot create a foreign key on table \"%s\" of pg_notify_events", get_rel_name(form->tgrelid)) :
					 errmsg("cannot create a trigger on table \"%s\" of pg_notify_events", get_rel_name(form->tgrelid)),
					 errdetail("The workers would refuse to change the table."),
					 errhint("Create a trigger on notification_events, or an event handler.")));
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
}
