/*-------------------------------------------------------------------------
 *
 * ids.c
 *		Ids of events.
 *
 * Events are delivered in the order of their ids.  So an id is drawn at the
 * moment its event is recorded, and no writer may fail because of another
 * writer's id.
 *
 * WHO DRAWS: the column has no default.  A row without an id gets one from
 * id_draw(), which the log's row trigger calls, or log_insert.c in its place.
 * So an id that is already there was given by a user, and goes through
 * id_given().
 *
 * CACHE: nextval() of a sequence with CACHE n returns numbers that were reserved
 * earlier, which is not the order of the changes.  Among n numbers in a row, the
 * last always comes from a block that was reserved just now, and it is used.
 * CACHE makes gaps, and nothing else.
 *
 * GIVEN IDS: the sequence passes a given id before its row is stored, so nobody
 * draws it later.  Nothing undoes that, as nothing undoes nextval().  It must be
 * one atomic step, "if the sequence is behind, set it".  Between a look and a
 * setval() others could draw numbers beyond the one that is set, and these would
 * then be drawn twice.  A lock on the sequence would not help: to exclude
 * nextval() it would have to conflict with the lock that each transaction keeps
 * to its end after a nextval().  nextval() itself is atomic by the lock on the
 * sequence's only page, so pass_id() does under that lock what setval() does.
 * The numbers keep their remainder by INCREMENT, because servers that replicate
 * to each other may have agreed on it.
 *
 * RIGHTS: a role with UPDATE on the sequence may set it anyway, so it may give
 * any id.  Other roles may give only ids that the sequence has not reached yet.
 * An id that it has passed may have been drawn by a transaction that is about to
 * store it.  The id must also be below a limit, or one INSERT could leave no
 * numbers to anybody.
 *
 * BEHIND THE ROWS: a sequence can be behind rows that exist already.  setval()
 * can set it back, as the end of a restore does, and rows can come while the
 * trigger is disabled.  So it is checked whether a number that was drawn is
 * already taken, and then the sequence passes all numbers in a row that are.
 *
 * A search for each number would cost too much.  One search also covers the next
 * numbers, as long as the sequence's page has the same WAL position: nextval()
 * changes that only once in 32 numbers, and anything else that changes the
 * sequence always does.  The page is not even looked at for a number that
 * follows the last one of the same transaction.  For that to be wrong, the
 * sequence would have to be set back to just that number meanwhile.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/skey.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "access/xloginsert.h"
#include "catalog/dependency.h"
#include "catalog/indexing.h"
#include "catalog/pg_class.h"
#include "catalog/pg_depend.h"
#include "catalog/pg_sequence.h"
#include "commands/sequence.h"
#include "common/int.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "base/catalog.h"
#include "base/compat.h"
#include "emit/ids.h"

/*
 * The maximum id that a role without a right on the sequence may give.  It
 * leaves far more ids than can ever be drawn, and JSON numbers can hold all
 * that are drawn for a long time.
 */
#define GIVEN_ID_LIMIT (INT64CONST(1) << 52)

/* one search for taken ids covers so many numbers */
#define LOOK_AHEAD 64

/* the sequence that ids are drawn from */
typedef struct IdSequence
{
	Oid			oid;
	int64		increment;
	int64		min;
	int64		max;
	int64		cache;
} IdSequence;

/* counts changes of definitions of sequences */
static uint64 sequence_changes = 0;

/*
 * The result of the last search: as long as the sequence's page has this WAL
 * position, no id is taken up to free_until.
 */
static XLogRecPtr looked_at = InvalidXLogRecPtr;
static int64 free_until = 0;

/* the last id that was drawn, and the transaction that drew it */
static int64 last_drawn = 0;
static TransactionId drawn_in = InvalidTransactionId;

/*
 * The definition of a sequence was changed.
 */
static void
sequence_callback(Datum arg, int cacheid, uint32 hashvalue)
{
	sequence_changes++;
}

/*
 * Returns the sequence that is owned by the log's column id.  Raises an error
 * if there is none.
 */
static Oid
owned_sequence(Relation log)
{
	Relation	depend = table_open(DependRelationId, AccessShareLock);
	ScanKeyData key[3];
	SysScanDesc scan;
	HeapTuple	tuple;
	Oid			sequence = InvalidOid;

	ScanKeyInit(&key[0], Anum_pg_depend_refclassid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(RelationRelationId));
	ScanKeyInit(&key[1], Anum_pg_depend_refobjid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(RelationGetRelid(log)));
	ScanKeyInit(&key[2], Anum_pg_depend_refobjsubid, BTEqualStrategyNumber, F_INT4EQ,
				Int32GetDatum(Anum_event_id));
	scan = systable_beginscan(depend, DependReferenceIndexId, true, NULL, lengthof(key), key);
	while (!OidIsValid(sequence) && HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_depend form = (Form_pg_depend) GETSTRUCT(tuple);

		if (form->classid == RelationRelationId && form->objsubid == 0 &&
			(form->deptype == DEPENDENCY_AUTO || form->deptype == DEPENDENCY_INTERNAL) &&
			get_rel_relkind(form->objid) == RELKIND_SEQUENCE)
			sequence = form->objid;
	}
	systable_endscan(scan);
	table_close(depend, AccessShareLock);

	if (!OidIsValid(sequence))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("no sequence belongs to column id of table \"%s\"", RelationGetRelationName(log)),
				 errhint("ALTER SEQUENCE ... OWNED BY %s.id makes one belong to it.",
						 quote_identifier(RelationGetRelationName(log)))));
	return sequence;
}

/*
 * Read the definition of a sequence.  Raises an error if its numbers do not
 * always grow.
 */
static void
read_sequence(Oid oid, IdSequence *into)
{
	HeapTuple	tuple = SearchSysCache1(SEQRELID, ObjectIdGetDatum(oid));
	Form_pg_sequence form;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for sequence %u", oid);
	form = (Form_pg_sequence) GETSTRUCT(tuple);
	if (form->seqincrement < 0 || form->seqcycle)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("ids of events cannot come from sequence \"%s\"", get_rel_name(oid)),
				 form->seqcycle ? errdetail("The sequence cycles.") : errdetail("The sequence is descending."),
				 errhint("Events are delivered in the order of their ids: ALTER SEQUENCE %s INCREMENT BY 1 NO CYCLE.",
						 quote_identifier(get_rel_name(oid)))));
	into->oid = oid;
	into->increment = form->seqincrement;
	into->min = form->seqmin;
	into->max = form->seqmax;
	into->cache = form->seqcache;
	ReleaseSysCache(tuple);
}

/*
 * Returns the sequence of the log.  Looking it up takes a scan of pg_depend, so
 * the result is cached until the log or a sequence changes.
 */
static IdSequence
log_sequence(Relation log)
{
	static bool registered = false;
	static IdSequence known;
	static Oid	known_log = InvalidOid;
	static uint64 known_log_changes = 0;
	static uint64 known_sequence_changes = 0;
	const EventCatalog *where = catalog_lookup(true);
	uint64		log_changes = catalog_log_changes();
	uint64		changes = sequence_changes;
	IdSequence	sequence;

	if (!registered)
	{
		CacheRegisterSyscacheCallback(SEQRELID, sequence_callback, (Datum) 0);
		registered = true;
	}
	if (known_log == RelationGetRelid(log) && known_log_changes == log_changes &&
		known_sequence_changes == changes)
		return known;

	read_sequence(owned_sequence(log), &sequence);
	looked_at = InvalidXLogRecPtr;
	known = sequence;
	known_log_changes = log_changes;
	known_sequence_changes = changes;
	/*
	 * Cache it only for the log: catalog_log_changes() does not count changes
	 * of other tables.
	 */
	known_log = (where != NULL && where->log == RelationGetRelid(log)) ? where->log : InvalidOid;
	return sequence;
}

/*
 * Returns the WAL position of the sequence's page, or InvalidXLogRecPtr if the
 * sequence is not logged, so that changes do not show there.  The caller has
 * drawn from the sequence and therefore holds a lock on it.
 */
static XLogRecPtr
sequence_position(Oid oid)
{
	Relation	rel = relation_open(oid, NoLock);
	XLogRecPtr	position = InvalidXLogRecPtr;

	if (RelationNeedsWAL(rel))
	{
		Buffer		buffer = ReadBuffer(rel, 0);

		position = BufferGetLSNAtomic(buffer);
		ReleaseBuffer(buffer);
	}
	relation_close(rel, NoLock);
	return position;
}

/*
 * Open the primary key, which would refuse a duplicate id.  Returns NULL if
 * there is none.  Writers do not need it, so index_open_wanted() is not used:
 * that raises an error.
 */
static Relation
open_primary_key(Relation log)
{
	Relation	index;

	list_free(RelationGetIndexList(log));	/* sets rd_pkindex */
	if (!OidIsValid(log->rd_pkindex))
		return NULL;
	index = index_open(log->rd_pkindex, AccessShareLock);
	if (index->rd_index->indkey.values[0] == Anum_event_id)
		return index;
	index_close(index, AccessShareLock);
	return NULL;
}

/*
 * Search for rows with an id of at least id.  The sequence draws each step-th
 * number.
 *
 * If a row has this id, returns true, and in *last the last taken number of the
 * unbroken run that begins there.  Otherwise returns false, and no row has an
 * id from there up to *last.  Rows that a transaction in progress has stored or
 * deleted count, too.  The search ends LOOK_AHEAD numbers later.
 */
static bool
find_taken(Relation log, int64 id, int64 step, int64 *last)
{
	Relation	index = open_primary_key(log);
	TupleTableSlot *slot;
	int64		until = (id > PG_INT64_MAX - LOOK_AHEAD) ? PG_INT64_MAX : id + LOOK_AHEAD;
	int64		expected = id;
	bool		taken = false;
	SnapshotData dirty;
	ScanKeyData key[2];
	IndexScanDesc scan;

	*last = until;
	if (index == NULL)
		return false;

	slot = table_slot_create(log, NULL);
	InitDirtySnapshot(dirty);
	ScanKeyInit(&key[0], 1, BTGreaterEqualStrategyNumber, F_INT8GE, Int64GetDatum(id));
	ScanKeyInit(&key[1], 1, BTLessEqualStrategyNumber, F_INT8LE, Int64GetDatum(until));
	scan = pne_index_beginscan(log, index, &dirty, lengthof(key));
	index_rescan(scan, key, lengthof(key), NULL, 0);
	while (index_getnext_slot(scan, ForwardScanDirection, slot))
	{
		bool		isnull;
		int64		stored = DatumGetInt64(slot_getattr(slot, Anum_event_id, &isnull));

		if (stored == expected)
		{
			taken = true;
			*last = stored;
			if (pg_add_s64_overflow(expected, step, &expected))
				break;
		}
		else if (!taken)
		{
			*last = stored - 1;
			break;
		}
		else if (stored > expected)
			break;
	}

	index_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	index_close(index, AccessShareLock);
	return taken;
}

/*
 * Returns whether a row already has an id that was drawn just now.  If so,
 * *last is the last number of the unbroken run of taken ones, as far as
 * find_taken() searches.
 */
static bool
is_taken(Relation log, const IdSequence *sequence, int64 id, int64 *last)
{
	TransactionId xid = GetTopTransactionIdIfAny();
	XLogRecPtr	position;
	bool		follows = id - sequence->increment == last_drawn &&
		TransactionIdIsValid(xid) && xid == drawn_in;

	last_drawn = id;
	drawn_in = xid;
	if (follows && looked_at != InvalidXLogRecPtr && id <= free_until)
		return false;

	position = sequence_position(sequence->oid);
	if (position != InvalidXLogRecPtr && position == looked_at && id <= free_until)
		return false;

	looked_at = InvalidXLogRecPtr;
	if (find_taken(log, id, sequence->increment, last))
		return true;
	free_until = *last;
	looked_at = position;
	return false;
}

/*
 * Make the sequence pass an id, so that nextval() returns only higher numbers.
 * The sequence never goes back.  Returns false if it had already passed or
 * drawn the id.
 */
static bool
pass_id(const IdSequence *sequence, int64 id)
{
	Relation	rel = relation_open(sequence->oid, RowExclusiveLock);
	Buffer		buffer;
	Page		page;
	ItemId		item;
	HeapTupleData tuple;
	Form_pg_sequence_data data;
	bool		ahead;
	uint64		steps = 0;

	/* as in nextval(), the commit must wait for this WAL record */
	if (RelationNeedsWAL(rel))
		GetTopTransactionId();

	buffer = ReadBuffer(rel, 0);
	LockBuffer(buffer, BUFFER_LOCK_EXCLUSIVE);
	page = BufferGetPage(buffer);
	item = PageGetItemId(page, FirstOffsetNumber);
	Assert(ItemIdIsNormal(item));
	tuple.t_data = (HeapTupleHeader) PageGetItem(page, item);
	tuple.t_len = ItemIdGetLength(item);
	data = (Form_pg_sequence_data) GETSTRUCT(&tuple);

	/*
	 * If is_called is false, last_value itself is the next number to be drawn.
	 */
	ahead = data->is_called ? id > data->last_value : id >= data->last_value;
	if (ahead)
		steps = ((uint64) id - (uint64) data->last_value) / (uint64) sequence->increment;

	if (ahead && (steps > 0 || !data->is_called))
	{
		START_CRIT_SECTION();
		data->last_value += (int64) (steps * (uint64) sequence->increment);
		data->is_called = true;
		data->log_cnt = 0;
		MarkBufferDirty(buffer);
		if (RelationNeedsWAL(rel))
		{
			xl_seq_rec	record;
			XLogRecPtr	end;

			record.pne_sequence_locator = pne_relation_locator(rel);
			XLogBeginInsert();
			XLogRegisterBuffer(0, buffer, REGBUF_WILL_INIT);
			XLogRegisterData((char *) &record, sizeof(record));
			XLogRegisterData((char *) tuple.t_data, (int) tuple.t_len);
			end = XLogInsert(RM_SEQ_ID, XLOG_SEQ_LOG);
			PageSetLSN(page, end);
		}
		END_CRIT_SECTION();
	}
	UnlockReleaseBuffer(buffer);
	relation_close(rel, NoLock);
	return ahead;
}

/*
 * Draw the id of an event that is about to be stored in the log.  The caller
 * has opened the log for inserts.
 */
int64
id_draw(Relation log)
{
	for (;;)
	{
		IdSequence	sequence = log_sequence(log);
		int64		id = nextval_internal(sequence.oid, false);
		int64		last;

		/*
		 * Look again: nextval() has locked the sequence, so its definition is
		 * now current.
		 */
		sequence = log_sequence(log);
		for (int64 i = 1; i < sequence.cache; i++)
		{
			CHECK_FOR_INTERRUPTS();
			id = nextval_internal(sequence.oid, false);
		}
		if (!is_taken(log, &sequence, id, &last))
			return id;
		pass_id(&sequence, last);
		CHECK_FOR_INTERRUPTS();
	}
}

/*
 * Raise an error if the current role has no UPDATE right on the sequence.
 * detail says why the id needs that right.
 */
static void
check_right(const IdSequence *sequence, int64 id, const char *detail)
{
	if (pg_class_aclcheck(sequence->oid, GetUserId(), ACL_UPDATE) != ACLCHECK_OK)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to give an event the id %lld", (long long) id),
				 errdetail("%s", detail),
				 errhint("Leave the id out, or have UPDATE on sequence \"%s\" granted.",
						 get_rel_name(sequence->oid))));
}

/*
 * Check an id that is given for a row that is about to be stored in the log,
 * and make sure that nobody draws it.  Raises an error if the id may not be
 * given.
 */
void
id_given(Relation log, int64 id)
{
	IdSequence	sequence = log_sequence(log);

	/* this value stands for "none yet" in a position inside a window */
	if (id == PG_INT64_MIN)
		ereport(ERROR,
				(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
				 errmsg("an event cannot have the id %lld", (long long) id),
				 errhint("Leave the id out, or give a larger one.")));
	/* the sequence never draws such an id */
	if (id < sequence.min || id > sequence.max)
		return;
	if (id > Min(GIVEN_ID_LIMIT, sequence.min / 2 + sequence.max / 2))
		check_right(&sequence, id, "It would leave too few ids to others.");
	if (!pass_id(&sequence, id))
		check_right(&sequence, id, "The sequence has passed it, so another event may have it.");
}
