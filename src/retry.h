/*-------------------------------------------------------------------------
 *
 * retry.h
 *		Events that failed.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_RETRY_H
#define PNE_RETRY_H

#include "batch.h"

extern BatchOutcome retry_record_failure(HandlerRun *run, Event *event, int64 next, ErrorData *error);
extern void retry_read_deadline(HandlerRun *run);
extern bool retry_run_due(HandlerRun *run);
extern TimestampTz retry_earliest(const char *handler);

#endif							/* PNE_RETRY_H */
