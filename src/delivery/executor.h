/*-------------------------------------------------------------------------
 *
 * executor.h
 *		What batches need of the executor that runs them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_EXECUTOR_H
#define PNE_EXECUTOR_H

#include "fmgr.h"

extern bool executor_is_me(void);
extern void executor_report_error(const char *message);
extern bool executor_asked_to_leave(void);
extern bool executor_call_is_unwanted(void);
extern bool executor_is_stopped_by_server(void);
extern void executor_report_running(const char *handler, int64 first_event, int nevents);
extern void executor_progress_committed(int nevents);
extern void executor_show_mark(int64 mark);
extern void executor_discard_session(void);

extern PGDLLEXPORT void pne_executor_main(Datum main_arg);

#endif							/* PNE_EXECUTOR_H */
