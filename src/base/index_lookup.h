/*-------------------------------------------------------------------------
 *
 * index_lookup.h
 *		Finds indexes for direct scans of the extension's tables.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_INDEX_LOOKUP_H
#define PNE_INDEX_LOOKUP_H

#include "access/attnum.h"
#include "utils/relcache.h"

#define WANTED_INDEX_MAX_KEYS 3

/* the index that a direct scan needs */
typedef struct WantedIndex
{
	int			nkeys;
	AttrNumber	keys[WANTED_INDEX_MAX_KEYS];	/* its first columns */
	AttrNumber	only_column;	/* a text column, if only_value is not NULL */
	const char *only_value;		/* rows with this value are enough; NULL: the
								 * index must contain all rows */
} WantedIndex;

extern Relation index_open_wanted(Relation table, const WantedIndex *wanted);

#endif							/* PNE_INDEX_LOOKUP_H */
