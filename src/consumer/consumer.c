/*-------------------------------------------------------------------------
 *
 * consumer.c
 *		Consumers: where one stands, and which session has it.
 *
 * A consumer serves clients outside of the server, which pull events.  Its progress
 * row holds a position in the log (position.c) and the open batch: the ids that were
 * fetched and are not acknowledged yet.  The position passes events as soon as they
 * are fetched.  So acknowledging events only takes their ids off the batch.  An event
 * that was handed back is in _event_consumer_retries until it is acknowledged.
 *
 * LOCKING: a session that moves a consumer holds its lock, by its number
 * (numbered_lock.c), until the end of the transaction.  It takes the lock before it
 * reads the consumer's row with a new snapshot, so no other session's changes can come
 * in between.  No row is locked.
 *
 * What there is to fetch: see consumer_search.c and consumer_ready.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "base/catalog.h"
#include "base/internal_sql.h"
#include "base/numbered_lock.h"
#include "consumer/consumer.h"
#include "consumer/consumer_batch.h"

/* ----------
 * Reading
 * ----------
 */

#define SELECT_CONSUMERS \
	"SELECT c.name, c.number, c.owner, c.event_name, c.filter, " \
	"(c.install_id OPERATOR(pg_catalog.<>) i.install_id " \
	" OR c.database OPERATOR(pg_catalog.<>) $1), " \
	"c.altered_at, p.cursor::pg_catalog.text, p.window::pg_catalog.text, p.last_id, " \
	"p.start::pg_catalog.text, p.batch, p.leased_until " \
	"FROM @s._event_consumers AS c " \
	"JOIN @s._event_consumer_progress AS p ON p.consumer OPERATOR(pg_catalog.=) c.name " \
	"CROSS JOIN @s._event_install AS i "

/*
 * Copy one row of a statement that is built with the macro above.
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

	strlcpy(consumer->name, internal_text(row, ++column), HANDLER_NAME_SIZE);
	consumer->number = DatumGetInt64(internal_value(row, ++column, &isnull));
	consumer->owner = DatumGetObjectId(internal_value(row, ++column, &isnull));
	event_name = internal_value(row, ++column, &isnull);
	value = internal_value(row, ++column, &isnull);
	match_read_pattern(&consumer->pattern, event_name, isnull ? (Datum) 0 : value, true);
	consumer->dormant = DatumGetBool(internal_value(row, ++column, &isnull));
	consumer->altered_at = DatumGetTimestampTz(internal_value(row, ++column, &isnull));
	consumer->position.cursor = event_snapshot_parse(internal_text(row, ++column));
	text = internal_text(row, ++column);
	if (text != NULL)
		consumer->position.window = event_snapshot_parse(text);
	value = internal_value(row, ++column, &isnull);
	consumer->position.last_id = isnull ? 0 : DatumGetInt64(value);
	consumer->start = event_snapshot_parse(internal_text(row, ++column));
	value = internal_value(row, ++column, &isnull);
	consumer->batch = batch_from_datum(value, &consumer->nbatch);
	value = internal_value(row, ++column, &isnull);
	consumer->leased_until = isnull ? DT_NOBEGIN : DatumGetTimestampTz(value);
	return consumer;
}

/*
 * Load all consumers, by name.  Here and below, the caller is connected to SPI and has
 * an active snapshot, and results are in the current memory context.
 */
List *
consumer_load_all(void)
{
	static InternalStatement select_all = {
		.sql = SELECT_CONSUMERS "ORDER BY c.name",
		.target = TABLE_NONE,
		.nargs = 1,
		.argtypes = {OIDOID},
	};
	Datum		database = ObjectIdGetDatum(MyDatabaseId);
	int			count = internal_execute(&select_all, &database, NULL, 0);
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
	static InternalStatement select_one = {
		.sql = SELECT_CONSUMERS "WHERE c.name OPERATOR(pg_catalog.=) $2",
		.target = TABLE_NONE,
		.nargs = 2,
		.argtypes = {OIDOID, TEXTOID},
	};
	Datum		values[2] = {ObjectIdGetDatum(MyDatabaseId), CStringGetTextDatum(name)};
	Consumer   *result = NULL;

	if (internal_execute(&select_one, values, NULL, 1) == 1)
		result = consumer_from_row(0);
	/* a waiting session does this again and again */
	SPI_freetuptable(SPI_tuptable);
	return result;
}

/*
 * Load one consumer for a caller that may have its events.  Errors: no consumer of
 * that name; the caller is neither its owner nor a member of the owner.
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
 * Refuse an owner that may not read the log, or that does not exist any more.
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
 * Refuse a consumer whose position means nothing in this database, or whose batch or
 * pattern cannot be read.
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
	if (consumer->batch == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("the stored batch of event consumer \"%s\" is damaged", consumer->name),
				 errhint("Drop the consumer and create it again.")));
	if (oversized != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("event consumer \"%s\" cannot be read: %s", consumer->name, oversized),
				 errhint("Give it a shorter one with create_event_consumer(..., or_replace => true).")));
}

/*
 * Whether the session that fetched the open batch still has its lease.
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
 * Lock the caller's consumer until the end of the transaction.  Waits for a session
 * that has it.  Errors: as for consumer_find_own().
 */
Consumer *
consumer_lock_own(const char *name)
{
	/* first of all, so that nobody waits for a caller without rights */
	Consumer   *consumer = consumer_find_own(name);
	int64		locked;

	/* again, if another consumer has got the name meanwhile */
	do
	{
		locked = consumer->number;
		numbered_lock(TABLE_CONSUMERS, locked, ExclusiveLock);
		consumer = consumer_find_own(name);
	} while (consumer->number != locked);
	return consumer;
}

/*
 * Lock a consumer if no other session has it.  Read its row afterwards.
 */
bool
consumer_try_lock(const Consumer *consumer)
{
	return numbered_lock_if_free(TABLE_CONSUMERS, consumer->number, ExclusiveLock);
}

/*
 * Release the lock again, in a session that has found nothing and changed nothing.
 */
void
consumer_unlock(const Consumer *consumer)
{
	numbered_unlock(TABLE_CONSUMERS, consumer->number, ExclusiveLock);
}

/*
 * Whether another session has the consumer, and which one.
 */
bool
consumer_is_held(const Consumer *consumer, LockHolder *holder)
{
	return numbered_lock_holder(TABLE_CONSUMERS, consumer->number, holder);
}
