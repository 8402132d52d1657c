/*
 * crash_guard.pml
 *		An event whose handler kills the executor is called a few times only.
 *
 * mirrors: write_token() crash_guard_claim() crash_guard_bound() crash_guard_enter_group() in src/delivery/crash_guard.c
 * mirrors: crash_guard_release() crash_guard_release_at_exit() in src/delivery/crash_guard.c
 * mirrors: retry_charge() retry_run_fresh() retry_run_due() try_attempt() in src/delivery/retry.c
 * mirrors: retry_recover_attempts() retry_give_back_attempts() in src/handler/retry_table.c
 * mirrors: batch_turn() try_events() in src/delivery/batch.c
 * mirrors: progress_record_group() progress_store() in src/delivery/progress.c
 *
 * An executor handles the events of a handler in batches.  One commit contains
 * the effects of a batch and the position, and does not wait for its flush.  A
 * crash of the server loses the commits that were not flushed yet.  One of the
 * events, any of them, ends the executor whenever it is called, and in most cases
 * the server, too.
 *
 * Before its first batch an executor sets its owner token and flushes it.  It
 * clears the token when it exits in order, which includes a stop of the server
 * that ends a call.  No more than LIMIT events, or a batch, are called before the
 * progress is flushed.
 *
 * An executor that finds the token set works guarded: in groups, each recorded
 * and flushed before its first call.  The commit that passes the last event of a
 * group clears the record.  The guarded phase lasts for as many events as could
 * have been called, and a batch more, but not past the events that exist when the
 * token is found.  An executor that finds the token set and a group recorded
 * handles the events of the group one by one: it records the attempt, with a
 * position past the event, and flushes it before the call.  It does the same for
 * every attempt of an event that has failed before, or may have.  A success of
 * such a call is flushed, too: if it were lost, an attempt without a failure would
 * stay.  After MAX_ATTEMPTS the event is dead.  If the executor exits in order
 * during an attempt, the attempt is not counted: this executor or the next one
 * takes it back.
 *
 * Left out: errors, the position's window (the position is the number of events
 * passed), delays of retries.
 *
 * Checked: the event kills MAX_ATTEMPTS + 2 times at most and is dead in the end.
 * Every other event is handled, once, and is not dead, although the server crashes
 * for other reasons, once in a call and once elsewhere, and is stopped once in a
 * call.
 *
 * also: SMALL_BATCHES a batch is less than a group
 * also: PROMOTION no event kills, and a standby that has what was flushed is promoted, which guards nobody
 * broken: BROKEN_NO_TOKEN nobody knows that the last one did not exit in order
 * broken: BROKEN_TOKEN_NOT_FLUSHED the token is lost in the crash
 * broken: BROKEN_TOKEN_NOT_KEPT the token is cleared when the guarded phase begins
 * broken: BROKEN_EXIT_FORGETS an exit in the guarded phase does not leave the rest of it
 * broken: BROKEN_ATTEMPT_NOT_FLUSHED the attempt is lost in the crash
 * broken: BROKEN_NO_LIMIT any number of events may have been called since the last flush
 * broken: BROKEN_SHORT the guarded phase leaves the last batch out
 * broken: BROKEN_RETRY_UNCHARGED a retry is called without a new attempt written down
 * broken: BROKEN_SUCCESS_NOT_FLUSHED a success after an attempt is lost in the crash
 * broken: BROKEN_GROUP_NOT_FLUSHED the group is lost in the crash
 * broken: BROKEN_GROUP_NOT_KEPT the group is cleared when its events begin to go one by one
 * broken: BROKEN_EXIT_FORGETS_GROUP an exit among them does not leave the rest of the group
 * broken: BROKEN_BATCH_LEAVES_GROUP a batch goes on past the end of the group
 * broken: BROKEN_UPTO_OLD the guarded phase ends at events that were there when the lost executor began
 * broken: BROKEN_ATTEMPT_STAYS the attempt that a stop has ended stays counted
 * broken: BROKEN_PROMOTION_COUNTS a token from before the promotion is like any other
 */

#define EVENTS			5
#define LIMIT			1
#define GROUP			2
#define MAX_ATTEMPTS	2

#ifdef SMALL_BATCHES
#define BATCH			1
#else
#define BATCH			3
#endif

#ifdef BROKEN_PROMOTION_COUNTS
#define PROMOTION
#endif

#ifdef BROKEN_SHORT
#define BOUND			LIMIT
#else
#define BOUND			(LIMIT + BATCH)
#endif

#ifdef BROKEN_BATCH_LEAVES_GROUP
#define IN_GROUP(event)	true
#else
#define IN_GROUP(event)	(group == 0 || event < group)
#endif

#define ALL				((1 << EVENTS) - 1)
#define BIT(event)		(1 << (event))

/* the committed state, and the flushed state */
typedef Progress
{
	bit token;
	byte guarded_events;				/* what an exit in order left of it */
	byte group;					/* where the group that is being tried ends; 0: none is */
	byte position;
	byte handled;
	byte dead;
	byte waiting;				/* for a retry */
	byte open;					/* the event whose attempt is under way, + 1 */
	byte attempts[EVENTS];		/* of those that wait, else 0 */
}

Progress committed;
Progress flushed;

byte killer;
byte kills = 0;
byte emitted = 0;				/* events that are there */
/* crashes of the server for other reasons, to come */
byte crashes_in_call = 1;
byte crashes_elsewhere = 1;
byte exits = 1;					/* of an executor, in order, to come */
byte stops = 1;					/* the same, in a call */
#ifdef PROMOTION
byte promotions = 1;
#endif

inline copy(from, into)
{
	into.token = from.token;
	into.guarded_events = from.guarded_events;
	into.group = from.group;
	into.position = from.position;
	into.handled = from.handled;
	into.dead = from.dead;
	into.waiting = from.waiting;
	into.open = from.open;
	i = 0;
	do
	:: i < EVENTS -> into.attempts[i] = from.attempts[i]; i++
	:: else -> break
	od;
	i = 0
}

inline flush()
{
	copy(committed, flushed)
}

/*
 * Call the handler.
 */
inline call(event)
{
	if
	:: event == killer ->
		kills++;
		assert(kills <= MAX_ATTEMPTS + 2);
		assert(!(committed.dead & BIT(killer)));
		if
		:: goto crash
		:: goto start
		fi
	:: else
	fi;
	if
	:: crashes_in_call -> crashes_in_call--; goto crash
	:: stops -> stops--; goto stop
#ifdef PROMOTION
	:: promotions -> promotions--; goto promotion
#endif
	:: true
	fi
}

/*
 * Commit its effects.
 */
inline commit_effects(event)
{
	assert(!(committed.handled & BIT(event)));
	committed.handled = committed.handled | BIT(event)
}

/*
 * Count the attempt.
 */
inline charge(event)
{
	committed.waiting = committed.waiting | BIT(event);
	committed.attempts[event]++;
	committed.open = event + 1;
#ifndef BROKEN_ATTEMPT_NOT_FLUSHED
	flush()
#endif
}

inline commit_charged(event)
{
	d_step
	{
		commit_effects(event);
		committed.waiting = committed.waiting & ~BIT(event);
		committed.attempts[event] = 0;
		committed.open = 0;
#ifndef BROKEN_SUCCESS_NOT_FLUSHED
		flush()
#endif
	}
}

/*
 * Do not count the attempt that is in progress, if any.
 */
inline give_back()
{
	if
#ifndef BROKEN_ATTEMPT_STAYS
	:: committed.open -> committed.attempts[committed.open - 1]--; committed.open = 0
#endif
	:: else -> committed.open = 0
	fi
}

/*
 * crash_guard_release()
 */
inline release()
{
#ifndef BROKEN_EXIT_FORGETS
	committed.guarded_events = guarded_events;
#endif
#ifdef BROKEN_EXIT_FORGETS_GROUP
	committed.group = 0;
#else
	if
	:: !alone -> committed.group = 0
	:: else
	fi;
#endif
	committed.token = 0
}

proctype executor()
{
	byte guarded_events;				/* events yet to be handled so */
	byte upto;					/* and not past those that were there then */
	byte group;					/* where the group at hand ends */
	bit alone;					/* its events go one by one */
	bit foreign;				/* the token is from before the promotion */
	byte unflushed;				/* events called since the last flush that we know of */
	byte event;
	byte end_of_batch;
	byte i;

	goto start;

#ifdef PROMOTION
promotion:
	skip;
	d_step { foreign = 1 };
#endif

crash:
	skip;
	d_step { copy(flushed, committed) };
	goto start;

stop:
	skip;
	d_step { release(); give_back() };

start:
	skip;
	/* crash_guard_claim() */
	d_step
	{
		unflushed = 0;
		event = 0;
		end_of_batch = 0;
		i = 0;
#ifndef BROKEN_UPTO_OLD
		upto = emitted;
#else
		upto = committed.position;
#endif
		group = committed.group;
		alone = (group > 0);
#ifdef BROKEN_PROMOTION_COUNTS
		foreign = 0;
#endif
		if
		:: committed.token && !foreign ->
			guarded_events = BOUND;
			committed.open = 0
		:: else ->
			guarded_events = committed.guarded_events;
			give_back()
		fi;
		foreign = 0;
#ifdef PROMOTION
		assert(guarded_events == 0 || crashes_in_call == 0 || crashes_elsewhere == 0);
#endif
#ifdef BROKEN_TOKEN_NOT_KEPT
		committed.token = !committed.token;
#endif
#if !defined(BROKEN_NO_TOKEN) && !defined(BROKEN_TOKEN_NOT_KEPT)
		committed.token = 1;
#endif
#ifdef BROKEN_GROUP_NOT_KEPT
		committed.group = 0;
#endif
#ifndef BROKEN_TOKEN_NOT_FLUSHED
		flush()
#endif
	};

	do
	/* a retry is due */
	:: committed.waiting ->
		select(event : 0 .. EVENTS - 1);
		if
		:: !(committed.waiting & BIT(event))
		:: (committed.waiting & BIT(event)) && committed.attempts[event] == MAX_ATTEMPTS ->
			d_step
			{
				assert(event == killer);
				committed.dead = committed.dead | BIT(event);
				committed.waiting = committed.waiting & ~BIT(event);
				committed.attempts[event] = 0
			}
		:: (committed.waiting & BIT(event)) && committed.attempts[event] < MAX_ATTEMPTS ->
#ifndef BROKEN_RETRY_UNCHARGED
			d_step { charge(event) };
#endif
			call(event);
			commit_charged(event)
		fi;
		event = 0

	/* an event of a group in which the last executor was lost */
	:: alone ->
		event = committed.position;
		/* one transaction */
		d_step
		{
			committed.position++;
			guarded_events = (guarded_events > 0 -> guarded_events - 1 : 0);
			if
			:: committed.position >= group -> committed.group = 0; group = 0; alone = 0
			:: else
			fi;
			charge(event)
		};
		call(event);
		commit_charged(event);
		event = 0

	/* the guarded phase is over */
	:: guarded_events && committed.position >= upto -> guarded_events = 0

	/* a batch; in the guarded phase, a batch of a group */
	:: !alone && committed.position < emitted && (!guarded_events || committed.position < upto) ->
		if
		:: guarded_events && group == 0 ->
			d_step
			{
				group = (committed.position + GROUP < emitted -> committed.position + GROUP : emitted);
				committed.group = group;
#ifndef BROKEN_GROUP_NOT_FLUSHED
				flush();
				unflushed = 0
#endif
			}
		:: else
		fi;
#ifndef BROKEN_NO_LIMIT
		if
		:: unflushed && unflushed + BATCH > LIMIT -> d_step { flush(); unflushed = 0 }
		:: else
		fi;
#endif
		event = committed.position;
		end_of_batch = event;
		do
		:: end_of_batch < emitted && end_of_batch - event < BATCH && IN_GROUP(end_of_batch) ->
			call(end_of_batch);
			end_of_batch++
		:: d_step
			{
				end_of_batch > event ->
				unflushed = unflushed + end_of_batch - event;
				guarded_events = (guarded_events > end_of_batch - event -> guarded_events - (end_of_batch - event) : 0);
				committed.position = end_of_batch;
				if
				:: committed.position >= group -> committed.group = 0; group = 0
				:: else
				fi;
				do
				:: event < end_of_batch -> commit_effects(event); event++
				:: else -> break
				od;
				event = 0;
				end_of_batch = 0
			};
			break
		od

	/* the other events are emitted */
	:: emitted < EVENTS -> emitted = EVENTS

	/* the WAL writer */
	:: d_step { true -> flush() }

	/* the executor exits in order, and another one starts */
	:: d_step { exits -> exits--; release() };
		goto start

	/* the server crashes for another reason */
	:: crashes_elsewhere -> crashes_elsewhere--; goto crash

#ifdef PROMOTION
	:: promotions -> promotions--; goto promotion
#endif

	:: committed.position == EVENTS && !alone && (committed.handled | committed.dead) == ALL -> break
	od;

#ifdef PROMOTION
	assert(committed.handled == ALL && committed.dead == 0)
#else
	assert(committed.handled == (ALL & ~BIT(killer)) && committed.dead == BIT(killer))
#endif
}

init
{
	atomic
	{
		select(emitted : 1 .. EVENTS);
#ifdef PROMOTION
		killer = EVENTS;
#else
		select(killer : 0 .. EVENTS - 1);
#endif
		run executor()
	}
}
