/*-------------------------------------------------------------------------
 *
 * announce.h
 *		Who announces an event to LISTEN clients, and what they get to read.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_ANNOUNCE_H
#define PNE_ANNOUNCE_H

#include "access/htup.h"
#include "access/tupdesc.h"

extern bool announce_emitted(HeapTuple event, TupleDesc desc, const char *name);
extern void announce_event(const char *channel, HeapTuple event, TupleDesc desc, const char *name);

#endif							/* PNE_ANNOUNCE_H */
