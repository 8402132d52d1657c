/*-------------------------------------------------------------------------
 *
 * index_lookup.h
 *		Indexes for direct scans of the extension's tables.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_INDEX_LOOKUP_H
#define PNE_INDEX_LOOKUP_H

#include "access/attnum.h"
#include "utils/relcache.h"

#define WANTED_INDEX_MAX_KEYS 3

/* what a direct scan needs of an index */
typedef struct WantedIndex
{
	int			nkeys;
	AttrNumber	keys[WANTED_INDEX_MAX_KEYS];	/* its first columns */
	AttrNumber	only_column;	/* rows where this text column has only_value */
	const char *only_value;		/* are enough; NULL: it must have all rows */
} WantedIndex;

extern Relation index_open_wanted(Relation table, const WantedIndex *wanted);

#endif							/* PNE_INDEX_LOOKUP_H */
