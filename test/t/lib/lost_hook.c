/*-------------------------------------------------------------------------
 *
 * lost_hook.c
 *	  A module that, once loaded, takes the hook behind parse analysis away from
 *	  all others.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "parser/analyze.h"

PG_MODULE_MAGIC;

extern PGDLLEXPORT void _PG_init(void);

void
_PG_init(void)
{
	post_parse_analyze_hook = NULL;
}
