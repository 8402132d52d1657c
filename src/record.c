/*-------------------------------------------------------------------------
 *
 * record.c
 *		The record of a change, {"op", "schema", "table", "new", "old"}, as jsonb.
 *
 * What a row looks like in it is what the server's to_jsonb() makes of it.  That
 * is asked itself, with a row of those five fields, where a column is of a type
 * of somebody's own, an array, a row or JSON.  Of the other types it is known
 * how to_jsonb() writes them, and the record is made directly, without looking
 * at the types again for each row and without sorting the names of the columns
 * again: half of the time that an event takes besides being stored.  That both
 * ways yield the same bytes is tested (sql/emit.sql).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/transam.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "nodes/makefuncs.h"
#include "utils/builtins.h"
#include "utils/date.h"
#include "utils/fmgroids.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/numeric.h"

#include "compat.h"
#include "record.h"

/* fields of the record, as a row */
#define RECORD_OP		1
#define RECORD_SCHEMA	2
#define RECORD_TABLE	3
#define RECORD_NEW		4
#define RECORD_OLD		5
#define RECORD_FIELDS	5

/* a column that is written directly */
typedef struct Field
{
	AttrNumber	attnum;
	JsonbValue	name;
	Oid			type;			/* below all domains */
	FmgrInfo	output;
} Field;

struct ChangeRecord
{
	char	   *schema;
	char	   *table;

	/* the columns to record; 0: whole rows */
	int			ncolumns;
	const AttrNumber *columns;
	TupleDesc	columns_desc;

	/* what is written directly, in the order of keys of a jsonb */
	bool		direct;
	int			nfields;
	Field	   *fields;
};

/* the record as a row, the same for all tables, made once per backend */
static TupleDesc record_desc = NULL;
static FmgrInfo record_to_jsonb;

/* ----------
 * By to_jsonb()
 * ----------
 */

/*
 * Make what turns the record of a change to jsonb.
 */
static void
prepare_to_jsonb(void)
{
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
	TupleDesc	desc = CreateTemplateTupleDesc(RECORD_FIELDS);
	List	   *args;

	TupleDescInitEntry(desc, RECORD_OP, "op", TEXTOID, -1, 0);
	TupleDescInitEntry(desc, RECORD_SCHEMA, "schema", TEXTOID, -1, 0);
	TupleDescInitEntry(desc, RECORD_TABLE, "table", TEXTOID, -1, 0);
	TupleDescInitEntry(desc, RECORD_NEW, "new", RECORDOID, -1, 0);
	TupleDescInitEntry(desc, RECORD_OLD, "old", RECORDOID, -1, 0);
	TupleDescFinalize(desc);
	BlessTupleDesc(desc);

	/* to_jsonb asks its call expression for the type of its argument */
	fmgr_info_cxt(F_TO_JSONB, &record_to_jsonb, TopMemoryContext);
	args = list_make1(makeNullConst(RECORDOID, -1, InvalidOid));
	fmgr_info_set_expr((Node *) makeFuncExpr(F_TO_JSONB, JSONBOID, args, InvalidOid, InvalidOid,
											 COERCE_EXPLICIT_CALL),
					   &record_to_jsonb);
	MemoryContextSwitchTo(old);
	record_desc = desc;
}

/*
 * A row as a composite datum, whole or reduced to the columns to record.
 */
static Datum
row_datum(const ChangeRecord *record, TupleDesc desc, HeapTuple tuple)
{
	Datum	   *values;
	bool	   *nulls;

	if (record->ncolumns == 0)
		return heap_copy_tuple_as_datum(tuple, desc);

	values = palloc(sizeof(Datum) * record->ncolumns);
	nulls = palloc(sizeof(bool) * record->ncolumns);
	for (int i = 0; i < record->ncolumns; i++)
		values[i] = heap_getattr(tuple, record->columns[i], desc, &nulls[i]);
	return HeapTupleGetDatum(heap_form_tuple(record->columns_desc, values, nulls));
}

static Datum
make_by_to_jsonb(const ChangeRecord *record, TupleDesc desc, const char *operation,
				 HeapTuple new_row, HeapTuple old_row)
{
	Datum		values[RECORD_FIELDS];
	bool		nulls[RECORD_FIELDS] = {false};

	if (record_desc == NULL)
		prepare_to_jsonb();

	values[RECORD_OP - 1] = CStringGetTextDatum(operation);
	values[RECORD_SCHEMA - 1] = CStringGetTextDatum(record->schema);
	values[RECORD_TABLE - 1] = CStringGetTextDatum(record->table);
	nulls[RECORD_NEW - 1] = (new_row == NULL);
	nulls[RECORD_OLD - 1] = (old_row == NULL);
	if (new_row != NULL)
		values[RECORD_NEW - 1] = row_datum(record, desc, new_row);
	if (old_row != NULL)
		values[RECORD_OLD - 1] = row_datum(record, desc, old_row);

	return FunctionCall1(&record_to_jsonb,
						 HeapTupleGetDatum(heap_form_tuple(record_desc, values, nulls)));
}

/* ----------
 * Directly
 * ----------
 */

static void
set_string(JsonbValue *value, const char *string, int length)
{
	/* the server's own limit and words */
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
 * Whether a type, which is no domain, is one that we know how to write.  Types
 * that are not built in could have a cast to JSON.
 */
static bool
is_plain_type(Oid type)
{
	return type < FirstNormalObjectId && type != JSONOID && type != JSONBOID &&
		!OidIsValid(get_element_type(type)) && !type_is_rowtype(type);
}

/*
 * The order of keys in a jsonb.
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
 * Find out how to write the columns to record, if all can be written directly.
 */
static void
prepare_fields(ChangeRecord *record, TupleDesc desc)
{
	int			n = record->ncolumns > 0 ? record->ncolumns : desc->natts;

	record->fields = palloc(sizeof(Field) * Max(n, 1));
	for (int i = 0; i < n; i++)
	{
		AttrNumber	attnum = (AttrNumber) (record->ncolumns > 0 ? record->columns[i] : i + 1);
		Form_pg_attribute attribute = TupleDescAttr(desc, attnum - 1);
		Field	   *field = &record->fields[record->nfields];
		char	   *name;
		Oid			output;
		bool		is_varlena;

		if (attribute->attisdropped)
			continue;
		field->attnum = attnum;
		field->type = getBaseType(attribute->atttypid);
		if (!is_plain_type(field->type))
			return;
		name = pstrdup(NameStr(attribute->attname));
		set_string(&field->name, name, (int) strlen(name));
		getTypeOutputInfo(field->type, &output, &is_varlena);
		fmgr_info(output, &field->output);
		record->nfields++;
	}

	qsort(record->fields, record->nfields, sizeof(Field), compare_fields);
	/* a column that is named twice is recorded once */
	for (int i = 1; i < record->nfields; i++)
	{
		if (compare_fields(&record->fields[i - 1], &record->fields[i]) == 0)
			return;
	}
	record->direct = true;
}

/*
 * A number, of which infinities and NaN can only be strings.
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
			output = OutputFunctionCall(unconstify(FmgrInfo *, &field->output), datum);
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
 * A value that is not null.
 */
static void
write_value(JsonbValue *value, const Field *field, Datum datum)
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
			output = OutputFunctionCall(unconstify(FmgrInfo *, &field->output), datum);
			break;
	}
	set_string(value, output, (int) strlen(output));
}

/*
 * A row as a JSON object, or null.
 */
static void
write_row(JsonbValue *value, const ChangeRecord *record, TupleDesc desc, HeapTuple tuple)
{
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
			write_value(&pairs[i].value, field, values[field->attnum - 1]);
	}
	value->type = jbvObject;
	value->val.object.nPairs = record->nfields;
	value->val.object.pairs = pairs;
}

static Datum
make_directly(const ChangeRecord *record, TupleDesc desc, const char *operation,
			  HeapTuple new_row, HeapTuple old_row)
{
	/* in the order of keys of a jsonb */
	static const char *const names[RECORD_FIELDS] = {"op", "new", "old", "table", "schema"};
	JsonbPair	pairs[RECORD_FIELDS];
	JsonbValue	value;

	for (int i = 0; i < RECORD_FIELDS; i++)
	{
		set_string(&pairs[i].key, names[i], (int) strlen(names[i]));
		pairs[i].order = i;
	}
	set_string(&pairs[0].value, operation, (int) strlen(operation));
	write_row(&pairs[1].value, record, desc, new_row);
	write_row(&pairs[2].value, record, desc, old_row);
	set_string(&pairs[3].value, record->table, (int) strlen(record->table));
	set_string(&pairs[4].value, record->schema, (int) strlen(record->schema));

	value.type = jbvObject;
	value.val.object.nPairs = RECORD_FIELDS;
	value.val.object.pairs = pairs;
	return JsonbPGetDatum(JsonbValueToJsonb(&value));
}

/* ----------
 * Either way
 * ----------
 */

/*
 * What the records of changes of a table need, with these columns of it, or with
 * whole rows where there are none.  Lives in the current memory context, as the
 * columns must; the table must not change meanwhile.
 */
ChangeRecord *
record_prepare(Relation rel, int ncolumns, const AttrNumber *columns)
{
	ChangeRecord *record = palloc0(sizeof(ChangeRecord));
	TupleDesc	desc = RelationGetDescr(rel);

	record->schema = get_namespace_name(RelationGetNamespace(rel));
	record->table = pstrdup(RelationGetRelationName(rel));
	record->ncolumns = ncolumns;
	record->columns = columns;
	prepare_fields(record, desc);
	if (!record->direct && ncolumns > 0)
	{
		record->columns_desc = CreateTemplateTupleDesc(ncolumns);
		for (int i = 0; i < ncolumns; i++)
			TupleDescCopyEntry(record->columns_desc, (AttrNumber) (i + 1), desc, columns[i]);
		TupleDescFinalize(record->columns_desc);
		BlessTupleDesc(record->columns_desc);
	}
	return record;
}

/*
 * The record of a change, as jsonb; either row may be NULL.
 */
Datum
record_make(const ChangeRecord *record, Relation rel, const char *operation,
			HeapTuple new_row, HeapTuple old_row)
{
	if (record->direct)
		return make_directly(record, RelationGetDescr(rel), operation, new_row, old_row);
	return make_by_to_jsonb(record, RelationGetDescr(rel), operation, new_row, old_row);
}
