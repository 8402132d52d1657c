/*-------------------------------------------------------------------------
 *
 * shared.h
 *		What the processes of pg_notify_events share.
 *
 * LOCKING: shared->lock guards every field, unless a comment beside the field
 * says otherwise.  Atomics are read and written without the lock.  It is held
 * only while fields are read or written: never across a catalog access, a wait
 * or an ereport.  It is never taken together with a lock of counters
 * (event_counters.c, handler_counters.c, channel.c).
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_SHARED_H
#define PNE_SHARED_H

#include "datatype/timestamp.h"
#include "port/atomics.h"
#include "storage/condition_variable.h"
#include "storage/lwlock.h"

#include "base/instant.h"
#include "base/settings.h"

/*
 * Maximum number of databases that can be served at once; each listener takes a
 * worker process.
 */
#define MAX_DATABASES 128

/*
 * Maximum number of owners that can have an executor, or wait for one, at once.
 */
#define MAX_EXECUTOR_SLOTS 256

/*
 * How many owner tokens are kept of executors that have ended regularly but
 * could not remove their tokens from the handlers' rows.  Only the latest are
 * kept.  An executor that finds an older one in a row runs guarded without
 * need.
 */
#define MAX_RELEASED_TOKENS 1024

/*
 * The size of a handler's name in bytes, terminator included; it is of type
 * text in SQL.
 */
#define HANDLER_NAME_SIZE NAMEDATALEN

/*
 * The size of a kept error message in bytes, terminator included; a longer one
 * is cut.
 */
#define WORKER_ERROR_SIZE 512

/*
 * Maximum number of handlers being dropped in one database whose calls are
 * ended at once.
 */
#define MAX_ENDED_CALLS 8

/* number of counters of definition changes; some owners share one */
#define OWNER_GROUPS 64

#define BELL_UNUSED PG_UINT32_MAX

/*
 * A worker's doorbell.  A backend sets rung before the latch, and only the
 * worker clears it.  So code that resets the latch loses no wake-up.
 */
typedef struct Bell
{
	pg_atomic_uint32 procno;	/* number of the worker's process, or BELL_UNUSED */
	pg_atomic_uint32 rung;		/* 1: something has happened since the worker looked */
} Bell;

typedef enum WorkerPhase
{
	WORKER_NONE,				/* no process, and none is wanted */
	WORKER_WAITING,				/* wanted, waits to be started */
	WORKER_STARTING,			/* registered with the postmaster */
	WORKER_LISTENING,			/* listener: its LISTEN is committed */
	WORKER_IDLE,				/* has nothing to do */
	WORKER_RUNNING,				/* is working */
	WORKER_BACKING_OFF			/* failed, and waits until not_before */
} WorkerPhase;

/*
 * A worker process: what the launcher needs to manage it, and what
 * event_worker_stats shows of it.  Errors and counters survive the process, so
 * that users can see why a worker fails to start.
 */
typedef struct Worker
{
	WorkerPhase phase;
	pid_t		pid;			/* 0 unless the process is alive */
	Instant		phase_since;	/* when phase was entered */
	TimestampTz started_at;		/* when the process started, for users */
	Instant		alive_since;	/* the same, for comparisons */
	Instant		not_before;		/* no start before this */
	int			backoff;		/* the current back-off in ms, or 0; the next
								 * failure doubles it */
	TimestampTz last_error_at;
	char		last_error[WORKER_ERROR_SIZE];
	int			last_error_encoding;
	/* written only by the worker */
	pg_atomic_uint64 wakeups;
	pg_atomic_uint64 notifications_received;
	pg_atomic_uint64 events_announced;
	pg_atomic_uint64 events_handled;
} Worker;

/*
 * Indexes of a database's bells: the listener's is the first, those of the
 * executors follow.
 */
#define LISTENER_BELL 0
#define DATABASE_BELLS (1 + MAX_EXECUTORS)

typedef enum ExtensionPresence
{
	EXTENSION_UNKNOWN,			/* a listener has to start and look */
	EXTENSION_PRESENT,
	EXTENSION_ABSENT
} ExtensionPresence;

typedef struct DatabaseSlot
{
	pg_atomic_uint32 dboid;		/* InvalidOid: the slot is free; written under
								 * the lock */
	uint32		generation;		/* counts the uses of the slot */
	ExtensionPresence extension;
	uint32		installs;		/* counts the commits of CREATE EXTENSION */
	Worker		listener;
	pg_atomic_uint32 stop_requested;	/* 1: the listener is to exit, and with it
										 * the executors */
	/*
	 * Counters of changes of the handlers' and of the channels' definitions.
	 * Each change increments one at its commit; they are never reset.
	 */
	pg_atomic_uint32 definitions;
	pg_atomic_uint32 channel_definitions;
	/* the same for the handlers of a group of owners (shared_definitions_of) */
	pg_atomic_uint32 owner_definitions[OWNER_GROUPS];
	/* incremented to have the positions stored and flushed now; never reset */
	pg_atomic_uint32 persist_requests;
	/*
	 * If there are too many channels: the last one that is listened on; else
	 * "".  Written by the listener, under the lock.
	 */
	TimestampTz last_channel_at;
	char		last_channel[NAMEDATALEN];
	/* broadcast when a handler's progress was committed */
	ConditionVariable progress;
	/* broadcast when there may be something to fetch for consumers */
	ConditionVariable news;
	/*
	 * Handlers that are being dropped, whose calls are to end; "" in unused
	 * entries.
	 */
	char		ended_calls[MAX_ENDED_CALLS][HANDLER_NAME_SIZE];
	pg_atomic_uint32 bells_used;	/* bells beyond are unused; written under
									 * the lock */
	Bell		bells[DATABASE_BELLS];
} DatabaseSlot;

typedef struct ExecutorSlot
{
	bool		in_use;
	uint32		generation;		/* counts the uses of the slot */
	Oid			dboid;
	Oid			owner;
	Worker		worker;
	Instant		wanted_since;	/* when its listener requested it */
	int64		token;			/* its owner token in progress rows; 0: none yet */
	bool		stuck;			/* it could not clean its session: it is not
								 * counted against max_executors */
	bool		wanted;			/* requested again while backing off */
	char		handler[HANDLER_NAME_SIZE]; /* whose batch it runs, or empty */
	pg_atomic_uint32 unwanted;	/* 1: that handler is being dropped, and its call
								 * is to end; written under the lock */
	pg_atomic_uint32 stop_requested;	/* 1: exit after this batch */
	/*
	 * Its database's persist_requests when it last had stored all positions and
	 * updated all counters.
	 */
	pg_atomic_uint32 persisted;
} ExecutorSlot;

typedef struct SharedState
{
	LWLock	   *lock;
	/* CREATE EXTENSIONs that found no slot: the launcher has to look everywhere
	 * again */
	pg_atomic_uint32 lost_installs;
	/* transactions from this id on began after the server; 0: not known yet */
	pg_atomic_uint64 start_xid;
	pg_atomic_uint32 slot_wanted;	/* 1: an owner waits for an executor; an
									 * executor that becomes idle rings the
									 * launcher */
	Worker		launcher;
	Bell		launcher_bell;
	pg_atomic_uint32 databases_used;	/* slots beyond were never used; written
										 * under the lock */
	DatabaseSlot databases[MAX_DATABASES];
	ExecutorSlot executors[MAX_EXECUTOR_SLOTS];
	uint32		nreleased_tokens;	/* how many ever; the next replaces the oldest */
	int64		released_tokens[MAX_RELEASED_TOKENS];
} SharedState;

/* NULL if the library was not preloaded */
extern SharedState *shared;

extern Size shared_shmem_size(void);
extern void shared_shmem_startup(LWLock *lock);
extern void shared_require_preload(const char *what);

extern DatabaseSlot *shared_find_database(Oid dboid);
extern bool shared_has_room(void);
extern DatabaseSlot *shared_claim_database(Oid dboid);
extern void shared_note_install(Oid dboid);
extern void shared_release_database(DatabaseSlot *slot);

extern int	shared_owner_group(Oid owner);
extern uint32 shared_definitions_of(DatabaseSlot *slot, Oid owner);

extern ExecutorSlot *shared_find_executor(Oid dboid, Oid owner);
extern bool shared_want_executor(Oid dboid, Oid owner);
extern bool shared_executor_lives(int64 token);
extern void shared_release_token(int64 token);
extern bool shared_token_is_released(int64 token);
extern void shared_dismiss_executors(Oid dboid);
extern int	shared_end_calls(DatabaseSlot *database, const char *handler);
extern void shared_let_calls_be(DatabaseSlot *database, int entry);
extern bool shared_calls_are_to_end(const DatabaseSlot *database, const char *handler);

extern void worker_set_phase(Worker *worker, WorkerPhase phase);
extern void worker_report_error(Worker *worker, const char *message);

#endif							/* PNE_SHARED_H */
