/*-------------------------------------------------------------------------
 *
 * announce.h
 *		Decides who announces an event to LISTEN clients, and makes the payload.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_ANNOUNCE_H
#define PNE_ANNOUNCE_H

#include "access/tupdesc.h"

#include "log/event.h"

extern bool announce_emitted(int64 id, Datum name, Datum data, bool data_is_null);
extern void announce_event(const char *channel, const Event *event, TupleDesc desc);

#endif							/* PNE_ANNOUNCE_H */
