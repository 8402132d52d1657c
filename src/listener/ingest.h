/*-------------------------------------------------------------------------
 *
 * ingest.h
 *		From notifications of applications to events.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_INGEST_H
#define PNE_INGEST_H

#include "base/shared.h"

extern void bridge_work(DatabaseSlot *slot);
extern Instant bridge_due(void);
extern void bridge_leave(DatabaseSlot *slot);

#endif							/* PNE_INGEST_H */
