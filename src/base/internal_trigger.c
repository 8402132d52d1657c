/*-------------------------------------------------------------------------
 *
 * internal_trigger.c
 *		No triggers of others on the extension's internal tables.
 *
 * The privileges TRIGGER and REFERENCES, which GRANT ALL gives, let a role put a
 * trigger there; a foreign key makes some on the table that it refers to.  No
 * statement of ours would run it (catalog.c), so the workers would stand still.
 * So none can be made, while the library is preloaded.  Whoever could change the
 * system's own tables can do that here, too.
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
 * A trigger was created just now.  Errors: it is on an internal table, and not
 * the extension's.
 */
void
internal_trigger_created(Oid trigger)
{
	const EventCatalog *where;
	Relation	rel;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	/* where the extension is not complete it is being created, or restored */
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
					 errmsg("table \"%s\" of pg_notify_events takes no foreign key", get_rel_name(form->tgrelid)) :
					 errmsg("table \"%s\" of pg_notify_events takes no trigger", get_rel_name(form->tgrelid)),
					 errdetail("The workers would refuse to change it."),
					 errhint("Triggers of yours belong on notification_events, and handlers get its events.")));
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
}
