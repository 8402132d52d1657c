/*-------------------------------------------------------------------------
 *
 * log_insert.c
 *		Inserting events into the log.
 *
 * An event is inserted with the executor's own functions and not through SPI,
 * as the emitting user.  No other identity is involved, so a trigger that
 * somebody has put on the log fires as whoever emits, and cannot borrow the
 * rights of the extension's owner.  Left out on purpose, compared to an INSERT
 * statement, are privileges and INSERT policies on the log (EXECUTE on
 * notify_event is the right to write events), statement triggers and partition
 * routing; constraints, indexes and row triggers all apply.
 *
 * What the log's own row trigger would do is done here, as long as no other
 * BEFORE trigger is there (log_trigger.c).  No trigger can look at the log between two
 * rows then, so the rows of a statement can be stored many at once, under the
 * same conditions as those of COPY: one search for room and one WAL record for
 * each page.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/dependency.h"
#include "catalog/pg_class.h"
#include "catalog/pg_proc.h"
#include "commands/trigger.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "rewrite/rewriteHandler.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "base/catalog.h"
#include "base/compat.h"
#include "emit/log_insert.h"
#include "emit/log_trigger.h"

/* so many rows wait at most until they are stored, and about so many bytes */
#define MAX_ROWS 1000
#define MAX_BYTES 65536

/* the log, open for inserts */
struct LogAppend
{
	Relation	log;
	EState	   *estate;
	ResultRelInfo *result_rel;
	ExprState **defaults;		/* of columns beyond ours, or NULL */
	bool		stamps;			/* instead of the log's trigger */
	bool		gathers;		/* rows, to store them together */
	int			nrows;			/* that wait, in the first slots */
	Size		bytes;
	int			nslots;
	TupleTableSlot **slots;
};

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
 * The log.  Where the extension is not complete it is looked for beside the
 * function that records the event, which needs nothing else.  It is the one of
 * the same extension: the owner of the schema may have put a namesake there, with
 * triggers that would run as whoever emits.
 */
static Oid
find_log(Oid function)
{
	const EventCatalog *where = catalog_lookup(true);
	Oid			extension;
	Oid			schema;
	Oid			relid;

	if (where != NULL)
		return where->log;

	/* the function itself may have been dropped meanwhile */
	extension = getExtensionOfObject(ProcedureRelationId, function);
	schema = get_func_namespace(function);
	relid = get_relname_relid("notification_events", schema);
	if (!OidIsValid(relid) || !OidIsValid(extension) ||
		getExtensionOfObject(RelationRelationId, relid) != extension)
	{
		const char *name = get_namespace_name(schema);

		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 name == NULL ? errmsg("table notification_events does not exist") :
				 errmsg("table %s.notification_events does not exist", quote_identifier(name)),
				 OidIsValid(relid) ? errdetail("The table of that name is not the one of extension pg_notify_events.") : 0,
				 errhint("It belongs to extension pg_notify_events and must keep its name.")));
	}
	return relid;
}

/*
 * Open the log for inserts; of many rows, perhaps.  function is the one of the
 * extension that was called.
 */
LogAppend *
log_insert_begin(Oid function, bool many)
{
	LogAppend  *append = palloc0(sizeof(LogAppend));
	RangeTblEntry *rte = makeNode(RangeTblEntry);

	/* a trigger of the log may call notify_event() for each of its rows */
	check_stack_depth();

	PreventCommandIfReadOnly("notify_event()");
	PreventCommandIfParallelMode("notify_event()");
	PreventCommandDuringRecovery("notify_event()");

	append->log = table_open(find_log(function), RowExclusiveLock);

	rte->rtekind = RTE_RELATION;
	rte->relid = RelationGetRelid(append->log);
	rte->relkind = append->log->rd_rel->relkind;
	rte->rellockmode = RowExclusiveLock;

	append->estate = CreateExecutorState();
	pne_init_range_table(append->estate, rte);
	append->result_rel = makeNode(ResultRelInfo);
	InitResultRelInfo(append->result_rel, append->log, 1, NULL, 0);
	append->estate->es_opened_result_relations =
		lappend(append->estate->es_opened_result_relations, append->result_rel);
	append->estate->es_output_cid = GetCurrentCommandId(true);
	ExecOpenIndices(append->result_rel, false);
	append->defaults = prepare_defaults(append->log, append->estate);

	append->stamps = log_trigger_is_alone(append->log);
	if (append->stamps)
		append->result_rel->ri_TrigDesc->trig_insert_before_row = false;	/* in our copy */
	append->gathers = many && append->stamps && append->defaults == NULL &&
		!append->log->rd_rel->relispartition;
	append->slots = palloc(sizeof(TupleTableSlot *) * (append->gathers ? MAX_ROWS : 1));

	AfterTriggerBeginQuery();
	return append;
}

/*
 * The slot of the next row, with its values; they are not copied.
 */
static TupleTableSlot *
fill_slot(LogAppend *append, Datum name, Datum data, bool data_is_null)
{
	int			natts = RelationGetDescr(append->log)->natts;
	TupleTableSlot *slot;
	Datum	   *values;
	bool	   *nulls;

	if (append->nslots == append->nrows)
	{
		MemoryContext old = MemoryContextSwitchTo(append->estate->es_query_cxt);

		append->slots[append->nslots++] =
			ExecInitExtraTupleSlot(append->estate, RelationGetDescr(append->log),
								   table_slot_callbacks(append->log));
		MemoryContextSwitchTo(old);
	}
	slot = append->slots[append->nrows];
	values = slot->tts_values;
	nulls = slot->tts_isnull;
	for (int i = 0; i < natts; i++)
	{
		values[i] = (Datum) 0;
		nulls[i] = true;
		if (append->defaults != NULL && append->defaults[i] != NULL)
			values[i] = ExecEvalExpr(append->defaults[i], GetPerTupleExprContext(append->estate), &nulls[i]);
	}

	values[Anum_event_name - 1] = name;
	nulls[Anum_event_name - 1] = false;
	values[Anum_event_data - 1] = data;
	nulls[Anum_event_data - 1] = data_is_null;
	values[Anum_event_created_at - 1] = TimestampTzGetDatum(GetCurrentTransactionStartTimestamp());
	nulls[Anum_event_created_at - 1] = false;
	if (append->stamps)
		log_trigger_stamp(append->log, values, nulls);
	ExecStoreVirtualTuple(slot);
	return slot;
}

/*
 * Store the rows that wait.
 */
static void
store_rows(LogAppend *append)
{
	EState	   *estate = append->estate;
	MemoryContext old;

	if (append->nrows == 0)
		return;

	/* the access method leaves behind what it makes of large rows */
	old = MemoryContextSwitchTo(GetPerTupleMemoryContext(estate));
	table_multi_insert(append->log, append->slots, append->nrows, GetCurrentCommandId(true), 0, NULL);
	MemoryContextSwitchTo(old);

	for (int i = 0; i < append->nrows; i++)
	{
		List	   *recheck = pne_insert_index_tuples(append->result_rel, estate, append->slots[i]);

		ExecARInsertTriggers(estate, append->result_rel, append->slots[i], recheck, NULL);
		list_free(recheck);
		ExecClearTuple(append->slots[i]);
	}
	ResetPerTupleExprContext(estate);
	append->nrows = 0;
	append->bytes = 0;
}

/*
 * Let a row wait, with a copy of its values, until there are enough of them.
 */
static void
gather_row(LogAppend *append, TupleTableSlot *slot)
{
	HeapTuple	tuple;
	bool		copied;

	ExecConstraints(append->result_rel, slot, append->estate);
	ResetPerTupleExprContext(append->estate);
	tuple = ExecFetchSlotHeapTuple(slot, true, &copied);
	append->bytes += tuple->t_len;
	if (copied)
		heap_freetuple(tuple);
	if (++append->nrows == MAX_ROWS || append->bytes >= MAX_BYTES)
		store_rows(append);
}

/*
 * Store a row, after the triggers that come first.  False if one of them has
 * swallowed it.
 */
static bool
store_row(LogAppend *append, TupleTableSlot *slot, int64 *id)
{
	MemoryContext old;
	bool		inserted;
	bool		isnull;

	/* what is kept for the next row, of a trigger's function for example, is made here */
	old = MemoryContextSwitchTo(append->estate->es_query_cxt);
	ItemPointerSetInvalid(&slot->tts_tid);
	ExecSimpleRelationInsert(append->result_rel, append->estate, slot);
	MemoryContextSwitchTo(old);
	inserted = ItemPointerIsValid(&slot->tts_tid);
	if (inserted && id != NULL)
		*id = DatumGetInt64(slot_getattr(slot, Anum_event_id, &isnull));

	ExecClearTuple(slot);
	ResetPerTupleExprContext(append->estate);
	return inserted;
}

/*
 * Insert one event, whose name has been checked, data is jsonb.  True and its id,
 * unless a foreign BEFORE trigger has swallowed the row.  One of many has its id
 * for itself, and may be stored later, at the end at the latest.
 */
bool
log_insert_event(LogAppend *append, Datum name, Datum data, bool data_is_null, int64 *id)
{
	TupleTableSlot *slot;

	Assert(!append->gathers || id == NULL);

	/* the server does not between the calls of a trigger, at commit either */
	CHECK_FOR_INTERRUPTS();

	slot = fill_slot(append, name, data, data_is_null);
	if (!append->gathers)
		return store_row(append, slot, id);
	gather_row(append, slot);
	return true;
}

/*
 * Store what is left, fire AFTER triggers of the log and close it.
 */
void
log_insert_end(LogAppend *append)
{
	store_rows(append);
	AfterTriggerEndQuery(append->estate);
	ExecCloseIndices(append->result_rel);
	ExecResetTupleTable(append->estate->es_tupleTable, false);
	FreeExecutorState(append->estate);
	table_close(append->log, NoLock);
	pfree(append->slots);
	pfree(append);
}
