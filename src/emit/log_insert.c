/*-------------------------------------------------------------------------
 *
 * log_insert.c
 *		Inserts events into the log.
 *
 * An event is inserted with the executor's functions, not through SPI, and as
 * the emitting user.  No other identity is involved.  So a trigger that a user
 * has created on the log runs as the emitting user and cannot borrow the rights
 * of the extension's owner.  Unlike an INSERT statement, this omits on purpose:
 * privileges and INSERT policies on the log (EXECUTE on notify_event() is the
 * right to write events), statement triggers, and partition routing.
 * Constraints, indexes and row triggers all apply.
 *
 * This file does what the log's own row trigger would do, as long as there is no
 * other BEFORE trigger (log_trigger.c).  Then no trigger can read the log
 * between two rows, so the rows of a statement can be stored many at once, under
 * the same conditions as in COPY.  This needs one search for free space and one
 * WAL record for each page.
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

/*
 * The maximum number of rows that wait to be stored, and about the maximum of
 * their bytes.
 */
#define MAX_ROWS 1000
#define MAX_BYTES 65536

/* the log, open for inserts */
struct LogInsert
{
	Relation	log;
	EState	   *estate;
	ResultRelInfo *result_rel;
	ExprState **defaults;		/* of columns that users have added, or NULL */
	bool		sets_columns;	/* it does the work of the log's row trigger */
	bool		gathers;		/* it gathers rows, to store them together */
	int			nrows;			/* that wait to be stored, in the first slots */
	Size		bytes;			/* of these rows */
	int			nslots;
	TupleTableSlot **slots;
};

/*
 * Prepare the defaults of columns that users have added to the log.  Returns
 * NULL if there are no such columns.
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
 * Returns the oid of the log.  function is the function of the extension that
 * was called.
 *
 * If the extension is not complete, the log is looked up in the schema of that
 * function: recording an event needs nothing else.  It must belong to the same
 * extension as the function.  The owner of the schema may have created another
 * table with its name, whose triggers would run as the emitting user.
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

	/* the function may have been dropped meanwhile */
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
 * Open the log for inserts.  function is the function of the extension that was
 * called.  many says that many rows may follow.  Must be followed by
 * log_insert_end(), unless an error is raised.  Errors: read-only transaction,
 * recovery, parallel worker, no log.
 */
LogInsert *
log_insert_begin(Oid function, bool many)
{
	LogInsert  *insert = palloc0(sizeof(LogInsert));
	RangeTblEntry *rte = makeNode(RangeTblEntry);

	/* a trigger of the log may call notify_event() for each of its rows */
	check_stack_depth();

	PreventCommandIfReadOnly("notify_event()");
	PreventCommandIfParallelMode("notify_event()");
	PreventCommandDuringRecovery("notify_event()");

	insert->log = table_open(find_log(function), RowExclusiveLock);

	rte->rtekind = RTE_RELATION;
	rte->relid = RelationGetRelid(insert->log);
	rte->relkind = insert->log->rd_rel->relkind;
	rte->rellockmode = RowExclusiveLock;

	insert->estate = CreateExecutorState();
	pne_init_range_table(insert->estate, rte);
	insert->result_rel = makeNode(ResultRelInfo);
	InitResultRelInfo(insert->result_rel, insert->log, 1, NULL, 0);
	insert->estate->es_opened_result_relations =
		lappend(insert->estate->es_opened_result_relations, insert->result_rel);
	insert->estate->es_output_cid = GetCurrentCommandId(true);
	ExecOpenIndices(insert->result_rel, false);
	insert->defaults = prepare_defaults(insert->log, insert->estate);

	insert->sets_columns = log_trigger_is_alone(insert->log);
	if (insert->sets_columns)
		insert->result_rel->ri_TrigDesc->trig_insert_before_row = false;	/* in this copy */
	insert->gathers = many && insert->sets_columns && insert->defaults == NULL &&
		!insert->log->rd_rel->relispartition;
	insert->slots = palloc(sizeof(TupleTableSlot *) * (insert->gathers ? MAX_ROWS : 1));

	AfterTriggerBeginQuery();
	return insert;
}

/*
 * Returns the slot of the next row, filled with values.  The values are not
 * copied.
 */
static TupleTableSlot *
fill_slot(LogInsert *insert, Datum name, Datum data, bool data_is_null)
{
	int			natts = RelationGetDescr(insert->log)->natts;
	TupleTableSlot *slot;
	Datum	   *values;
	bool	   *nulls;

	if (insert->nslots == insert->nrows)
	{
		MemoryContext old = MemoryContextSwitchTo(insert->estate->es_query_cxt);

		insert->slots[insert->nslots++] =
			ExecInitExtraTupleSlot(insert->estate, RelationGetDescr(insert->log),
								   table_slot_callbacks(insert->log));
		MemoryContextSwitchTo(old);
	}
	slot = insert->slots[insert->nrows];
	values = slot->tts_values;
	nulls = slot->tts_isnull;
	for (int i = 0; i < natts; i++)
	{
		values[i] = (Datum) 0;
		nulls[i] = true;
		if (insert->defaults != NULL && insert->defaults[i] != NULL)
			values[i] = ExecEvalExpr(insert->defaults[i], GetPerTupleExprContext(insert->estate), &nulls[i]);
	}

	values[Anum_event_name - 1] = name;
	nulls[Anum_event_name - 1] = false;
	values[Anum_event_data - 1] = data;
	nulls[Anum_event_data - 1] = data_is_null;
	values[Anum_event_created_at - 1] = TimestampTzGetDatum(GetCurrentTransactionStartTimestamp());
	nulls[Anum_event_created_at - 1] = false;
	if (insert->sets_columns)
		log_trigger_set_columns(insert->log, values, nulls);
	ExecStoreVirtualTuple(slot);
	return slot;
}

/*
 * Store the rows that wait, with their index entries, and queue their AFTER
 * triggers.
 */
static void
store_rows(LogInsert *insert)
{
	EState	   *estate = insert->estate;
	MemoryContext old;

	if (insert->nrows == 0)
		return;

	/* the access method leaves memory behind for large rows */
	old = MemoryContextSwitchTo(GetPerTupleMemoryContext(estate));
	table_multi_insert(insert->log, insert->slots, insert->nrows, GetCurrentCommandId(true), 0, NULL);
	MemoryContextSwitchTo(old);

	for (int i = 0; i < insert->nrows; i++)
	{
		List	   *recheck = pne_insert_index_tuples(insert->result_rel, estate, insert->slots[i]);

		ExecARInsertTriggers(estate, insert->result_rel, insert->slots[i], recheck, NULL);
		list_free(recheck);
		ExecClearTuple(insert->slots[i]);
	}
	ResetPerTupleExprContext(estate);
	insert->nrows = 0;
	insert->bytes = 0;
}

/*
 * Copy the values of a row and let it wait.  Stores the waiting rows if they
 * are many or large.
 */
static void
gather_row(LogInsert *insert, TupleTableSlot *slot)
{
	HeapTuple	tuple;
	bool		copied;

	ExecConstraints(insert->result_rel, slot, insert->estate);
	ResetPerTupleExprContext(insert->estate);
	tuple = ExecFetchSlotHeapTuple(slot, true, &copied);
	insert->bytes += tuple->t_len;
	if (copied)
		heap_freetuple(tuple);
	if (++insert->nrows == MAX_ROWS || insert->bytes >= MAX_BYTES)
		store_rows(insert);
}

/*
 * Store a row, after its BEFORE triggers.  Returns false if one of them skipped
 * it.  If id is not NULL, *id is set to the row's id.
 */
static bool
store_row(LogInsert *insert, TupleTableSlot *slot, int64 *id)
{
	MemoryContext old;
	bool		inserted;
	bool		isnull;

	/*
	 * Memory that is kept for the next row, such as that of a trigger's
	 * function, is allocated here.
	 */
	old = MemoryContextSwitchTo(insert->estate->es_query_cxt);
	ItemPointerSetInvalid(&slot->tts_tid);
	ExecSimpleRelationInsert(insert->result_rel, insert->estate, slot);
	MemoryContextSwitchTo(old);
	inserted = ItemPointerIsValid(&slot->tts_tid);
	if (inserted && id != NULL)
		*id = DatumGetInt64(slot_getattr(slot, Anum_event_id, &isnull));

	ExecClearTuple(slot);
	ResetPerTupleExprContext(insert->estate);
	return inserted;
}

/*
 * Insert one event.  name is a text that has been checked, data is jsonb.
 * Returns true, and the event's id in *id if id is not NULL; returns false if a
 * BEFORE trigger that a user has created skipped the row.
 *
 * If log_insert_begin() was called for many rows, id must be NULL, and the row
 * may be stored later, by log_insert_end() at the latest.
 */
bool
log_insert_event(LogInsert *insert, Datum name, Datum data, bool data_is_null, int64 *id)
{
	TupleTableSlot *slot;

	Assert(!insert->gathers || id == NULL);

	/*
	 * The server does not check between the calls of a trigger, nor at commit.
	 */
	CHECK_FOR_INTERRUPTS();

	slot = fill_slot(insert, name, data, data_is_null);
	if (!insert->gathers)
		return store_row(insert, slot, id);
	gather_row(insert, slot);
	return true;
}

/*
 * Store the rows that still wait, fire the AFTER triggers of the log, and close
 * it.
 */
void
log_insert_end(LogInsert *insert)
{
	store_rows(insert);
	AfterTriggerEndQuery(insert->estate);
	ExecCloseIndices(insert->result_rel);
	ExecResetTupleTable(insert->estate->es_tupleTable, false);
	FreeExecutorState(insert->estate);
	table_close(insert->log, NoLock);
	pfree(insert->slots);
	pfree(insert);
}
