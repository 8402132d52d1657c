/*-------------------------------------------------------------------------
 *
 * emit.c
 *		notify_event(): makes an event of a change or a call, and inserts it into
 *		the log.
 *
 * emit_trigger.c finds out what a trigger records, change_record.c makes the
 * record, and log_insert.c inserts the row.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "executor/executor.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/tuplestore.h"

#include "base/arguments.h"
#include "base/catalog.h"
#include "base/compat.h"
#include "emit/emit_trigger.h"
#include "emit/log_insert.h"
#include "emit/record_type.h"

PG_FUNCTION_INFO_V1(pne_notify_event_trigger);
PG_FUNCTION_INFO_V1(pne_notify_event_jsonb);
PG_FUNCTION_INFO_V1(pne_notify_event_json);
PG_FUNCTION_INFO_V1(pne_notify_event_text);

/* ----------
 * notify_event() as a trigger
 * ----------
 */

/*
 * Begin to read a transition table (may be NULL).  Uses a read position of its
 * own in *pointer, because other triggers of the statement read the table, too.
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
 * Returns the next row of a transition table, copied into context; NULL at its
 * end, or if there is no table.  A row that comes from disk belongs to the slot
 * and is in the current context, which must live longer than the slot's use.
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
 * Emit one event for each row of the transition tables.  New and old rows of an
 * UPDATE are at the same positions.
 */
static void
emit_transition_rows(LogInsert *insert, EmitTrigger *emitter, TriggerData *trigdata, Datum name)
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

	/* a trigger on another partition can skip a row that was moved there */
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
		old = MemoryContextSwitchTo(row_context);
		log_insert_event(insert, name, emit_trigger_data(emitter, trigdata, new_row, old_row), false, NULL);
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
 * The arguments in CREATE TRIGGER are: the event's name; JSON text for
 * event_data, or new or old for the record of the change; the columns to
 * record.  A row trigger emits one event.  A statement trigger emits one event,
 * or one for each row of its transition tables.
 *
 * Errors: not an AFTER trigger, invalid name, data that is not JSON, unknown
 * column.
 */
Datum
pne_notify_event_trigger(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;
	EmitTrigger *emitter;
	LogInsert  *insert;
	Datum		name;
	bool		by_row;

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

	emitter = emit_trigger_find(fcinfo);
	name = emit_trigger_name(emitter, trigdata);

	by_row = TRIGGER_FIRED_FOR_STATEMENT(trigdata->tg_event) &&
		(trigdata->tg_newtable != NULL || trigdata->tg_oldtable != NULL);
	insert = log_insert_begin(fcinfo->flinfo->fn_oid, by_row);
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
		log_insert_event(insert, name, emit_trigger_data(emitter, trigdata, new_row, old_row), false, NULL);
	}
	else if (by_row)
		emit_transition_rows(insert, emitter, trigdata, name);
	else
		log_insert_event(insert, name, emit_trigger_data(emitter, trigdata, NULL, NULL), false, NULL);
	log_insert_end(insert);

	return PointerGetDatum(NULL);
}

/* ----------
 * notify_event() as a function
 * ----------
 */

/*
 * Record one event whose data is jsonb.  Used by all overloads.
 */
static Datum
emit_call(FunctionCallInfo fcinfo, Datum data, bool data_is_null)
{
	LogInsert  *insert;
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

	insert = log_insert_begin(fcinfo->flinfo->fn_oid, false);
	inserted = log_insert_event(insert, PointerGetDatum(name), data, data_is_null, &id);
	log_insert_end(insert);

	if (!inserted)
		PG_RETURN_NULL();
	PG_RETURN_INT64(id);
}

/*
 * notify_event(event_name varchar, event_data jsonb) returns bigint
 *
 * Records an event.  Returns its id, or null if a BEFORE trigger that a user
 * has created on the log skipped the row.  Errors: invalid name; read-only
 * transaction, standby, parallel worker.
 */
Datum
pne_notify_event_jsonb(PG_FUNCTION_ARGS)
{
	return emit_call(fcinfo, PG_ARGISNULL(1) ? (Datum) 0 : PG_GETARG_DATUM(1), PG_ARGISNULL(1));
}

/*
 * notify_event(event_name varchar, event_data json) returns bigint
 *
 * The same with data of type json.  Data that jsonb cannot hold is recorded as
 * a JSON string of its text.  Errors: the same.
 */
Datum
pne_notify_event_json(PG_FUNCTION_ARGS)
{
	Datum		data = (Datum) 0;

	if (!PG_ARGISNULL(1))
		data = json_recorded(PG_GETARG_DATUM(1));
	return emit_call(fcinfo, data, PG_ARGISNULL(1));
}

/*
 * notify_event(event_name varchar, event_data text) returns bigint
 *
 * The same with data as JSON text.  Errors: the same, and data that is not
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
