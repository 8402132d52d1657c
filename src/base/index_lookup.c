/*-------------------------------------------------------------------------
 *
 * index_lookup.c
 *		Finds indexes for direct scans of the extension's tables.
 *
 * The extension reads the log and the table of retries by its own index scans,
 * so that the planner cannot choose another way.  It must therefore do what the
 * planner would do: use only an index that every writer maintains.  An index
 * with the right name need not be one.  DROP INDEX CONCURRENTLY and REINDEX
 * CONCURRENTLY mark an index as dead while it still has its name.  From then on
 * new rows are not added to it, and a cursor that moves past them by such an
 * index loses them for good.
 *
 * So each time an index is opened, it is found by its properties: its keys,
 * their order, its predicate, and its state.  An index that a user has created
 * in place of the extension's own is as good.
 *
 * LOCKING: the caller locks the table before it looks for an index.  An index
 * goes from valid to "to be dropped" to dead, and before each step the server
 * waits for all transactions that have a lock on the table.  So an index that
 * is valid under the caller's lock is maintained until the lock is released.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/transam.h"
#include "catalog/index.h"
#include "catalog/pg_am.h"
#include "catalog/pg_index.h"
#include "catalog/pg_type.h"
#include "commands/defrem.h"
#include "nodes/primnodes.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "base/index_lookup.h"

/*
 * Returns whether every writer maintains the index, and it contains every row
 * that our snapshot sees.
 */
static bool
is_maintained(Relation index)
{
	Form_pg_index form = index->rd_index;

	if (!form->indisvalid || !form->indisready || !form->indislive)
		return false;
	/*
	 * The same test as in the planner: rows may have been updated before the
	 * index was built.
	 */
	return !form->indcheckxmin ||
		TransactionIdPrecedes(HeapTupleHeaderGetXmin(index->rd_indextuple->t_data), TransactionXmin);
}

/*
 * Returns whether the index is a B-tree whose first columns are the wanted
 * ones, each in the default order of its type.
 */
static bool
has_keys(Relation table, Relation index, const WantedIndex *wanted)
{
	if (index->rd_rel->relam != BTREE_AM_OID ||
		IndexRelationGetNumberOfKeyAttributes(index) < wanted->nkeys)
		return false;
	for (int i = 0; i < wanted->nkeys; i++)
	{
		AttrNumber	column = index->rd_index->indkey.values[i];
		Form_pg_attribute attribute;

		if (column != wanted->keys[i])
			return false;
		attribute = TupleDescAttr(RelationGetDescr(table), column - 1);
		if ((index->rd_indoption[i] & INDOPTION_DESC) != 0 ||
			index->rd_indcollation[i] != attribute->attcollation ||
			index->rd_opfamily[i] != get_opclass_family(GetDefaultOpClass(attribute->atttypid, BTREE_AM_OID)))
			return false;
	}
	return true;
}

/*
 * Returns whether the index contains all rows, or has exactly the predicate
 * "only_column = 'only_value'".
 */
static bool
has_rows(Relation index, const WantedIndex *wanted)
{
	List	   *predicate = RelationGetIndexPredicate(index);
	OpExpr	   *comparison;
	Var		   *column;
	Const	   *value;

	if (predicate == NIL)
		return true;
	if (wanted->only_value == NULL || list_length(predicate) != 1 || !IsA(linitial(predicate), OpExpr))
		return false;
	comparison = linitial_node(OpExpr, predicate);
	if (comparison->opfuncid != F_TEXTEQ ||
		!IsA(linitial(comparison->args), Var) || !IsA(lsecond(comparison->args), Const))
		return false;
	column = linitial_node(Var, comparison->args);
	value = lsecond_node(Const, comparison->args);
	return column->varattno == wanted->only_column && !value->constisnull &&
		strcmp(TextDatumGetCString(value->constvalue), wanted->only_value) == 0;
}

/*
 * Returns the names of the wanted columns as a list, for a message.
 */
static char *
column_list(Relation table, const WantedIndex *wanted)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; i < wanted->nkeys; i++)
		appendStringInfo(&buf, "%s%s", i > 0 ? ", " : "",
						 quote_identifier(get_attname(RelationGetRelid(table), wanted->keys[i], false)));
	return buf.data;
}

/*
 * Open an index that a direct scan of the table may use, with AccessShareLock.
 * The caller must hold a lock on the table.  Raises an error if there is no
 * such index: nothing is read from the table until somebody creates one.
 */
Relation
index_open_wanted(Relation table, const WantedIndex *wanted)
{
	List	   *indexes;
	ListCell   *lc;
	char	   *columns;

	Assert(CheckRelationLockedByMe(table, AccessShareLock, true));

	indexes = RelationGetIndexList(table);
	foreach(lc, indexes)
	{
		Relation	index = index_open(lfirst_oid(lc), AccessShareLock);

		if (is_maintained(index) && has_keys(table, index, wanted) && has_rows(index, wanted))
		{
			list_free(indexes);
			return index;
		}
		index_close(index, AccessShareLock);
	}

	columns = column_list(table, wanted);
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("table \"%s\" has no valid index on (%s)", RelationGetRelationName(table), columns),
			 errdetail("It was dropped, is being dropped or built, or is invalid. No event is lost: nothing is read without it."),
			 errhint("CREATE INDEX ON %s (%s).",
					 quote_qualified_identifier(get_namespace_name(RelationGetNamespace(table)),
												RelationGetRelationName(table)),
					 columns)));
	return NULL;				/* keep compiler quiet */
}
