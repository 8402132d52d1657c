/*-------------------------------------------------------------------------
 *
 * consumer_ready.h
 *		Whether something is there for a consumer.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_CONSUMER_READY_H
#define PNE_CONSUMER_READY_H

#include "base/instant.h"
#include "log/position.h"

/*
 * What a session that waits remembers of its last look: there was nothing
 * between the stored position and this one.
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
