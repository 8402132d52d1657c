/*-------------------------------------------------------------------------
 *
 * match.h
 *		Which events a handler or a consumer wants: by name, by a filter, by row
 *		security.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_MATCH_H
#define PNE_MATCH_H

#include "log/name_set.h"
#include "log/window.h"

/*
 * Selects the events that a handler or a consumer wants.  If a part of it is too long
 * to be read, it selects all events, and its owner must get none.
 */
typedef struct EventPattern
{
	char	   *event_name;		/* glob */
	Datum		filter;			/* jsonpath, or 0 */
	bool		filter_is_predicate;
	Size		event_name_size;	/* as they are stored; 0 if they are not from a table */
	Size		filter_size;
} EventPattern;

extern const char *match_oversized(const EventPattern *pattern);
extern void match_read_pattern(EventPattern *pattern, Datum event_name, Datum filter, bool with_filter);
extern bool match_name(const EventPattern *pattern, const char *event_name);
extern bool match_name_datum(const EventPattern *pattern, Datum event_name);
extern WantedNames *match_names(const EventPattern *pattern, const NameSet *names);
extern bool match_filter(const EventPattern *pattern, HeapTuple event, TupleDesc desc);
extern bool match_filter_or_error(const EventPattern *pattern, HeapTuple event, TupleDesc desc);
extern bool match_pending(const EventPattern *pattern, EventSnapshot *cursor, Relation log,
						  Snapshot snapshot, const EventSnapshot *upto, int64 max_passed,
						  int64 *passed);
extern bool match_is_restricted(Relation log);
extern void match_row_security(Relation log, Event *events, int nevents);

#endif							/* PNE_MATCH_H */
