/*-------------------------------------------------------------------------
 *
 * doorbell.h
 *		From a commit to the workers' latches.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_DOORBELL_H
#define PNE_DOORBELL_H

#include "base/shared.h"

/* what the transaction wants rung when it commits; they add up */
#define RING_EVENTS			0x01	/* the workers of this database */
#define RING_DEFINITIONS	0x02	/* the same, to read definitions of handlers anew:
									 * doorbell_handlers_at_commit() asks for it */
#define RING_EXTENSION		0x04	/* launcher: the extension was created here */
#define RING_LAUNCHER		0x08	/* launcher: look at pg_database again */
#define RING_DROPPED		0x10	/* the same, for all definitions: the extension
									 * was dropped here */
#define RING_CONSUMERS		0x20	/* who waits for events of a consumer; at an
									 * abort, too, which frees what it held */
#define RING_CHANNELS		0x40	/* the listener, to read definitions of channels
									 * anew */

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
