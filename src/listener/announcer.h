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

extern void announcer_init(void);
extern bool announcer_read(Relation log, Snapshot snapshot);
extern void announcer_announce(Relation log, Snapshot snapshot, const char *channel);
extern int	announcer_announced(void);
extern bool announcer_has_more(void);
extern bool announcer_is_ahead(int ms);
extern void announcer_store(void);

#endif							/* PNE_ANNOUNCER_H */
