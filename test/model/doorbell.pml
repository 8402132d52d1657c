/*
 * doorbell.pml
 *		No wake-up is lost between a commit and a worker that goes to sleep.
 *
 * mirrors: doorbell_ring() doorbell_answer() doorbell_is_rung() doorbell_attach() doorbell_detach() in src/base/doorbell.c
 * mirrors: doorbell_xact_callback() doorbell_ring_database() in src/base/doorbell.c
 * mirrors: worker_sleep() in src/base/worker.c
 * mirrors: executor_cycle() executor_work() read_windows() executor_attach() executor_on_exit() in src/delivery/executor.c
 *
 * Three transactions make one event each visible and ring the bell of a worker.
 * With TWO_WORKERS, two transactions ring the bells of two workers.  A worker
 * answers its bell, takes a snapshot, works, and sleeps only if its flag is still
 * clear.  No worker polls.  While a worker works, its latch may be reset by handler
 * code that waits, or by a lock wait of the server.  A worker may stop, and a
 * successor takes its bell over.
 *
 * The processor may delay a committer's store to the flag until the next barrier,
 * which is at the beginning of SetLatch().  SetLatch() does not change a latch that
 * is set already.  All other accesses are barriers themselves or are followed by
 * one.  (TWO_WORKERS leaves this part out.)
 *
 * Left out: the inside of WaitLatch(), deadlines, the listener's poll, bells of
 * several databases.  A snapshot is the number of events that it sees.
 *
 * Checked: when no process can take another step, every worker has seen every event.
 *
 * also: TWO_WORKERS two workers, two committers
 * broken: BROKEN_RESET_BEFORE_SLEEP the latch is reset after the flag was tested
 * broken: BROKEN_CLEAR_LATE the flag is cleared after the snapshot
 * broken: BROKEN_LATCH_ONLY there is no flag
 * broken: BROKEN_RING_EARLY rings before the commit is visible
 * broken: BROKEN_NO_BARRIER the flag is not there yet when the latch is looked at
 * broken: BROKEN_ONE_FLAG all workers share a flag
 * broken: BROKEN_ATTACH_LATE looks first, then attaches to the bell without a ring
 */

#if defined(TWO_WORKERS) || defined(BROKEN_ONE_FLAG)
#define COMMITTERS	2
#define WORKERS		2
#define LIVES		2			/* a worker has 1, its successor the next; 0 has none */
#else
#define COMMITTERS	3
#define WORKERS		1
#define LIVES		3
#define KEEPS_BACK
#endif
#define UNUSED		0
#define NOTHING		WORKERS

byte visible = 0;				/* events committed */

/* the bells */
byte procno[WORKERS];			/* UNUSED, or which process it wakes */
bit rung[WORKERS];
byte seen[WORKERS];				/* events that the worker has seen */

/* the latches of all processes that exist one after the other */
bit latch[WORKERS * LIVES];

/* for each committer: a bell whose flag it has set, not visible to others yet */
byte kept_back[COMMITTERS];

#define LATCH(w, life)	latch[(w) * LIVES + (life)]

#ifdef BROKEN_ONE_FLAG
#define FLAG(w)			rung[0]
#else
#define FLAG(w)			rung[w]
#endif

#ifdef KEEPS_BACK
proctype store_buffer(byte me)
{
end:
	do
	:: d_step { kept_back[me] != NOTHING -> FLAG(kept_back[me]) = 1; kept_back[me] = NOTHING }
	od
}
#endif

/*
 * doorbell_ring_database(): ring each bell, always.
 */
inline ring_all()
{
	w = 0;
	do
	:: w < WORKERS ->
		p = procno[w];
#ifndef BROKEN_LATCH_ONLY
#ifdef KEEPS_BACK
		atomic { kept_back[me] == NOTHING -> kept_back[me] = w };
#else
		FLAG(w) = 1;
#endif
#endif
		if
		:: p != UNUSED ->
			/* SetLatch() */
#if defined(KEEPS_BACK) && !defined(BROKEN_NO_BARRIER)
			kept_back[me] == NOTHING;
#endif
			if
			:: LATCH(w, p)			/* is set: leaves it alone */
			:: else -> LATCH(w, p) = 1
			fi
		:: else
		fi;
		w++
	:: else -> break
	od;
	w = 0;
	p = 0
}

proctype committer(byte me)
{
	byte w;
	byte p;

#ifdef BROKEN_RING_EARLY
	ring_all();
#endif
	/* the committers are all alike: they commit in this order */
	d_step { visible == me -> visible++ };
#ifndef BROKEN_RING_EARLY
	ring_all();
#endif
}

/*
 * Handler code or a lock wait of the server resets the latch.
 */
inline eat_latch()
{
	if
	:: LATCH(me, life) = 0
	:: true
	fi
}

inline attach()
{
	procno[me] = life;
#ifndef BROKEN_ATTACH_LATE
	FLAG(me) = 1
#endif
}

proctype worker(byte me)
{
	byte snapshot;
	byte life = 1;

start:
#ifndef BROKEN_ATTACH_LATE
	attach();
#endif

	do
	::
		/* doorbell_answer() */
		LATCH(me, life) = 0;
#if !defined(BROKEN_CLEAR_LATE) && !defined(BROKEN_LATCH_ONLY)
		FLAG(me) = 0;
#endif

		/* read_windows(), take_turns() */
		snapshot = visible;
#ifdef BROKEN_CLEAR_LATE
		FLAG(me) = 0;
#endif
#ifdef BROKEN_ATTACH_LATE
		if
		:: procno[me] != life -> attach()
		:: else
		fi;
#endif
		eat_latch();
		if
		:: snapshot != seen[me] ->
			seen[me] = snapshot;
			snapshot = 0;
			goto again
		:: else -> snapshot = 0
		fi;

		/* executor_stop(), executor_on_exit(); the next executor attaches */
		if
		:: life + 1 < LIVES ->
			procno[me] = UNUSED;
			life++;
			goto start
		:: true
		fi;

		/* worker_sleep() */
#ifndef BROKEN_LATCH_ONLY
		if
		:: FLAG(me) -> goto again
		:: else
		fi;
#endif
#ifdef BROKEN_RESET_BEFORE_SLEEP
		LATCH(me, life) = 0;
#endif
		/* WaitLatch() */
end:	LATCH(me, life) == 1;
again:	skip
	od
}

init
{
	byte i;

	atomic
	{
		for (i : 0 .. COMMITTERS - 1)
		{
			kept_back[i] = NOTHING;
#ifdef KEEPS_BACK
			run store_buffer(i);
#endif
			run committer(i)
		}
		for (i : 0 .. WORKERS - 1) { run worker(i) }
		i = 0
	};

	/* no process can take another step */
	timeout;
	d_step
	{
		for (i : 0 .. WORKERS - 1) { assert(seen[i] == COMMITTERS) }
	}
}
