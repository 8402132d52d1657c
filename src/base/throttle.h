/*-------------------------------------------------------------------------
 *
 * throttle.h
 *		Limits how often a worker looks for events, and how often an executor
 *		stores progress.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_THROTTLE_H
#define PNE_THROTTLE_H

#include "access/transam.h"
#include "utils/relcache.h"

extern int	throttle_round(int nhandlers);
extern void throttle_progress_written(FullTransactionId xid, int nxids);
extern void throttle_look(Relation log);

#endif							/* PNE_THROTTLE_H */
