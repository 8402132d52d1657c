/*-------------------------------------------------------------------------
 *
 * arguments.c
 *		Arguments of SQL functions, and the transaction they are called in,
 *		checked: what is wrong with one is said in the same words wherever it is
 *		given.
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
 * An interval in milliseconds; a month has 30 days.
 */
int64
interval_to_ms(Datum interval)
{
	Interval   *value = DatumGetIntervalP(interval);

	return value->time / US_PER_MS +
		((int64) value->day + (int64) value->month * DAYS_PER_MONTH) * MS_PER_DAY;
}

/*
 * An argument that must not be null.
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
 * The name of something of ours; what says of what ("event handler").
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
 * A number within bounds.
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
 * A length of time in ms, from min on, within what a timer can take.
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
 * A length of time that is none if it is nothing.
 */
int64
interval_argument(FunctionCallInfo fcinfo, int argument, const char *name)
{
	require_argument(fcinfo, argument, name);
	return interval_from(fcinfo, argument, name, 1, "It must be between 1 millisecond and 24 days.");
}

/*
 * How long to wait, in ms; 0 only looks.
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
 * How long something is to be left alone, in ms; 0 is not at all.
 */
int64
delay_argument(FunctionCallInfo fcinfo, int argument)
{
	require_argument(fcinfo, argument, "delay");
	return interval_from(fcinfo, argument, "delay", 0,
						 "It must be between 0, which means at once, and 24 days.");
}

/*
 * The role that is to own something of ours: one that the caller can become;
 * null is the caller.
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
 * An event's name has 1 to 100 characters.
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
 * An event's data: JSON text to jsonb.  hint says how to do better.
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

		/* still an error, so what it may have left behind goes with it */
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
 * A pattern for event names.
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
 * A filter has nowhere to take variables from, and each event would fail for
 * one.  In the text form of a jsonpath a $ before a quote, outside of quotes,
 * is a variable and nothing else.
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
				 errhint("Each process that runs handlers of its owner keeps it. Have the function look at the data, or take a wider filter.")));
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
 * Complain where a function (named with its parentheses) could not see what has
 * happened since the transaction began.
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
 * Complain where nothing can be written.
 */
void
require_writable(const char *function)
{
	PreventCommandDuringRecovery(function);
	PreventCommandIfReadOnly(function);
	PreventCommandIfParallelMode(function);
}

/*
 * The size of a value, without fetching it from where it is stored.
 */
Size
stored_size(Datum value)
{
	return toast_raw_datum_size(value) - VARHDRSZ;
}
