/*-------------------------------------------------------------------------
 *
 * change_record.h
 *		The record of a change, as jsonb.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_CHANGE_RECORD_H
#define PNE_CHANGE_RECORD_H

#include "access/htup.h"
#include "commands/trigger.h"
#include "utils/rel.h"

typedef struct ChangeRecord ChangeRecord;

extern ChangeRecord *change_record_prepare(Relation rel, Oid named, int ncolumns, const AttrNumber *columns);
extern bool change_record_has_row_type(const ChangeRecord *record, Oid relid);
extern Datum change_record_make(const ChangeRecord *record, const TriggerData *trigdata, const char *operation,
						 HeapTuple new_row, HeapTuple old_row);

#endif							/* PNE_CHANGE_RECORD_H */
