/*-------------------------------------------------------------------------
 *
 * crash_guard.h
 *		Events that end the process which handles them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_CRASH_GUARD_H
#define PNE_CRASH_GUARD_H

#include "delivery/batch.h"

extern void careful_init(void);
extern void careful_take_up(List *runs);
extern void careful_release_gone(List **healths);
extern void careful_release(List *healths);
extern void careful_release_at_exit(List *healths);
extern void careful_disown_marks(List *healths);
extern bool careful_bound(HandlerRun *run, int nevents);
extern void careful_note_commit(HandlerRun *run, int nevents);
extern void careful_note_passed(HandlerRun *run, int nevents);
extern void careful_note_window_end(HandlerRun *run);
extern bool careful_one_by_one(const HandlerRun *run);
extern int64 careful_group_end(const HandlerRun *run);
extern bool careful_enter_group(HandlerRun *run, int64 group_end);
extern bool careful_mark_is_lost(int64 mark);

extern void careful_arm_timeout(int timeout);
extern void careful_begin_call(int timeout);
extern void careful_call_returned(void);
extern void careful_disarm_timeout(void);
extern void careful_stop_watch(void);
extern bool careful_overran(void);

#endif							/* PNE_CRASH_GUARD_H */
