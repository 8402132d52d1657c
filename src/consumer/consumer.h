/*-------------------------------------------------------------------------
 *
 * consumer.h
 *		Consumers: where one stands, and what is there for it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_CONSUMER_H
#define PNE_CONSUMER_H

#include "nodes/pg_list.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "base/numbered_lock.h"
#include "base/shared.h"
#include "log/match.h"
#include "log/window.h"

typedef struct Consumer
{
	char		name[HANDLER_NAME_SIZE];
	int64		number;			/* what its lock goes by */
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

typedef struct FoundEvent
{
	EventIdentity identity;
	HeapTuple	tuple;			/* NULL: it is in the tuplestore */
} FoundEvent;

/* a search for events of a consumer: what it is to find, and has found */
typedef struct EventSearch
{
	const Consumer *consumer;
	Relation	log;
	Snapshot	snapshot;
	EventSnapshot *upto;		/* what the snapshot sees */
	EventPosition position;		/* what is before it was looked at */
	int64		passed;			/* events that were looked at */
	bool		finished;		/* the position has come to upto */
	Instant		ends_at;		/* the search, with what there is, */
	Instant		content_at;		/* or before, if nothing is found any more */
	bool		hurried;		/* a timeout would end it if it did not */
	int			step;			/* so many are read at a time */
	int			limit;			/* so many are wanted at most, */
	Size		max_bytes;		/* and about so much data */
	Size		bytes;
	int			nfound;
	FoundEvent *found;
	Tuplestorestate *store;		/* where their rows go, or NULL: they are kept */
	/* private to consumer_search.c */
	MemoryContext context;		/* of the candidates: read, and not looked at closer yet */
	int			ncandidates;
	int			max_candidates;
	Event	   *candidates;
	Size		candidate_bytes;
	bool		choosy;			/* one was refused */
} EventSearch;

/*
 * What a session that waits remembers of its last look: there was nothing
 * between the stored position and this one.
 */
typedef struct ConsumerMemory
{
	MemoryContext context;
	int64		number;			/* of the consumer; 0: not known yet */
	TimestampTz altered_at;		/* of the definition */
	EventPosition stored;
	EventPosition seen;
	int			lock_wait;		/* ms until another look at a lock; 0: the first */
} ConsumerMemory;

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

/* consumer_batch.c */
extern Datum batch_datum(const EventIdentity *events, int nevents);
extern EventIdentity *batch_from_datum(Datum value, int *nevents);

/* consumer_search.c */
extern void search_begin(EventSearch *search, const Consumer *consumer, Relation log, Snapshot snapshot,
						 int limit);
extern int	search_listed(EventSearch *search, const EventIdentity *listed, int nlisted);
extern void search_log(EventSearch *search);
extern void search_put(const EventSearch *search, Tuplestorestate *store, HeapTuple tuple);
extern void search_end(EventSearch *search);

extern bool consumer_is_ready(const char *name, ConsumerMemory *memory, Instant *look_again);

#endif							/* PNE_CONSUMER_H */
