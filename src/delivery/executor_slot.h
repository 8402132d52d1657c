/*-------------------------------------------------------------------------
 *
 * executor_slot.h
 *		This executor: its slot in shared memory, and what it is asked for.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_EXECUTOR_SLOT_H
#define PNE_EXECUTOR_SLOT_H

#include "base/shared.h"

/* set once, when the executor begins; NULL in other processes */
extern ExecutorSlot *my_slot;
extern DatabaseSlot *my_database;
extern Bell *my_bell;

extern bool executor_is_me(void);
extern void executor_report_error(const char *message);
extern bool executor_stop_requested(void);
extern bool executor_call_is_unwanted(void);
extern void executor_note_server_stop(void);
extern bool executor_is_stopped_by_server(void);
extern void executor_report_running(const char *handler, int64 first_event, int nevents);
extern void executor_progress_committed(int nevents);
extern void executor_show_token(int64 token);

#endif							/* PNE_EXECUTOR_SLOT_H */
