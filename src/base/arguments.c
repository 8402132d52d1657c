/*-------------------------------------------------------------------------
 *
 * arguments.c
 *		Checks of the arguments of SQL functions, and of the transaction that
 *		calls them.
 *
 * Each check is made here, so that the same mistake gives the same message in
 * every function.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <limits.h>

#include "access/detoast.h"
#include "access/xact.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/jsonpath.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "base/arguments.h"
#include "base/compat.h"
#include "base/shared.h"

#define MAX_GLOB_CHARS (2 * EVENT_NAME_MAX_CHARS)

#define MS_PER_DAY ((int64) 86400000)
#define US_PER_MS 1000

/*
 * Convert an interval to milliseconds.  A month has 30 days.
 */
int64
interval_to_ms(Datum interval)
{
	Interval   *value = DatumGetIntervalP(interval);

	return value->time / US_PER_MS +
		((int64) value->day + (int64) value->month * DAYS_PER_MONTH) * MS_PER_DAY;
}

/*
 * Raise an error if an argument (counted from 0) is null.  name is the
 * argument's name, for the message.
 */
void
require_argument(FunctionCallInfo fcinfo, int argument, const char *name)
{
	if (PG_ARGISNULL(argument))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("argument \"%s\" must not be null", name),
				 errhint("Give a value, or leave the argument out where it has a default.")));
}

/*
 * Returns a name argument as a palloc'd string.  Raises an error if it is null,
 * empty or longer than HANDLER_NAME_SIZE - 1 bytes.  what says what it names
 * ("event handler").
 */
char *
name_argument(FunctionCallInfo fcinfo, int argument, const char *argument_name, const char *what)
{
	char	   *name;

	require_argument(fcinfo, argument, argument_name);
	name = text_to_cstring(PG_GETARG_TEXT_PP(argument));
	if (name[0] == '\0' || strlen(name) >= HANDLER_NAME_SIZE)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 name[0] == '\0' ? errmsg("%s name must not be empty", what) :
				 errmsg("%s name \"%.*s...\" is too long", what,
						pg_mbcliplen(name, (int) strlen(name), HANDLER_NAME_SIZE - 1), name),
				 errhint("Such a name has 1 to %d bytes.", HANDLER_NAME_SIZE - 1)));
	return name;
}

/*
 * Returns an integer argument.  Raises an error if it is null or not between 1
 * and max.
 */
int
integer_argument(FunctionCallInfo fcinfo, int argument, const char *name, int max)
{
	int			value;

	require_argument(fcinfo, argument, name);
	value = PG_GETARG_INT32(argument);
	if (value < 1 || value > max)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s %d is out of range", name, value),
				 errhint("It must be between 1 and %d.", max)));
	return value;
}

/*
 * Returns an interval argument, which must not be null, in ms.  Raises an
 * error, with the given hint, if it is less than min or more than a timer can
 * take.
 */
static int64
interval_from(FunctionCallInfo fcinfo, int argument, const char *name, int64 min, const char *hint)
{
	int64		ms = interval_to_ms(PG_GETARG_DATUM(argument));

	if (ms < min || ms > INT_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s \"%s\" is out of range", name,
						DatumGetCString(DirectFunctionCall1(interval_out, PG_GETARG_DATUM(argument)))),
				 errhint("%s", hint)));
	return ms;
}

/*
 * Returns an interval argument in ms.  Raises an error if it is null or less
 * than 1 ms.
 */
int64
interval_argument(FunctionCallInfo fcinfo, int argument, const char *name)
{
	require_argument(fcinfo, argument, name);
	return interval_from(fcinfo, argument, name, 1, "It must be between 1 millisecond and 24 days.");
}

/*
 * Returns the argument "timeout" in ms.  0 means to check once, without
 * waiting.
 */
int64
timeout_argument(FunctionCallInfo fcinfo, int argument)
{
	if (PG_ARGISNULL(argument))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("argument \"timeout\" must not be null"),
				 errhint("Leave it out to wait for 10 seconds.")));
	return interval_from(fcinfo, argument, "timeout", 0,
						 "It must be between 0, which only looks, and 24 days.");
}

/*
 * Returns the argument "delay" in ms.  0 means no delay.
 */
int64
delay_argument(FunctionCallInfo fcinfo, int argument)
{
	require_argument(fcinfo, argument, "delay");
	return interval_from(fcinfo, argument, "delay", 0,
						 "It must be between 0, which means at once, and 24 days.");
}

/*
 * Returns the oid of the role that an argument names as the owner of a new
 * object.  Null means the caller.  Raises an error if the role does not exist,
 * or if the caller cannot SET ROLE to it.  what says what the role is to own
 * ("event handler").
 */
Oid
owner_argument(FunctionCallInfo fcinfo, int argument, const char *what)
{
	char	   *name;
	Oid			role;

	if (PG_ARGISNULL(argument))
		return GetUserId();
	name = text_to_cstring(PG_GETARG_TEXT_PP(argument));
	role = get_role_oid(name, true);
	if (!OidIsValid(role))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("role \"%s\" does not exist", name),
				 errhint("owner is the name of a role as it stands in pg_roles.")));
	if (!member_can_set_role(GetUserId(), role))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to make role \"%s\" the owner of an %s", name, what),
				 errhint("You must be able to SET ROLE to it.")));
	return role;
}

/*
 * Raise an error unless a string of so many bytes is a valid event name: 1 to
 * 100 characters.  It need not be terminated.
 */
void
check_event_name(const char *name, int length)
{
	int			chars = pg_mbstrlen_with_len(name, length);

	if (chars == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("event name must not be empty"),
				 errhint("An event name has 1 to %d characters.", EVENT_NAME_MAX_CHARS)));
	if (chars > EVENT_NAME_MAX_CHARS)
		ereport(ERROR,
				(errcode(ERRCODE_STRING_DATA_RIGHT_TRUNCATION),
				 errmsg("event name \"%.*s...\" is too long",
						pg_mbcharcliplen(name, length, EVENT_NAME_MAX_CHARS), name),
				 errdetail("It has %d characters.", chars),
				 errhint("An event name has 1 to %d characters.", EVENT_NAME_MAX_CHARS)));
}

/*
 * Convert an event's data from JSON text to jsonb.  Raises an error if the text
 * is not valid JSON.  hint tells the user what to write instead.
 */
Datum
parse_event_data(const char *json, const char *hint)
{
	MemoryContext context = CurrentMemoryContext;
	Datum		result = (Datum) 0;

	PG_TRY();
	{
		result = DirectFunctionCall1(jsonb_in, CStringGetDatum(json));
	}
	PG_CATCH();
	{
		ErrorData  *edata;
		int			shown = pg_mbcharcliplen(json, (int) strlen(json), EVENT_NAME_MAX_CHARS);

		MemoryContextSwitchTo(context);
		edata = CopyErrorData();
		if (ERRCODE_TO_CATEGORY(edata->sqlerrcode) != ERRCODE_DATA_EXCEPTION)
			PG_RE_THROW();
		FlushErrorState();

		/*
		 * This is raised as an error again, so what jsonb_in() may have left
		 * behind is cleaned up.
		 */
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_JSON_TEXT),
				 errmsg("event data is not valid JSON: \"%.*s%s\"",
						shown, json, json[shown] != '\0' ? "..." : ""),
				 edata->detail ? errdetail_internal("%s", edata->detail) : 0,
				 errhint("%s", hint)));
	}
	PG_END_TRY();

	return result;
}

/*
 * Returns the argument "event_name", a pattern for event names, as a palloc'd
 * string.  Raises an error if it is null, empty or too long.
 */
char *
event_name_argument(FunctionCallInfo fcinfo, int argument)
{
	char	   *glob;
	int			chars;

	require_argument(fcinfo, argument, "event_name");
	glob = text_to_cstring(PG_GETARG_TEXT_PP(argument));
	chars = pg_mbstrlen(glob);
	if (chars < 1 || chars > MAX_GLOB_CHARS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 chars < 1 ? errmsg("event_name must not be empty") :
				 errmsg("event_name \"%.*s...\" is too long",
						pg_mbcharcliplen(glob, (int) strlen(glob), MAX_GLOB_CHARS), glob),
				 errhint("It has 1 to %d characters; * stands for any run of characters, ? for one.",
						 MAX_GLOB_CHARS)));
	return glob;
}

/*
 * Returns a filter argument, which must not be null.  Raises an error if it is
 * too long or has a variable: nothing supplies values for variables, so each
 * event would fail.
 *
 * In the text form of a jsonpath, a $ before a quote that is not itself inside
 * quotes is always a variable.
 */
Datum
filter_argument(FunctionCallInfo fcinfo, int argument)
{
	Datum		filter = PG_GETARG_DATUM(argument);
	Size		size = stored_size(filter);
	char	   *text;
	bool		quoted = false;

	if (size > MAX_FILTER_BYTES)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("filter has %zu bytes, %zu are allowed", size, MAX_FILTER_BYTES),
				 errhint("Each process that runs handlers of the owner keeps it in memory. Use a shorter filter, and check the rest in the function.")));
	text = DatumGetCString(DirectFunctionCall1(jsonpath_out, filter));
	for (char *p = text; *p != '\0'; p++)
	{
		if (quoted && *p == '\\' && p[1] != '\0')
			p++;
		else if (*p == '"')
			quoted = !quoted;
		else if (!quoted && p[0] == '$' && p[1] == '"')
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("filter %s has a variable", text),
					 errhint("Write the value itself.")));
	}
	return filter;
}

/*
 * Raise an error if the isolation level keeps a function from seeing what has
 * happened since the transaction began.  function is its name with parentheses,
 * what says what it cannot see.
 */
void
require_read_committed(const char *function, const char *what)
{
	if (IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("%s cannot see %s in isolation level %s", function, what,
						XactIsoLevel == XACT_SERIALIZABLE ? "SERIALIZABLE" : "REPEATABLE READ"),
				 errhint("Use READ COMMITTED.")));
}

/*
 * Raise an error if the function cannot write: during recovery, in a read-only
 * transaction, or in parallel mode.  function is its name with parentheses.
 */
void
require_writable(const char *function)
{
	PreventCommandDuringRecovery(function);
	PreventCommandIfReadOnly(function);
	PreventCommandIfParallelMode(function);
}

/*
 * Returns the size of a varlena value in bytes, uncompressed, without
 * detoasting it.
 */
Size
stored_size(Datum value)
{
	return toast_raw_datum_size(value) - VARHDRSZ;
}
