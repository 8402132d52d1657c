/*
 * careful.pml
 *		An event that kills whoever calls its handler is called a few times only.
 *
 * mirrors: careful_take_up() careful_bound() careful_release() in src/careful.c
 * mirrors: retry_charge() retry_run_fresh() retry_run_due() try_attempt() in src/retry.c
 * mirrors: batch_turn() try_events() in src/batch.c
 *
 * An executor works the events of a handler in batches, effects and position in
 * one commit that does not wait for its flush.  A crash of the server takes the
 * commits back that were not flushed yet.  One of the events, any, ends the
 * executor whenever it is called, mostly the server with it.
 *
 * Before its first batch an executor sets a mark and has it flushed; when it
 * exits cleanly it takes the mark back, and leaves how many events are still to
 * be handled carefully.  No more than LIMIT events are called, or a batch, before
 * the progress that was made is flushed.  Whoever finds the mark set goes event
 * by event for as many and a batch: the attempt is written down, with a position
 * past the event, and flushed before the call.  So is every attempt of an event
 * that has failed before, or is not known not to have.  What succeeds in such a
 * call is flushed, too: taken back, it would be an attempt without a failure.
 * After MAX_ATTEMPTS the event is dead.
 *
 * Left out: errors, the position's window (it is the number of events passed),
 * delays of retries.
 *
 * Checked: the event kills MAX_ATTEMPTS + 1 times at most and is dead in the
 * end; every other one is handled, once, and does not die, though the server
 * crashes for reasons of its own: once in a call, once elsewhere.
 *
 * broken: BROKEN_NO_MARK nobody knows that the last one did not exit cleanly
 * broken: BROKEN_MARK_NOT_FLUSHED the mark is lost in the crash
 * broken: BROKEN_MARK_NOT_KEPT the mark is cleared when the careful phase begins
 * broken: BROKEN_EXIT_FORGETS an exit in the careful phase does not leave the rest of it
 * broken: BROKEN_ATTEMPT_NOT_FLUSHED the attempt is lost in the crash
 * broken: BROKEN_NO_LIMIT any number of events may have been called since the last flush
 * broken: BROKEN_SHORT the careful phase leaves the last batch out
 * broken: BROKEN_RETRY_UNCHARGED a retry is called without a new attempt written down
 * broken: BROKEN_SUCCESS_NOT_FLUSHED a success after an attempt is lost in the crash
 */

#define EVENTS			6
#define BATCH			2
#define LIMIT			1
#define MAX_ATTEMPTS	2

#ifdef BROKEN_SHORT
#define BOUND			LIMIT
#else
#define BOUND			(LIMIT + BATCH)
#endif

#define ALL				((1 << EVENTS) - 1)
#define BIT(event)		(1 << (event))

/* what is committed, and what of it is flushed */
typedef Progress
{
	bit mark;
	byte careful;				/* what a clean exit left of it */
	byte position;
	byte handled;
	byte dead;
	byte attempts[EVENTS];		/* of those that wait for a retry, else 0 */
}

Progress committed;
Progress flushed;

byte killer;
byte kills = 0;
/* crashes of the server for reasons of its own, to come */
byte crashes_in_call = 1;
byte crashes_elsewhere = 1;

byte exits = 1;					/* of an executor, cleanly, to come */

inline copy(from, into)
{
	into.mark = from.mark;
	into.careful = from.careful;
	into.position = from.position;
	into.handled = from.handled;
	into.dead = from.dead;
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
		assert(kills <= MAX_ATTEMPTS + 1);
		assert(!(committed.dead & BIT(killer)));
		if
		:: goto crash
		:: goto start
		fi
	:: else
	fi;
	if
	:: crashes_in_call -> crashes_in_call--; goto crash
	:: true
	fi
}

/*
 * Its effects are committed.
 */
inline commit_effects(event)
{
	assert(!(committed.handled & BIT(event)));
	committed.handled = committed.handled | BIT(event);
	committed.attempts[event] = 0
}

/*
 * retry_charge()
 */
inline charge(event)
{
	d_step
	{
		committed.attempts[event]++;
#ifndef BROKEN_ATTEMPT_NOT_FLUSHED
		flush()
#endif
	}
}

inline commit_charged(event)
{
	d_step
	{
		commit_effects(event);
#ifndef BROKEN_SUCCESS_NOT_FLUSHED
		flush()
#endif
	}
}

proctype executor()
{
	byte careful;				/* events yet to be handled so */
	byte unflushed;				/* events called since the last flush that we know of */
	byte event;
	byte end_of_batch;
	byte i;

	goto start;

crash:
	skip;
	d_step { copy(flushed, committed) };

start:
	skip;
	/* careful_take_up() */
	d_step
	{
		careful = 0;
		unflushed = 0;
		event = 0;
		end_of_batch = 0;
		if
		:: committed.mark ->
			careful = BOUND;
#ifdef BROKEN_MARK_NOT_KEPT
			committed.mark = 0
#endif
		:: else ->
			careful = committed.careful;
#ifndef BROKEN_NO_MARK
			committed.mark = 1;
#endif
#ifndef BROKEN_MARK_NOT_FLUSHED
			flush()
#endif
		fi
	};

	do
	/* a retry is due */
	:: (committed.attempts[0] || committed.attempts[1] || committed.attempts[2] ||
		committed.attempts[3] || committed.attempts[4] || committed.attempts[5]) ->
		select(event : 0 .. EVENTS - 1);
		if
		:: committed.attempts[event] == MAX_ATTEMPTS ->
			d_step
			{
				assert(event == killer);
				committed.dead = committed.dead | BIT(event);
				committed.attempts[event] = 0
			}
		:: committed.attempts[event] > 0 && committed.attempts[event] < MAX_ATTEMPTS ->
#ifndef BROKEN_RETRY_UNCHARGED
			charge(event);
#endif
			call(event);
			commit_charged(event)
		:: committed.attempts[event] == 0
		fi;
		event = 0

	/* careful */
	:: careful && committed.position < EVENTS ->
		event = committed.position;
		/* one transaction */
		d_step { committed.position++; careful-- };
		charge(event);
		call(event);
		commit_charged(event);
		event = 0

	/* a batch */
	:: !careful && committed.position < EVENTS ->
#ifndef BROKEN_NO_LIMIT
		if
		:: unflushed && unflushed + BATCH > LIMIT -> d_step { flush(); unflushed = 0 }
		:: else
		fi;
#endif
		event = committed.position;
		end_of_batch = event;
		do
		:: end_of_batch < EVENTS && end_of_batch - event < BATCH ->
			call(end_of_batch);
			end_of_batch++
		:: d_step
			{
				end_of_batch > event ->
				unflushed = unflushed + end_of_batch - event;
				committed.position = end_of_batch;
				do
				:: event < end_of_batch -> commit_effects(event); event++
				:: else -> break
				od;
				event = 0;
				end_of_batch = 0
			};
			break
		od

	/* the WAL writer */
	:: d_step { true -> flush() }

	/* a clean exit, and another executor */
	:: d_step
		{
			exits ->
			exits--;
#ifndef BROKEN_EXIT_FORGETS
			committed.careful = careful;
#endif
			committed.mark = 0
		};
		goto start

	/* the server crashes for a reason of its own */
	:: crashes_elsewhere -> crashes_elsewhere--; goto crash

	:: committed.position == EVENTS && (committed.handled | committed.dead) == ALL -> break
	od;

	assert(committed.handled == (ALL & ~BIT(killer)) && committed.dead == BIT(killer))
}

init
{
	atomic
	{
		select(killer : 0 .. EVENTS - 1);
		run executor()
	}
}
