/*-------------------------------------------------------------------------
 *
 * timers.h
 *		Keeps the server's timers right when the clock is set.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_TIMERS_H
#define PNE_TIMERS_H

#include "utils/timeout.h"

#include "base/instant.h"

extern void timers_init(void);
extern void timers_start(TimeoutId id, Instant due);
extern void timers_repeat(TimeoutId id, int interval);
extern bool timers_cancel_is_early(void);

#endif							/* PNE_TIMERS_H */
