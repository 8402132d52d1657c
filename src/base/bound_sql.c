/*-------------------------------------------------------------------------
 *
 * bound_sql.c
 *		Statements that are bound to their tables by oid.
 *
 * The extension runs SQL with rights that its caller does not have: as its own
 * owner on its internal tables (internal_sql.c), and as a handler's owner on the log
 * (match.c).  The text of such a statement names its tables.  The server looks
 * up these names whenever it analyzes the text: the first time, and again after
 * any invalidation of the plan.
 *
 * That alone would not be safe.  The owner of the extension's schema need not
 * be a superuser.  This role can rename the schema at any time, create another
 * one with the old name, and create a view with a trigger there.  A statement
 * that waits for a lock at that moment would then run that role's code with the
 * rights of another role.
 *
 * Therefore names decide nothing.  While a statement is bound, the hook behind
 * parse analysis compares each table of the query with the oids that the caller
 * has given.  It also checks that each function is one of the server's own.
 * This happens before the query is rewritten, planned or executed.  By then the
 * tables are locked, and everything later refers to them by oid.
 *
 * The hook recognizes a bound statement by its text.  Statements that a bound
 * statement fires, such as the default of a column that was added to the log,
 * have another text and are not checked.
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

/* the innermost statement that is being prepared or executed */
static BoundSql *current = NULL;

static post_parse_analyze_hook_type prev_post_parse_analyze_hook = NULL;

/*
 * Raise the error that a bound statement means something else than it was
 * written for.  A retry may succeed, because it looks up the names again.
 */
static void
refuse(const char *what, const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("internal statement of pg_notify_events found %s \"%s\" that is not its own",
					what, name ? name : "(none)"),
			 errdetail("The schema of the extension, or one of its tables, was renamed or replaced at this moment."),
			 errhint("Try again. If it happens again, an object of another role has the name of an internal one.")));
}

/*
 * Raise an error if the function is not one of the server's own.  A callback
 * for check_functions_in_node(); always returns false.
 */
static bool
is_foreign_function(Oid function, void *context)
{
	if (function >= FirstUnpinnedObjectId)
		refuse("a function", get_func_name(function));
	return false;
}

/*
 * Check a query and everything inside it.  Always returns false, so that the
 * walkers go on.  Raises an error if a table or function is not allowed.
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

/*
 * The hook: checks the query if its text is that of the innermost bound
 * statement.
 */
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
 * Install the hook.  Called once, when the module is loaded.
 */
void
bound_sql_init(void)
{
	prev_post_parse_analyze_hook = post_parse_analyze_hook;
	post_parse_analyze_hook = bound_post_parse_analyze;
}

/*
 * From now on, check the statement whenever it is analyzed.  The caller has
 * set its text and tables, or sets them before the analysis.  It must call
 * bound_sql_end() afterwards, also after an error.
 */
void
bound_sql_begin(BoundSql *bound)
{
	bound->checks = 0;
	bound->outer = current;
	current = bound;
}

/*
 * Raise an error if the statement was not checked.  To be called after its
 * analysis, because another module can keep the hook from being called.
 */
void
bound_sql_require_check(const BoundSql *bound)
{
	if (bound->checks == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("another module keeps pg_notify_events from checking its internal statements"),
				 errhint("A module that sets post_parse_analyze_hook must call the hook that was set before.")));
}

/*
 * End bound_sql_begin().  Statements are bound and released in nested order.
 */
void
bound_sql_end(const BoundSql *bound)
{
	Assert(current == bound);
	current = bound->outer;
}
