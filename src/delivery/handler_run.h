/*-------------------------------------------------------------------------
 *
 * handler_run.h
 *		A handler while its executor runs it: its position and its state.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_HANDLER_RUN_H
#define PNE_HANDLER_RUN_H

#include "storage/itemptr.h"
#include "utils/palloc.h"

#include "handler/handler.h"
#include "log/window.h"

/*
 * The state of a handler in this process, as far as it has to outlive a change of
 * the definition.  Everything else is read again when the definition changes.
 */
typedef struct HandlerState
{
	char		name[HANDLER_NAME_SIZE];
	int64		created;
	int64		version;		/* of the definition that was read last */
	bool		gone;			/* the owner does not have this handler any more */
	bool		has_token;		/* our token is in its progress row (crash_guard.c) */
	bool		released;		/* the token is being removed */
	bool		claimed;		/* the token was written for this definition */
	int			guarded_events; /* how many of the next events are guarded */
	EventSnapshot *guarded_upto;	/* events that this does not see are not */
	bool		one_by_one;		/* an executor was lost in the stored group */
	int			unstored;		/* events passed since the position was stored */
	int			batch_limit;	/* events per batch after a larger one failed; 0: no limit */
	int			good_batches;	/* since a batch failed or the limit was raised */
	int64		suspect;		/* id of an event to be run alone; 0: none */
	int			failed_in_row;	/* events that failed since one succeeded */
	int			failed_trials;	/* since the back-off began; 0: no back-off */
	bool		deferred;		/* events wait for the end of a back-off */
	Instant		next_trial_at;	/* in a back-off: no trial before this */
	char	   *problem;		/* logged reason why it is suspended; or NULL */
	char	   *unreadable;		/* logged error of reading its events; or NULL */
} HandlerState;

/*
 * A handler while its executor runs it.  The stored position, and the version of
 * the definition, are in definition.  position, window and next may be ahead of
 * the stored position by events that did not concern the handler.
 */
typedef struct HandlerRun
{
	MemoryContext context;		/* holds all of this but the window */
	Handler    *definition;
	HandlerState *state;
	Oid			approved;		/* the function that this transaction may call */
	HandlerCall call;
	ItemPointerData progress_tid;	/* where the progress row was last; or invalid */
	EventPosition position;		/* behind the last window that is finished */
	Window	   *window;			/* or NULL: the next one, or its next part, is to be read */
	WantedNames *names;			/* names in the window that concern the handler; NULL: not
								 * known yet */
	int64		next;			/* index in window->events of the next event */
	Instant		ahead_since;	/* since when the position is ahead; 0: it is stored */
	TimestampTz next_retry_at;	/* earliest waiting retry in the table; DT_NOEND: none;
								 * DT_NOBEGIN: look for it now */
	bool		stale;			/* the definition has to be read again */
	Instant		not_before;		/* suspended, or its row is locked: no turn before this */
} HandlerRun;

/* how a turn, a batch or an attempt ended */
typedef enum BatchOutcome
{
	BATCH_DONE,
	BATCH_FAILED,				/* an error: nothing was committed */
	BATCH_STALE,				/* somebody else changed the stored position */
	BATCH_SUSPENDED				/* the handler cannot run at present */
} BatchOutcome;

extern void handler_run_postpone(HandlerRun *run);
extern void handler_run_finish_window(HandlerRun *run);
extern void handler_run_note_passed(HandlerRun *run, int nevents);
extern bool handler_run_is_inside_window(const HandlerRun *run);
extern void handler_run_pass_over(HandlerRun *run, int64 next, int nevents);
extern bool handler_run_is_held(const HandlerRun *run);
extern bool handler_run_may_run(const HandlerRun *run);
extern bool handler_run_seek(HandlerRun *run);
extern void handler_run_read_next_retry(HandlerRun *run);

#endif							/* PNE_HANDLER_RUN_H */
