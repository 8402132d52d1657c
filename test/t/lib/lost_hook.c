/*-------------------------------------------------------------------------
 *
 * lost_hook.c
 *	  A module that clears the post_parse_analyze hook when it is loaded, so all
 *	  others lose it.
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
