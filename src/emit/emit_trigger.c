/*-------------------------------------------------------------------------
 *
 * emit_trigger.c
 *		What a trigger that calls notify_event() is to record.
 *
 * What the arguments of a trigger mean for its table is worked out when it fires
 * for the first time in a session, and kept: for a statement that inserts a
 * single row, to work it out is a tenth of what the trigger costs.
 *
 * It is forgotten when anything happens to the table or its triggers, to a table
 * of which it is a partition, to a row type of one of its columns, to any schema
 * or cast.  Other types need no such care: nothing that matters can be altered.
 *
 * A statement may be in the middle of its rows then.  It goes on with what it
 * found in the beginning, so the statements that use it are counted, and it is
 * freed when it is forgotten and the last of them has ended.  It goes on with the
 * trigger, too, as that was in the beginning, and may be the first to fire it
 * after it was replaced.  So what is kept is of a trigger with its arguments; the
 * rest is the table's, as it is when the trigger fires for the first time in the
 * statement.
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

/* what a trigger fires for: INSERT, DELETE, UPDATE, TRUNCATE, as in its event */
#define OPERATIONS (TRIGGER_EVENT_OPMASK + 1)

/* how many triggers the table has room for at first */
#define INITIAL_TRIGGERS 16

struct EmitTrigger
{
	MemoryContext context;		/* in which all of this is */
	Oid			table;
	List	   *ancestors;		/* of which it is a partition, the root is the last */
	bool		by_root;		/* events name that */
	int			nargs;			/* arguments of the trigger */
	char	  **args;
	int			users;			/* statements */
	bool		forgotten;		/* not in known_triggers (any more) */
	text	   *names[OPERATIONS];	/* of events; NULL as long as unknown */
	bool		has_fixed_data;
	Datum		fixed_data;		/* jsonb of the second argument */
	ChangeRecord *record;		/* without that */
};

typedef struct KnownTrigger
{
	Oid			trigger;		/* key */
	EmitTrigger *emitter;
} KnownTrigger;

/* those that can be used again */
static HTAB *known_triggers = NULL;

/* counts the occasions to forget some */
static uint64 invalidations = 0;

/* ----------
 * What is kept
 * ----------
 */

static void
free_if_unused(EmitTrigger *emitter)
{
	if (emitter->forgotten && emitter->users == 0)
		MemoryContextDelete(emitter->context);
}

/*
 * A statement that has used it is over, whether well or not.
 */
static void
end_use(void *arg)
{
	EmitTrigger *emitter = arg;

	emitter->users--;
	free_if_unused(emitter);
}

/*
 * Use it for the statement that the memory context belongs to.
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

static void
forget(KnownTrigger *known)
{
	EmitTrigger *emitter = known->emitter;

	hash_search(known_triggers, &known->trigger, HASH_REMOVE, NULL);
	emitter->forgotten = true;
	free_if_unused(emitter);
}

static bool
depends_on(const EmitTrigger *emitter, Oid relid)
{
	return emitter->table == relid || list_member_oid(emitter->ancestors, relid) ||
		(emitter->record != NULL && change_record_has_row_type(emitter->record, relid));
}

/*
 * Forget the triggers that a relation has to do with; all if it is InvalidOid.
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

static void
forget_by_relcache(Datum arg, Oid relid)
{
	forget_triggers(relid);
}

static void
forget_by_syscache(Datum arg, int cacheid, uint32 hashvalue)
{
	forget_triggers(InvalidOid);
}

/*
 * What is kept of a trigger with these arguments, or NULL.
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
 * The table that events name.
 */
static Oid
named_table(const EmitTrigger *emitter)
{
	if (emitter->by_root && emitter->ancestors != NIL)
		return llast_oid(emitter->ancestors);
	return emitter->table;
}

/*
 * The name of a trigger's events: its first argument, or schema.table.op, in
 * lower case by the rules of ASCII: what a letter becomes in the language of
 * somebody's collation no handler could know.
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
 * How to record changes: with the columns that the arguments from the third on
 * name, if there are any.
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
 * Work out what a trigger's arguments ask for, in the current memory context.
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
 * The same, to be kept, unless what it is made of has changed meanwhile: then it
 * is for this statement alone.
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
 * What the trigger that calls is to record.  Good until the end of the
 * statement.  Errors: data that is no JSON, unknown column.
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
 * The name of the event, as text.  It is another one for each operation if the
 * arguments give none: one statement can insert and update.  Errors: bad name.
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
 * event_data of a change, as jsonb: the fixed one of the trigger, or the
 * record of the rows given, either of which may be NULL.
 */
Datum
emit_trigger_data(const EmitTrigger *emitter, TriggerData *trigdata,
				  HeapTuple new_row, HeapTuple old_row)
{
	if (emitter->has_fixed_data)
		return emitter->fixed_data;
	return change_record_make(emitter->record, trigdata, trigger_operation(trigdata->tg_event), new_row, old_row);
}
