/*-------------------------------------------------------------------------
 *
 * name_set.h
 *		The names of a window's events, each once.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_NAME_SET_H
#define PNE_NAME_SET_H

#include "utils/hsearch.h"
#include "utils/palloc.h"

/* the number of all names without a number of their own */
#define NAME_UNKNOWN	0

typedef uint16 NameNumber;

typedef struct NameSet
{
	MemoryContext context;
	NameNumber	count;			/* of numbers, including NAME_UNKNOWN */
	char	  **names;			/* by number; NULL for NAME_UNKNOWN */
	int			room;
	NameNumber	last;			/* that was asked for last */
	bool		has_unknown;	/* some name got NAME_UNKNOWN */
	HTAB	   *table;			/* NULL as long as there are few names */
} NameSet;

/* the names that a handler wants */
typedef struct WantedNames
{
	int			count;			/* how many, NAME_UNKNOWN included */
	NameNumber	some;			/* one of them */
	bool		names[FLEXIBLE_ARRAY_MEMBER];	/* by number */
} WantedNames;

extern NameSet *name_set_create(void);
extern NameNumber name_set_number(NameSet *names, const char *text, int length);

#endif							/* PNE_NAME_SET_H */
