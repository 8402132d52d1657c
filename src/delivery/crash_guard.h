/*-------------------------------------------------------------------------
 *
 * crash_guard.h
 *		Events that end the process which handles them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_CRASH_GUARD_H
#define PNE_CRASH_GUARD_H

#include "delivery/handler_run.h"

extern void crash_guard_init(void);
extern void crash_guard_claim(List *runs);
extern void crash_guard_release_gone(List **states);
extern void crash_guard_release(List *states);
extern void crash_guard_attempt_begins(const char *handler, EventIdentity event, int attempts);
extern void crash_guard_attempt_ends(void);
extern void crash_guard_release_at_exit(List *states);
extern void crash_guard_disown_tokens(List *states);
extern bool crash_guard_bound(HandlerRun *run, int nevents);
extern void crash_guard_note_commit(HandlerRun *run, int nevents);
extern bool crash_guard_one_by_one(const HandlerRun *run);
extern int64 crash_guard_group_end(const HandlerRun *run);
extern bool crash_guard_enter_group(HandlerRun *run, int64 group_end);
extern bool crash_guard_token_is_lost(int64 token);

#endif							/* PNE_CRASH_GUARD_H */
