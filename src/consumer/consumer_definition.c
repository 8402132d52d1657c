/*-------------------------------------------------------------------------
 *
 * consumer_definition.c
 *		create_event_consumer() and drop_event_consumer().  No other code changes
 *		definitions of consumers.
 *
 * Each function checks the caller's rights itself and then changes the internal tables
 * under the identity of the extension's owner (internal_sql.c).  It takes the consumer's
 * lock first (consumer.c), so a change waits for the session that fetches at the
 * moment.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/builtins.h"

#include "base/arguments.h"
#include "base/catalog.h"
#include "base/doorbell.h"
#include "base/internal_sql.h"
#include "consumer/consumer.h"
#include "log/window.h"

PG_FUNCTION_INFO_V1(pne_create_event_consumer);
PG_FUNCTION_INFO_V1(pne_drop_event_consumer);

/* positions of the arguments, in the order of the install script */
enum CreateArgument
{
	CREATE_NAME,
	CREATE_EVENT_NAME,
	CREATE_FILTER,
	CREATE_START_FROM,
	CREATE_OWNER,
	CREATE_OR_REPLACE
};

/*
 * Write a whole definition: insert it (false if the name is taken), or update
 * the one of that name.
 */
static bool
write_definition(const Consumer *consumer, bool update)
{
#define DEFINITION_ARGTYPES {TEXTOID, OIDOID, NAMEOID, TEXTOID, JSONPATHOID, UUIDOID, OIDOID}
	static InternalStatement insert_definition = {
		.sql = "INSERT INTO @s._event_consumers "
		"(name, owner, owner_name, event_name, filter, install_id, database) "
		"VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING",
		.target = TABLE_CONSUMERS,
		.nargs = 7,
		.argtypes = DEFINITION_ARGTYPES,
	};
	static InternalStatement find_definition = {
		.sql = "SELECT 1 FROM @s._event_consumers AS c WHERE c.name OPERATOR(pg_catalog.=) $1",
		.target = TABLE_NONE,
		.nargs = 1,
		.argtypes = DEFINITION_ARGTYPES,
	};
	static InternalStatement update_definition = {
		.sql = "UPDATE @s._event_consumers SET owner = $2, owner_name = $3, event_name = $4, "
		"filter = $5, altered_at = pg_catalog.now() WHERE name OPERATOR(pg_catalog.=) $1",
		.target = TABLE_CONSUMERS,
		.nargs = 5,
		.argtypes = DEFINITION_ARGTYPES,
	};
	Datum		values[7];
	char		nulls[7] = {' ', ' ', ' ', ' ', ' ', ' ', ' '};
	pg_uuid_t	install_id;
	NameData	owner_name;

	internal_install_id(&install_id);
	namestrcpy(&owner_name, GetUserNameFromId(consumer->owner, false));
	values[0] = CStringGetTextDatum(consumer->name);
	values[1] = ObjectIdGetDatum(consumer->owner);
	values[2] = NameGetDatum(&owner_name);
	values[3] = CStringGetTextDatum(consumer->pattern.event_name);
	values[4] = consumer->pattern.filter;
	if (consumer->pattern.filter == (Datum) 0)
		nulls[4] = 'n';
	values[5] = UUIDPGetDatum(&install_id);
	values[6] = ObjectIdGetDatum(MyDatabaseId);
	if (update)
		return internal_execute(&update_definition, values, nulls, 0) == 1;
	return internal_insert_numbered(&insert_definition, values, nulls, &find_definition);
}

static void
insert_progress(const char *name, const EventSnapshot *start)
{
	static InternalStatement insert = {
		.sql = "INSERT INTO @s._event_consumer_progress (consumer, cursor, start) "
		"VALUES ($1, $2::pg_catalog.pg_snapshot, $2::pg_catalog.pg_snapshot)",
		.target = TABLE_CONSUMER_PROGRESS,
		.nargs = 2,
		.argtypes = {TEXTOID, TEXTOID},
	};
	Datum		values[2] = {CStringGetTextDatum(name), CStringGetTextDatum(event_snapshot_text(start))};

	internal_execute(&insert, values, NULL, 0);
}

/*
 * create_event_consumer(name, event_name, filter, start_from, owner, or_replace)
 * returns void
 *
 * Errors: null or invalid arguments; a name that is taken; an owner that the caller
 * cannot become or that may not read the log.
 */
Datum
pne_create_event_consumer(PG_FUNCTION_ARGS)
{
	Consumer   *consumer = palloc0(sizeof(Consumer));
	EventSnapshot *start;
	bool		or_replace;

	require_writable("create_event_consumer()");
	strlcpy(consumer->name, name_argument(fcinfo, CREATE_NAME, "name", "event consumer"), HANDLER_NAME_SIZE);
	consumer->owner = owner_argument(fcinfo, CREATE_OWNER, "event consumer");
	start = start_argument(fcinfo, CREATE_START_FROM);
	require_argument(fcinfo, CREATE_OR_REPLACE, "or_replace");
	or_replace = PG_GETARG_BOOL(CREATE_OR_REPLACE);
	consumer->pattern.event_name = event_name_argument(fcinfo, CREATE_EVENT_NAME);
	if (!PG_ARGISNULL(CREATE_FILTER))
		consumer->pattern.filter = filter_argument(fcinfo, CREATE_FILTER);
	consumer_check_owner(consumer->name, consumer->owner);

	SPI_connect();
	if (write_definition(consumer, false))
		insert_progress(consumer->name, start);
	else
	{
		Consumer   *existing;

		if (!or_replace)
			ereport(ERROR,
					(errcode(ERRCODE_DUPLICATE_OBJECT),
					 errmsg("event consumer \"%s\" exists already", consumer->name),
					 errhint("With or_replace => true its definition is replaced and its position kept.")));
		existing = consumer_lock_own(consumer->name);
		if (PG_ARGISNULL(CREATE_OWNER))
		{
			consumer->owner = existing->owner;
			consumer_check_owner(consumer->name, consumer->owner);
		}
		write_definition(consumer, true);
		doorbell_at_commit(RING_CONSUMERS);
	}
	SPI_finish();
	PG_RETURN_VOID();
}

/*
 * drop_event_consumer(name) returns void
 *
 * Waits for a session that has the consumer.  Errors: no such consumer; not the
 * owner.
 */
Datum
pne_drop_event_consumer(PG_FUNCTION_ARGS)
{
	static InternalStatement statements[] = {
		{
			.sql = "DELETE FROM @s._event_consumer_retries WHERE consumer OPERATOR(pg_catalog.=) $1",
			.target = TABLE_CONSUMER_RETRIES, .nargs = 1, .argtypes = {TEXTOID},
		},
		{
			.sql = "DELETE FROM @s._event_consumer_progress WHERE consumer OPERATOR(pg_catalog.=) $1",
			.target = TABLE_CONSUMER_PROGRESS, .nargs = 1, .argtypes = {TEXTOID},
		},
		{
			.sql = "DELETE FROM @s._event_consumers WHERE name OPERATOR(pg_catalog.=) $1",
			.target = TABLE_CONSUMERS, .nargs = 1, .argtypes = {TEXTOID},
		},
	};
	char	   *name = name_argument(fcinfo, 0, "name", "event consumer");
	Datum		value = CStringGetTextDatum(name);

	require_writable("drop_event_consumer()");
	SPI_connect();
	(void) consumer_lock_own(name);
	for (int i = 0; i < (int) lengthof(statements); i++)
		internal_execute(&statements[i], &value, NULL, 0);
	SPI_finish();

	doorbell_at_commit(RING_CONSUMERS);
	PG_RETURN_VOID();
}
