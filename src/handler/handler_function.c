/*-------------------------------------------------------------------------
 *
 * handler_function.c
 *		The function that create_event_handler() and alter_event_handler() name.
 *
 * A name with argument types denotes one function.  A name without denotes the one
 * function of that name whose signature a handler can have; without a schema it is
 * looked up in the search path of the caller.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"
#include "utils/syscache.h"
#include "utils/varlena.h"

#include "base/arguments.h"
#include "base/compat.h"
#include "handler/handler_function.h"

static const char shapes[] = {SHAPE_EVENT, SHAPE_EVENT_ARRAY, SHAPE_TEXT, SHAPE_VARCHAR};

#define SHAPES_HINT \
	"A handler's function is f(notification_events), f(notification_events[]), f(text, jsonb) or f(varchar, jsonb)."

/*
 * Find a function of one of the shapes by its name in one schema.
 */
static bool
find_in_schema(Oid schema, const char *function, Handler *handler, const char *given)
{
	bool		found = false;
	char		shape = '\0';

	namestrcpy(&handler->function_schema, get_namespace_name(schema));
	namestrcpy(&handler->function_name, function);
	for (int i = 0; i < (int) lengthof(shapes); i++)
	{
		handler->function_shape = shapes[i];
		if (!OidIsValid(handler_find_function(handler)))
			continue;
		if (found)
			ereport(ERROR,
					(errcode(ERRCODE_AMBIGUOUS_FUNCTION),
					 errmsg("function name \"%s\" is not unique", given),
					 errhint("Give the signature, too. " SHAPES_HINT)));
		found = true;
		shape = shapes[i];
	}
	handler->function_shape = shape;
	return found;
}

/*
 * Find the function that a name with argument types denotes.
 */
static bool
resolve_signature(const char *given, Handler *handler)
{
	Oid			oid = DatumGetObjectId(DirectFunctionCall1(regprocedurein, CStringGetDatum(given)));
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(oid));
	bool		found = false;

	if (HeapTupleIsValid(tuple))
	{
		Form_pg_proc proc = (Form_pg_proc) GETSTRUCT(tuple);

		namestrcpy(&handler->function_schema, get_namespace_name(proc->pronamespace));
		handler->function_name = proc->proname;
		for (int i = 0; i < (int) lengthof(shapes) && !found; i++)
		{
			handler->function_shape = shapes[i];
			found = (handler_find_function(handler) == oid);
		}
		ReleaseSysCache(tuple);
	}
	return found;
}

/*
 * Find the function that a name denotes.  A name without a schema is looked up in the
 * caller's search path.
 */
static bool
resolve_name(const char *given, Handler *handler)
{
	char	   *schema;
	char	   *function;
	ListCell   *lc;

	DeconstructQualifiedName(pne_qualified_name_list(given), &schema, &function);
	if (schema != NULL)
		return find_in_schema(LookupExplicitNamespace(schema, false), function, handler, given);

	foreach(lc, fetch_search_path(true))
	{
		if (find_in_schema(lfirst_oid(lc), function, handler, given))
			return true;
	}
	return false;
}

/*
 * Find the function that the caller denotes.  The server's own errors say what is
 * wrong with a name, but not which name it was or what is expected.
 */
static void
resolve_function(const char *given, Handler *handler)
{
	MemoryContext context = CurrentMemoryContext;
	volatile bool found = false;

	PG_TRY();
	{
		found = strchr(given, '(') != NULL ? resolve_signature(given, handler) :
			resolve_name(given, handler);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		if (error->hint == NULL)
			error->hint = pstrdup(SHAPES_HINT);
		error->message = psprintf("argument \"function\", \"%s\": %s", given, error->message);
		ReThrowError(error);
	}
	PG_END_TRY();

	if (!found)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("\"%s\" names no function that can handle events", given),
				 errhint(SHAPES_HINT)));
}

/*
 * Resolve the function and note its owner.
 */
void
function_argument(FunctionCallInfo fcinfo, int argument, Handler *handler)
{
	require_argument(fcinfo, argument, "function");
	resolve_function(text_to_cstring(PG_GETARG_TEXT_PP(argument)), handler);
}
