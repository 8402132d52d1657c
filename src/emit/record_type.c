/*-------------------------------------------------------------------------
 *
 * record_type.c
 *		What the types of columns require when they are recorded.
 *
 * SETTINGS: the text of many types depends on settings of the session.  What is
 * recorded must not depend on them, or the same row would be another event for
 * each writer.  So fixed settings hold while a row is made into JSON.  Setting
 * one takes a microsecond or more.  Therefore it is found out beforehand on which
 * settings a table's types depend, and only those with another value are set.
 * The time zone is left alone: the instant is the same, whichever offset it is
 * written with.  Settings of other extensions are left alone, too, because they
 * are not known here.
 *
 * JSON: the type json can hold what jsonb cannot: a NUL or half a surrogate pair
 * written with \u, or a number out of range.  Such a value is recorded as a JSON
 * string of its text.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/transam.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "parser/parse_coerce.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/bytea.h"
#include "utils/float.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/pg_locale.h"
#include "utils/typcache.h"

#include "emit/record_type.h"

/* ----------
 * Settings
 * ----------
 */

#define SETTING_DATE		0x01
#define SETTING_INTERVAL	0x02
#define SETTING_BYTES		0x04
#define SETTING_FLOAT		0x08
#define SETTING_EXACT_FLOAT	0x10	/* the server's types need only a value above 0 */
#define SETTING_MONEY		0x20
#define SETTING_QUOTES		0x40
#define SETTING_PATH		0x80

/*
 * What unknown code may depend on.  search_path is not among these settings: a
 * function may find other functions by it, so it keeps its value for such code,
 * even if another column of the row needs a fixed one.
 */
#define SETTINGS_OF_CODE \
	(SETTING_DATE | SETTING_INTERVAL | SETTING_BYTES | SETTING_EXACT_FLOAT | SETTING_MONEY | SETTING_QUOTES)

/*
 * Settings that are fixed only for values of types that depend on them and run
 * no unknown code.
 */
#define SETTINGS_OF_VALUES SETTING_PATH

/*
 * The settings of an output function in C; money is left out, because only the
 * server prints it, and setting lc_monetary is expensive.
 */
#define SETTINGS_OF_OUTPUT (SETTINGS_OF_CODE & ~SETTING_MONEY)

#define RECORD_PATH "pg_catalog, pg_temp"

/*
 * Returns whether DateStyle has the fixed value; the following functions do the
 * same for other settings.
 */
static bool
date_style_holds(void)
{
	return DateStyle == USE_ISO_DATES;
}

static bool
interval_style_holds(void)
{
	return IntervalStyle == INTSTYLE_POSTGRES;
}

static bool
bytea_output_holds(void)
{
	return bytea_output == BYTEA_OUTPUT_HEX;
}

static bool
float_digits_hold(void)
{
	return extra_float_digits > 0;
}

static bool
exact_float_digits_hold(void)
{
	return extra_float_digits == 1;
}

static bool
monetary_locale_holds(void)
{
	return strcmp(locale_monetary, "C") == 0 || strcmp(locale_monetary, "POSIX") == 0;
}

static bool
quotes_hold(void)
{
	return !quote_all_identifiers;
}

static bool
path_holds(void)
{
	return strcmp(namespace_search_path, RECORD_PATH) == 0;
}

static const struct
{
	int			setting;
	const char *name;
	const char *value;
	bool		(*holds) (void);
}			record_settings[] = {
	{SETTING_DATE, "DateStyle", "ISO", date_style_holds},
	{SETTING_INTERVAL, "IntervalStyle", "postgres", interval_style_holds},
	{SETTING_BYTES, "bytea_output", "hex", bytea_output_holds},
	{SETTING_FLOAT, "extra_float_digits", "1", float_digits_hold},
	{SETTING_EXACT_FLOAT, "extra_float_digits", "1", exact_float_digits_hold},
	{SETTING_MONEY, "lc_monetary", "C", monetary_locale_holds},
	{SETTING_QUOTES, "quote_all_identifiers", "off", quotes_hold},
	{SETTING_PATH, "search_path", RECORD_PATH, path_holds},
};

/*
 * The settings on which the server's own output functions depend.
 */
static const struct
{
	PGFunction	output;
	int			settings;
}			output_settings[] = {
	{date_out, SETTING_DATE},
	{timetz_out, SETTING_DATE},
	{timestamp_out, SETTING_DATE},
	{timestamptz_out, SETTING_DATE},
	{interval_out, SETTING_INTERVAL},
	{byteaout, SETTING_BYTES},
	{float4out, SETTING_FLOAT},
	{float8out, SETTING_FLOAT},
	{point_out, SETTING_FLOAT},
	{lseg_out, SETTING_FLOAT},
	{path_out, SETTING_FLOAT},
	{box_out, SETTING_FLOAT},
	{poly_out, SETTING_FLOAT},
	{line_out, SETTING_FLOAT},
	{circle_out, SETTING_FLOAT},
	{cash_out, SETTING_MONEY},
	{regclassout, SETTING_QUOTES | SETTING_PATH},
	{regcollationout, SETTING_QUOTES | SETTING_PATH},
	{regconfigout, SETTING_QUOTES | SETTING_PATH},
	{regdictionaryout, SETTING_QUOTES | SETTING_PATH},
	{regoperout, SETTING_QUOTES | SETTING_PATH},
	{regoperatorout, SETTING_QUOTES | SETTING_PATH},
	{regprocout, SETTING_QUOTES | SETTING_PATH},
	{regprocedureout, SETTING_QUOTES | SETTING_PATH},
	{regtypeout, SETTING_QUOTES | SETTING_PATH},
	{regnamespaceout, SETTING_QUOTES},
	{regroleout, SETTING_QUOTES},
	/* types of extensions use this one, too */
	{textout, 0},
};

/*
 * Give the requested settings (SETTING_ flags) their fixed values.  Returns a
 * level, which must be passed to record_settings_end().  After an error, the
 * end of the transaction or subtransaction restores them.
 */
int
record_settings_begin(int settings)
{
	int			level = 0;

	if (settings == 0)
		return 0;
	for (int i = 0; i < (int) lengthof(record_settings); i++)
	{
		if ((settings & record_settings[i].setting) == 0 || record_settings[i].holds())
			continue;
		if (level == 0)
			level = NewGUCNestLevel();
		(void) set_config_option(record_settings[i].name, record_settings[i].value,
								 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	}
	return level;
}

/*
 * Restore the settings.  level is what record_settings_begin() has returned.
 */
void
record_settings_end(int level)
{
	if (level > 0)
		AtEOXact_GUC(true, level);
}

/* ----------
 * Types
 * ----------
 */

/*
 * Returns whether to_jsonb() calls a cast function for a type, which is neither
 * an array nor a row type.  Casts of the server's own types do not count.
 */
bool
type_has_json_cast(Oid type)
{
	Oid			function;

	return type >= FirstNormalObjectId &&
		find_coercion_pathway(JSONOID, type, COERCION_EXPLICIT, &function) == COERCION_PATH_FUNC;
}

/*
 * Add settings to the traits of a type.
 */
static void
add_settings(TypeTraits *traits, int settings)
{
	traits->settings |= settings & ~SETTINGS_OF_VALUES;
	traits->own_settings |= settings & SETTINGS_OF_VALUES;
}

/*
 * Add the traits of a type that is not made of other types: what its output
 * function depends on.
 */
static void
add_traits_of_output(Oid type, TypeTraits *traits)
{
	FmgrInfo	function;
	Oid			output;
	bool		is_varlena;

	getTypeOutputInfo(type, &output, &is_varlena);
	fmgr_info(output, &function);
	for (int i = 0; i < (int) lengthof(output_settings); i++)
	{
		if (function.fn_addr == output_settings[i].output)
		{
			add_settings(traits, output_settings[i].settings);
			return;
		}
	}
	if (output >= FirstNormalObjectId)
	{
		add_settings(traits, SETTINGS_OF_OUTPUT);
		traits->runs_code = true;
	}
}

/*
 * Add the traits of a row type.
 */
static void
add_traits_of_row(Oid type, TypeTraits *traits)
{
	TupleDesc	desc = lookup_rowtype_tupdesc(type, -1);

	traits->row_types = lappend_oid(traits->row_types, get_typ_typrelid(type));
	for (int i = 0; i < desc->natts; i++)
	{
		if (!TupleDescAttr(desc, i)->attisdropped)
			type_add_traits(TupleDescAttr(desc, i)->atttypid, traits);
	}
	ReleaseTupleDesc(desc);
}

/*
 * Add the traits of a type, and of the types that it is made of.
 */
void
type_add_traits(Oid type, TypeTraits *traits)
{
	Oid			element;

	check_stack_depth();

	type = getBaseType(type);
	element = get_element_type(type);
	if (OidIsValid(element))
	{
		type_add_traits(element, traits);
		return;
	}
	if (type_is_rowtype(type))
	{
		add_traits_of_row(type, traits);
		return;
	}

	if (type == JSONOID)
		traits->has_json = true;
	if (type_has_json_cast(type))
	{
		add_settings(traits, SETTINGS_OF_CODE);
		traits->runs_code = true;
	}
	else if (type_is_range(type))
		type_add_traits(get_range_subtype(type), traits);
	else if (type_is_multirange(type))
		type_add_traits(get_multirange_range(type), traits);
	else
		add_traits_of_output(type, traits);
}

/* ----------
 * JSON
 * ----------
 */

/*
 * Convert JSON text to jsonb.  Returns false if jsonb cannot hold it.
 *
 * This catches an error without a subtransaction, which would cost more than
 * the rest.  That is safe because parsing takes no resources that the end of a
 * subtransaction would have to release.
 */
static bool
json_to_jsonb(const char *json, Datum *jsonb)
{
	MemoryContext context = CurrentMemoryContext;
	uint32		interrupt_holdoff = InterruptHoldoffCount;
	uint32		cancel_holdoff = QueryCancelHoldoffCount;
	volatile bool fits = true;

	PG_TRY();
	{
		*jsonb = DirectFunctionCall1(jsonb_in, CStringGetDatum(json));
	}
	PG_CATCH();
	{
		int			code = geterrcode();

		/* the latter if the database's encoding has no such character */
		if (ERRCODE_TO_CATEGORY(code) != ERRCODE_DATA_EXCEPTION && code != ERRCODE_FEATURE_NOT_SUPPORTED)
			PG_RE_THROW();
		MemoryContextSwitchTo(context);
		FlushErrorState();
		InterruptHoldoffCount = interrupt_holdoff;
		QueryCancelHoldoffCount = cancel_holdoff;
		fits = false;
	}
	PG_END_TRY();

	return fits;
}

/*
 * Returns a text as a JSON string.
 */
static char *
quoted(const char *text)
{
	StringInfoData string;

	initStringInfo(&string);
	escape_json(&string, text);
	return string.data;
}

/*
 * Returns a value of type json as jsonb: as a string of its text if jsonb
 * cannot hold it.
 */
Datum
json_recorded(Datum value)
{
	char	   *json = TextDatumGetCString(value);
	Datum		jsonb = (Datum) 0;

	if (json_to_jsonb(json, &jsonb))
		return jsonb;
	return DirectFunctionCall1(jsonb_in, CStringGetDatum(quoted(json)));
}

/*
 * Returns a value of type json, or a JSON string of its text if jsonb cannot
 * hold it.
 */
static Datum
fit_json(Datum value)
{
	char	   *json = TextDatumGetCString(value);
	Datum		jsonb;

	return json_to_jsonb(json, &jsonb) ? value : CStringGetTextDatum(quoted(json));
}

/*
 * Returns a copy of an array whose elements were passed through
 * json_made_fit().
 */
static Datum
fit_array(Oid element, Datum value)
{
	ArrayType  *array = DatumGetArrayTypeP(value);
	Datum	   *elements;
	bool	   *nulls;
	int			nelements;
	int16		typlen;
	bool		typbyval;
	char		typalign;

	get_typlenbyvalalign(element, &typlen, &typbyval, &typalign);
	deconstruct_array(array, element, typlen, typbyval, typalign, &elements, &nulls, &nelements);
	for (int i = 0; i < nelements; i++)
	{
		if (!nulls[i])
			elements[i] = json_made_fit(element, elements[i]);
	}
	return PointerGetDatum(construct_md_array(elements, nulls, ARR_NDIM(array), ARR_DIMS(array), ARR_LBOUND(array),
											  element, typlen, typbyval, typalign));
}

/*
 * Returns a copy of a row whose columns were passed through json_made_fit().
 */
static Datum
fit_row(Datum value)
{
	HeapTupleHeader header = DatumGetHeapTupleHeader(value);
	TupleDesc	desc = lookup_rowtype_tupdesc(HeapTupleHeaderGetTypeId(header), HeapTupleHeaderGetTypMod(header));
	HeapTupleData tuple;
	Datum	   *values = palloc(sizeof(Datum) * desc->natts);
	bool	   *nulls = palloc(sizeof(bool) * desc->natts);
	Datum		result;

	tuple.t_len = HeapTupleHeaderGetDatumLength(header);
	ItemPointerSetInvalid(&tuple.t_self);
	tuple.t_tableOid = InvalidOid;
	tuple.t_data = header;
	heap_deform_tuple(&tuple, desc, values, nulls);
	for (int i = 0; i < desc->natts; i++)
	{
		/* a dropped column may still have a value, but it has no type */
		nulls[i] |= TupleDescAttr(desc, i)->attisdropped;
		if (!nulls[i])
			values[i] = json_made_fit(TupleDescAttr(desc, i)->atttypid, values[i]);
	}
	result = HeapTupleGetDatum(heap_form_tuple(desc, values, nulls));
	ReleaseTupleDesc(desc);
	return result;
}

/*
 * Returns a value of a type.  If it contains json that jsonb cannot hold, that
 * is replaced in the result by a JSON string of its text.
 */
Datum
json_made_fit(Oid type, Datum value)
{
	Oid			element;

	check_stack_depth();

	type = getBaseType(type);
	if (type == JSONOID)
		return fit_json(value);
	element = get_element_type(type);
	if (OidIsValid(element))
		return fit_array(element, value);
	return type_is_rowtype(type) ? fit_row(value) : value;
}
