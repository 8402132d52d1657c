/*-------------------------------------------------------------------------
 *
 * bridge.h
 *		From notifications of applications to events.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_BRIDGE_H
#define PNE_BRIDGE_H

#include "shared.h"

extern void bridge_work(DatabaseSlot *slot);
extern Instant bridge_due(void);
extern void bridge_leave(DatabaseSlot *slot);

#endif							/* PNE_BRIDGE_H */
