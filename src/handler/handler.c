/*-------------------------------------------------------------------------
 *
 * handler.c
 *		Handlers: reading definitions, checking whether they can run, calling
 *		functions.
 *
 * A handler's function is stored by schema, name and shape, and looked up by its exact
 * signature, never by a search_path.  Whether the handler can run is checked anew for
 * each batch (handler_check).  A handler that cannot run is suspended as long as the
 * cause lasts, and there is nothing to remember or repair.
 *
 * The function is called by its oid, inside the SPI connection of the batch, with a
 * new snapshot like a statement of its own.  A plan for "SELECT schema.function($1)"
 * would look the function up by name again whenever something invalidates the plan.
 * The owner of the schema could then rename the function in the middle of a batch,
 * create another one under its name, and have it run as the handler's owner.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_authid.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_class.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_database.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

#include "base/arguments.h"
#include "base/catalog.h"
#include "base/compat.h"
#include "base/internal_sql.h"
#include "base/numbered_lock.h"
#include "base/settings.h"
#include "handler/handler.h"

/*
 * Copy one row that load_handlers() has selected, with the filter only if it is
 * wanted.
 */
static Handler *
handler_from_row(int row, bool with_filter)
{
	Handler    *handler = palloc0(sizeof(Handler));
	int			column = 0;
	bool		isnull;
	Datum		value;
	Datum		event_name;
	char	   *text;

	strlcpy(handler->name, internal_text(row, ++column), HANDLER_NAME_SIZE);
	handler->number = DatumGetInt64(internal_value(row, ++column, &isnull));
	handler->owner = DatumGetObjectId(internal_value(row, ++column, &isnull));
	namestrcpy(&handler->function_schema, internal_text(row, ++column));
	namestrcpy(&handler->function_name, internal_text(row, ++column));
	handler->function_shape = DatumGetChar(internal_value(row, ++column, &isnull));
	handler->function_owner = DatumGetObjectId(internal_value(row, ++column, &isnull));
	event_name = internal_value(row, ++column, &isnull);
	value = internal_value(row, ++column, &isnull);
	match_read_pattern(&handler->pattern, event_name, isnull ? (Datum) 0 : value, with_filter);
	handler->batch_size = DatumGetInt32(internal_value(row, ++column, &isnull));
	handler->max_attempts = DatumGetInt32(internal_value(row, ++column, &isnull));
	handler->retry_delay = interval_to_ms(internal_value(row, ++column, &isnull));
	handler->max_retry_delay = interval_to_ms(internal_value(row, ++column, &isnull));
	/* create_event_handler() has checked that this fits */
	handler->timeout = (int) interval_to_ms(internal_value(row, ++column, &isnull));
	handler->ordered = DatumGetBool(internal_value(row, ++column, &isnull));
	handler->paused = DatumGetBool(internal_value(row, ++column, &isnull));
	handler->dormant = DatumGetBool(internal_value(row, ++column, &isnull));
	handler->created_at = DatumGetTimestampTz(internal_value(row, ++column, &isnull));
	handler->created = DatumGetInt64(internal_value(row, ++column, &isnull));
	handler->version = DatumGetInt64(internal_value(row, ++column, &isnull));
	handler->position.cursor = event_snapshot_parse(internal_text(row, ++column));
	text = internal_text(row, ++column);
	if (text != NULL)
		handler->position.window = event_snapshot_parse(text);
	value = internal_value(row, ++column, &isnull);
	handler->position.last_id = isnull ? 0 : DatumGetInt64(value);
	handler->start = event_snapshot_parse(internal_text(row, ++column));
	value = internal_value(row, ++column, &isnull);
	handler->group_end = isnull ? NO_GROUP : DatumGetInt64(value);
	return handler;
}

/*
 * Definitions and stored positions, by name: of one handler, of one owner's handlers,
 * or of all (NULL, InvalidOid).
 */
static List *
load_handlers(const char *name, Oid owner, bool with_filters, MemoryContext context)
{
	static InternalStatement select_handlers = {
		.sql = "SELECT h.name, h.number, h.owner, h.function_schema, h.function_name, h.function_shape, "
		"h.function_owner, h.event_name, h.filter, h.batch_size, h.max_attempts, "
		"h.retry_delay, h.max_retry_delay, h.timeout, h.ordered, h.paused, "
		"(h.install_id OPERATOR(pg_catalog.<>) i.install_id "
		" OR h.database OPERATOR(pg_catalog.<>) $3), "
		"h.created_at, p.created, p.version, p.cursor::pg_catalog.text, p.window::pg_catalog.text, p.last_id, "
		"p.start::pg_catalog.text, p.tried_upto "
		"FROM @s._event_handlers AS h "
		"JOIN @s._event_handler_progress AS p ON p.handler OPERATOR(pg_catalog.=) h.name "
		"CROSS JOIN @s._event_install AS i "
		"WHERE ($1 IS NULL OR h.name OPERATOR(pg_catalog.=) $1) "
		"AND ($2 IS NULL OR h.owner OPERATOR(pg_catalog.=) $2) "
		"ORDER BY h.name",
		.target = TABLE_NONE,
		.nargs = 3,
		.argtypes = {TEXTOID, OIDOID, OIDOID},
	};
	Datum		values[3] = {0};
	char		nulls[3] = {'n', 'n', ' '};
	List	   *result = NIL;
	MemoryContext old;
	int			count;

	if (name != NULL)
	{
		values[0] = CStringGetTextDatum(name);
		nulls[0] = ' ';
	}
	if (OidIsValid(owner))
	{
		values[1] = ObjectIdGetDatum(owner);
		nulls[1] = ' ';
	}
	values[2] = ObjectIdGetDatum(MyDatabaseId);

	count = internal_execute(&select_handlers, values, nulls, 0);
	old = MemoryContextSwitchTo(context);
	for (int row = 0; row < count; row++)
		result = lappend(result, handler_from_row(row, with_filters));
	MemoryContextSwitchTo(old);
	return result;
}

/*
 * Load handlers as they are defined: one by name, those of an owner, or all.
 *
 * The caller is connected to SPI and has an active snapshot.  The list and its
 * Handlers are allocated in context.
 */
List *
handler_load(const char *name, Oid owner, MemoryContext context)
{
	return load_handlers(name, owner, true, context);
}

/*
 * Load the handlers of an owner, or all, without their filters.  What this reads for
 * each handler does not depend on the size of its definition.
 */
List *
handler_load_without_filters(Oid owner, MemoryContext context)
{
	return load_handlers(NULL, owner, false, context);
}

/*
 * A transaction is about to run events of a handler.  Returns false if another
 * transaction changes the definition, or waits to change it.  A lock on the progress
 * row alone would let one batch after the other overtake that transaction.
 */
bool
handler_begin_batch(const Handler *handler)
{
	return numbered_lock_if_free(TABLE_HANDLERS, handler->number, AccessShareLock);
}

/*
 * Wait for the batch at hand.  No other batch begins until the end of the transaction.
 */
void
handler_wait_for_batch(const Handler *handler)
{
	numbered_lock(TABLE_HANDLERS, handler->number, AccessExclusiveLock);
}

/* what handler_end_batch() has asked for */
typedef struct EndedCalls
{
	DatabaseSlot *database;
	int			place;
} EndedCalls;

static void
let_calls_be(int code, Datum arg)
{
	EndedCalls *ended = (EndedCalls *) DatumGetPointer(arg);

	shared_let_calls_be(ended->database, ended->place);
}

/*
 * Wait for the batch at hand of a handler that is to be dropped.  The call at hand is
 * ended, so that DROP need not wait for its timeout.
 */
void
handler_end_batch(const Handler *handler)
{
	EndedCalls	ended = {.database = shared_find_database(MyDatabaseId)};

	/* without executors there is no call */
	if (ended.database == NULL)
	{
		handler_wait_for_batch(handler);
		return;
	}
	ended.place = shared_end_calls(ended.database, handler->name);
	PG_ENSURE_ERROR_CLEANUP(let_calls_be, PointerGetDatum(&ended));
	{
		handler_wait_for_batch(handler);
	}
	PG_END_ENSURE_ERROR_CLEANUP(let_calls_be, PointerGetDatum(&ended));
	let_calls_be(0, PointerGetDatum(&ended));
}

/*
 * How long a handler's code may run, in ms.
 */
int
handler_timeout(const Handler *handler)
{
	return Min(handler->timeout, pne_max_handler_timeout);
}

/* ----------
 * Whether it can run
 * ----------
 */

/*
 * The oid of a handler's function, by its exact signature, or InvalidOid.
 */
Oid
handler_find_function(const Handler *handler)
{
	const EventCatalog *where = catalog_lookup(false);
	Oid			schema = get_namespace_oid(NameStr(handler->function_schema), true);
	Oid			args[2] = {InvalidOid, JSONBOID};
	int			nargs = 1;

	if (!OidIsValid(schema))
		return InvalidOid;
	switch (handler->function_shape)
	{
		case SHAPE_EVENT:
			args[0] = where->log_type;
			break;
		case SHAPE_EVENT_ARRAY:
			args[0] = where->log_array_type;
			break;
		case SHAPE_TEXT:
			args[0] = TEXTOID;
			nargs = 2;
			break;
		case SHAPE_VARCHAR:
			args[0] = VARCHAROID;
			nargs = 2;
			break;
		default:
			return InvalidOid;
	}
	return GetSysCacheOid3(PROCNAMEARGSNSP, Anum_pg_proc_oid,
						   NameGetDatum(&handler->function_name),
						   PointerGetDatum(buildoidvector(args, nargs)),
						   ObjectIdGetDatum(schema));
}

static bool
set_problem(HandlerProblem *problem, int sqlstate, const char *message, const char *hint)
{
	problem->sqlstate = sqlstate;
	problem->message = message;
	problem->hint = hint;
	return false;
}

/*
 * Check the owner: does the role exist, and may it have a session here?
 */
static bool
check_owner(const Handler *handler, HandlerProblem *problem)
{
	HeapTuple	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(handler->owner));
	bool		can_login;
	char	   *role;

	if (!HeapTupleIsValid(tuple))
		return set_problem(problem, ERRCODE_UNDEFINED_OBJECT,
						   psprintf("the role that owned the handler, oid %u, was dropped", handler->owner),
						   "Drop the handler, or give it another owner with alter_event_handler().");
	can_login = ((Form_pg_authid) GETSTRUCT(tuple))->rolcanlogin;
	role = pstrdup(NameStr(((Form_pg_authid) GETSTRUCT(tuple))->rolname));
	ReleaseSysCache(tuple);

	if (!can_login)
		return set_problem(problem, ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION,
						   psprintf("role \"%s\" is not permitted to log in", role),
						   psprintf("A handler runs in a session of its owner: ALTER ROLE %s LOGIN.", quote_identifier(role)));
	if (database_aclcheck(MyDatabaseId, handler->owner, ACL_CONNECT) != ACLCHECK_OK)
		return set_problem(problem, ERRCODE_INSUFFICIENT_PRIVILEGE,
						   psprintf("role \"%s\" may not connect to this database", role),
						   psprintf("A handler runs in a session of its owner: GRANT CONNECT ON DATABASE ... TO %s.", quote_identifier(role)));
	if (pg_class_aclcheck(catalog_lookup(false)->log, handler->owner, ACL_SELECT) != ACLCHECK_OK)
		return set_problem(problem, ERRCODE_INSUFFICIENT_PRIVILEGE,
						   psprintf("role \"%s\" may not read notification_events", role),
						   psprintf("GRANT SELECT ON notification_events TO %s.", quote_identifier(role)));
	if (!pne_superuser_handlers && superuser_arg(handler->owner))
		return set_problem(problem, ERRCODE_INSUFFICIENT_PRIVILEGE,
						   psprintf("role \"%s\" is a superuser", role),
						   "Setting \"pg_notify_events.superuser_handlers\" is off: give the handler another owner.");
	return true;
}

/*
 * Check whether a handler can run now, and find the function that it would call.  If
 * it cannot run, problem says why.
 *
 * The owner of the function can replace its body at any time, and so runs any code as
 * the handler's owner.  Therefore it must have that right anyway: it is a superuser,
 * or a role that can SET ROLE to the handler's owner.
 */
static bool
check_handler(const Handler *handler, Oid *function_oid, HandlerProblem *problem)
{
	char	   *function = psprintf("%s.%s", quote_identifier(NameStr(handler->function_schema)),
									quote_identifier(NameStr(handler->function_name)));
	const char *oversized;
	Oid			oid;
	HeapTuple	tuple;
	Form_pg_proc proc;
	Oid			schema;
	Oid			function_owner;
	bool		strict;
	bool		returns_set;
	char		kind;

	if (!check_owner(handler, problem))
		return false;
	oversized = match_oversized(&handler->pattern);
	if (oversized != NULL)
		return set_problem(problem, ERRCODE_PROGRAM_LIMIT_EXCEEDED, oversized,
						   "Give it a shorter one with alter_event_handler().");

	oid = handler_find_function(handler);
	*function_oid = oid;
	tuple = OidIsValid(oid) ? SearchSysCache1(PROCOID, ObjectIdGetDatum(oid)) : NULL;
	if (!HeapTupleIsValid(tuple))
		return set_problem(problem, ERRCODE_UNDEFINED_FUNCTION,
						   psprintf("function %s does not exist with the signature that the handler was created for", function),
						   "Create it again, or name another one with alter_event_handler().");
	proc = (Form_pg_proc) GETSTRUCT(tuple);
	schema = proc->pronamespace;
	function_owner = proc->proowner;
	strict = proc->proisstrict;
	returns_set = proc->proretset;
	kind = proc->prokind;
	ReleaseSysCache(tuple);

	if (kind != PROKIND_FUNCTION)
		return set_problem(problem, ERRCODE_WRONG_OBJECT_TYPE,
						   psprintf("%s is not a plain function", function),
						   "A handler calls a function, not a procedure, an aggregate or a window function.");
	if (returns_set)
		return set_problem(problem, ERRCODE_INVALID_FUNCTION_DEFINITION,
						   psprintf("function %s returns a set", function),
						   "A handler's result is ignored: RETURNS void does.");
	if (strict)
		return set_problem(problem, ERRCODE_INVALID_FUNCTION_DEFINITION,
						   psprintf("function %s is strict", function),
						   "It would skip events without data: ALTER FUNCTION ... CALLED ON NULL INPUT.");
	if (schema_aclcheck(schema, handler->owner, ACL_USAGE) != ACLCHECK_OK)
		return set_problem(problem, ERRCODE_INSUFFICIENT_PRIVILEGE,
						   psprintf("role \"%s\" may not use the schema of function %s",
									GetUserNameFromId(handler->owner, false), function),
						   "GRANT USAGE ON SCHEMA to the handler's owner.");
	if (function_aclcheck(oid, handler->owner, ACL_EXECUTE) != ACLCHECK_OK)
		return set_problem(problem, ERRCODE_INSUFFICIENT_PRIVILEGE,
						   psprintf("role \"%s\" may not execute function %s",
									GetUserNameFromId(handler->owner, false), function),
						   "GRANT EXECUTE ON FUNCTION to the handler's owner.");
	if (!member_can_set_role(function_owner, handler->owner))
		return set_problem(problem, ERRCODE_INSUFFICIENT_PRIVILEGE,
						   psprintf("function %s belongs to role \"%s\", which may not become role \"%s\"", function,
									GetUserNameFromId(function_owner, false), GetUserNameFromId(handler->owner, false)),
						   psprintf("The owner of a function can replace its body. Give the handler the same owner, owner => %s, or the function another one.",
									quote_literal_cstr(GetUserNameFromId(function_owner, false))));
	if (function_owner != handler->function_owner && function_owner != handler->owner &&
		!superuser_arg(function_owner))
		return set_problem(problem, ERRCODE_INSUFFICIENT_PRIVILEGE,
						   psprintf("function %s belongs to role \"%s\" now", function,
									GetUserNameFromId(function_owner, false)),
						   "Look at it, then confirm it with alter_event_handler().");
	return true;
}

bool
handler_check(const Handler *handler, HandlerProblem *problem)
{
	Oid			function;

	return check_handler(handler, &function, problem);
}

/*
 * Check a handler before a batch.  Returns the function that may be called in this
 * transaction, or InvalidOid.
 *
 * The function is locked, so that it cannot be dropped before the transaction ends,
 * and it is called by the oid that was approved.  Its name is not looked up again: the
 * owner of its schema could give the name to another function at any time.
 */
Oid
handler_approve(const Handler *handler, HandlerProblem *problem)
{
	for (;;)
	{
		Oid			locked = handler_find_function(handler);
		Oid			approved;

		if (OidIsValid(locked))
			LockDatabaseObject(ProcedureRelationId, locked, 0, AccessShareLock);
		if (!check_handler(handler, &approved, problem))
			return InvalidOid;
		if (approved == locked)
			return approved;
	}
}

/* ----------
 * Calling
 * ----------
 */

/*
 * Prepare to call the approved function of a handler.  The result is valid as long as
 * the current memory context.
 */
void
handler_prepare_call(HandlerCall *call, const Handler *handler, Oid function)
{
	fmgr_info(function, &call->function);
	call->shape = handler->function_shape;
	call->context = AllocSetContextCreate(CurrentMemoryContext, "event handler call",
										  ALLOCSET_DEFAULT_SIZES);
}

/*
 * An event as a datum of the log's row type.  The stored row lacks columns that were
 * added without a rewrite.  Not every reader of a row can handle that, so they are
 * filled in.
 */
static Datum
event_datum(const Event *event, TupleDesc desc)
{
	HeapTuple	tuple = event->tuple;

	if (HeapTupleHeaderGetNatts(tuple->t_data) < desc->natts)
		tuple = heap_expand_tuple(tuple, desc);
	return heap_copy_tuple_as_datum(tuple, desc);
}

/*
 * An array of the row type's datums of some events.
 */
static Datum
event_array(Event **events, int nevents, TupleDesc desc)
{
	Oid			type = catalog_lookup(false)->log_type;
	Datum	   *elements = palloc(sizeof(Datum) * nevents);
	int16		length;
	bool		by_value;
	char		align;

	for (int i = 0; i < nevents; i++)
		elements[i] = event_datum(events[i], desc);
	get_typlenbyvalalign(type, &length, &by_value, &align);
	return PointerGetDatum(construct_array(elements, nevents, type, length, by_value, align));
}

/*
 * Undo what code of a role has set since nest_level was taken: settings and roles,
 * locally or for the session.  It costs nothing if the transaction has set nothing.
 *
 * This uses the rollback of settings.  A commit of the nest level would keep what was
 * set with SET, and, until the transaction ends, what was set with SET LOCAL.
 */
void
handler_undo_settings(int nest_level, Oid role)
{
	AtEOXact_GUC(false, nest_level);
	if (GetUserId() != role)
		elog(ERROR, "role %u was left behind where role %u began", GetUserId(), role);
}

/*
 * Call a handler's function with one event, or with all of them if it takes an array.
 * The call is like a statement of its own, with a new snapshot.  What it sets ends
 * with the call: the next call of the batch begins with the session as it was.  The
 * caller is connected to SPI; desc is the log's descriptor.
 */
void
handler_call(HandlerCall *call, Event **events, int nevents, TupleDesc desc)
{
	LOCAL_FCINFO(fcinfo, 2);
	PgStat_FunctionCallUsage usage;
	MemoryContext old = MemoryContextSwitchTo(call->context);
	short		nargs = 1;
	Oid			role = GetUserId();
	int			nest_level;

	Assert(nevents == 1 || call->shape == SHAPE_EVENT_ARRAY);

	InitFunctionCallInfoData(*fcinfo, &call->function, 0, DEFAULT_COLLATION_OID, NULL, NULL);
	fcinfo->args[0].isnull = false;
	switch (call->shape)
	{
		case SHAPE_EVENT:
			fcinfo->args[0].value = event_datum(events[0], desc);
			break;
		case SHAPE_EVENT_ARRAY:
			fcinfo->args[0].value = event_array(events, nevents, desc);
			break;
		default:
			fcinfo->args[0].value = heap_getattr(events[0]->tuple, Anum_event_name, desc,
												 &fcinfo->args[0].isnull);
			fcinfo->args[1].value = heap_getattr(events[0]->tuple, Anum_event_data, desc,
												 &fcinfo->args[1].isnull);
			nargs = 2;
			break;
	}
	fcinfo->nargs = nargs;

	InvokeFunctionExecuteHook(call->function.fn_oid);
	CommandCounterIncrement();
	PushActiveSnapshot(GetTransactionSnapshot());
	nest_level = NewGUCNestLevel();
	pgstat_init_function_usage(fcinfo, &usage);
	(void) FunctionCallInvoke(fcinfo);
	pgstat_end_function_usage(&usage, true);
	handler_undo_settings(nest_level, role);
	PopActiveSnapshot();
	CommandCounterIncrement();

	MemoryContextSwitchTo(old);
	MemoryContextReset(call->context);
}
