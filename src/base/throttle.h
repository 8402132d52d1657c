/*-------------------------------------------------------------------------
 *
 * throttle.h
 *		How often a worker looks for events, and an executor stores progress.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_THROTTLE_H
#define PNE_THROTTLE_H

#include "access/transam.h"
#include "utils/relcache.h"

extern int	pace_round(int nhandlers);
extern void pace_progress_written(FullTransactionId xid);
extern void pace_look(Relation log);

#endif							/* PNE_THROTTLE_H */
