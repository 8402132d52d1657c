/*-------------------------------------------------------------------------
 *
 * change_record.c
 *		The record of a change, {"op", "schema", "table", "new", "old"}, as jsonb.
 *
 * A row is written as the server's to_jsonb() would write it.  to_jsonb() itself
 * is called for a column whose type is an array or a row type, or has a cast to
 * JSON.  How to_jsonb() writes the other types is known here, so that nothing is
 * looked up for each row, and the names of the columns are not sorted again.
 * This saves half of the time that an event takes apart from being stored.
 * sql/emit.sql tests that both ways yield the same bytes.  record_type.c deals
 * with settings of the session, and with JSON that jsonb cannot hold.
 *
 * An error message names the column and says how to leave it out, because the
 * user whose transaction fails may know nothing of the trigger.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "utils/builtins.h"
#include "utils/date.h"
#include "utils/fmgroids.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/numeric.h"

#include "emit/change_record.h"
#include "emit/record_type.h"

/* number of fields of the record */
#define RECORD_FIELDS	5

typedef enum FieldWay
{
	FIELD_PLAIN,				/* a type known here, or else the type's text */
	FIELD_JSON,					/* json */
	FIELD_JSONB,				/* jsonb */
	FIELD_TO_JSONB				/* by to_jsonb() */
} FieldWay;

/* a column to record */
typedef struct Field
{
	AttrNumber	attnum;
	JsonbValue	name;
	Oid			type;			/* the base type of a domain */
	FieldWay	way;
	bool		has_json;		/* json is somewhere inside */
	int			settings;		/* settings that are fixed only for this column */
	FmgrInfo	function;		/* the type's output function, or to_jsonb() */
} Field;

struct ChangeRecord
{
	char	   *schema;
	char	   *table;
	int			nfields;
	Field	   *fields;			/* in the order of keys of a jsonb */
	TypeTraits	traits;			/* of all fields */
};

/* a record that is being made */
typedef struct Making
{
	const ChangeRecord *record;
	const char *trigger;
	const Field *field;			/* that is being written, or NULL */
} Making;

/* ----------
 * What to record
 * ----------
 */

/*
 * Make a string value.  The string is not copied and need not be terminated.
 */
static void
set_string(JsonbValue *value, const char *string, int length)
{
	/* the server has the same limit and message */
	if (length > JENTRY_OFFLENMASK)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("string too long to represent as jsonb string"),
				 errdetail("Due to an implementation restriction, jsonb strings cannot exceed %d bytes.",
						   JENTRY_OFFLENMASK)));
	value->type = jbvString;
	value->val.string.val = unconstify(char *, string);
	value->val.string.len = length;
}

/*
 * Returns how to write a type that is not a domain.
 */
static FieldWay
way_of_type(Oid type)
{
	if (type == JSONOID)
		return FIELD_JSON;
	if (type == JSONBOID)
		return FIELD_JSONB;
	if (OidIsValid(get_element_type(type)) || type_is_rowtype(type) || type_has_json_cast(type))
		return FIELD_TO_JSONB;
	return FIELD_PLAIN;
}

/*
 * Prepare the call of to_jsonb() for values of a type.
 */
static void
prepare_to_jsonb(FmgrInfo *function, Oid type)
{
	List	   *args = list_make1(makeNullConst(type, -1, InvalidOid));

	/* to_jsonb() takes its argument's type from the call expression */
	fmgr_info(F_TO_JSONB, function);
	fmgr_info_set_expr((Node *) makeFuncExpr(F_TO_JSONB, JSONBOID, args, InvalidOid, InvalidOid,
											 COERCE_EXPLICIT_CALL),
					   function);
}

/*
 * Compare two fields in the order of keys in a jsonb, for qsort().
 */
static int
compare_fields(const void *a, const void *b)
{
	const Field *one = a;
	const Field *other = b;

	if (one->name.val.string.len != other->name.val.string.len)
		return one->name.val.string.len > other->name.val.string.len ? 1 : -1;
	return memcmp(one->name.val.string.val, other->name.val.string.val, one->name.val.string.len);
}

/*
 * Find out how to write a column, and add to traits what its type requires of
 * the whole record.
 */
static void
prepare_field(Field *field, Form_pg_attribute attribute, TypeTraits *traits)
{
	TypeTraits	own = {0};
	char	   *name = pstrdup(NameStr(attribute->attname));
	Oid			output;
	bool		is_varlena;

	field->attnum = attribute->attnum;
	set_string(&field->name, name, (int) strlen(name));
	field->type = getBaseType(attribute->atttypid);
	field->way = way_of_type(field->type);
	if (field->way == FIELD_TO_JSONB)
		prepare_to_jsonb(&field->function, field->type);
	else
	{
		getTypeOutputInfo(field->type, &output, &is_varlena);
		fmgr_info(output, &field->function);
	}

	type_add_traits(field->type, &own);
	field->has_json = own.has_json;
	field->settings = own.runs_code ? 0 : own.own_settings;
	traits->settings |= own.settings;
	traits->row_types = list_concat(traits->row_types, own.row_types);
}

/*
 * Find out how to write the columns to record: the given ones, or all if
 * ncolumns is 0.
 */
static void
prepare_fields(ChangeRecord *record, TupleDesc desc, int ncolumns, const AttrNumber *columns)
{
	int			n = ncolumns > 0 ? ncolumns : desc->natts;
	int			different = 0;

	record->fields = palloc0(sizeof(Field) * Max(n, 1));
	for (int i = 0; i < n; i++)
	{
		AttrNumber	attnum = (AttrNumber) (ncolumns > 0 ? columns[i] : i + 1);
		Form_pg_attribute attribute = TupleDescAttr(desc, attnum - 1);

		if (!attribute->attisdropped)
			prepare_field(&record->fields[record->nfields++], attribute, &record->traits);
	}

	qsort(record->fields, record->nfields, sizeof(Field), compare_fields);
	/* record a column once, even if it is named twice */
	for (int i = 0; i < record->nfields; i++)
	{
		if (i == 0 || compare_fields(&record->fields[i - 1], &record->fields[i]) != 0)
			record->fields[different++] = record->fields[i];
	}
	record->nfields = different;
}

/* ----------
 * Values
 * ----------
 */

/*
 * Write a number.  Infinities and NaN become strings.
 */
static void
write_number(JsonbValue *value, const Field *field, Datum datum)
{
	char	   *output;

	switch (field->type)
	{
		case INT2OID:
			value->val.numeric = int64_to_numeric(DatumGetInt16(datum));
			break;
		case INT4OID:
			value->val.numeric = int64_to_numeric(DatumGetInt32(datum));
			break;
		case INT8OID:
			value->val.numeric = int64_to_numeric(DatumGetInt64(datum));
			break;
		default:
			output = OutputFunctionCall(unconstify(FmgrInfo *, &field->function), datum);
			if (strpbrk(output, "Nn") != NULL)
			{
				set_string(value, output, (int) strlen(output));
				return;
			}
			value->val.numeric = DatumGetNumeric(DirectFunctionCall3(numeric_in, CStringGetDatum(output),
																	 ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1)));
	}
	value->type = jbvNumeric;
}

/*
 * Copy the array or object that the iterator has begun, with everything inside
 * it, into value.  value is its first token.
 */
static void
unpack_container(JsonbValue *value, JsonbIterator **iterator)
{
	JsonbValue	end;

	check_stack_depth();

	if (value->type == jbvArray)
	{
		JsonbValue *elements = palloc(sizeof(JsonbValue) * Max(value->val.array.nElems, 1));

		for (int i = 0; i < value->val.array.nElems; i++)
		{
			if (JsonbIteratorNext(iterator, &elements[i], false) != WJB_ELEM)
				unpack_container(&elements[i], iterator);
		}
		value->val.array.elems = elements;
	}
	else
	{
		JsonbPair  *pairs = palloc(sizeof(JsonbPair) * Max(value->val.object.nPairs, 1));

		for (int i = 0; i < value->val.object.nPairs; i++)
		{
			(void) JsonbIteratorNext(iterator, &pairs[i].key, false);
			if (JsonbIteratorNext(iterator, &pairs[i].value, false) != WJB_VALUE)
				unpack_container(&pairs[i].value, iterator);
			pairs[i].order = i;
		}
		value->val.object.pairs = pairs;
	}
	(void) JsonbIteratorNext(iterator, &end, false);
}

/*
 * Write a jsonb as a part of the record.
 */
static void
write_jsonb(JsonbValue *value, Datum datum)
{
	Jsonb	   *jsonb = DatumGetJsonbP(datum);
	JsonbIterator *iterator;

	if (JB_ROOT_IS_SCALAR(jsonb))
	{
		(void) JsonbExtractScalar(&jsonb->root, value);
		return;
	}
	iterator = JsonbIteratorInit(&jsonb->root);
	(void) JsonbIteratorNext(&iterator, value, false);
	unpack_container(value, &iterator);
}

/*
 * Write a value that is not null: as to_jsonb() does if the type is known here,
 * else as its text.
 */
static void
write_plain(JsonbValue *value, const Field *field, Datum datum)
{
	char	   *output;

	switch (field->type)
	{
		case BOOLOID:
			value->type = jbvBool;
			value->val.boolean = DatumGetBool(datum);
			return;
		case INT2OID:
		case INT4OID:
		case INT8OID:
		case FLOAT4OID:
		case FLOAT8OID:
			write_number(value, field, datum);
			return;
		case NUMERICOID:
			value->val.numeric = DatumGetNumeric(datum);
			if (numeric_is_nan(value->val.numeric) || numeric_is_inf(value->val.numeric))
				write_number(value, field, datum);
			else
				value->type = jbvNumeric;
			return;
		case TEXTOID:
		case VARCHAROID:
		case BPCHAROID:
			{
				text	   *string = DatumGetTextPP(datum);

				set_string(value, VARDATA_ANY(string), (int) VARSIZE_ANY_EXHDR(string));
				return;
			}
		case DATEOID:
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
			output = JsonEncodeDateTime(NULL, datum, field->type, NULL);
			break;
		default:
			output = OutputFunctionCall(unconstify(FmgrInfo *, &field->function), datum);
			break;
	}
	set_string(value, output, (int) strlen(output));
}

/*
 * Write a value that is not null.
 */
static void
write_value(JsonbValue *value, const Field *field, Datum datum)
{
	switch (field->way)
	{
		case FIELD_PLAIN:
			write_plain(value, field, datum);
			return;
		case FIELD_JSON:
			write_jsonb(value, json_recorded(datum));
			return;
		case FIELD_JSONB:
			write_jsonb(value, datum);
			return;
		case FIELD_TO_JSONB:
			if (field->has_json)
				datum = json_made_fit(field->type, datum);
			write_jsonb(value, FunctionCall1(unconstify(FmgrInfo *, &field->function), datum));
			return;
	}
}

/* ----------
 * The record
 * ----------
 */

/*
 * Write a row as a JSON object, or null if tuple is NULL.
 */
static void
write_row(JsonbValue *value, Making *making, TupleDesc desc, HeapTuple tuple)
{
	const ChangeRecord *record = making->record;
	Datum	   *values;
	bool	   *nulls;
	JsonbPair  *pairs;

	if (tuple == NULL)
	{
		value->type = jbvNull;
		return;
	}

	values = palloc(sizeof(Datum) * desc->natts);
	nulls = palloc(sizeof(bool) * desc->natts);
	heap_deform_tuple(tuple, desc, values, nulls);
	pairs = palloc(sizeof(JsonbPair) * Max(record->nfields, 1));
	for (int i = 0; i < record->nfields; i++)
	{
		const Field *field = &record->fields[i];

		pairs[i].key = field->name;
		pairs[i].order = i;
		if (nulls[field->attnum - 1])
			pairs[i].value.type = jbvNull;
		else
		{
			int			level = record_settings_begin(field->settings);

			making->field = field;
			write_value(&pairs[i].value, field, values[field->attnum - 1]);
			record_settings_end(level);
		}
	}
	making->field = NULL;
	value->type = jbvObject;
	value->val.object.nPairs = record->nfields;
	value->val.object.pairs = pairs;
}

/*
 * Make the record.  Either row may be NULL.
 */
static Datum
make_record(Making *making, TupleDesc desc, const char *operation, HeapTuple new_row, HeapTuple old_row)
{
	/* in the order of the keys of a jsonb */
	static const char *const names[RECORD_FIELDS] = {"op", "new", "old", "table", "schema"};
	const ChangeRecord *record = making->record;
	JsonbPair	pairs[RECORD_FIELDS];
	JsonbValue	value;

	for (int i = 0; i < RECORD_FIELDS; i++)
	{
		set_string(&pairs[i].key, names[i], (int) strlen(names[i]));
		pairs[i].order = i;
	}
	set_string(&pairs[0].value, operation, (int) strlen(operation));
	write_row(&pairs[1].value, making, desc, new_row);
	write_row(&pairs[2].value, making, desc, old_row);
	set_string(&pairs[3].value, record->table, (int) strlen(record->table));
	set_string(&pairs[4].value, record->schema, (int) strlen(record->schema));

	value.type = jbvObject;
	value.val.object.nPairs = RECORD_FIELDS;
	value.val.object.pairs = pairs;
	return JsonbPGetDatum(JsonbValueToJsonb(&value));
}

/*
 * Error context callback: names the column, the table and the trigger.
 */
static void
say_what_is_recorded(void *arg)
{
	const Making *making = arg;

	if (making->field != NULL)
		errcontext("column \"%.*s\" of table \"%s.%s\", recorded by trigger \"%s\"",
				   making->field->name.val.string.len, making->field->name.val.string.val,
				   making->record->schema, making->record->table, making->trigger);
	else
		errcontext("row of table \"%s.%s\", recorded by trigger \"%s\"",
				   making->record->schema, making->record->table, making->trigger);
}

/*
 * Throw the error again, with advice in its hint, unless it is a cancel or the
 * like.  Must be called in a PG_CATCH block.  context is the memory context
 * before the error.
 */
static void
throw_with_hint(MemoryContext context)
{
	ErrorData  *error;

	MemoryContextSwitchTo(context);
	error = CopyErrorData();
	FlushErrorState();
	if (ERRCODE_TO_CATEGORY(error->sqlerrcode) != ERRCODE_OPERATOR_INTERVENTION)
		error->hint = psprintf("%s%sTo leave columns out, name those to record in CREATE TRIGGER: "
							   "notify_event('name', new, column, ...).",
							   error->hint ? error->hint : "", error->hint ? "\n" : "");
	ReThrowError(error);
}

/*
 * Prepare the records of changes of a table, with the given columns, or with
 * whole rows if ncolumns is 0.  named is the table that the records name: this
 * table, or one of which it is a partition.
 *
 * The result is in the current memory context.  It is valid as long as the
 * definition of the table does not change.
 */
ChangeRecord *
change_record_prepare(Relation rel, Oid named, int ncolumns, const AttrNumber *columns)
{
	ChangeRecord *record = palloc0(sizeof(ChangeRecord));

	record->schema = get_namespace_name(get_rel_namespace(named));
	record->table = get_rel_name(named);
	prepare_fields(record, RelationGetDescr(rel), ncolumns, columns);
	return record;
}

/*
 * Returns whether the row type of a relation occurs in what is recorded.
 */
bool
change_record_has_row_type(const ChangeRecord *record, Oid relid)
{
	return list_member_oid(record->traits.row_types, relid);
}

/*
 * Returns the record of a change, as jsonb.  operation is its name, such as
 * INSERT.  Either row may be NULL.  Errors name the column and the trigger.
 */
Datum
change_record_make(const ChangeRecord *record, const TriggerData *trigdata, const char *operation,
			HeapTuple new_row, HeapTuple old_row)
{
	MemoryContext context = CurrentMemoryContext;
	Making		making = {record, trigdata->tg_trigger->tgname, NULL};
	ErrorContextCallback callback;
	Datum		result = (Datum) 0;
	int			level;

	callback.callback = say_what_is_recorded;
	callback.arg = &making;
	callback.previous = error_context_stack;
	error_context_stack = &callback;

	level = record_settings_begin(record->traits.settings);
	PG_TRY();
	{
		result = make_record(&making, RelationGetDescr(trigdata->tg_relation), operation, new_row, old_row);
	}
	PG_CATCH();
	{
		throw_with_hint(context);
	}
	PG_END_TRY();
	record_settings_end(level);

	error_context_stack = callback.previous;
	return result;
}
