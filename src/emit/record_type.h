/*-------------------------------------------------------------------------
 *
 * record_type.h
 *		What the types of columns require when they are recorded.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_RECORD_TYPE_H
#define PNE_RECORD_TYPE_H

#include "nodes/pg_list.h"

typedef struct TypeTraits
{
	int			settings;		/* on which its text depends, for record_settings_begin() */
	int			own_settings;	/* the same, but fixed only for its own values */
	bool		runs_code;		/* it runs code whose dependencies are not known */
	bool		has_json;		/* it is json, or contains json */
	List	   *row_types;		/* relations of the row types in it; a change of one
								 * may change all of these traits */
} TypeTraits;

extern bool type_has_json_cast(Oid type);
extern void type_add_traits(Oid type, TypeTraits *traits);

extern int	record_settings_begin(int settings);
extern void record_settings_end(int level);

extern Datum json_recorded(Datum value);
extern Datum json_made_fit(Oid type, Datum value);

#endif							/* PNE_RECORD_TYPE_H */
