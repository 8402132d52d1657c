/*-------------------------------------------------------------------------
 *
 * match.c
 *		Which events a handler or a consumer wants.
 *
 * Its pattern (EventPattern) selects events by a glob on their name and a jsonpath on
 * their data.  Of those it gets the ones that row security lets its owner see.  This
 * file alone defines what that means.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/jsonb.h"
#include "utils/jsonpath.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/resowner.h"
#include "utils/rls.h"
#include "utils/snapmgr.h"

#include "base/arguments.h"
#include "base/bound_sql.h"
#include "base/catalog.h"
#include "base/internal_sql.h"
#include "log/match.h"

/*
 * Whether a jsonpath is a predicate ($.a > 1), which @@ needs, or a path.
 */
static bool
filter_is_predicate(Datum filter)
{
	JsonPathItem item;

	jspInit(&item, DatumGetJsonPathP(filter));
	if (jspHasNext(&item))
		return false;
	switch (item.type)
	{
		case jpiAnd:
		case jpiOr:
		case jpiNot:
		case jpiIsUnknown:
		case jpiEqual:
		case jpiNotEqual:
		case jpiLess:
		case jpiGreater:
		case jpiLessOrEqual:
		case jpiGreaterOrEqual:
		case jpiExists:
		case jpiStartsWith:
		case jpiLikeRegex:
			return true;
		default:
			return false;
	}
}

/*
 * Say which part of a stored pattern is too long to be read; NULL if none is.
 */
const char *
match_oversized(const EventPattern *pattern)
{
	if (pattern->event_name_size > MAX_PATTERN_BYTES)
		return psprintf("its event_name has %zu bytes, %zu are allowed", pattern->event_name_size,
						MAX_PATTERN_BYTES);
	if (pattern->filter_size > MAX_FILTER_BYTES)
		return psprintf("its filter has %zu bytes, %zu are allowed", pattern->filter_size,
						MAX_FILTER_BYTES);
	return NULL;
}

/*
 * Read a stored pattern, as copies in the current memory context.  filter 0 means that
 * there is none.  A caller that only looks at names does not read the filter.
 */
void
match_read_pattern(EventPattern *pattern, Datum event_name, Datum filter, bool with_filter)
{
	memset(pattern, 0, sizeof(EventPattern));
	pattern->event_name_size = stored_size(event_name);
	if (pattern->event_name_size <= MAX_PATTERN_BYTES)
		pattern->event_name = TextDatumGetCString(event_name);
	else
		pattern->event_name = pstrdup("*");

	if (filter == (Datum) 0)
		return;
	pattern->filter_size = stored_size(filter);
	if (with_filter && pattern->filter_size <= MAX_FILTER_BYTES)
	{
		pattern->filter = PointerGetDatum(PG_DETOAST_DATUM_COPY(filter));
		pattern->filter_is_predicate = filter_is_predicate(pattern->filter);
	}
}

/*
 * Match a glob by characters: * matches any run of them, ? matches one, and everything
 * else matches itself.  On a mismatch the last * takes one character more.  Earlier
 * ones never need to be tried again, so this is O(length of name * length of pattern).
 */
static bool
glob_match(const char *pattern, const char *string)
{
	const char *star = NULL;
	const char *retry = NULL;

	while (*string != '\0')
	{
		if (*pattern == '*')
		{
			star = pattern++;
			if (*pattern == '\0')
				return true;
			retry = string;
		}
		else if (*pattern == '?')
		{
			pattern++;
			string += pg_mblen(string);
		}
		else if (*pattern != '\0' && *pattern == *string)
		{
			pattern++;
			string++;
		}
		else if (star != NULL)
		{
			pattern = star + 1;
			retry += pg_mblen(retry);
			string = retry;
		}
		else
			return false;
	}
	while (*pattern == '*')
		pattern++;
	return *pattern == '\0';
}

bool
match_name(const EventPattern *pattern, const char *event_name)
{
	return glob_match(pattern->event_name, event_name);
}

/*
 * Match a name that is not copied.
 */
bool
match_name_datum(const EventPattern *pattern, Datum event_name)
{
	char	   *name;
	bool		fits;

	if (strcmp(pattern->event_name, "*") == 0)
		return true;
	name = TextDatumGetCString(event_name);
	fits = match_name(pattern, name);
	pfree(name);
	return fits;
}

/*
 * Which names of a set match, by their numbers.  A name without a number of its own
 * may match.
 */
WantedNames *
match_names(const EventPattern *pattern, const NameSet *names)
{
	WantedNames *wanted = palloc(offsetof(WantedNames, names) + sizeof(bool) * names->count);

	wanted->names[NAME_UNKNOWN] = names->has_unknown;
	wanted->count = names->has_unknown ? 1 : 0;
	wanted->some = NAME_UNKNOWN;
	for (NameNumber number = NAME_UNKNOWN + 1; number < names->count; number++)
	{
		wanted->names[number] = match_name(pattern, names->names[number]);
		if (!wanted->names[number])
			continue;
		wanted->count++;
		wanted->some = number;
	}
	return wanted;
}

/*
 * Whether an event's data passes the filter.  Null data does not, nor does data for
 * which the path makes no sense.  @@ and @? suppress most such errors.  An error that
 * they do throw is the event's failure.
 */
bool
match_filter(const EventPattern *pattern, HeapTuple event, TupleDesc desc)
{
	LOCAL_FCINFO(fcinfo, 2);
	FmgrInfo	flinfo;
	bool		isnull;
	Datum		data;
	Datum		result;

	if (pattern->filter == (Datum) 0)
		return true;
	data = heap_getattr(event, Anum_event_data, desc, &isnull);
	if (isnull)
		return false;

	fmgr_info(pattern->filter_is_predicate ? F_JSONB_PATH_MATCH_OPR : F_JSONB_PATH_EXISTS_OPR,
			  &flinfo);
	InitFunctionCallInfoData(*fcinfo, &flinfo, 2, InvalidOid, NULL, NULL);
	fcinfo->args[0].value = data;
	fcinfo->args[0].isnull = false;
	fcinfo->args[1].value = pattern->filter;
	fcinfo->args[1].isnull = false;
	result = FunctionCallInvoke(fcinfo);
	return !fcinfo->isnull && DatumGetBool(result);
}

/*
 * Whether an event's data passes the filter; an error of the filter lets it pass.  For
 * callers that must neither fail nor lose the event.
 */
bool
match_filter_or_error(const EventPattern *pattern, HeapTuple event, TupleDesc desc)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool passes = true;

	if (pattern->filter == (Datum) 0)
		return true;
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		passes = match_filter(pattern, event, desc);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		if (error->sqlerrcode == ERRCODE_QUERY_CANCELED)
			ReThrowError(error);
		FreeErrorData(error);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return passes;
}

typedef struct PendingSearch
{
	const EventPattern *pattern;
	bool		found;
	int64		passed;
	int64		max_passed;
} PendingSearch;

static bool
found_pending(TupleTableSlot *slot, int64 id, void *arg)
{
	PendingSearch *search = (PendingSearch *) arg;
	bool		isnull;

	search->found = match_name_datum(search->pattern, slot_getattr(slot, Anum_event_name, &isnull));
	search->passed++;
	return !search->found && search->passed < search->max_passed;
}

/*
 * Whether the log holds an event with a matching name between a cursor and a snapshot.
 * If it holds none, passed is the number of other events there.  The search ends when
 * passed reaches max_passed.
 */
bool
match_pending(const EventPattern *pattern, EventSnapshot *cursor, Relation log, Snapshot snapshot,
			  const EventSnapshot *upto, int64 max_passed, int64 *passed)
{
	EventPosition position = {.cursor = cursor};
	PendingSearch search = {pattern, false, 0, max_passed};

	window_scan(log, &position, snapshot, upto, found_pending, &search);
	*passed = search.passed;
	return search.found;
}

static int
compare_ids(const void *a, const void *b)
{
	int64		left = *(const int64 *) a;
	int64		right = *(const int64 *) b;

	return (left > right) - (left < right);
}

/*
 * Whether row security on the log applies to the current role.
 */
bool
match_is_restricted(Relation log)
{
	return check_enable_rls(RelationGetRelid(log), InvalidOid, true) == RLS_ENABLED;
}

/*
 * Select those of some ids in the log that the current role may see.  The statement
 * reads this log, whatever its name means by now (bound_sql.c), with the rights of a
 * reader, not of the owner of the log's schema.
 */
static void
select_visible(Relation log, Datum ids)
{
	Oid			argtype = INT8ARRAYOID;
	Oid			relid = RelationGetRelid(log);
	BoundSql	bound = {.tables = &relid, .ntables = 1};
	volatile int result = 0;

	bound.sql = psprintf("SELECT e.id FROM %s AS e WHERE e.id OPERATOR(pg_catalog.=) ANY ($1)",
						 quote_qualified_identifier(get_namespace_name(RelationGetNamespace(log)),
													RelationGetRelationName(log)));
	bound_sql_begin(&bound);
	PG_TRY();
	{
		result = SPI_execute_with_args(bound.sql, 1, &argtype, &ids, NULL, true, 0);
		bound_sql_require_check(&bound);
	}
	PG_FINALLY();
	{
		bound_sql_end(&bound);
	}
	PG_END_TRY();
	if (result != SPI_OK_SELECT)
		elog(ERROR, "could not read the log as its reader");
}

/*
 * If row security on the log applies to the current role, mark the events that it
 * hides.  The caller is connected to SPI and has an active snapshot.
 */
void
match_row_security(Relation log, Event *events, int nevents)
{
	int64	   *ids;
	Datum		value;
	int64	   *seen;
	bool		isnull;

	if (!match_is_restricted(log))
		return;

	Assert(ActiveSnapshotSet());
	ids = palloc(sizeof(int64) * nevents);
	for (int i = 0; i < nevents; i++)
		ids[i] = events[i].id;
	value = internal_ids(ids, nevents);
	select_visible(log, value);

	seen = palloc(sizeof(int64) * (SPI_processed + 1));
	for (uint64 i = 0; i < SPI_processed; i++)
		seen[i] = DatumGetInt64(internal_value((int) i, 1, &isnull));
	qsort(seen, SPI_processed, sizeof(int64), compare_ids);
	for (int i = 0; i < nevents; i++)
		events[i].hidden = (bsearch(&events[i].id, seen, SPI_processed, sizeof(int64), compare_ids) == NULL);
	SPI_freetuptable(SPI_tuptable);
}
