/*-------------------------------------------------------------------------
 *
 * record_type.h
 *		What the types of columns ask of who records them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_RECORD_TYPE_H
#define PNE_RECORD_TYPE_H

#include "nodes/pg_list.h"

typedef struct TypeTraits
{
	int			settings;		/* on which its text depends, for record_settings_begin() */
	int			own_settings;	/* the same, but those that nothing else may find changed */
	bool		runs_code;		/* of which nobody knows what it depends on */
	bool		has_json;		/* it is json, or has some inside */
	List	   *row_types;		/* relations of the row types in it; a change of one
								 * may change all this */
} TypeTraits;

extern bool type_has_json_cast(Oid type);
extern void type_add_traits(Oid type, TypeTraits *traits);

extern int	record_settings_begin(int settings);
extern void record_settings_end(int level);

extern Datum json_recorded(Datum value);
extern Datum json_made_fit(Oid type, Datum value);

#endif							/* PNE_RECORD_TYPE_H */
