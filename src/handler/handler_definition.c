/*-------------------------------------------------------------------------
 *
 * handler_definition.c
 *		create_event_handler() and the other functions that change definitions of
 *		handlers.  No other code changes them.
 *
 * Each function checks the caller's rights itself and then changes the internal tables
 * under the identity of the extension's owner (internal_sql.c).  Rows are locked in one
 * order: the definition, then the handler's lock, then the progress row.  An executor
 * holds the latter two during its batch.  So a change waits for the batch at hand
 * only.  It writes a new version into the progress row.  The executor then discards
 * what it has read, and no batch under the old definition can commit after the change.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <limits.h>

#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "base/arguments.h"
#include "base/catalog.h"
#include "base/compat.h"
#include "base/doorbell.h"
#include "base/internal_sql.h"
#include "handler/handler.h"
#include "handler/handler_definition.h"
#include "handler/handler_function.h"
#include "log/window.h"

#define MAX_BATCH_SIZE 100000

PG_FUNCTION_INFO_V1(pne_create_event_handler);
PG_FUNCTION_INFO_V1(pne_alter_event_handler);
PG_FUNCTION_INFO_V1(pne_drop_event_handler);
PG_FUNCTION_INFO_V1(pne_pause_event_handler);
PG_FUNCTION_INFO_V1(pne_resume_event_handler);
PG_FUNCTION_INFO_V1(pne_call_event_handler);

/* positions of the arguments, in the order of the install script */
enum CreateArgument
{
	CREATE_NAME,
	CREATE_FUNCTION,
	CREATE_EVENT_NAME,
	CREATE_FILTER,
	CREATE_BATCH_SIZE,
	CREATE_MAX_ATTEMPTS,
	CREATE_RETRY_DELAY,
	CREATE_MAX_RETRY_DELAY,
	CREATE_TIMEOUT,
	CREATE_ORDERED,
	CREATE_START_FROM,
	CREATE_OWNER,
	CREATE_OR_REPLACE
};

/* the same as CREATE_*, up to CREATE_ORDERED */
enum AlterArgument
{
	ALTER_OWNER = CREATE_ORDERED + 1,
	ALTER_CLEAR_FILTER
};

static Oid
function_owner(Oid function)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	Oid			owner;

	if (!HeapTupleIsValid(tuple))
		return InvalidOid;
	owner = ((Form_pg_proc) GETSTRUCT(tuple))->proowner;
	ReleaseSysCache(tuple);
	return owner;
}

/*
 * Note the function's present owner as the one that the handler was confirmed with.
 * Refuse a handler that could not run.
 */
static void
confirm_handler(Handler *handler)
{
	HandlerProblem problem;

	handler->function_owner = function_owner(handler_find_function(handler));
	if (!handler_check(handler, &problem))
		ereport(ERROR,
				(errcode(problem.sqlstate),
				 errmsg("event handler \"%s\" cannot run: %s", handler->name, problem.message),
				 errhint("%s", problem.hint)));
}

/* ----------
 * Rows
 * ----------
 */

/*
 * Refuse a handler that does not exist or that is not the caller's.  The statement
 * finds it.
 */
static void
check_own_definition(InternalStatement *select_owner, const char *name)
{
	Datum		value = CStringGetTextDatum(name);
	bool		isnull;

	if (internal_execute(select_owner, &value, NULL, 1) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("event handler \"%s\" does not exist", name),
				 errhint("The view event_handlers shows those that you may see.")));
	if (!has_privs_of_role(GetUserId(), DatumGetObjectId(internal_value(0, 1, &isnull))))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be owner of event handler \"%s\"", name),
				 errhint("Members of the owner may do this, too.")));
}

/*
 * Return a handler's definition, locked, to a caller who may change it.  The caller is
 * connected to SPI.  Errors: no such handler; not the owner.
 *
 * The rights are checked before anything is waited for.  So a caller without rights
 * never waits for others, and others never wait for it.
 */
Handler *
lock_own_handler(const char *name)
{
#define SELECT_OWNER \
	"SELECT h.owner FROM @s._event_handlers AS h WHERE h.name OPERATOR(pg_catalog.=) $1"
	static InternalStatement find_definition = {
		.sql = SELECT_OWNER,
		.target = TABLE_NONE,
		.nargs = 1,
		.argtypes = {TEXTOID},
	};
	static InternalStatement lock_definition = {
		.sql = SELECT_OWNER " FOR UPDATE",
		.target = TABLE_HANDLERS,
		.nargs = 1,
		.argtypes = {TEXTOID},
	};
	List	   *handlers;

	check_own_definition(&find_definition, name);
	check_own_definition(&lock_definition, name);
	handlers = handler_load(name, InvalidOid, CurrentMemoryContext);
	if (handlers == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("event handler \"%s\" has lost its progress", name),
				 errhint("It was restored in part. A superuser can delete its rows after disabling the guard triggers.")));
	return linitial(handlers);
}

static Datum
filter_value(const Handler *handler, char *null)
{
	*null = (handler->pattern.filter == (Datum) 0) ? 'n' : ' ';
	return handler->pattern.filter;
}

static Datum
ms_to_interval(int64 ms)
{
	Interval   *interval = palloc0(sizeof(Interval));

	interval->time = ms * 1000;
	return IntervalPGetDatum(interval);
}

/*
 * Write a whole definition: insert it (false if the name is taken), or update the one
 * of that name.
 */
static bool
write_definition(const Handler *handler, bool update)
{
#define DEFINITION_ARGTYPES \
	{TEXTOID, OIDOID, NAMEOID, NAMEOID, NAMEOID, CHAROID, OIDOID, NAMEOID, TEXTOID, JSONPATHOID, \
	 INT4OID, INT4OID, INTERVALOID, INTERVALOID, INTERVALOID, BOOLOID, UUIDOID, OIDOID}
	static InternalStatement insert_definition = {
		.sql = "INSERT INTO @s._event_handlers (name, owner, owner_name, function_schema, "
		"function_name, function_shape, function_owner, function_owner_name, event_name, filter, "
		"batch_size, max_attempts, retry_delay, max_retry_delay, timeout, ordered, install_id, database) "
		"VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18) "
		"ON CONFLICT DO NOTHING",
		.target = TABLE_HANDLERS,
		.nargs = 18,
		.argtypes = DEFINITION_ARGTYPES,
	};
	static InternalStatement find_definition = {
		.sql = "SELECT 1 FROM @s._event_handlers AS h WHERE h.name OPERATOR(pg_catalog.=) $1",
		.target = TABLE_NONE,
		.nargs = 1,
		.argtypes = DEFINITION_ARGTYPES,
	};
	static InternalStatement update_definition = {
		.sql = "UPDATE @s._event_handlers SET owner = $2, owner_name = $3, function_schema = $4, "
		"function_name = $5, function_shape = $6, function_owner = $7, function_owner_name = $8, "
		"event_name = $9, filter = $10, batch_size = $11, max_attempts = $12, retry_delay = $13, "
		"max_retry_delay = $14, timeout = $15, ordered = $16, altered_at = pg_catalog.now() "
		"WHERE name OPERATOR(pg_catalog.=) $1",
		.target = TABLE_HANDLERS,
		.nargs = 16,
		.argtypes = DEFINITION_ARGTYPES,
	};
	Datum		values[18];
	char		nulls[18];
	pg_uuid_t	install_id;
	NameData	owner_name;
	NameData	function_owner_name;

	internal_install_id(&install_id);
	namestrcpy(&owner_name, GetUserNameFromId(handler->owner, false));
	namestrcpy(&function_owner_name, GetUserNameFromId(handler->function_owner, false));

	memset(nulls, ' ', sizeof(nulls));
	values[0] = CStringGetTextDatum(handler->name);
	values[1] = ObjectIdGetDatum(handler->owner);
	values[2] = NameGetDatum(&owner_name);
	values[3] = NameGetDatum(&handler->function_schema);
	values[4] = NameGetDatum(&handler->function_name);
	values[5] = CharGetDatum(handler->function_shape);
	values[6] = ObjectIdGetDatum(handler->function_owner);
	values[7] = NameGetDatum(&function_owner_name);
	values[8] = CStringGetTextDatum(handler->pattern.event_name);
	values[9] = filter_value(handler, &nulls[9]);
	values[10] = Int32GetDatum(handler->batch_size);
	values[11] = Int32GetDatum(handler->max_attempts);
	values[12] = ms_to_interval(handler->retry_delay);
	values[13] = ms_to_interval(handler->max_retry_delay);
	values[14] = ms_to_interval(handler->timeout);
	values[15] = BoolGetDatum(handler->ordered);
	values[16] = UUIDPGetDatum(&install_id);
	values[17] = ObjectIdGetDatum(MyDatabaseId);

	if (update)
		return internal_execute(&update_definition, values, nulls, 0) == 1;
	return internal_insert_numbered(&insert_definition, values, nulls, &find_definition);
}

/*
 * The version that this transaction writes into a definition.
 */
static Datum
new_version(void)
{
	return Int64GetDatum((int64) U64FromFullTransactionId(GetTopFullTransactionId()));
}

/*
 * Have executors notice that a definition changed.  They discard what they have read
 * for the handler, and this function waits for a batch under way.  If the handler
 * backs off, the new definition is tried at once.
 */
static void
bump_version(const Handler *handler)
{
	static InternalStatement update_version = {
		.sql = "UPDATE @s._event_handler_progress SET version = $2 "
		"WHERE handler OPERATOR(pg_catalog.=) $1",
		.target = TABLE_PROGRESS,
		.nargs = 2,
		.argtypes = {TEXTOID, INT8OID},
	};
	static InternalStatement probe_now = {
		.sql = "UPDATE @s._event_retries SET next_attempt_at = pg_catalog.clock_timestamp() "
		"WHERE handler OPERATOR(pg_catalog.=) $1 AND deferred "
		"AND state OPERATOR(pg_catalog.=) 'waiting'",
		.target = TABLE_RETRIES,
		.nargs = 1,
		.argtypes = {TEXTOID},
	};
	Datum		values[2] = {CStringGetTextDatum(handler->name), new_version()};

	handler_wait_for_batch(handler);
	internal_execute(&update_version, values, NULL, 0);
	internal_execute(&probe_now, values, NULL, 0);
	doorbell_handlers_at_commit(handler->owner);
}

static void
insert_progress(const char *name, const EventSnapshot *start)
{
	static InternalStatement insert = {
		.sql = "INSERT INTO @s._event_handler_progress (handler, created, version, cursor, start) "
		"VALUES ($1, $2, $2, $3::pg_catalog.pg_snapshot, $3::pg_catalog.pg_snapshot)",
		.target = TABLE_PROGRESS,
		.nargs = 3,
		.argtypes = {TEXTOID, INT8OID, TEXTOID},
	};
	Datum		values[3] = {CStringGetTextDatum(name), new_version(),
	CStringGetTextDatum(event_snapshot_text(start))};

	internal_execute(&insert, values, NULL, 0);
}

static void
delete_rows(InternalStatement *statement, const char *name)
{
	Datum		value = CStringGetTextDatum(name);

	internal_execute(statement, &value, NULL, 0);
}

/* ----------
 * SQL functions
 * ----------
 */

/*
 * Fill in the properties that create and alter both take, from the arguments that are
 * given.
 */
static void
common_arguments(FunctionCallInfo fcinfo, Handler *handler, bool creating)
{
	if (creating || !PG_ARGISNULL(CREATE_FUNCTION))
		function_argument(fcinfo, CREATE_FUNCTION, handler);
	if (creating || !PG_ARGISNULL(CREATE_EVENT_NAME))
	{
		handler->pattern.event_name = event_name_argument(fcinfo, CREATE_EVENT_NAME);
		handler->pattern.event_name_size = 0;
	}
	if (!PG_ARGISNULL(CREATE_FILTER))
	{
		handler->pattern.filter = filter_argument(fcinfo, CREATE_FILTER);
		handler->pattern.filter_size = 0;
	}
	if (creating || !PG_ARGISNULL(CREATE_BATCH_SIZE))
		handler->batch_size = integer_argument(fcinfo, CREATE_BATCH_SIZE, "batch_size", MAX_BATCH_SIZE);
	if (creating || !PG_ARGISNULL(CREATE_MAX_ATTEMPTS))
		handler->max_attempts = integer_argument(fcinfo, CREATE_MAX_ATTEMPTS, "max_attempts", INT_MAX);
	if (creating || !PG_ARGISNULL(CREATE_RETRY_DELAY))
		handler->retry_delay = interval_argument(fcinfo, CREATE_RETRY_DELAY, "retry_delay");
	if (creating || !PG_ARGISNULL(CREATE_MAX_RETRY_DELAY))
		handler->max_retry_delay = interval_argument(fcinfo, CREATE_MAX_RETRY_DELAY, "max_retry_delay");
	if (creating || !PG_ARGISNULL(CREATE_TIMEOUT))
		handler->timeout = (int) interval_argument(fcinfo, CREATE_TIMEOUT, "timeout");
	if (creating || !PG_ARGISNULL(CREATE_ORDERED))
	{
		require_argument(fcinfo, CREATE_ORDERED, "ordered");
		handler->ordered = PG_GETARG_BOOL(CREATE_ORDERED);
	}
	if (handler->retry_delay > handler->max_retry_delay)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("retry_delay is longer than max_retry_delay"),
				 errhint("The delay doubles with each attempt up to max_retry_delay.")));
}

/*
 * create_event_handler(name, function, event_name, filter, batch_size, max_attempts,
 * retry_delay, max_retry_delay, timeout, ordered, start_from, owner, or_replace)
 * returns void
 *
 * Errors: a null or invalid argument; a name that is taken; a function without a
 * fitting signature; an owner that the caller cannot become or that could not run the
 * function.
 */
Datum
pne_create_event_handler(PG_FUNCTION_ARGS)
{
	Handler    *handler = palloc0(sizeof(Handler));
	Handler    *existing;
	EventSnapshot *start;
	bool		or_replace;

	require_writable("create_event_handler()");
	strlcpy(handler->name, name_argument(fcinfo, CREATE_NAME, "name", "event handler"), HANDLER_NAME_SIZE);
	handler->owner = owner_argument(fcinfo, CREATE_OWNER, "event handler");
	start = start_argument(fcinfo, CREATE_START_FROM);
	require_argument(fcinfo, CREATE_OR_REPLACE, "or_replace");
	or_replace = PG_GETARG_BOOL(CREATE_OR_REPLACE);
	common_arguments(fcinfo, handler, true);
	confirm_handler(handler);

	SPI_connect();
	if (write_definition(handler, false))
		insert_progress(handler->name, start);
	else
	{
		if (!or_replace)
			ereport(ERROR,
					(errcode(ERRCODE_DUPLICATE_OBJECT),
					 errmsg("event handler \"%s\" exists already", handler->name),
					 errhint("With or_replace => true its definition is replaced and its position kept.")));
		existing = lock_own_handler(handler->name);
		if (PG_ARGISNULL(CREATE_OWNER))
		{
			handler->owner = existing->owner;
			confirm_handler(handler);
		}
		handler->number = existing->number;
		write_definition(handler, true);
		bump_version(handler);
		doorbell_handlers_at_commit(existing->owner);
	}
	doorbell_handlers_at_commit(handler->owner);
	SPI_finish();

	if (shared == NULL)
		ereport(WARNING,
				(errcode(ERRCODE_WARNING),
				 errmsg("event handler \"%s\" will not run: pg_notify_events is not preloaded", handler->name),
				 errhint("Add pg_notify_events to \"shared_preload_libraries\" and restart the server.")));
	PG_RETURN_VOID();
}

/*
 * alter_event_handler(name, function, event_name, filter, batch_size, max_attempts,
 * retry_delay, max_retry_delay, timeout, ordered, owner, clear_filter) returns void
 *
 * Null leaves a property unchanged.  The position is kept, and the function's present
 * owner is confirmed.  Errors: as for create_event_handler(); not the owner.
 */
Datum
pne_alter_event_handler(PG_FUNCTION_ARGS)
{
	char	   *name = name_argument(fcinfo, CREATE_NAME, "name", "event handler");
	Handler    *handler;

	require_writable("alter_event_handler()");
	SPI_connect();
	handler = lock_own_handler(name);
	doorbell_handlers_at_commit(handler->owner);
	if (!PG_ARGISNULL(ALTER_OWNER))
		handler->owner = owner_argument(fcinfo, ALTER_OWNER, "event handler");
	require_argument(fcinfo, ALTER_CLEAR_FILTER, "clear_filter");
	if (PG_GETARG_BOOL(ALTER_CLEAR_FILTER))
	{
		handler->pattern.filter = (Datum) 0;
		handler->pattern.filter_size = 0;
	}
	common_arguments(fcinfo, handler, false);
	confirm_handler(handler);
	write_definition(handler, true);
	bump_version(handler);
	SPI_finish();
	PG_RETURN_VOID();
}

/*
 * drop_event_handler(name) returns void
 *
 * Ends the call at hand.  The call is undone and charged to no event.  Errors: no such
 * handler; not the owner.
 */
Datum
pne_drop_event_handler(PG_FUNCTION_ARGS)
{
	static InternalStatement statements[] = {
		/* retries before failures, in the order of a transaction that records a failure */
		{
			.sql = "DELETE FROM @s._event_retries WHERE handler OPERATOR(pg_catalog.=) $1",
			.target = TABLE_RETRIES, .nargs = 1, .argtypes = {TEXTOID},
		},
		{
			.sql = "DELETE FROM @s._event_handler_failures WHERE handler OPERATOR(pg_catalog.=) $1",
			.target = TABLE_FAILURES, .nargs = 1, .argtypes = {TEXTOID},
		},
		{
			.sql = "DELETE FROM @s._event_handler_progress WHERE handler OPERATOR(pg_catalog.=) $1",
			.target = TABLE_PROGRESS, .nargs = 1, .argtypes = {TEXTOID},
		},
		{
			.sql = "DELETE FROM @s._event_handlers WHERE name OPERATOR(pg_catalog.=) $1",
			.target = TABLE_HANDLERS, .nargs = 1, .argtypes = {TEXTOID},
		},
	};
	char	   *name = name_argument(fcinfo, 0, "name", "event handler");
	Handler    *handler;

	require_writable("drop_event_handler()");
	SPI_connect();
	handler = lock_own_handler(name);
	handler_end_batch(handler);
	for (int i = 0; i < (int) lengthof(statements); i++)
		delete_rows(&statements[i], name);
	doorbell_handlers_at_commit(handler->owner);
	SPI_finish();
	PG_RETURN_VOID();
}

static void
set_paused(FunctionCallInfo fcinfo, bool paused)
{
	static InternalStatement update_paused = {
		.sql = "UPDATE @s._event_handlers SET paused = $2, altered_at = pg_catalog.now() "
		"WHERE name OPERATOR(pg_catalog.=) $1",
		.target = TABLE_HANDLERS,
		.nargs = 2,
		.argtypes = {TEXTOID, BOOLOID},
	};
	char	   *name = name_argument(fcinfo, 0, "name", "event handler");
	Datum		values[2] = {CStringGetTextDatum(name), BoolGetDatum(paused)};
	Handler    *handler;

	require_writable(paused ? "pause_event_handler()" : "resume_event_handler()");
	SPI_connect();
	handler = lock_own_handler(name);
	internal_execute(&update_paused, values, NULL, 0);
	bump_version(handler);
	SPI_finish();
}

/*
 * pause_event_handler(name) returns void
 *
 * Waits for the batch at hand.  From the commit on the handler is not called.  Errors:
 * no such handler; not the owner.
 */
Datum
pne_pause_event_handler(PG_FUNCTION_ARGS)
{
	set_paused(fcinfo, true);
	PG_RETURN_VOID();
}

/*
 * resume_event_handler(name) returns void
 *
 * Events that came while the handler was paused are delivered.  Errors: no such
 * handler; not the owner.
 */
Datum
pne_resume_event_handler(PG_FUNCTION_ARGS)
{
	set_paused(fcinfo, false);
	PG_RETURN_VOID();
}

/*
 * call_event_handler(name, event_id) returns void
 *
 * Calls the handler in the caller's transaction and records nothing.  Errors: no such
 * handler or event; the caller is not the owner itself; whatever the function throws.
 */
Datum
pne_call_event_handler(PG_FUNCTION_ARGS)
{
	char	   *name = name_argument(fcinfo, 0, "name", "event handler");
	HandlerCall call = {0};
	HandlerProblem problem;
	List	   *handlers;
	Handler    *handler;
	Relation	log;
	Event		event;
	Event	   *events = &event;
	Oid			function;
	int64		id;

	require_argument(fcinfo, 1, "event_id");
	id = PG_GETARG_INT64(1);

	SPI_connect();
	handlers = handler_load(name, InvalidOid, CurrentMemoryContext);
	if (handlers == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("event handler \"%s\" does not exist", name),
				 errhint("The view event_handlers shows those that you may see.")));
	handler = linitial(handlers);
	if (handler->owner != GetUserId())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be owner of event handler \"%s\" to call it", name),
				 errhint("SET ROLE to its owner: the function runs as the current role.")));
	function = handler_approve(handler, &problem);
	if (!OidIsValid(function))
		ereport(ERROR,
				(errcode(problem.sqlstate),
				 errmsg("event handler \"%s\" cannot run: %s", name, problem.message),
				 errhint("%s", problem.hint)));

	log = table_open(catalog_lookup(false)->log, AccessShareLock);
	if (!event_fetch(&event, log, GetActiveSnapshot(), id))
		ereport(ERROR,
				(errcode(ERRCODE_NO_DATA_FOUND),
				 errmsg("event %lld does not exist", (long long) id),
				 errhint("It was not committed, or it was deleted from notification_events.")));
	match_row_security(log, &event, 1);
	if (event.hidden)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("row security hides event %lld", (long long) id),
				 errhint("A handler gets the events that its owner may see.")));
	handler_prepare_call(&call, handler, function);
	handler_call(&call, &events, 1, RelationGetDescr(log));
	table_close(log, AccessShareLock);
	SPI_finish();
	PG_RETURN_VOID();
}
