/*-------------------------------------------------------------------------
 *
 * announcer.h
 *		The listener's way through the log: it counts and announces.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_ANNOUNCER_H
#define PNE_ANNOUNCER_H

#include "utils/relcache.h"
#include "utils/snapshot.h"

extern void relay_init(void);
extern bool relay_take_up(Relation log, Snapshot snapshot);
extern void relay_announce(Relation log, Snapshot snapshot, const char *channel);
extern int	relay_announced(void);
extern bool relay_has_more(void);
extern bool relay_is_ahead(int ms);
extern void relay_store(void);

#endif							/* PNE_ANNOUNCER_H */
