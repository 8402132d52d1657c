/*-------------------------------------------------------------------------
 *
 * match.h
 *		Which events somebody wants: by name, by a filter, by row security.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_MATCH_H
#define PNE_MATCH_H

#include "names.h"
#include "window.h"

/* what handlers and consumers say of the events they want */
typedef struct EventPattern
{
	char	   *event_name;		/* glob */
	Datum		filter;			/* jsonpath, or 0 */
	bool		filter_is_predicate;
} EventPattern;

extern void match_set_pattern(EventPattern *pattern, char *event_name, Datum filter);
extern bool match_name(const EventPattern *pattern, const char *event_name);
extern WantedNames *match_names(const EventPattern *pattern, const EventNames *names);
extern bool match_filter(const EventPattern *pattern, HeapTuple event, TupleDesc desc);
extern bool match_filter_or_error(const EventPattern *pattern, HeapTuple event, TupleDesc desc);
extern bool match_pending(const EventPattern *pattern, const EventPosition *position, Relation log,
						  Snapshot snapshot, const EventSnapshot *upto, int64 *passed);
extern bool match_is_restricted(Relation log);
extern void match_row_security(Relation log, Event *events, int nevents);

#endif							/* PNE_MATCH_H */
