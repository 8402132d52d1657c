/*-------------------------------------------------------------------------
 *
 * emit_trigger.h
 *		Finds out what a trigger that calls notify_event() records.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_EMIT_TRIGGER_H
#define PNE_EMIT_TRIGGER_H

#include "commands/trigger.h"
#include "fmgr.h"

typedef struct EmitTrigger EmitTrigger;

extern EmitTrigger *emit_trigger_find(FunctionCallInfo fcinfo);
extern Datum emit_trigger_name(EmitTrigger *emitter, TriggerData *trigdata);
extern Datum emit_trigger_data(const EmitTrigger *emitter, TriggerData *trigdata,
							   HeapTuple new_row, HeapTuple old_row);

#endif							/* PNE_EMIT_TRIGGER_H */
