/*-------------------------------------------------------------------------
 *
 * record.h
 *		The record of a change, as jsonb.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_RECORD_H
#define PNE_RECORD_H

#include "access/htup.h"
#include "utils/rel.h"

typedef struct ChangeRecord ChangeRecord;

extern ChangeRecord *record_prepare(Relation rel, int ncolumns, const AttrNumber *columns);
extern Datum record_make(const ChangeRecord *record, Relation rel, const char *operation,
						 HeapTuple new_row, HeapTuple old_row);

#endif							/* PNE_RECORD_H */
