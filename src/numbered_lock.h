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

#include "catalog.h"

extern void numbered_lock(OwnTable table, int64 number, LOCKMODE mode);
extern bool numbered_lock_if_free(OwnTable table, int64 number, LOCKMODE mode);
extern void numbered_unlock(OwnTable table, int64 number, LOCKMODE mode);
extern bool numbered_lock_is_taken(OwnTable table, int64 number, LOCKMODE mode);

#endif							/* PNE_NUMBERED_LOCK_H */
