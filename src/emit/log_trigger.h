/*-------------------------------------------------------------------------
 *
 * log_trigger.h
 *		What the extension writes on each row of the log.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_LOG_TRIGGER_H
#define PNE_LOG_TRIGGER_H

#include "utils/relcache.h"

extern void stamp_event(Relation log, Datum *values, bool *nulls);
extern bool stamp_trigger_is_alone(Relation log);

#endif							/* PNE_LOG_TRIGGER_H */
