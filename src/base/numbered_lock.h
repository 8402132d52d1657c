/*-------------------------------------------------------------------------
 *
 * numbered_lock.h
 *		Locks of handlers and of consumers.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_NUMBERED_LOCK_H
#define PNE_NUMBERED_LOCK_H

#include "storage/lock.h"
#include "utils/timestamp.h"

#include "base/catalog.h"

/* the holder of a lock */
typedef struct LockHolder
{
	int			pid;			/* 0: a prepared transaction */
	TimestampTz since;			/* when its transaction began or was prepared;
								 * DT_NOBEGIN: not known, as with track_activities =
								 * off */
} LockHolder;

extern void numbered_lock(InternalTable table, int64 number, LOCKMODE mode);
extern bool numbered_lock_if_free(InternalTable table, int64 number, LOCKMODE mode);
extern void numbered_unlock(InternalTable table, int64 number, LOCKMODE mode);
extern bool numbered_lock_is_taken(InternalTable table, int64 number, LOCKMODE mode);
extern bool numbered_lock_holder(InternalTable table, int64 number, LockHolder *holder);

#endif							/* PNE_NUMBERED_LOCK_H */
