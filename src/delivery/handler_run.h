/*-------------------------------------------------------------------------
 *
 * handler_run.h
 *		A handler as its executor runs it: where it stands, and how it fares.
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
 * How a handler fares in this process: what has to outlive a change of its
 * definition, which makes everything else be read anew.
 */
typedef struct HandlerState
{
	char		name[HANDLER_NAME_SIZE];
	int64		created;
	int64		version;		/* of the definition that was read last */
	bool		gone;			/* not the owner's any more */
	bool		has_token;			/* our mark stands in its progress row (crash_guard.c) */
	bool		released;		/* it is being taken away */
	bool		taken_up;		/* it stands there for this definition */
	int			guarded_events;		/* so many events are to be tried carefully */
	EventSnapshot *guarded_upto;	/* but none that this does not see */
	bool		one_by_one;		/* who tried the stored group was lost */
	int			unstored;		/* events since the position was stored */
	int			batch_limit;	/* of events, as a larger batch failed; 0: none */
	int			good_batches;	/* since that, or since the limit was raised */
	int64		suspect;		/* id of an event to be run alone; 0: none */
	int			failed_in_row;	/* events since one succeeded */
	int			failed_trials;			/* that failed since the outage began; 0: none is */
	bool		deferred;			/* events wait for the end of an outage */
	Instant		next_trial_at;		/* when the next probe may be */
	char	   *problem;		/* what was logged of why it is suspended */
	char	   *unreadable;		/* ... and of why its events cannot be read */
} HandlerState;

/*
 * A handler as its executor runs it.  What is stored of its position, and
 * under which version, is in definition; position, window and next may be ahead
 * of that by events that did not concern it.
 */
typedef struct HandlerRun
{
	MemoryContext context;		/* holds all of this but the window */
	Handler    *definition;
	HandlerState *state;
	Oid			approved;		/* the function that this transaction may call */
	HandlerCall call;
	ItemPointerData progress_tid;	/* where the progress row was last; or invalid */
	EventPosition position;		/* behind the last window that it is through with */
	Window	   *window;			/* or NULL: the next one, or the rest of one, is to be read */
	WantedNames *names;			/* those of the window that concern the handler;
								 * or NULL: not known yet */
	int64		next;			/* index in window->ids of the next event */
	Instant		ahead_since;	/* 0: what is in memory is stored */
	TimestampTz next_retry_at;	/* as it stands in the table: earliest retry that waits; DT_NOEND: none */
	bool		stale;			/* the definition has to be read again */
	Instant		not_before;		/* suspended, or its row is locked: until then */
} HandlerRun;

typedef enum BatchOutcome
{
	BATCH_DONE,
	BATCH_FAILED,				/* an error: nothing of it was committed */
	BATCH_STALE,				/* somebody else changed the stored position */
	BATCH_SUSPENDED				/* the handler cannot go on at present */
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
