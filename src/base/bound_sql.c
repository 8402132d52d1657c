/*-------------------------------------------------------------------------
 *
 * bound_sql.c
 *		Statements that are bound to their tables by oid.
 *
 * The extension runs SQL with rights that its caller does not have: as its own
 * owner on its internal tables (catalog.c), as a handler's owner on the log
 * (match.c).  The text of such a statement names its tables, and the server
 * looks names up whenever it analyzes the text: at first, and again after any
 * invalidation of the plan.  The owner of the extension's schema need not be a
 * superuser, and can rename the schema at any time, create another one of the
 * old name, and put a view with a trigger there.  A statement that waits for a
 * lock at that moment would then run the owner's code with the rights of
 * another role.
 *
 * So names decide nothing.  While a statement is bound, the hook behind parse
 * analysis compares each table of the query with the oids that the caller has
 * given, and each function with those of the server, before the query is
 * rewritten, planned or executed.  The tables are locked by then, and what
 * follows knows them by oid only.
 *
 * The hook recognizes a bound statement by its text.  Statements that it
 * fires, such as the defaults of a column that was added to the log, are none
 * of ours and pass.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "parser/analyze.h"
#include "parser/parsetree.h"
#include "utils/lsyscache.h"

#include "base/bound_sql.h"
#include "base/compat.h"

/* the innermost one that is being prepared or executed */
static BoundSql *current = NULL;

static post_parse_analyze_hook_type prev_post_parse_analyze_hook = NULL;

/*
 * The statement means something else than what it was written for.  It may
 * succeed when it is tried again, with what is looked up by then.
 */
static void
refuse(const char *what, const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("internal statement of pg_notify_events found %s \"%s\" that is not its own",
					what, name ? name : "(none)"),
			 errdetail("The schema of the extension, or one of its tables, was renamed or replaced at this moment."),
			 errhint("Try again. If it happens again, somebody else's object has the name of an internal one.")));
}

static bool
is_foreign_function(Oid function, void *context)
{
	if (function >= FirstUnpinnedObjectId)
		refuse("a function", get_func_name(function));
	return false;
}

/*
 * Check a query and all that is in it.  Returns false; what does not fit is an
 * error.
 */
static bool
check_bound(Node *node, void *context)
{
	const BoundSql *bound = (const BoundSql *) context;

	if (node == NULL)
		return false;
	(void) check_functions_in_node(node, is_foreign_function, NULL);
	if (IsA(node, Query))
	{
		Query	   *query = (Query *) node;
		ListCell   *lc;

		foreach(lc, query->rtable)
		{
			RangeTblEntry *rte = lfirst_node(RangeTblEntry, lc);
			bool		known = false;

			if (rte->rtekind != RTE_RELATION)
				continue;
			for (int i = 0; i < bound->ntables && !known; i++)
				known = (rte->relid == bound->tables[i]);
			if (!known)
				refuse("a relation", get_rel_name(rte->relid));
		}
		if (query->resultRelation != 0)
		{
			Oid			target = rt_fetch(query->resultRelation, query->rtable)->relid;

			if (target != bound->target)
				refuse("a relation", get_rel_name(target));
		}
		return query_tree_walker(query, check_bound, context, 0);
	}
	return expression_tree_walker(node, check_bound, context);
}

static void
bound_post_parse_analyze(ParseState *pstate, Query *query, PNE_JUMBLE_STATE *jstate)
{
	if (prev_post_parse_analyze_hook)
		prev_post_parse_analyze_hook(pstate, query, jstate);

	if (current == NULL || pstate->p_sourcetext == NULL ||
		strcmp(pstate->p_sourcetext, current->sql) != 0)
		return;
	(void) check_bound((Node *) query, current);
	current->checks++;
}

/*
 * Install the hook, once, when the module is loaded.
 */
void
bound_sql_init(void)
{
	prev_post_parse_analyze_hook = post_parse_analyze_hook;
	post_parse_analyze_hook = bound_post_parse_analyze;
}

/*
 * From now on the statement is checked whenever it is analyzed.  To be
 * followed by bound_sql_end(), after an error, too.
 */
void
bound_sql_begin(BoundSql *bound)
{
	bound->checks = 0;
	bound->outer = current;
	current = bound;
}

/*
 * The statement was just analyzed: see to it that it was checked.  A module
 * that takes the hook away must not take the check away.
 */
void
bound_sql_require_check(const BoundSql *bound)
{
	if (bound->checks == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("another module keeps pg_notify_events from checking its internal statements"),
				 errhint("A module that sets post_parse_analyze_hook has to call the one that it has found there.")));
}

void
bound_sql_end(const BoundSql *bound)
{
	Assert(current == bound);
	current = bound->outer;
}
