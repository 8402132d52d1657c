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

extern void ingest_work(DatabaseSlot *slot);
extern Instant ingest_due(void);
extern void ingest_stop(DatabaseSlot *slot);

#endif							/* PNE_INGEST_H */
