/*-------------------------------------------------------------------------
 *
 * log_trigger.h
 *		What the extension sets in each row of the log.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_LOG_TRIGGER_H
#define PNE_LOG_TRIGGER_H

#include "utils/relcache.h"

extern void log_trigger_set_columns(Relation log, Datum *values, bool *nulls);
extern bool log_trigger_is_alone(Relation log);

#endif							/* PNE_LOG_TRIGGER_H */
