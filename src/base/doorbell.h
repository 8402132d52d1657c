/*-------------------------------------------------------------------------
 *
 * doorbell.h
 *		Wakes the workers when a transaction commits.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_DOORBELL_H
#define PNE_DOORBELL_H

#include "base/shared.h"

/* what a transaction rings when it commits; the flags can be combined */
#define RING_EVENTS			0x01	/* the workers of this database */
#define RING_DEFINITIONS	0x02	/* the same: they read definitions of handlers
									 * again.  doorbell_handlers_at_commit() sets it */
#define RING_EXTENSION		0x04	/* the launcher: the extension was created here */
#define RING_LAUNCHER		0x08	/* the launcher: it looks at pg_database again */
#define RING_DROPPED		0x10	/* the workers of this database: the extension was
									 * dropped here, and with it all definitions */
#define RING_CONSUMERS		0x20	/* the sessions that wait for events of a consumer;
									 * also at an abort, which frees what it held */
#define RING_CHANNELS		0x40	/* the listener: it reads definitions of channels
									 * again */

extern void (*extension_dropped_hook) (Oid dboid);

extern void doorbell_at_commit(int what);
extern void doorbell_handlers_at_commit(Oid owner);
extern void doorbell_ring(Bell *bell);
extern void doorbell_ring_database(Oid dboid);
extern void doorbell_ring_executors(DatabaseSlot *slot);
extern void doorbell_ring_launcher(void);
extern void doorbell_ring_waiters(DatabaseSlot *slot);
extern void doorbell_attach(Bell *bell);
extern void doorbell_detach(Bell *bell);
extern bool doorbell_answer(Bell *bell);
extern bool doorbell_is_rung(Bell *bell);

#endif							/* PNE_DOORBELL_H */
