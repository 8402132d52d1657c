/*
 * announce.pml
 *		Every event is announced either by its emitter or by the listener.
 *
 * mirrors: announce_emitted() in src/emit/announce.c
 * mirrors: announcer_read() announcer_announce() announcer_announced() announcer_store() load_cursor() in src/listener/announcer.c
 * mirrors: look() follow_log() listener_stop() in src/listener/listener.c
 *
 * A transaction emits an event.  When it emits, it decides what announces the
 * event: the emitter, which then notifies in its own commit; or the announcer in
 * the listener, for which the row is marked; or nothing.  The decision depends on
 * the setting and on whether the database is served.  Both can change at any time,
 * even before the commit.
 *
 * The listener reads the rows that have become visible since its cursor, flushes
 * their WAL, announces the marked rows in a transaction, and stores the cursor
 * some time later.  It stops when the database is not served any more, it can die,
 * and it is started again.  A server crash discards everything that is running or
 * not flushed: a commit need not wait for the flush, unless it notifies itself.
 *
 * Left out: the contents of an announcement and the merging of equal ones; the
 * usage of the notification queue, which is one more reason to leave an event to
 * the announcer; the clients that are connected.  A snapshot is the set of
 * transactions that it considers done.  A transaction is a bit, and so is its
 * event (cursor.pml models the cursor itself).
 *
 * Checked: no event is announced before its commit is visible, nor by the
 * announcer before it is flushed; none is announced twice, except by an announcer
 * that has lost its memory; none is announced by both.  When the database stays
 * served and no process can take another step, each committed event was announced
 * by the one it was left to.
 *
 * broken: BROKEN_NO_MARK the listener decides anew which rows are its own
 * broken: BROKEN_DECIDE_LATE whether to notify is decided again at commit
 * broken: BROKEN_START_NOW the listener starts from what is visible then
 * broken: BROKEN_STORE_FIRST the cursor is stored before the announcement is committed
 * broken: BROKEN_NO_FLUSH announced before the WAL is flushed
 * broken: BROKEN_LATER_SNAPSHOT the cursor is taken after the rows were read
 */

#define NONE			0

mtype = { RELAY, DIRECT, OFF };

/* the settings */
mtype setting = RELAY;
bit served = 0;

/* transactions and their events */
byte done = NONE;				/* committed or rolled back */
byte rows = NONE;				/* committed */
byte unflushed = NONE;
byte marked = NONE;				/* left to the relay */
byte silent = NONE;				/* left to nobody */

/* what has announced them */
byte by_emitter = NONE;
byte by_relay = NONE;
byte by_this_listener = NONE;	/* as far as it can know */

/* the stored cursor */
byte stored = NONE;
byte flushed_stored = NONE;

byte epoch = 0;					/* crashes of the server */
byte deaths = 2;				/* of the listener, to come */

inline flush()
{
	unflushed = NONE;
	flushed_stored = stored
}

/*
 * announce_emitted(), and the commit.
 */
proctype emitter(byte me)
{
	mtype way;

	{
		d_step
		{
			if
			:: setting == OFF -> way = OFF; silent = silent | me
			:: setting == RELAY && served -> way = RELAY; marked = marked | me
			:: else -> way = DIRECT
			fi
		};
		if
		:: d_step
			{
#ifdef BROKEN_DECIDE_LATE
				if
				:: way != OFF -> way = (served && setting == RELAY -> RELAY : DIRECT)
				:: else
				fi;
#endif
				done = done | me;
				rows = rows | me;
				if
				:: way == DIRECT -> by_emitter = by_emitter | me; flush()
				:: else -> unflushed = unflushed | me
				fi
			}

		/* rolled back */
		:: d_step { done = done | me }
		fi
	}
	unless { epoch }
}

/*
 * Changes the settings; in the end the database is served.
 */
proctype operator()
{
	do
	:: served = !served
	:: setting = RELAY
	:: setting = DIRECT
	:: setting = OFF
	:: break
	od;
	served = 1
}

/* ----------
 * The listener
 * ----------
 */

inline load_cursor()
{
	alive = 1;
#ifdef BROKEN_START_NOW
	cursor = done
#else
	cursor = stored
#endif
}

inline lose_memory()
{
	alive = 0;
	cursor = NONE;
	upto = NONE;
	news = NONE;
	by_this_listener = NONE
}

#ifdef BROKEN_NO_MARK
#define IS_OURS		(served && setting == RELAY -> rows : NONE)
#else
#define IS_OURS		(rows & marked)
#endif

proctype listener()
{
	bit alive;
	byte cursor;
	byte upto;
	byte news;
	byte life;

restart:
	{
end:
	do
	:: !alive && served -> d_step { load_cursor() }

	/* it dies, even during an announcement */
	:: d_step { alive && deaths -> deaths--; lose_memory() }

	/* follow_log(): announcer_read() */
	:: d_step
		{
			alive && upto == NONE && cursor != done ->
			upto = done;
			news = IS_OURS & upto & ~cursor
		};
#ifdef BROKEN_LATER_SNAPSHOT
		upto = done;
#endif
#ifdef BROKEN_STORE_FIRST
		stored = upto;
#endif
		/* announcer_announce(), the commit, announcer_announced() */
		if
		:: d_step
			{
#ifndef BROKEN_NO_FLUSH
				flush();
#endif
				assert(!(news & ~rows));
				assert(!(news & by_emitter));
				assert(!(news & silent));
				assert(!(news & unflushed));
				assert(!(news & by_this_listener));
				by_relay = by_relay | news;
				by_this_listener = by_this_listener | news;
				cursor = upto;
				upto = NONE;
				news = NONE
			}
		:: d_step { deaths -> deaths--; lose_memory() }
		fi

	/* announcer_store() */
	:: d_step { alive && upto == NONE && stored != cursor -> stored = cursor }

	/* listener_stop(), which stores the cursor first if it can */
	:: d_step { alive && !served && stored == cursor -> lose_memory() }
	od
	}
	unless
	{
		d_step { life != epoch -> life = epoch; lose_memory() };
		goto restart
	}
}

proctype wal_writer()
{
end:
	do
	:: d_step { unflushed != NONE || flushed_stored != stored -> flush() }
	od
}

proctype server_crash()
{
end:
	d_step
	{
		true ->
		epoch++;
		assert(!(unflushed & by_relay));
		rows = rows & ~unflushed;
		unflushed = NONE;
		stored = flushed_stored
	}
}

init
{
	atomic
	{
		run emitter(1);
		run emitter(2);
		run operator();
		run listener();
		run wal_writer();
		run server_crash()
	};

	/* no process can take another step */
	timeout;
	assert(served);
	assert(!(by_emitter & by_relay));
	assert((by_emitter & rows) == (rows & ~marked & ~silent));
	assert((by_relay & rows) == (rows & marked))
}
