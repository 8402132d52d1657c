/*
 * cursor.pml
 *		The snapshot cursor: no event is skipped, none is handled twice.
 *
 * mirrors: event_snapshot_build() event_snapshot_sees() event_position_passed() in src/log/position.c
 * mirrors: window_read() window_scan() in src/log/window.c
 * mirrors: progress_lock() progress_store() progress_stored() progress_flush() position_at() in src/delivery/progress.c
 * mirrors: batch_turn() try_events() in src/delivery/batch.c
 * mirrors: handler_run_finish_window() in src/delivery/handler_run.c
 * mirrors: read_windows() in src/delivery/executor.c
 * mirrors: load_runs() runs_take_window() in src/delivery/runs.c
 * mirrors: pne_create_event_handler() in src/handler/handler_definition.c
 *
 * Writers take an xid, draw ids and commit in any order.  Two of them change the
 * same row of a table, one after the other, because of its lock.  An executor
 * reads windows and handles them event by event, each in a transaction that
 * stores the position (cursor, window, last id).  One event makes the handler
 * emit another.  Some events do not concern the handler: the position that passes
 * them is stored lazily.  The executor loses its transaction once, or its memory
 * as well.  In addition,
 *	- a crash of the server discards everything that is running, and the batches
 *	  whose commit was not flushed yet; a writer's commit flushes itself and what
 *	  is before it in the WAL;
 *	- or with TWO_EXECUTORS another executor works for the same handler;
 *	- or with DDL the handler is created meanwhile, by a transaction that emits
 *	  an event, too; and the log is rewritten: for an older snapshot it is empty
 *	  then.
 *
 * Left out: batches of several events and the division of a failed one, retries,
 * subtransactions.  A snapshot is the set of transactions that it considers done,
 * an xid is a set of one.  A transaction of an executor has an xid only if it
 * emits.
 *
 * Checked: no event is handled twice, and none that is older than the handler;
 * the two events of the row are handled in order; when no process can take another
 * step, each committed event was handled.
 *
 * also: TWO_EXECUTORS another executor of the same handler
 * also: DDL the handler is created meanwhile, the log rewritten
 * broken: BROKEN_LATER_SNAPSHOT the snapshot of the next statement becomes the cursor
 * broken: BROKEN_OWN_XID a cursor calls the transaction done that makes it
 * broken: BROKEN_RAISED_XMAX xmax is raised to take the own xid in
 * broken: BROKEN_NO_CHECK the position is not compared after its row is locked
 * broken: BROKEN_LOAD_LATE the position is read after the window's snapshot was taken
 * broken: BROKEN_NEW_WINDOW the rest of a window is read under a new snapshot
 * broken: BROKEN_SNAPSHOT_FIRST the snapshot is taken before the log is locked
 * broken: BROKEN_TWO_COMMITS effects are committed before the position
 * broken: BROKEN_ID_CURSOR the cursor is the last id
 * broken: BROKEN_XID_ORDER events of a window go by xid
 */

#if defined(BROKEN_NO_CHECK) || defined(BROKEN_LOAD_LATE)
#define TWO_EXECUTORS
#endif
#if defined(BROKEN_SNAPSHOT_FIRST) || defined(BROKEN_OWN_XID) || defined(BROKEN_RAISED_XMAX)
#define DDL
#endif
#if !defined(TWO_EXECUTORS) && !defined(DDL)
#define CRASH
#endif

/* a transaction is a bit, as is an event's id */
#define NONE			0
#define FIRST			1
#define BITS			8
#define END				256

/* transactions */
short next_xid = FIRST;
byte running = NONE;
byte done = NONE;				/* committed or rolled back */

/* the log */
short next_id = FIRST;
byte rows = NONE;				/* but for those rolled back */
byte xid_of[BITS];
byte concerns = NONE;			/* rows that concern the handler */
byte chain = NONE;				/* the row that makes the handler emit */
byte of_row = NONE;				/* rows about the row that two writers change */
bit row_locked = 0;
byte of_row_xids = 0;			/* how many of the two have an xid */
byte log_locks = 0;				/* of those who read or write the log */
bit rewritten = 0;

/* the handler */
bit created = 0;
byte before = NONE;				/* transactions before it, whose events it gets not */
byte locked = 0;				/* its progress row: 0, or by whom */
byte cursor;
byte window;					/* NONE: not inside one */
byte last_id;
byte handled = NONE;			/* events whose effects are committed */

#ifdef CRASH
/* what a crash of the server leaves */
bit epoch = 0;
byte flushed_cursor;
byte flushed_window;
byte flushed_last_id;
byte flushed_handled = NONE;
byte flushed_rows = NONE;

#define UNLESS_CRASH	unless { epoch }
#else
#define UNLESS_CRASH
#endif

bit executor_failure = 1;		/* there may be one yet */
bit looked = 0;					/* an executor has */

/* xid_of[] has an element for each bit */
#define INDEX(bit) \
	((bit) == 1 -> 0 : ((bit) == 2 -> 1 : ((bit) == 4 -> 2 : ((bit) == 8 -> 3 : \
	((bit) == 16 -> 4 : ((bit) == 32 -> 5 : ((bit) == 64 -> 6 : 7)))))))

inline assign_xid(xid)
{
	assert(next_xid < END);
	xid = next_xid;
	running = running | xid;
	next_xid = next_xid << 1
}

inline insert_row(xid)
{
	assert(next_id < END);
	rows = rows | next_id;
	xid_of[INDEX(next_id)] = xid;
	next_id = next_id << 1
}

inline end_xid(xid)
{
	running = running & ~xid;
	done = done | xid
}

inline flush()
{
#ifdef CRASH
	flushed_cursor = cursor;
	flushed_window = window;
	flushed_last_id = last_id;
	flushed_handled = handled;
	flushed_rows = NONE;
	i = FIRST;
	do
	:: i < next_id ->
		if
		:: rows & i && done & xid_of[INDEX(i)] -> flushed_rows = flushed_rows | i
		:: else
		fi;
		i = i << 1
	:: else -> break
	od;
	i = 0
#else
	skip
#endif
}

/*
 * event_snapshot_build(): xmax is the xid after the last transaction that is done,
 * xip contains the running ones below it.  The server leaves out the own one.
 */
inline event_snapshot_build(result, own)
{
	result = done;
#ifdef BROKEN_OWN_XID
	if
	:: own < done -> result = result | own
	:: else
	fi;
#endif
#ifdef BROKEN_RAISED_XMAX
	if
	:: own > done ->
		i = FIRST;
		do
		:: i < own ->
			if
			:: i > done -> result = result | i
			:: else
			fi;
			i = i << 1
		:: else -> break
		od;
		i = 0
	:: else
	fi;
#endif
}

/* ----------
 * The writers
 * ----------
 */

/*
 * Two writers change one row.  Each has its xid before it has the lock.
 */
proctype row_writer(byte me)
{
	byte xid;
	short i;

	{
		/* the two are alike: the first one always begins first */
		d_step { me == 1 || of_row_xids == 1 -> of_row_xids++; log_locks++; assign_xid(xid) };
		d_step
		{
			!row_locked ->
			row_locked = 1;
			of_row = of_row | next_id;
			concerns = concerns | next_id;
			insert_row(xid)
		};
		d_step { end_xid(xid); row_locked = 0; log_locks--; flush() }
	}
	UNLESS_CRASH
}

/*
 * A writer whose first event does not concern the handler, and whose second event
 * makes the handler emit.  It may roll back.
 */
proctype writer()
{
	byte xid;
	short i;

	{
		d_step
		{
			log_locks++;
			assign_xid(xid);
			insert_row(xid);
			chain = next_id;
			concerns = concerns | next_id;
			insert_row(xid)
		};
		if
		:: d_step { end_xid(xid); log_locks--; flush() }
		:: d_step
			{
				rows = rows & ~chain & ~(chain >> 1);
				end_xid(xid);
				log_locks--
			}
		fi
	}
	UNLESS_CRASH
}

/*
 * create_event_handler(), in a transaction with an event of its own.
 */
proctype creator()
{
	byte xid;
	short i;

	{
		d_step { log_locks++; assign_xid(xid); concerns = concerns | next_id; insert_row(xid) };
		d_step
		{
			before = done;
			event_snapshot_build(cursor, xid);
			window = NONE;
			last_id = NONE;
#ifdef BROKEN_ID_CURSOR
			i = FIRST;
			do
			:: i < next_id ->
				if
				:: rows & i && done & xid_of[INDEX(i)] -> last_id = i
				:: else
				fi;
				i = i << 1
			:: else -> break
			od;
			i = 0
#endif
		};
		d_step { end_xid(xid); created = 1; log_locks--; flush() }
	}
	UNLESS_CRASH
}

/*
 * ALTER TABLE that rewrites the log: for an older snapshot the log is empty.
 */
proctype rewriter()
{
end:
	d_step { log_locks == 0 -> rewritten = 1 }
}

/* ----------
 * The executor
 * ----------
 */

/* the position that a scan starts from: event_position_passed() */
#ifdef BROKEN_ID_CURSOR
#define WANTS(xid, id)	((id) > (last > k_last_id -> last : k_last_id))
#else
#define WANTS(xid, id)	(!(my_cursor & (xid)) && \
						 !(scan_window && (id) <= k_last_id && scan_window & (xid)))
#endif

inline forget()
{
	loaded = 0;
	k_cursor = 0;
	k_window = 0;
	k_last_id = 0;
	my_cursor = 0;
	upto = NONE;
	rest = NONE;
	last = NONE
}

inline load()
{
	looked = 1;
	if
	:: !loaded ->
		loaded = 1;
		k_cursor = cursor;
		k_window = window;
		k_last_id = last_id;
		my_cursor = cursor
	:: else
	fi
}

/*
 * handler_run_finish_window()
 */
inline finish_window()
{
	my_cursor = upto;
	upto = NONE;
	rest = NONE;
#ifndef BROKEN_ID_CURSOR
	last = NONE
#endif
}

/*
 * runs_take_window(), window_read().  A window that was begun is finished first.
 */
inline take_window()
{
	scan_window = (my_cursor == k_cursor -> k_window : NONE);
	upto = (scan_window -> scan_window : snapshot);
	rest = NONE;
	i = FIRST;
	do
	:: i < next_id ->
		if
		:: !blind && rows & i && snapshot & xid_of[INDEX(i)] && upto & xid_of[INDEX(i)] &&
			WANTS(xid_of[INDEX(i)], i) -> rest = rest | i
		:: else
		fi;
		i = i << 1
	:: else -> break
	od;
	i = 0;
#ifdef BROKEN_LATER_SNAPSHOT
	if
	:: !scan_window -> event_snapshot_build(upto, NONE)
	:: else
	fi;
#endif
#ifdef BROKEN_NEW_WINDOW
	upto = snapshot;
#endif
	scan_window = NONE;
	snapshot = NONE;
	blind = 0;
	if
	:: rest == NONE -> finish_window()
	:: else
	fi
}

/*
 * position_at(): store the current place in the window.
 */
inline store_position()
{
	if
	:: upto == NONE ->
		if
		:: my_cursor != k_cursor -> cursor = my_cursor; window = NONE; last_id = NONE
		:: else
		fi
	:: upto != NONE && rest == NONE ->
		cursor = upto;
		window = NONE;
#ifdef BROKEN_ID_CURSOR
		last_id = last
#else
		last_id = NONE
#endif
	:: upto != NONE && rest != NONE && last != NONE ->
		cursor = my_cursor;
		window = upto;
		last_id = last
	:: upto != NONE && rest != NONE && last == NONE ->
		if
		:: k_window != upto -> cursor = my_cursor; window = NONE; last_id = NONE
		:: else
		fi
	fi;
	k_cursor = cursor;
	k_window = window;
	k_last_id = last_id;
	if
	:: upto != NONE && rest == NONE -> finish_window()
	:: else
	fi
}

#define IS_STALE	(cursor != k_cursor || window != k_window || last_id != k_last_id)

/*
 * The first of the events that are left.
 */
inline first_event()
{
#ifdef BROKEN_XID_ORDER
	event = NONE;
	i = FIRST;
	do
	:: i < next_id ->
		if
		:: rest & i && (event == NONE || xid_of[INDEX(i)] < xid_of[INDEX(event)]) -> event = i
		:: else
		fi;
		i = i << 1
	:: else -> break
	od;
	i = 0
#else
	event = rest & (END - rest)
#endif
}

/*
 * The event is done, or does not concern the handler.
 */
inline pass_event()
{
	rest = rest & ~event;
	last = event;
	event = NONE
}

inline check_event()
{
	assert(!(handled & event));
	assert(!(xid_of[INDEX(event)] & before));
	if
	:: event & of_row ->
		i = FIRST;
		do
		:: i < event ->
			assert(!(i & of_row & rows && done & xid_of[INDEX(i)]) ||
				   before & xid_of[INDEX(i)] || handled & i);
			i = i << 1
		:: else -> break
		od;
		i = 0
	:: else
	fi
}

/*
 * The handler's code.
 */
inline call()
{
	if
	:: event == chain ->
		log_locks++;
		assign_xid(xid);
		own_row = next_id;
		concerns = concerns | next_id;
		insert_row(xid)
	:: else
	fi
}

inline end_transaction()
{
	if
	:: xid != NONE -> end_xid(xid); log_locks--
	:: else
	fi;
	xid = NONE;
	own_row = NONE;
	event = NONE;
	locked = 0
}

proctype executor(byte me)
{
	/* the position that this executor knows: definition->position */
	bit loaded;
	byte k_cursor;
	byte k_window;
	byte k_last_id;

	/* run->cursor; the window from there; the events left in it; the last one passed */
	byte my_cursor;
	byte upto;
	byte rest;
	byte last;

	/* the transaction */
	byte snapshot;
	byte scan_window;
	bit blind;					/* the snapshot is older than the rows */
	byte event;
	byte xid;
	byte own_row;

	short i;
	bit life;

restart:
	{
end:
	do
	/* the executor ends, and another one starts */
	:: d_step { executor_failure && upto != NONE && locked != me -> executor_failure = 0; forget() }

	/* progress_flush() */
	:: d_step
		{
			loaded && my_cursor != k_cursor && locked == 0 ->
			if
			:: IS_STALE -> forget()
			:: else -> store_position()
			fi
		}

	/* read_windows(); the executor sleeps if there is nothing new */
	:: created && upto == NONE && (!loaded || my_cursor != done) && (me == 1 || looked) ->
#if defined(BROKEN_SNAPSHOT_FIRST) || defined(BROKEN_OWN_XID) || defined(BROKEN_RAISED_XMAX)
		d_step { load(); event_snapshot_build(snapshot, NONE); blind = !rewritten };
		d_step { blind = blind && rewritten; take_window() }
#else
#ifdef BROKEN_LOAD_LATE
		log_locks++;
		d_step { event_snapshot_build(snapshot, NONE); blind = !rewritten };
		d_step { load(); blind = blind && rewritten; take_window(); log_locks-- }
#else
		d_step { load(); log_locks++ };
		d_step { event_snapshot_build(snapshot, NONE); blind = !rewritten };
		d_step { blind = blind && rewritten; take_window(); log_locks-- }
#endif
#endif

	/* batch_turn(): a batch of one event */
	:: d_step
		{
			upto != NONE && locked != me ->
			first_event();
			if
			:: !(event & concerns) ->
				pass_event();
				if
				:: rest == NONE -> finish_window()
				:: else
				fi

			/* progress_lock(): another process has the lock */
			:: event & concerns && locked != 0 -> event = NONE
#ifndef BROKEN_NO_CHECK
			:: event & concerns && locked == 0 && IS_STALE -> event = NONE; forget()
			:: event & concerns && locked == 0 && !IS_STALE ->
#else
			:: event & concerns && locked == 0 ->
#endif
				locked = me;
				call()
#ifdef BROKEN_TWO_COMMITS
				;
				check_event();
				handled = handled | event
#endif
			fi
		}

	/* progress_store(), commit */
	:: d_step
		{
			locked == me ->
#ifndef BROKEN_TWO_COMMITS
			check_event();
			handled = handled | event;
#endif
			pass_event();
			store_position();
			end_transaction()
		}

	/* an error: the event is still to be handled */
	:: d_step
		{
			locked == me && executor_failure ->
			executor_failure = 0;
			rows = rows & ~own_row;
			end_transaction()
		}
	od
	}
#ifdef CRASH
	unless
	{
		d_step
		{
			epoch != life ->
			life = epoch;
			snapshot = NONE;
			scan_window = NONE;
			blind = 0;
			event = NONE;
			xid = NONE;
			own_row = NONE;
			forget()
		};
		goto restart
	}
#endif
}

#ifdef CRASH

proctype wal_writer()
{
	short i;

end:
	do
	:: d_step { created && flushed_handled != handled -> flush() }
	:: d_step { created && (flushed_cursor != cursor || flushed_window != window) -> flush() }
	od
}

proctype server_crash()
{
end:
	d_step
	{
		created ->
		epoch = 1;
		rows = flushed_rows;
		done = done | running;
		running = NONE;
		row_locked = 0;
		log_locks = 0;
		locked = 0;
		cursor = flushed_cursor;
		window = flushed_window;
		last_id = flushed_last_id;
		handled = flushed_handled
	}
}

#endif

init
{
	byte expected;
	short i;

	atomic
	{
		run row_writer(1);
		run row_writer(2);
		run writer();
		run executor(1);
#ifdef TWO_EXECUTORS
		run executor(2);
#endif
#ifdef CRASH
		run wal_writer();
		run server_crash();
#endif
#ifdef DDL
		run creator();
		run rewriter()
#else
		created = 1
#endif
	};

	/* no process can take another step */
	timeout;
	d_step
	{
		i = FIRST;
		do
		:: i < next_id ->
			if
			:: i & rows & concerns && !(xid_of[INDEX(i)] & before) -> expected = expected | i
			:: else
			fi;
			i = i << 1
		:: else -> break
		od;
		assert(handled == expected)
	}
}
