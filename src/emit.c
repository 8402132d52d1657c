/*-------------------------------------------------------------------------
 *
 * emit.c
 *		notify_event(): from a change, or a call, to a row of the log.
 *
 * An event is inserted with the executor's own functions and not through SPI,
 * as the emitting user.  No other identity is involved, so a trigger that
 * somebody has put on the log fires as whoever emits, and cannot borrow the
 * rights of the extension's owner.  Left out on purpose, compared to an INSERT
 * statement, are privileges and INSERT policies on the log (EXECUTE on
 * notify_event is the right to write events), statement triggers and partition
 * routing; constraints, indexes and row triggers all apply.
 *
 * The log's own row trigger stamps every row, whichever way it comes: from
 * notify_event(), from a plain INSERT, COPY or logical replication.  It is also
 * what settles who announces the event (announce.c), and asks for the doorbell
 * at commit.
 *
 * What a trigger records of a change is made in record.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "commands/trigger.h"
#include "executor/executor.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "rewrite/rewriteHandler.h"
#include "utils/builtins.h"
#include "utils/formatting.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/tuplestore.h"
#include "utils/xid8.h"

#include "announce.h"
#include "arguments.h"
#include "catalog.h"
#include "compat.h"
#include "doorbell.h"
#include "record.h"

/* arguments of CREATE TRIGGER ... EXECUTE FUNCTION notify_event(...) */
#define TRIGGER_ARG_NAME	0
#define TRIGGER_ARG_DATA	1
#define TRIGGER_ARG_COLUMNS 2

/* what a trigger fires for: INSERT, DELETE, UPDATE, TRUNCATE, as in its event */
#define OPERATIONS (TRIGGER_EVENT_OPMASK + 1)

/* the log, open for inserts; kept over the rows of one call */
typedef struct EmitTarget
{
	Relation	log;
	EState	   *estate;
	ResultRelInfo *result_rel;
	TupleTableSlot *slot;
	Oid			sequence;
	ExprState **defaults;		/* of columns beyond ours, or NULL */
} EmitTarget;

/*
 * What a trigger's arguments mean, worked out at its first firing in a
 * statement and kept in fn_extra.
 */
typedef struct EmitTrigger
{
	char	   *names[OPERATIONS];	/* of events; NULL as long as unknown */
	bool		has_fixed_data;
	Datum		fixed_data;		/* jsonb of the second argument */
	ChangeRecord *record;		/* without that */
} EmitTrigger;

PG_FUNCTION_INFO_V1(pne_notification_event_row);
PG_FUNCTION_INFO_V1(pne_notify_event_trigger);
PG_FUNCTION_INFO_V1(pne_notify_event_jsonb);
PG_FUNCTION_INFO_V1(pne_notify_event_text);

/* ----------
 * Checks
 * ----------
 */

/*
 * JSON text to jsonb.  hint says how to do better.
 */
static Datum
parse_event_data(const char *json, const char *hint)
{
	MemoryContext context = CurrentMemoryContext;
	Datum		result = (Datum) 0;

	PG_TRY();
	{
		result = DirectFunctionCall1(jsonb_in, CStringGetDatum(json));
	}
	PG_CATCH();
	{
		ErrorData  *edata;
		int			shown = pg_mbcharcliplen(json, (int) strlen(json), EVENT_NAME_MAX_CHARS);

		MemoryContextSwitchTo(context);
		edata = CopyErrorData();
		if (ERRCODE_TO_CATEGORY(edata->sqlerrcode) != ERRCODE_DATA_EXCEPTION)
			PG_RE_THROW();
		FlushErrorState();

		/* still an error, so what it may have left behind goes with it */
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_JSON_TEXT),
				 errmsg("event data is not valid JSON: \"%.*s%s\"",
						shown, json, json[shown] != '\0' ? "..." : ""),
				 edata->detail ? errdetail_internal("%s", edata->detail) : 0,
				 errhint("%s", hint)));
	}
	PG_END_TRY();

	return result;
}

/* ----------
 * The row trigger of the log
 * ----------
 */

/*
 * A trigger behind ours could change what we set, and with it hide the event
 * from those who follow the log.  Triggers fire by name, so one cannot come in
 * between unseen.
 */
static void
check_fires_last(TriggerData *trigdata)
{
	TriggerDesc *triggers = trigdata->tg_relation->trigdesc;

	for (int i = triggers->numtriggers - 1; i >= 0; i--)
	{
		Trigger    *trigger = &triggers->triggers[i];

		if (trigger->tgoid == trigdata->tg_trigger->tgoid)
			return;
		if (TRIGGER_FOR_ROW(trigger->tgtype) && TRIGGER_FOR_BEFORE(trigger->tgtype) &&
			TRIGGER_FOR_INSERT(trigger->tgtype))
			ereport(ERROR,
					(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
					 errmsg("trigger \"%s\" on table \"%s\" would fire after the extension's own",
							trigger->tgname, RelationGetRelationName(trigdata->tg_relation)),
					 errhint("Triggers fire in the order of their names: give it one before \"%s\".",
							 trigdata->tg_trigger->tgname)));
	}
}

/*
 * Row trigger of notification_events: stamps the row with its transaction and
 * with who announces it, asks for the doorbell.
 *
 * txid, origin_txid and announce are set whatever was given.  A given txid can
 * only come from elsewhere (a dump, a publisher): it goes to origin_txid, and
 * the row is not announced again.
 */
Datum
pne_notification_event_row(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;
	TupleDesc	desc;
	HeapTuple	tuple;
	int			columns[] = {Anum_event_txid, Anum_event_origin_txid, Anum_event_announce};
	Datum		values[lengthof(columns)];
	bool		nulls[lengthof(columns)] = {false};
	bool		restored;
	bool		isnull;
	Datum		name;

	if (!CALLED_AS_TRIGGER(fcinfo) ||
		!TRIGGER_FIRED_BEFORE(trigdata->tg_event) ||
		!TRIGGER_FIRED_FOR_ROW(trigdata->tg_event) ||
		!TRIGGER_FIRED_BY_INSERT(trigdata->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("_notification_event_row() must be called as a BEFORE INSERT row trigger")));

	check_fires_last(trigdata);
	desc = RelationGetDescr(trigdata->tg_relation);
	tuple = trigdata->tg_trigtuple;
	if (desc->natts < Natts_event ||
		TupleDescAttr(desc, Anum_event_txid - 1)->atttypid != XID8OID)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("_notification_event_row() is a trigger of notification_events only")));

	values[1] = heap_getattr(tuple, Anum_event_txid, desc, &isnull);
	restored = !isnull;
	nulls[1] = isnull;
	values[0] = FullTransactionIdGetDatum(GetTopFullTransactionId());

	values[2] = BoolGetDatum(false);

	name = heap_getattr(tuple, Anum_event_name, desc, &isnull);
	if (!restored && !isnull)
	{
		char	   *event_name = TextDatumGetCString(name);

		check_event_name(event_name, (int) strlen(event_name));
		values[2] = BoolGetDatum(announce_emitted(tuple, desc, event_name));
	}

	doorbell_at_commit(RING_EVENTS);
	return PointerGetDatum(heap_modify_tuple_by_cols(tuple, desc, lengthof(columns),
													 columns, values, nulls));
}

/* ----------
 * Inserting into the log
 * ----------
 */

/*
 * Defaults of columns that somebody has added to the log.
 */
static ExprState **
prepare_defaults(Relation log, EState *estate)
{
	TupleDesc	desc = RelationGetDescr(log);
	ExprState **defaults;

	if (desc->natts == Natts_event)
		return NULL;

	defaults = palloc0(sizeof(ExprState *) * desc->natts);
	for (int i = Natts_event; i < desc->natts; i++)
	{
		Form_pg_attribute attribute = TupleDescAttr(desc, i);
		Expr	   *expr;

		if (attribute->attisdropped || attribute->attgenerated)
			continue;
		expr = (Expr *) build_column_default(log, i + 1);
		if (expr != NULL)
			defaults[i] = ExecPrepareExpr(expr, estate);
	}
	return defaults;
}

/*
 * The sequence that ids are drawn from.  To look it up is a scan of pg_depend,
 * so it is remembered until something happens to the log.
 */
static Oid
log_sequence(Relation log)
{
	static Oid	known_log = InvalidOid;
	static Oid	sequence = InvalidOid;
	static uint64 known_changes = 0;
	const EventCatalog *where = catalog_lookup(true);

	/* of another table nobody would tell us that it has changed */
	if (where == NULL || where->log != RelationGetRelid(log))
		return pne_identity_sequence(log, Anum_event_id);
	if (known_log != where->log || known_changes != catalog_log_changes())
	{
		uint64		changes = catalog_log_changes();

		sequence = pne_identity_sequence(log, Anum_event_id);
		known_log = RelationGetRelid(log);
		known_changes = changes;
	}
	return sequence;
}

/*
 * Open the log for inserts.  schema is the extension's.
 */
static void
emit_begin(EmitTarget *target, Oid schema)
{
	Oid			relid;
	RangeTblEntry *rte = makeNode(RangeTblEntry);

	PreventCommandIfReadOnly("notify_event()");
	PreventCommandIfParallelMode("notify_event()");
	PreventCommandDuringRecovery("notify_event()");

	relid = get_relname_relid("notification_events", schema);
	if (!OidIsValid(relid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table %s.notification_events does not exist",
						quote_identifier(get_namespace_name(schema))),
				 errhint("It belongs to extension pg_notify_events and must keep its name.")));
	target->log = table_open(relid, RowExclusiveLock);
	target->sequence = log_sequence(target->log);

	rte->rtekind = RTE_RELATION;
	rte->relid = relid;
	rte->relkind = target->log->rd_rel->relkind;
	rte->rellockmode = RowExclusiveLock;

	target->estate = CreateExecutorState();
	pne_init_range_table(target->estate, rte);
	target->result_rel = makeNode(ResultRelInfo);
	InitResultRelInfo(target->result_rel, target->log, 1, NULL, 0);
	target->estate->es_opened_result_relations =
		lappend(target->estate->es_opened_result_relations, target->result_rel);
	target->estate->es_output_cid = GetCurrentCommandId(true);
	ExecOpenIndices(target->result_rel, false);
	target->slot = ExecInitExtraTupleSlot(target->estate, RelationGetDescr(target->log),
										  &TTSOpsVirtual);
	target->defaults = prepare_defaults(target->log, target->estate);

	AfterTriggerBeginQuery();
}

/*
 * Insert one event.  True and its id, unless a foreign BEFORE trigger has
 * swallowed the row.
 */
static bool
emit_row(EmitTarget *target, Datum name, Datum data, bool data_is_null, int64 *id)
{
	TupleTableSlot *slot = target->slot;
	int			natts = RelationGetDescr(target->log)->natts;
	bool		inserted;
	bool		isnull;

	ExecClearTuple(slot);
	for (int i = 0; i < natts; i++)
	{
		slot->tts_values[i] = (Datum) 0;
		slot->tts_isnull[i] = true;
		if (target->defaults != NULL && target->defaults[i] != NULL)
			slot->tts_values[i] = ExecEvalExpr(target->defaults[i],
											   GetPerTupleExprContext(target->estate),
											   &slot->tts_isnull[i]);
	}

	slot->tts_values[Anum_event_id - 1] = Int64GetDatum(nextval_internal(target->sequence, false));
	slot->tts_isnull[Anum_event_id - 1] = false;
	slot->tts_values[Anum_event_name - 1] = name;
	slot->tts_isnull[Anum_event_name - 1] = false;
	slot->tts_values[Anum_event_data - 1] = data;
	slot->tts_isnull[Anum_event_data - 1] = data_is_null;
	slot->tts_values[Anum_event_created_at - 1] =
		TimestampTzGetDatum(GetCurrentTransactionStartTimestamp());
	slot->tts_isnull[Anum_event_created_at - 1] = false;
	ExecStoreVirtualTuple(slot);

	ItemPointerSetInvalid(&slot->tts_tid);
	ExecSimpleRelationInsert(target->result_rel, target->estate, slot);
	inserted = ItemPointerIsValid(&slot->tts_tid);
	if (inserted && id != NULL)
		*id = DatumGetInt64(slot_getattr(slot, Anum_event_id, &isnull));

	ExecClearTuple(slot);
	ResetPerTupleExprContext(target->estate);
	return inserted;
}

/*
 * Fire AFTER triggers of the log and close it.
 */
static void
emit_end(EmitTarget *target)
{
	AfterTriggerEndQuery(target->estate);
	ExecCloseIndices(target->result_rel);
	ExecResetTupleTable(target->estate->es_tupleTable, false);
	FreeExecutorState(target->estate);
	table_close(target->log, NoLock);
}

/* ----------
 * notify_event() as a trigger
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
 * The name of a trigger's events: its first argument, or schema.table.op.
 */
static char *
trigger_event_name(TriggerData *trigdata)
{
	Trigger    *trigger = trigdata->tg_trigger;
	Relation	rel = trigdata->tg_relation;
	char	   *name;

	if (trigger->tgnargs > TRIGGER_ARG_NAME)
	{
		name = trigger->tgargs[TRIGGER_ARG_NAME];
		check_event_name(name, (int) strlen(name));
		return pstrdup(name);
	}

	name = psprintf("%s.%s.%s", get_namespace_name(RelationGetNamespace(rel)),
					RelationGetRelationName(rel), trigger_operation(trigdata->tg_event));
	name = str_tolower(name, strlen(name), DEFAULT_COLLATION_OID);
	name[pg_mbcharcliplen(name, (int) strlen(name), EVENT_NAME_MAX_CHARS)] = '\0';
	return name;
}

/*
 * How to record changes: with the columns that the arguments from the third on
 * name, if there are any.
 */
static ChangeRecord *
trigger_record(TriggerData *trigdata)
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
	return record_prepare(rel, ncolumns, columns);
}

/*
 * Work out what a trigger's arguments ask for.
 */
static EmitTrigger *
trigger_prepare(FunctionCallInfo fcinfo, TriggerData *trigdata)
{
	MemoryContext old = MemoryContextSwitchTo(fcinfo->flinfo->fn_mcxt);
	Trigger    *trigger = trigdata->tg_trigger;
	EmitTrigger *state = palloc0(sizeof(EmitTrigger));

	if (trigger->tgnargs > TRIGGER_ARG_DATA)
	{
		const char *data = trigger->tgargs[TRIGGER_ARG_DATA];

		if (pg_strcasecmp(data, "new") != 0 && pg_strcasecmp(data, "old") != 0)
		{
			state->has_fixed_data = true;
			state->fixed_data = parse_event_data(data,
												 "The second argument of notify_event in CREATE TRIGGER is JSON text, or new or old for the row.");
		}
	}
	if (!state->has_fixed_data)
		state->record = trigger_record(trigdata);
	else if (trigger->tgnargs > TRIGGER_ARG_COLUMNS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("trigger \"%s\" gives both event data and columns to record", trigger->tgname),
				 errhint("To record columns of the row, give new as the second argument of notify_event.")));

	MemoryContextSwitchTo(old);
	fcinfo->flinfo->fn_extra = state;
	return state;
}

/*
 * The name of the event, which is another one for each operation if the
 * arguments give none: one statement can insert and update.
 */
static Datum
change_name(EmitTrigger *state, FunctionCallInfo fcinfo, TriggerData *trigdata)
{
	char	  **name = &state->names[trigdata->tg_event & TRIGGER_EVENT_OPMASK];

	if (*name == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(fcinfo->flinfo->fn_mcxt);

		*name = trigger_event_name(trigdata);
		MemoryContextSwitchTo(old);
	}
	return CStringGetTextDatum(*name);
}

/*
 * event_data of a change, as jsonb: the fixed one of the trigger, or the
 * record of the rows given, either of which may be NULL.
 */
static Datum
change_data(EmitTrigger *state, TriggerData *trigdata, HeapTuple new_row, HeapTuple old_row)
{
	if (state->has_fixed_data)
		return state->fixed_data;
	return record_make(state->record, trigdata->tg_relation,
					   trigger_operation(trigdata->tg_event), new_row, old_row);
}

/*
 * Start to read a transition table with a read position of our own; other
 * triggers of the statement read it, too.
 */
static TupleTableSlot *
transition_begin(Tuplestorestate *store, TupleDesc desc, int *pointer)
{
	if (store == NULL)
		return NULL;
	*pointer = tuplestore_alloc_read_pointer(store, EXEC_FLAG_REWIND);
	tuplestore_select_read_pointer(store, *pointer);
	tuplestore_rescan(store);
	return MakeSingleTupleTableSlot(desc, &TTSOpsMinimalTuple);
}

/*
 * The next row of a transition table, copied into context, or NULL at its end
 * or without one.  A row that comes from disk belongs to the slot and lives in
 * the current context, which must outlive it.
 */
static HeapTuple
transition_next(Tuplestorestate *store, int pointer, TupleTableSlot *slot, MemoryContext context)
{
	MemoryContext old;
	HeapTuple	tuple;

	if (store == NULL)
		return NULL;
	tuplestore_select_read_pointer(store, pointer);
	if (!tuplestore_gettupleslot(store, true, false, slot))
		return NULL;
	old = MemoryContextSwitchTo(context);
	tuple = ExecCopySlotHeapTuple(slot);
	MemoryContextSwitchTo(old);
	return tuple;
}

/*
 * One event for each row of the transition tables; new and old rows of an
 * UPDATE stand at the same positions.
 */
static void
emit_transition_rows(EmitTarget *target, EmitTrigger *state, TriggerData *trigdata, Datum name)
{
	TupleDesc	desc = RelationGetDescr(trigdata->tg_relation);
	Tuplestorestate *new_rows = trigdata->tg_newtable;
	Tuplestorestate *old_rows = trigdata->tg_oldtable;
	int			new_pointer = 0;
	int			old_pointer = 0;
	TupleTableSlot *new_slot = transition_begin(new_rows, desc, &new_pointer);
	TupleTableSlot *old_slot = transition_begin(old_rows, desc, &old_pointer);
	MemoryContext row_context = AllocSetContextCreate(CurrentMemoryContext, "event row",
													  ALLOCSET_DEFAULT_SIZES);

	/* a row that was moved to another partition can be swallowed there */
	if (new_rows != NULL && old_rows != NULL &&
		tuplestore_tuple_count(new_rows) != tuplestore_tuple_count(old_rows))
		ereport(ERROR,
				(errcode(ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION),
				 errmsg("trigger \"%s\" cannot tell which new row belongs to which old one",
						trigdata->tg_trigger->tgname),
				 errdetail("The statement has %lld new rows and %lld old ones.",
						   (long long) tuplestore_tuple_count(new_rows),
						   (long long) tuplestore_tuple_count(old_rows)),
				 errhint("Declare one transition table only, or use a row trigger.")));

	for (;;)
	{
		HeapTuple	new_row = transition_next(new_rows, new_pointer, new_slot, row_context);
		HeapTuple	old_row = transition_next(old_rows, old_pointer, old_slot, row_context);
		MemoryContext old;

		if (new_row == NULL && old_row == NULL)
			break;
		CHECK_FOR_INTERRUPTS();
		old = MemoryContextSwitchTo(row_context);
		emit_row(target, name, change_data(state, trigdata, new_row, old_row), false, NULL);
		MemoryContextSwitchTo(old);
		MemoryContextReset(row_context);
	}

	MemoryContextDelete(row_context);
	if (new_slot != NULL)
		ExecDropSingleTupleTableSlot(new_slot);
	if (old_slot != NULL)
		ExecDropSingleTupleTableSlot(old_slot);
}

/*
 * notify_event() returns trigger
 *
 * Arguments of CREATE TRIGGER: event name; JSON text for event_data, or new or
 * old for the record of the change; columns to record.  Records one event for
 * a row; for a statement one event, or one for each row of its transition
 * tables.  Errors: not an AFTER trigger, bad name, data that is no JSON,
 * unknown column.
 */
Datum
pne_notify_event_trigger(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;
	EmitTrigger *state = (EmitTrigger *) fcinfo->flinfo->fn_extra;
	EmitTarget	target;
	Datum		name;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("notify_event() without arguments must be called as a trigger"),
				 errhint("To record an event from SQL, give its name: notify_event('name', data).")));
	if (!TRIGGER_FIRED_AFTER(trigdata->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("trigger \"%s\" must be an AFTER trigger to call notify_event()",
						trigdata->tg_trigger->tgname),
				 errdetail("Before the change it is not certain what will be stored."),
				 errhint("Create it as an AFTER trigger.")));

	if (state == NULL)
		state = trigger_prepare(fcinfo, trigdata);
	name = change_name(state, fcinfo, trigdata);

	emit_begin(&target, get_func_namespace(fcinfo->flinfo->fn_oid));
	if (TRIGGER_FIRED_FOR_ROW(trigdata->tg_event))
	{
		HeapTuple	new_row = NULL;
		HeapTuple	old_row = NULL;

		if (TRIGGER_FIRED_BY_INSERT(trigdata->tg_event))
			new_row = trigdata->tg_trigtuple;
		else
			old_row = trigdata->tg_trigtuple;
		if (TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event))
			new_row = trigdata->tg_newtuple;
		emit_row(&target, name, change_data(state, trigdata, new_row, old_row), false, NULL);
	}
	else if (trigdata->tg_newtable != NULL || trigdata->tg_oldtable != NULL)
		emit_transition_rows(&target, state, trigdata, name);
	else
		emit_row(&target, name, change_data(state, trigdata, NULL, NULL), false, NULL);
	emit_end(&target);

	return PointerGetDatum(NULL);
}

/* ----------
 * notify_event() as a function
 * ----------
 */

/*
 * Record one event whose data is jsonb, for all overloads.
 */
static Datum
emit_call(FunctionCallInfo fcinfo, Datum data, bool data_is_null)
{
	EmitTarget	target;
	int64		id = 0;
	bool		inserted;
	text	   *name;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("event name must not be null"),
				 errhint("An event name has 1 to %d characters.", EVENT_NAME_MAX_CHARS)));
	name = PG_GETARG_TEXT_PP(0);
	check_event_name(VARDATA_ANY(name), (int) VARSIZE_ANY_EXHDR(name));

	emit_begin(&target, get_func_namespace(fcinfo->flinfo->fn_oid));
	inserted = emit_row(&target, PointerGetDatum(name), data, data_is_null, &id);
	emit_end(&target);

	if (!inserted)
		PG_RETURN_NULL();
	PG_RETURN_INT64(id);
}

/*
 * notify_event(event_name varchar, event_data jsonb) returns bigint
 *
 * Records an event; returns its id, or null where a foreign BEFORE trigger of
 * the log swallowed it.  Errors: bad name; read-only transaction, standby,
 * parallel worker.
 */
Datum
pne_notify_event_jsonb(PG_FUNCTION_ARGS)
{
	return emit_call(fcinfo, PG_ARGISNULL(1) ? (Datum) 0 : PG_GETARG_DATUM(1), PG_ARGISNULL(1));
}

/*
 * notify_event(event_name varchar, event_data json or text) returns bigint
 *
 * The same with the data as JSON text.  Errors: the same, and data that is no
 * JSON.
 */
Datum
pne_notify_event_text(PG_FUNCTION_ARGS)
{
	Datum		data = (Datum) 0;

	if (!PG_ARGISNULL(1))
		data = parse_event_data(text_to_cstring(PG_GETARG_TEXT_PP(1)),
								"Give the data as jsonb or as JSON text; a plain string is written as to_jsonb('...'::text).");
	return emit_call(fcinfo, data, PG_ARGISNULL(1));
}
