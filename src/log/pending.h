/*-------------------------------------------------------------------------
 *
 * pending.h
 *		How many events wait for handlers and consumers, and since when.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_PENDING_H
#define PNE_PENDING_H

#include "fmgr.h"
#include "utils/relcache.h"
#include "utils/timestamp.h"

#include "log/match.h"
#include "log/window.h"

/* what waits behind a position */
typedef struct Pending
{
	int64		count;			/* of events whose name matches */
	bool		exact;			/* if false, there may be more, and older ones */
	TimestampTz oldest;			/* among those that were seen, or DT_NOEND */
} Pending;

extern Pending pending_count(FmgrInfo *caller, Relation log, const EventPattern *pattern,
							 const EventPosition *position);

#endif							/* PNE_PENDING_H */
