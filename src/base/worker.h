/*-------------------------------------------------------------------------
 *
 * worker.h
 *		What launcher, listener and executor have in common.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_WORKER_H
#define PNE_WORKER_H

#include "postmaster/bgworker.h"

#include "base/doorbell.h"
#include "base/shared.h"

/*
 * How often a listener checks whether a session wants its database exclusively,
 * in ms.
 */
#define YIELD_CHECK_MS 1000

/* what the launcher passes to a worker, in bgw_extra */
typedef struct WorkerStart
{
	int			slot;			/* index in shared->databases or executors */
	uint32		generation;		/* of the slot, when the worker was registered */
	Oid			dboid;
	Oid			owner;			/* executors only */
} WorkerStart;

StaticAssertDecl(sizeof(WorkerStart) <= BGW_EXTRALEN, "WorkerStart must fit into bgw_extra");

/*
 * A part of a worker's work that can fail without the rest.  After a failure it
 * backs off, longer after each further failure in a row.  All fields are zero
 * at first.
 */
typedef struct WorkerTask
{
	Instant		not_before;		/* no attempt before this */
	int			backoff;		/* the current back-off in ms, or 0 */
	char		last_error[WORKER_ERROR_SIZE];
} WorkerTask;

extern void worker_signals(void);
extern void worker_hold_cancels(void);
extern void worker_allow_cancels(void);
extern void worker_connect(Oid dboid, Oid owner);
extern void worker_start_short_transaction(void);
extern void worker_commit_short_transaction(void);
extern void worker_lock_table(Oid relid);
extern void worker_is_alive(Worker *worker);
extern void worker_went_away(Worker *worker, bool clean);
extern void worker_enter_phase(Worker *worker, WorkerPhase phase, const char *activity);
extern void worker_pause(int ms);
extern void worker_sleep(Bell *bell, Instant until);
extern bool worker_reload_config(void);
extern void worker_abort(Worker *worker, bool log);
extern int	worker_next_backoff(int backoff);
extern void worker_recover(Worker *worker);
extern void worker_locked_out(Worker *worker);
extern void worker_recovered(Worker *worker);
extern bool worker_perform(Worker *worker, WorkerTask *task, void (*work) (void));

#endif							/* PNE_WORKER_H */
