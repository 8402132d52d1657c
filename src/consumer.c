/*-------------------------------------------------------------------------
 *
 * consumer.c
 *		Consumers: where one stands, who has it, and what is there for it.
 *
 * A consumer is the pull side for clients outside of the server.  Its progress
 * row holds a position in the log (window.c), and the open batch: the ids that
 * were fetched and are not acknowledged yet.  The position is behind them as
 * soon as they are fetched, so to acknowledge events means to take their ids
 * off the batch, and nothing else.  What was handed back is in
 * _event_consumer_retries until it is acknowledged.
 *
 * WHO HAS IT: whoever moves a consumer holds its lock, by its number
 * (numbered_lock.c), until the end of the transaction.  It is taken before its
 * row is read, with a new snapshot, and so nobody else's changes can come in
 * between.  No row is locked.
 *
 * WHAT IS THERE: a search goes from a position on by window, and inside of it
 * by id, and looks at each event once: its name, whether row security lets the
 * consumer's owner see it, the filter.  An event for which the filter fails is
 * given to the client, who may judge it: it must neither block the consumer nor
 * be lost.
 *
 * A session that waits looks the same way as one that fetches, only that it
 * takes no lock, writes nothing, and remembers how far it has come.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"

#include "catalog.h"
#include "compat.h"
#include "consumer.h"
#include "numbered_lock.h"
#include "settings.h"

/* a search ends after this time, in ms; or so long after the last event found */
#define SEARCH_MS 1000
#define CONTENT_MS 100

/*
 * ... and after this share of what is left of a timeout, so that who polls with a
 * short one gets on, too, where little matches
 */
#define SHARE_OF_TIMEOUT 3

/*
 * Events are read so many at a time at first, if time is short, and at most, if
 * no more are wanted.
 */
#define HURRIED_STEP 32
#define MAX_STEP 1000

/* a step may be larger than the last one if there is time for so many like that */
#define STEPS_TO_GO 4

/*
 * Who finds the lock taken, and so with every ring, looks again soon, then later
 * and later, up to this time, in ms: who rings because he lets go of it may do
 * so a moment afterwards.  After that there is no need to, until the next ring.
 */
#define LOOK_AT_LOCK_MS 100

/* ----------
 * Reading
 * ----------
 */

#define SELECT_CONSUMERS \
	"SELECT c.name, c.number, c.owner, c.event_name, c.filter, " \
	"(c.incarnation OPERATOR(pg_catalog.<>) i.incarnation " \
	" OR c.database OPERATOR(pg_catalog.<>) $1), " \
	"c.altered_at, p.cursor::pg_catalog.text, p.window::pg_catalog.text, p.last_id, " \
	"p.start::pg_catalog.text, p.batch, p.batch_txids, p.leased_until " \
	"FROM @s._event_consumers AS c " \
	"JOIN @s._event_consumer_progress AS p ON p.consumer OPERATOR(pg_catalog.=) c.name " \
	"CROSS JOIN @s._event_incarnation AS i "

/*
 * The open batch, from arrays that have the same length.
 */
static EventIdentity *
batch_from_arrays(Datum ids_array, Datum txids_array, int *nbatch)
{
	Datum	   *ids;
	Datum	   *txids;
	int			nids;
	int			ntxids;
	EventIdentity *batch;

	deconstruct_array(DatumGetArrayTypeP(ids_array), INT8OID, sizeof(int64),
					  FLOAT8PASSBYVAL, TYPALIGN_DOUBLE, &ids, NULL, &nids);
	deconstruct_array(DatumGetArrayTypeP(txids_array), XID8OID, sizeof(FullTransactionId),
					  FLOAT8PASSBYVAL, TYPALIGN_DOUBLE, &txids, NULL, &ntxids);
	*nbatch = Min(nids, ntxids);
	batch = palloc(sizeof(EventIdentity) * *nbatch);
	for (int i = 0; i < *nbatch; i++)
	{
		batch[i].id = DatumGetInt64(ids[i]);
		batch[i].txid = event_txid_from_datum(txids[i]);
	}
	return batch;
}

/*
 * Copy one row of those that the statements with this have selected.
 */
static Consumer *
consumer_from_row(int row)
{
	Consumer   *consumer = palloc0(sizeof(Consumer));
	int			column = 0;
	bool		isnull;
	Datum		value;
	Datum		event_name;
	char	   *text;

	strlcpy(consumer->name, own_text(row, ++column), HANDLER_NAME_SIZE);
	consumer->number = DatumGetInt64(own_value(row, ++column, &isnull));
	consumer->owner = DatumGetObjectId(own_value(row, ++column, &isnull));
	event_name = own_value(row, ++column, &isnull);
	value = own_value(row, ++column, &isnull);
	match_read_pattern(&consumer->pattern, event_name, isnull ? (Datum) 0 : value, true);
	consumer->dormant = DatumGetBool(own_value(row, ++column, &isnull));
	consumer->altered_at = DatumGetTimestampTz(own_value(row, ++column, &isnull));
	consumer->position.cursor = event_snapshot_parse(own_text(row, ++column));
	text = own_text(row, ++column);
	if (text != NULL)
		consumer->position.window = event_snapshot_parse(text);
	value = own_value(row, ++column, &isnull);
	consumer->position.last_id = isnull ? 0 : DatumGetInt64(value);
	consumer->start = event_snapshot_parse(own_text(row, ++column));
	value = own_value(row, ++column, &isnull);
	consumer->batch = batch_from_arrays(value, own_value(row, ++column, &isnull), &consumer->nbatch);
	value = own_value(row, ++column, &isnull);
	consumer->leased_until = isnull ? DT_NOBEGIN : DatumGetTimestampTz(value);
	return consumer;
}

/*
 * All consumers, by name.  The caller, here and below, is connected to SPI and
 * has an active snapshot; results are in the current memory context.
 */
List *
consumer_load_all(void)
{
	static OwnStatement select_all = {
		.sql = SELECT_CONSUMERS "ORDER BY c.name",
		.target = OWN_NONE,
		.nargs = 1,
		.argtypes = {OIDOID},
	};
	Datum		database = ObjectIdGetDatum(MyDatabaseId);
	int			count = own_execute(&select_all, &database, NULL, 0);
	List	   *result = NIL;

	for (int row = 0; row < count; row++)
		result = lappend(result, consumer_from_row(row));
	return result;
}

/*
 * One consumer, or NULL.
 */
Consumer *
consumer_find(const char *name)
{
	static OwnStatement select_one = {
		.sql = SELECT_CONSUMERS "WHERE c.name OPERATOR(pg_catalog.=) $2",
		.target = OWN_NONE,
		.nargs = 2,
		.argtypes = {OIDOID, TEXTOID},
	};
	Datum		values[2] = {ObjectIdGetDatum(MyDatabaseId), CStringGetTextDatum(name)};
	Consumer   *result = NULL;

	if (own_execute(&select_one, values, NULL, 1) == 1)
		result = consumer_from_row(0);
	/* who waits does this again and again */
	SPI_freetuptable(SPI_tuptable);
	return result;
}

/*
 * One consumer, for a caller who may have its events.  Errors: there is none of
 * that name; the caller is neither its owner nor a member of it.
 */
Consumer *
consumer_find_own(const char *name)
{
	Consumer   *consumer = consumer_find(name);

	if (consumer == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("event consumer \"%s\" does not exist", name),
				 errhint("The view event_consumers shows those that you may see.")));
	else if (!has_privs_of_role(GetUserId(), consumer->owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be owner of event consumer \"%s\"", name),
				 errhint("Members of the owner may do this, too.")));
	return consumer;
}

/*
 * Refuse an owner who may not read the log, or is gone.
 */
void
consumer_check_owner(const char *name, Oid owner)
{
	char	   *role = GetUserNameFromId(owner, true);

	if (role == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("the role that owned event consumer \"%s\", oid %u, was dropped", name, owner),
				 errhint("Drop the consumer, or give it another owner with create_event_consumer(..., or_replace => true).")));
	if (pg_class_aclcheck(catalog_lookup(false)->log, owner, ACL_SELECT) != ACLCHECK_OK)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("the owner of event consumer \"%s\", role \"%s\", may not read notification_events", name, role),
				 errhint("GRANT SELECT ON notification_events TO %s.", quote_identifier(role))));
}

/*
 * Refuse a consumer whose position means nothing in this database, or whose
 * pattern is not known.
 */
void
consumer_check_awake(const Consumer *consumer)
{
	const char *oversized = match_oversized(&consumer->pattern);

	if (consumer->dormant)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("event consumer \"%s\" is dormant", consumer->name),
				 errdetail("It was made in another database, or restored."),
				 errhint("A superuser wakes it with activate_events().")));
	if (oversized != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("event consumer \"%s\" cannot be read: %s", consumer->name, oversized),
				 errhint("Give it a shorter one with create_event_consumer(..., or_replace => true).")));
}

/*
 * Whether the open batch is promised to the one who fetched it.
 */
bool
consumer_is_leased(const Consumer *consumer)
{
	return consumer->nbatch > 0 && consumer->leased_until > GetCurrentTimestamp();
}

/*
 * The index of an event in the open batch, or -1.
 */
int
consumer_batch_index(const Consumer *consumer, int64 id)
{
	int			low = 0;
	int			high = consumer->nbatch;

	while (low < high)
	{
		int			middle = (low + high) / 2;

		if (consumer->batch[middle].id < id)
			low = middle + 1;
		else
			high = middle;
	}
	return (low < consumer->nbatch && consumer->batch[low].id == id) ? low : -1;
}

/* ----------
 * The lock
 * ----------
 */

/*
 * The caller's consumer, which he has to himself until the end of the
 * transaction, once those who have it now are through.  Errors: as for
 * consumer_find_own().
 */
Consumer *
consumer_lock_own(const char *name)
{
	/* first of all, or others would wait for who has no right to it */
	Consumer   *consumer = consumer_find_own(name);
	int64		locked;

	/* again, should another one have got the name meanwhile */
	do
	{
		locked = consumer->number;
		numbered_lock(OWN_CONSUMERS, locked, ExclusiveLock);
		consumer = consumer_find_own(name);
	} while (consumer->number != locked);
	return consumer;
}

/*
 * Have a consumer to oneself, if nobody else does.  Read its row afterwards.
 */
bool
consumer_try_lock(const Consumer *consumer)
{
	return numbered_lock_if_free(OWN_CONSUMERS, consumer->number, ExclusiveLock);
}

/*
 * Let go of it again, for who has found nothing and changed nothing.
 */
void
consumer_unlock(const Consumer *consumer)
{
	numbered_unlock(OWN_CONSUMERS, consumer->number, ExclusiveLock);
}

/*
 * Whether somebody else has it, and who.
 */
bool
consumer_is_held(const Consumer *consumer, LockHolder *holder)
{
	return numbered_lock_holder(OWN_CONSUMERS, consumer->number, holder);
}

/* ----------
 * Searching
 * ----------
 */

static void
copy_position(EventPosition *into, const EventPosition *position)
{
	into->cursor = event_snapshot_copy(position->cursor);
	into->window = position->window ? event_snapshot_copy(position->window) : NULL;
	into->last_id = position->last_id;
}

static void
free_position(EventPosition *position)
{
	if (position->cursor != NULL)
		pfree(position->cursor);
	if (position->window != NULL)
		pfree(position->window);
}

static bool
positions_equal(const EventPosition *a, const EventPosition *b)
{
	return event_snapshot_equal(a->cursor, b->cursor) && event_snapshot_equal(a->window, b->window) &&
		a->last_id == b->last_id;
}

/*
 * When the first of the timeouts that are on will end the statement, or
 * INSTANT_NEVER.
 */
static Instant
statement_ends_at(void)
{
	static const TimeoutId timeouts[] = {PNE_STATEMENT_TIMEOUTS};
	TimestampTz result = DT_NOEND;

	for (int i = 0; i < (int) lengthof(timeouts); i++)
	{
		if (get_timeout_active(timeouts[i]))
			result = Min(result, get_timeout_finish_time(timeouts[i]));
	}
	return instant_of_time(result);
}

/*
 * The search begins: say when it is to end.
 */
static void
set_deadlines(EventSearch *search)
{
	Instant		now = instant_now();
	Instant		statement = statement_ends_at();

	search->ends_at = instant_after(now, SEARCH_MS);
	search->content_at = INSTANT_NEVER;
	search->hurried = (statement != INSTANT_NEVER);
	if (search->hurried)
	{
		search->ends_at = Min(search->ends_at, now + (statement - now) / SHARE_OF_TIMEOUT);
		search->step = Min(search->step, HURRIED_STEP);
	}
}

static bool
time_is_up(const EventSearch *search)
{
	Instant		now = instant_now();

	return now >= search->ends_at || now >= search->content_at;
}

/*
 * Prepare a search from where a consumer stands, for limit events at most.  The
 * log was locked before the snapshot was taken.  What is found lies in the
 * current memory context.
 */
void
search_begin(EventSearch *search, const Consumer *consumer, Relation log, Snapshot snapshot, int limit)
{
	memset(search, 0, sizeof(*search));
	search->consumer = consumer;
	search->log = log;
	search->snapshot = snapshot;
	search->upto = event_snapshot_build(snapshot);
	copy_position(&search->position, &consumer->position);
	search->limit = limit;
	search->step = limit;
	search->max_bytes = (Size) pne_batch_bytes * 1024;
	search->found = palloc(sizeof(Event) * limit);
}

static bool
search_is_full(const EventSearch *search)
{
	return search->nfound == search->limit || search->bytes >= search->max_bytes;
}

/*
 * Mark the events that row security hides from the consumer's owner: his are
 * the policies that hold, whoever fetches.
 */
static void
hide_events(EventSearch *search, Event *events, int nevents)
{
	Oid			save_user;
	int			save_context;

	GetUserIdAndSecContext(&save_user, &save_context);
	PG_TRY();
	{
		SetUserIdAndSecContext(search->consumer->owner,
							   save_context | SECURITY_LOCAL_USERID_CHANGE | SECURITY_RESTRICTED_OPERATION);
		match_row_security(search->log, events, nevents);
	}
	PG_FINALLY();
	{
		SetUserIdAndSecContext(save_user, save_context);
	}
	PG_END_TRY();
}

/*
 * Look at an event; take it if it is one of those that are wanted.  That is any
 * that is there and may be seen where it is on a list (listed), if it is still the
 * same.
 */
static void
look_at_event(EventSearch *search, const Event *event, const EventIdentity *listed)
{
	const EventPattern *pattern = &search->consumer->pattern;
	Event	   *found = &search->found[search->nfound];

	search->passed++;
	if (event->tuple == NULL || event->hidden)
		return;
	if (listed != NULL ? event->txid != listed->txid :
		!(match_name(pattern, event->name) &&
		  match_filter_or_error(pattern, event->tuple, RelationGetDescr(search->log))))
		return;
	*found = *event;
	found->tuple = heap_copytuple(event->tuple);
	found->name = NULL;
	search->bytes += event->size;
	search->nfound++;
}

/*
 * Look through events, which are on a list or, to be matched, from the log (listed
 * is NULL), until enough are found or, of the log's, the time is up.  Returns how
 * many were looked at, which is one at least.
 *
 * Where few match, that is done in larger steps, but not where policies and filters
 * take their time and there is little of it.
 */
static int64
search_events(EventSearch *search, const EventRef *refs, int64 nrefs, const EventIdentity *listed)
{
	EventChunk *chunk = chunk_create(CurrentMemoryContext);
	bool		match = (listed == NULL);
	int64		next = 0;
	bool		over = false;

	while (next < nrefs && !search_is_full(search) && !over)
	{
		Instant		began = instant_now();
		int			found_before = search->nfound;
		Instant		now;

		(void) chunk_load(chunk, search->log, search->snapshot, refs + next,
						  (int) Min(nrefs - next, search->step));
		hide_events(search, chunk->events, chunk->length);
		for (int i = 0; i < chunk->length && !search_is_full(search) && !over; i++)
		{
			CHECK_FOR_INTERRUPTS();
			look_at_event(search, &chunk->events[i], listed ? &listed[next] : NULL);
			next++;
			over = match && search->hurried && time_is_up(search);
		}
		now = instant_now();
		if (match && search->nfound > found_before)
			search->content_at = instant_after(now, CONTENT_MS);
		if (!search->hurried || (now - began) * STEPS_TO_GO < search->ends_at - now)
			search->step = Max(search->step, Min(search->step * 2, MAX_STEP));
		over = over || (match && time_is_up(search));
	}
	chunk_free(chunk);
	return next;
}

/*
 * Find the events of a list, which are in ascending order of their ids.  Returns
 * how many of them were looked at.
 */
int
search_listed(EventSearch *search, const EventIdentity *listed, int nlisted)
{
	EventRef   *refs = palloc(sizeof(EventRef) * nlisted);

	for (int i = 0; i < nlisted; i++)
		refs[i] = event_ref(listed[i].id);
	return (int) search_events(search, refs, nlisted, listed);
}

/*
 * Read the window that the position is in, or else the next one.  NULL where the
 * statement would not live to see the end of that; then the position is inside the
 * window in any case.
 */
static Window *
read_whole(EventSearch *search)
{
	EventPosition *position = &search->position;
	Instant		now = instant_now();
	Instant		deadline = search->hurried ? now + (search->ends_at - now) / 2 : INSTANT_NEVER;
	Window	   *window = window_read(search->log, position, search->snapshot, search->upto,
									 CurrentMemoryContext, deadline);

	if (window == NULL && position->window == NULL)
	{
		position->window = event_snapshot_copy(search->upto);
		position->last_id = PG_INT64_MIN;
	}
	return window;
}

/*
 * Find further events from the position on, and move that.
 *
 * A window that was begun is gone through before the next one is opened.  It is
 * read on from the position by id; where that leads nowhere, its rest is read
 * as a whole.  Where there is no time for that it is read on all the same: then one
 * search after the other comes nearer to the next event of it.
 */
void
search_log(EventSearch *search)
{
	bool		read_on = true;
	bool		too_large = false;

	set_deadlines(search);
	for (;;)
	{
		EventPosition *position = &search->position;
		Window	   *window;
		int64		next;

		search->finished = (position->window == NULL && event_snapshot_equal(position->cursor, search->upto));
		if (search->finished || search_is_full(search) || time_is_up(search))
			break;

		if (position->window != NULL && (read_on || too_large))
			window = window_read_on(search->log, position, search->snapshot, search->step, CurrentMemoryContext);
		else
			window = read_whole(search);
		if (window == NULL)
		{
			too_large = true;
			continue;
		}
		read_on = (window->nevents > 0);

		next = search_events(search, window->events, window->nevents, NULL);
		{
			EventPosition come_to = window_position(window, next);

			copy_position(position, &come_to);
		}
		window_release(window);
	}
}

/* ----------
 * Waiting
 * ----------
 */

/*
 * When the next of the events that were handed back is due, or DT_NOEND.
 */
static TimestampTz
next_retry(const Consumer *consumer)
{
	static OwnStatement select_next = {
		.sql = "SELECT t.next_attempt_at FROM @s._event_consumer_retries AS t "
		"WHERE t.consumer OPERATOR(pg_catalog.=) $1 AND t.next_attempt_at IS NOT NULL "
		"ORDER BY t.next_attempt_at LIMIT 1",
		.target = OWN_NONE,
		.nargs = 1,
		.argtypes = {TEXTOID},
	};
	Datum		value = CStringGetTextDatum(consumer->name);
	TimestampTz result = DT_NOEND;
	bool		isnull;

	if (own_execute(&select_next, &value, NULL, 1) == 1)
		result = DatumGetTimestampTz(own_value(0, 1, &isnull));
	SPI_freetuptable(SPI_tuptable);
	return result;
}

/*
 * Whether there is an event behind what was seen before.  If not, remember how
 * far that is true.  finished is false where there is more to be looked at now.
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
		copy_position(&search.position, &before.seen);
	search_log(&search);
	*finished = search.finished;
	if (search.nfound > 0)
		return true;

	memory->altered_at = consumer->altered_at;
	old = MemoryContextSwitchTo(memory->context);
	copy_position(&memory->stored, &consumer->position);
	copy_position(&memory->seen, &search.position);
	MemoryContextSwitchTo(old);
	free_position(&before.stored);
	free_position(&before.seen);
	return false;
}

/*
 * When to look at a lock again that was found taken.
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
 * The caller's consumer, with a new active snapshot, and whether another session
 * had it before.
 */
static Consumer *
look_at_consumer(const char *name, ConsumerMemory *memory, bool *locked)
{
	for (;;)
	{
		int64		number = memory->number;
		Consumer   *consumer;

		*locked = number != 0 && numbered_lock_is_taken(OWN_CONSUMERS, number, ExclusiveLock);
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
 * look_again is when there may be some without anybody committing anything.
 *
 * memory begins as zeros, with a context that lives on.  Errors: as for
 * consumer_find_own(); dormant; the owner may not read the log.
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
