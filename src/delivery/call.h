/*-------------------------------------------------------------------------
 *
 * call.h
 *		The call of a handler: whether it may be made, for which events, and how.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_CALL_H
#define PNE_CALL_H

#include "access/tupdesc.h"
#include "utils/elog.h"
#include "utils/relcache.h"

#include "delivery/handler_run.h"
#include "handler/handler_counters.h"
#include "log/event.h"

extern bool call_check_handler(HandlerRun *run);
extern void call_apply_row_security(HandlerRun *run, Relation log, Event *events, int nevents);
extern int	call_filter_events(HandlerRun *run, Event **events, int nevents, TupleDesc desc, bool *passes,
							   int *suspect);
extern void call_handler(HandlerRun *run, Event **events, int nevents, TupleDesc desc, BatchCounters *counters);
extern bool call_error_is_rollback(const ErrorData *error);
extern bool call_try_again(const ErrorData *error, int tries);
extern bool call_was_unwanted(HandlerRun *run, ErrorData *error);
extern void call_reading_works(HandlerRun *run);
extern void call_reading_failed(HandlerRun *run, MemoryContext context);

#endif							/* PNE_CALL_H */
