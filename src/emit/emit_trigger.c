/*-------------------------------------------------------------------------
 *
 * emit_trigger.c
 *		Finds out what a trigger that calls notify_event() records.
 *
 * What a trigger's arguments mean for its table is worked out when it fires for
 * the first time in a session, and then cached.  For a statement that inserts a
 * single row, this work is a tenth of the cost of the trigger.
 *
 * An entry is removed from the cache when one of these changes: the table or its
 * triggers, a table of which it is a partition, a row type of one of its
 * columns, any schema or any cast.  Other types need no invalidation: nothing
 * that matters here can be altered.
 *
 * At that moment a statement may be in the middle of its rows.  It goes on with
 * the entry that it found at its beginning.  So the statements that use an entry
 * are counted, and the entry is freed when it was removed and the last of them
 * has ended.  The statement also goes on with the trigger as it was at the
 * beginning, and may be the first to fire that trigger after it was replaced.
 * So a cached entry is used only if the arguments of the trigger are the same.
 * Everything else comes from the table as it is when the trigger fires for the
 * first time in the statement.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/partition.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/formatting.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "base/arguments.h"
#include "base/catalog.h"
#include "base/settings.h"
#include "emit/change_record.h"
#include "emit/emit_trigger.h"

/* arguments of CREATE TRIGGER ... EXECUTE FUNCTION notify_event(...) */
#define TRIGGER_ARG_NAME	0
#define TRIGGER_ARG_DATA	1
#define TRIGGER_ARG_COLUMNS 2

/*
 * The number of operations that a trigger fires for (INSERT, DELETE, UPDATE,
 * TRUNCATE), as encoded in its event.
 */
#define OPERATIONS (TRIGGER_EVENT_OPMASK + 1)

/* initial size of the hash table */
#define INITIAL_TRIGGERS 16

struct EmitTrigger
{
	MemoryContext context;		/* holds all of this */
	Oid			table;
	List	   *ancestors;		/* tables of which it is a partition, the root last */
	bool		by_root;		/* whether events name the root */
	int			nargs;			/* arguments of the trigger */
	char	  **args;
	int			users;			/* statements that use this */
	bool		forgotten;		/* not, or no longer, in known_triggers */
	text	   *names[OPERATIONS];	/* names of events; NULL if not known yet */
	bool		has_fixed_data;
	Datum		fixed_data;		/* jsonb of the second argument */
	ChangeRecord *record;		/* if there is no fixed data */
};

typedef struct KnownTrigger
{
	Oid			trigger;		/* key */
	EmitTrigger *emitter;
} KnownTrigger;

/* the cache */
static HTAB *known_triggers = NULL;

/* counts invalidations of the cache */
static uint64 invalidations = 0;

/* ----------
 * What is kept
 * ----------
 */

/*
 * Free an entry that is not in the cache and that no statement uses.
 */
static void
free_if_unused(EmitTrigger *emitter)
{
	if (emitter->forgotten && emitter->users == 0)
		MemoryContextDelete(emitter->context);
}

/*
 * Memory context callback: a statement that has used an entry has ended, with
 * success or with an error.
 */
static void
end_use(void *arg)
{
	EmitTrigger *emitter = arg;

	emitter->users--;
	free_if_unused(emitter);
}

/*
 * Use an entry for the statement that the memory context belongs to.
 */
static void
begin_use(EmitTrigger *emitter, MemoryContext statement)
{
	MemoryContextCallback *callback = MemoryContextAlloc(statement, sizeof(MemoryContextCallback));

	callback->func = end_use;
	callback->arg = emitter;
	emitter->users++;
	MemoryContextRegisterResetCallback(statement, callback);
}

/*
 * Remove an entry from the cache.
 */
static void
forget(KnownTrigger *known)
{
	EmitTrigger *emitter = known->emitter;

	hash_search(known_triggers, &known->trigger, HASH_REMOVE, NULL);
	emitter->forgotten = true;
	free_if_unused(emitter);
}

/*
 * Returns whether an entry depends on a relation.
 */
static bool
depends_on(const EmitTrigger *emitter, Oid relid)
{
	return emitter->table == relid || list_member_oid(emitter->ancestors, relid) ||
		(emitter->record != NULL && change_record_has_row_type(emitter->record, relid));
}

/*
 * Remove the entries that depend on a relation, or all if relid is InvalidOid.
 */
static void
forget_triggers(Oid relid)
{
	HASH_SEQ_STATUS scan;
	KnownTrigger *known;

	invalidations++;
	hash_seq_init(&scan, known_triggers);
	while ((known = hash_seq_search(&scan)) != NULL)
	{
		if (!OidIsValid(relid) || depends_on(known->emitter, relid))
			forget(known);
	}
}

/*
 * A relation was changed.
 */
static void
forget_by_relcache(Datum arg, Oid relid)
{
	forget_triggers(relid);
}

/*
 * A schema or a cast was changed.
 */
static void
forget_by_syscache(Datum arg, int cacheid, uint32 hashvalue)
{
	forget_triggers(InvalidOid);
}

/*
 * Returns the cached entry of a trigger with these arguments, or NULL.
 */
static EmitTrigger *
find_known(const Trigger *trigger)
{
	KnownTrigger *known = hash_search(known_triggers, &trigger->tgoid, HASH_FIND, NULL);
	bool		same;

	if (known == NULL)
		return NULL;
	same = known->emitter->nargs == trigger->tgnargs && known->emitter->by_root == pne_partition_root;
	for (int i = 0; same && i < trigger->tgnargs; i++)
		same = (strcmp(known->emitter->args[i], trigger->tgargs[i]) == 0);
	if (same)
		return known->emitter;
	forget(known);
	return NULL;
}

/*
 * Create the cache, and register for invalidations.
 */
static void
init_known_triggers(void)
{
	HASHCTL		info;

	info.keysize = sizeof(Oid);
	info.entrysize = sizeof(KnownTrigger);
	known_triggers = hash_create("event triggers", INITIAL_TRIGGERS, &info, HASH_ELEM | HASH_BLOBS);
	CacheRegisterRelcacheCallback(forget_by_relcache, (Datum) 0);
	CacheRegisterSyscacheCallback(NAMESPACEOID, forget_by_syscache, (Datum) 0);
	CacheRegisterSyscacheCallback(CASTSOURCETARGET, forget_by_syscache, (Datum) 0);
}

/* ----------
 * What the arguments mean
 * ----------
 */

/*
 * Returns the name of the operation that a trigger has fired for.
 */
static const char *
trigger_operation(TriggerEvent event)
{
	if (TRIGGER_FIRED_BY_INSERT(event))
		return "INSERT";
	if (TRIGGER_FIRED_BY_UPDATE(event))
		return "UPDATE";
	if (TRIGGER_FIRED_BY_DELETE(event))
		return "DELETE";
	return "TRUNCATE";
}

/*
 * Returns the table that events name.
 */
static Oid
named_table(const EmitTrigger *emitter)
{
	if (emitter->by_root && emitter->ancestors != NIL)
		return llast_oid(emitter->ancestors);
	return emitter->table;
}

/*
 * Returns the name of a trigger's events: its first argument, or
 * schema.table.op in lower case.  Lower case follows the rules of ASCII: a
 * handler could not know what a letter becomes by the rules of some collation.
 */
static text *
make_name(const EmitTrigger *emitter, TriggerData *trigdata)
{
	Trigger    *trigger = trigdata->tg_trigger;
	Oid			named = named_table(emitter);
	char	   *name;

	if (trigger->tgnargs > TRIGGER_ARG_NAME)
	{
		name = trigger->tgargs[TRIGGER_ARG_NAME];
		check_event_name(name, (int) strlen(name));
		return cstring_to_text(name);
	}

	name = psprintf("%s.%s.%s", get_namespace_name(get_rel_namespace(named)), get_rel_name(named),
					trigger_operation(trigdata->tg_event));
	name = asc_tolower(name, strlen(name));
	return cstring_to_text_with_len(name, pg_mbcharcliplen(name, (int) strlen(name), EVENT_NAME_MAX_CHARS));
}

/*
 * Prepare the record of changes, with the columns that the arguments from the
 * third on name, if there are any.
 */
static ChangeRecord *
make_record(const EmitTrigger *emitter, TriggerData *trigdata)
{
	Trigger    *trigger = trigdata->tg_trigger;
	Relation	rel = trigdata->tg_relation;
	int			ncolumns = Max(trigger->tgnargs - TRIGGER_ARG_COLUMNS, 0);
	AttrNumber *columns = palloc(sizeof(AttrNumber) * Max(ncolumns, 1));

	for (int i = 0; i < ncolumns; i++)
	{
		const char *column = trigger->tgargs[TRIGGER_ARG_COLUMNS + i];
		int			attnum = SPI_fnumber(RelationGetDescr(rel), column);

		if (attnum <= 0)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("column \"%s\" of table \"%s\" does not exist", column,
							RelationGetRelationName(rel)),
					 errhint("Trigger \"%s\" names it among the columns to record.", trigger->tgname)));
		columns[i] = (AttrNumber) attnum;
	}
	return change_record_prepare(rel, named_table(emitter), ncolumns, columns);
}

/*
 * Work out what a trigger's arguments mean.  The result is in the current
 * memory context.
 */
static EmitTrigger *
make_emitter(TriggerData *trigdata)
{
	Trigger    *trigger = trigdata->tg_trigger;
	EmitTrigger *emitter = palloc0(sizeof(EmitTrigger));

	emitter->context = CurrentMemoryContext;
	emitter->table = RelationGetRelid(trigdata->tg_relation);
	emitter->by_root = pne_partition_root;
	if (trigdata->tg_relation->rd_rel->relispartition)
		emitter->ancestors = get_partition_ancestors(emitter->table);
	emitter->nargs = trigger->tgnargs;
	emitter->args = palloc(sizeof(char *) * Max(emitter->nargs, 1));
	for (int i = 0; i < emitter->nargs; i++)
		emitter->args[i] = pstrdup(trigger->tgargs[i]);
	if (trigger->tgnargs > TRIGGER_ARG_DATA)
	{
		const char *data = trigger->tgargs[TRIGGER_ARG_DATA];

		if (pg_strcasecmp(data, "new") != 0 && pg_strcasecmp(data, "old") != 0)
		{
			emitter->has_fixed_data = true;
			emitter->fixed_data = parse_event_data(data,
												   "The second argument of notify_event in CREATE TRIGGER is JSON text, or new or old for the row.");
		}
	}
	if (!emitter->has_fixed_data)
		emitter->record = make_record(emitter, trigdata);
	else if (trigger->tgnargs > TRIGGER_ARG_COLUMNS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("trigger \"%s\" gives both event data and columns to record", trigger->tgname),
				 errhint("To record columns of the row, give new as the second argument of notify_event.")));
	return emitter;
}

/*
 * The same, and cache the result.  If something changed meanwhile, the result
 * is for this statement only.
 */
static EmitTrigger *
prepare_emitter(TriggerData *trigdata)
{
	uint64		before = invalidations;
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "event trigger",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	EmitTrigger *emitter = make_emitter(trigdata);

	MemoryContextSwitchTo(old);
	emitter->forgotten = (invalidations != before);
	if (!emitter->forgotten)
	{
		KnownTrigger *known = hash_search(known_triggers, &trigdata->tg_trigger->tgoid, HASH_ENTER, NULL);

		known->emitter = emitter;
	}
	MemoryContextSetParent(context, CacheMemoryContext);
	return emitter;
}

/* ----------
 * For notify_event()
 * ----------
 */

/*
 * Returns what the calling trigger is to record.  The result is valid until the
 * end of the statement.  Errors: data that is not JSON, unknown column.  fcinfo
 * is that of the trigger function.
 */
EmitTrigger *
emit_trigger_find(FunctionCallInfo fcinfo)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;
	EmitTrigger *emitter;

	if (fcinfo->flinfo->fn_extra != NULL)
		return fcinfo->flinfo->fn_extra;

	if (known_triggers == NULL)
		init_known_triggers();
	emitter = find_known(trigdata->tg_trigger);
	if (emitter == NULL)
		emitter = prepare_emitter(trigdata);
	Assert(emitter->table == RelationGetRelid(trigdata->tg_relation));
	begin_use(emitter, fcinfo->flinfo->fn_mcxt);
	fcinfo->flinfo->fn_extra = emitter;
	return emitter;
}

/*
 * Returns the name of the event, as text.  If the arguments give no name, it
 * depends on the operation: one statement can insert and update.  Errors:
 * invalid name.
 */
Datum
emit_trigger_name(EmitTrigger *emitter, TriggerData *trigdata)
{
	text	  **name = &emitter->names[trigdata->tg_event & TRIGGER_EVENT_OPMASK];

	if (*name == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(emitter->context);

		*name = make_name(emitter, trigdata);
		MemoryContextSwitchTo(old);
	}
	return PointerGetDatum(*name);
}

/*
 * Returns event_data of a change, as jsonb: the trigger's fixed data, or the
 * record of the given rows.  Either row may be NULL.
 */
Datum
emit_trigger_data(const EmitTrigger *emitter, TriggerData *trigdata,
				  HeapTuple new_row, HeapTuple old_row)
{
	if (emitter->has_fixed_data)
		return emitter->fixed_data;
	return change_record_make(emitter->record, trigdata, trigger_operation(trigdata->tg_event), new_row, old_row);
}
