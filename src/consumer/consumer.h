/*-------------------------------------------------------------------------
 *
 * consumer.h
 *		Consumers: where one stands, and which session has it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_CONSUMER_H
#define PNE_CONSUMER_H

#include "nodes/pg_list.h"
#include "utils/timestamp.h"

#include "base/numbered_lock.h"
#include "base/shared.h"
#include "log/match.h"
#include "log/window.h"

typedef struct Consumer
{
	char		name[HANDLER_NAME_SIZE];
	int64		number;			/* identifies its lock */
	Oid			owner;
	EventPattern pattern;
	bool		dormant;
	TimestampTz altered_at;
	EventPosition position;		/* as it was stored when this was read */
	EventSnapshot *start;		/* where it began */
	int			nbatch;			/* the open batch; the position has passed it */
	EventIdentity *batch;		/* by id, ascending; NULL: it is damaged */
	TimestampTz leased_until;	/* DT_NOBEGIN: no lease */
} Consumer;

extern List *consumer_load_all(void);
extern Consumer *consumer_find(const char *name);
extern Consumer *consumer_find_own(const char *name);
extern void consumer_check_owner(const char *name, Oid owner);
extern void consumer_check_awake(const Consumer *consumer);
extern bool consumer_is_leased(const Consumer *consumer);
extern int	consumer_batch_index(const Consumer *consumer, int64 id);

extern Consumer *consumer_lock_own(const char *name);
extern bool consumer_try_lock(const Consumer *consumer);
extern void consumer_unlock(const Consumer *consumer);
extern bool consumer_is_held(const Consumer *consumer, LockHolder *holder);

#endif							/* PNE_CONSUMER_H */
