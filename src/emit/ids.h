/*-------------------------------------------------------------------------
 *
 * ids.h
 *		Ids of events.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_IDS_H
#define PNE_IDS_H

#include "utils/relcache.h"

extern int64 id_draw(Relation log);
extern void id_given(Relation log, int64 id);

#endif							/* PNE_IDS_H */
