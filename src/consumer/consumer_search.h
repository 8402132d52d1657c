/*-------------------------------------------------------------------------
 *
 * consumer_search.h
 *		The search for a consumer's events.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_CONSUMER_SEARCH_H
#define PNE_CONSUMER_SEARCH_H

#include "utils/relcache.h"
#include "utils/snapshot.h"
#include "utils/tuplestore.h"

#include "base/instant.h"
#include "consumer/consumer.h"

typedef struct FoundEvent
{
	EventIdentity identity;
	HeapTuple	tuple;			/* NULL: it is in the tuplestore */
} FoundEvent;

/* a search for events of a consumer: what it is to find, and what it has found */
typedef struct EventSearch
{
	const Consumer *consumer;
	Relation	log;
	Snapshot	snapshot;
	EventSnapshot *upto;		/* what the snapshot sees */
	EventPosition position;		/* every event before it was looked at */
	int64		passed;			/* events that were looked at */
	bool		finished;		/* the position has come to upto */
	Instant		ends_at;		/* when the search ends, with what it has found */
	Instant		content_at;		/* when it ends if nothing more is found */
	bool		hurried;		/* a timeout of the statement is active */
	int			step;			/* how many events are read at a time */
	int			limit;			/* how many events are wanted at most, */
	Size		max_bytes;		/* and about so much data */
	Size		bytes;
	int			nfound;
	FoundEvent *found;
	Tuplestorestate *store;		/* where their rows go, or NULL: they are kept */
	/* private to consumer_search.c */
	MemoryContext context;		/* of the candidates, which are read but not examined yet */
	int			ncandidates;
	int			max_candidates;
	Event	   *candidates;
	Size		candidate_bytes;
	bool		choosy;			/* a candidate was refused */
} EventSearch;

extern void search_begin(EventSearch *search, const Consumer *consumer, Relation log, Snapshot snapshot,
						 int limit);
extern int	search_listed(EventSearch *search, const EventIdentity *listed, int nlisted);
extern void search_log(EventSearch *search);
extern void search_put(const EventSearch *search, Tuplestorestate *store, HeapTuple tuple);
extern void search_end(EventSearch *search);

#endif							/* PNE_CONSUMER_SEARCH_H */
