/*-------------------------------------------------------------------------
 *
 * consumer_ready.c
 *		Whether there is something to fetch for a consumer.
 *
 * A session that waits looks in the same way as one that fetches (consumer_search.c),
 * but it takes no lock, writes nothing, and remembers how far it has come.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "base/catalog.h"
#include "base/internal_sql.h"
#include "base/numbered_lock.h"
#include "consumer/consumer.h"
#include "consumer/consumer_ready.h"
#include "consumer/consumer_search.h"

/*
 * A session that finds the lock taken looks again soon, then less and less often, up
 * to this time, in ms.  It does so after each wake-up, because the holder may release
 * the lock a moment after it has sent the wake-up.  After that time it waits for the
 * next wake-up.
 */
#define LOOK_AT_LOCK_MS 100

static bool
positions_equal(const EventPosition *a, const EventPosition *b)
{
	return event_snapshot_equal(a->cursor, b->cursor) && event_snapshot_equal(a->window, b->window) &&
		a->last_id == b->last_id;
}

/*
 * When the next of the events that were handed back is due, or DT_NOEND.
 */
static TimestampTz
next_retry(const Consumer *consumer)
{
	static InternalStatement select_next = {
		.sql = "SELECT t.next_attempt_at FROM @s._event_consumer_retries AS t "
		"WHERE t.consumer OPERATOR(pg_catalog.=) $1 AND t.next_attempt_at IS NOT NULL "
		"ORDER BY t.next_attempt_at LIMIT 1",
		.target = TABLE_NONE,
		.nargs = 1,
		.argtypes = {TEXTOID},
	};
	Datum		value = CStringGetTextDatum(consumer->name);
	TimestampTz result = DT_NOEND;
	bool		isnull;

	if (internal_execute(&select_next, &value, NULL, 1) == 1)
		result = DatumGetTimestampTz(internal_value(0, 1, &isnull));
	SPI_freetuptable(SPI_tuptable);
	return result;
}

/*
 * Whether there is an event behind what was seen before.  If there is none, remember
 * how far that is true.  finished is false if there is more to look at now.
 */
static bool
find_news(const Consumer *consumer, ConsumerMemory *memory, Relation log, bool *finished)
{
	ConsumerMemory before = *memory;
	EventSearch search;
	MemoryContext old;

	search_begin(&search, consumer, log, GetActiveSnapshot(), 1);
	if (before.seen.cursor != NULL && before.altered_at == consumer->altered_at &&
		positions_equal(&before.stored, &consumer->position))
		search.position = event_position_copy(&before.seen);
	search_log(&search);
	search_end(&search);
	*finished = search.finished;
	if (search.nfound > 0)
		return true;

	memory->altered_at = consumer->altered_at;
	old = MemoryContextSwitchTo(memory->context);
	memory->stored = event_position_copy(&consumer->position);
	memory->seen = event_position_copy(&search.position);
	MemoryContextSwitchTo(old);
	event_position_free(&before.stored);
	event_position_free(&before.seen);
	return false;
}

/*
 * When to look again at a lock that was taken.
 */
static Instant
after_lock(ConsumerMemory *memory)
{
	if (memory->lock_wait > LOOK_AT_LOCK_MS)
		return INSTANT_NEVER;
	memory->lock_wait = Max(1, 2 * memory->lock_wait);
	return instant_in(memory->lock_wait);
}

/*
 * Load the caller's consumer, with a new active snapshot.  locked tells whether
 * another session had it before.
 */
static Consumer *
look_at_consumer(const char *name, ConsumerMemory *memory, bool *locked)
{
	for (;;)
	{
		int64		number = memory->number;
		Consumer   *consumer;

		*locked = number != 0 && numbered_lock_is_taken(TABLE_CONSUMERS, number, ExclusiveLock);
		PushActiveSnapshot(GetTransactionSnapshot());
		consumer = consumer_find_own(name);
		memory->number = consumer->number;
		if (number == consumer->number)
			return consumer;
		PopActiveSnapshot();
	}
}

/*
 * Whether the caller's consumer has events that could be fetched now.  If not,
 * look_again is when there may be some without any further commit.
 *
 * memory begins as zeros, with a context that lives longer than the transaction.
 * Errors: as for consumer_find_own(); dormant; the owner may not read the log.
 */
bool
consumer_is_ready(const char *name, ConsumerMemory *memory, Instant *look_again)
{
	Relation	log = table_open(catalog_lookup(false)->log, AccessShareLock);
	bool		locked;
	Consumer   *consumer;
	bool		ready = false;
	bool		finished = true;

	consumer = look_at_consumer(name, memory, &locked);
	consumer_check_awake(consumer);
	consumer_check_owner(name, consumer->owner);

	if (!locked)
		memory->lock_wait = 0;
	if (locked)
		*look_again = after_lock(memory);
	else if (consumer_is_leased(consumer))
		*look_again = instant_of_time(consumer->leased_until);
	else if (consumer->nbatch > 0)
		ready = true;
	else
	{
		*look_again = instant_of_time(next_retry(consumer));
		ready = *look_again <= instant_now() || find_news(consumer, memory, log, &finished);
		if (!finished)
			*look_again = 0;
	}

	PopActiveSnapshot();
	table_close(log, AccessShareLock);
	return ready;
}
