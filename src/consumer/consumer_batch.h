/*-------------------------------------------------------------------------
 *
 * consumer_batch.h
 *		The open batch of a consumer as it is stored.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_CONSUMER_BATCH_H
#define PNE_CONSUMER_BATCH_H

#include "log/event.h"

extern Datum batch_datum(const EventIdentity *events, int nevents);
extern EventIdentity *batch_from_datum(Datum value, int *nevents);

#endif							/* PNE_CONSUMER_BATCH_H */
