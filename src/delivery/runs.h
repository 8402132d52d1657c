/*-------------------------------------------------------------------------
 *
 * runs.h
 *		The handlers of an executor's owner in memory, and the windows they share.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_RUNS_H
#define PNE_RUNS_H

#include "base/shared.h"
#include "delivery/handler_run.h"

extern void runs_init(void);
extern void runs_follow(DatabaseSlot *database, Oid owner);
extern List *runs_all(void);
extern List **runs_states(void);
extern void runs_forget(void);
extern void runs_take_window(HandlerRun *run, Relation log, Snapshot snapshot, const EventSnapshot *upto);
extern void runs_release_windows(void);

#endif							/* PNE_RUNS_H */
