/*-------------------------------------------------------------------------
 *
 * consumer_ready.h
 *		Whether there is something to fetch for a consumer.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_CONSUMER_READY_H
#define PNE_CONSUMER_READY_H

#include "base/instant.h"
#include "log/position.h"

/*
 * What a waiting session remembers from its last look: between the position stored and
 * the position seen there was nothing.
 */
typedef struct ConsumerMemory
{
	MemoryContext context;
	int64		number;			/* of the consumer; 0: not known yet */
	TimestampTz altered_at;		/* of the definition */
	EventPosition stored;
	EventPosition seen;
	int			lock_wait;		/* ms until another look at a lock; 0: the first */
} ConsumerMemory;

extern bool consumer_is_ready(const char *name, ConsumerMemory *memory, Instant *look_again);

#endif							/* PNE_CONSUMER_READY_H */
