/*-------------------------------------------------------------------------
 *
 * shared.h
 *		What the processes of pg_notify_events share.
 *
 * LOCKING: shared->lock guards every field that has no other rule written
 * beside it.  Atomics are read and written without it.  The lock is held for
 * field access only: never across a catalog access, a wait or an ereport.
 * It is never taken together with a lock of figures (event_counters.c, handler_counters.c,
 * channel.c).
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

/* databases that can be served at once; each listener takes a worker process */
#define MAX_DATABASES 128

/* owners that can have, or wait for, an executor at once */
#define MAX_EXECUTOR_SLOTS 256

/*
 * Marks of executors that have left in good order, though they could not take them
 * from the handlers' rows; the last ones.  Who finds an older one is only careful
 * for nothing.
 */
#define MAX_RELEASED_TOKENS 1024

/* a handler's name is text, but never longer than this with its terminator */
#define HANDLER_NAME_SIZE NAMEDATALEN

/* the share of an error message that fits into the figures */
#define WORKER_ERROR_SIZE 512

/* drops of handlers in one database that can have calls ended at once */
#define MAX_ENDED_CALLS 8

/* owners are told apart by so many counters of changes; some share one */
#define OWNER_GROUPS 64

#define BELL_UNUSED PG_UINT32_MAX

/*
 * One worker's doorbell.  rung is set before the latch and cleared by the
 * worker only, so that code which eats the latch loses no wake-up.
 */
typedef struct Bell
{
	pg_atomic_uint32 procno;	/* number of the worker's process, or BELL_UNUSED */
	pg_atomic_uint32 rung;		/* 1: something happened since the worker looked */
} Bell;

typedef enum WorkerPhase
{
	WORKER_NONE,				/* nobody, and nobody wanted */
	WORKER_WAITING,				/* wanted, waits for a place */
	WORKER_STARTING,			/* registered with the postmaster */
	WORKER_LISTENING,			/* listener: its LISTEN is committed */
	WORKER_IDLE,				/* has nothing to do */
	WORKER_RUNNING,				/* at work */
	WORKER_BACKING_OFF			/* failed; not_before says until when */
} WorkerPhase;

/*
 * A worker process: what the launcher needs to keep it, and what
 * event_worker_stats shows of it.  Errors and counts survive the process, so
 * that a worker which fails to start can be looked at.
 */
typedef struct Worker
{
	WorkerPhase phase;
	pid_t		pid;			/* 0 unless the process is alive */
	Instant		phase_since;	/* when phase was entered */
	TimestampTz started_at;		/* when the process came alive: for users, */
	Instant		alive_since;	/* and to be compared */
	Instant		not_before;		/* no start before this */
	int			backoff;		/* ms that the next failure will cost */
	TimestampTz last_error_at;
	char		last_error[WORKER_ERROR_SIZE];
	int			last_error_encoding;
	/* written by the worker alone */
	pg_atomic_uint64 wakeups;
	pg_atomic_uint64 notifications_received;
	pg_atomic_uint64 events_announced;
	pg_atomic_uint64 events_handled;
} Worker;

/* the listener's bell stands first, behind it those of the executors */
#define LISTENER_BELL 0
#define DATABASE_BELLS (1 + MAX_EXECUTORS)

typedef enum ExtensionPresence
{
	EXTENSION_UNKNOWN,			/* a listener has to go and look */
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
	pg_atomic_uint32 stop_requested;		/* 1: the listener, and with it everybody, is to
								 * leave */
	/* bumped by whatever changes definitions of handlers, at its commit, and those
	 * of channels; never reset */
	pg_atomic_uint32 definitions;
	pg_atomic_uint32 channel_definitions;
	/* the same of handlers of some owners (shared_definitions_of) */
	pg_atomic_uint32 owner_definitions[OWNER_GROUPS];
	/* bumped by who wants positions on disk now; never reset */
	pg_atomic_uint32 persist_requests;
	/* the last channel that is listened on, if there are too many; else ""; written
	 * by the listener, under the lock */
	TimestampTz last_channel_at;
	char		last_channel[NAMEDATALEN];
	/* signalled when a handler's progress was committed */
	ConditionVariable progress;
	/* signalled when consumers may have got something to fetch */
	ConditionVariable news;
	/* handlers that are being dropped, whose calls are to end; or empty */
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
	Instant		wanted_since;	/* when its listener asked for it */
	int64		token;			/* what it leaves in progress rows; 0: none yet */
	bool		stuck;			/* it cannot clean its session, and has no place */
	bool		wanted;			/* asked for again while backing off */
	char		handler[HANDLER_NAME_SIZE]; /* whose batch it runs, or empty */
	pg_atomic_uint32 unwanted;	/* 1: that handler is being dropped, and its call
								 * is to end; written under the lock */
	pg_atomic_uint32 stop_requested;		/* 1: give the place up after this batch */
	/* persist_requests of its database when it last stored all and counted */
	pg_atomic_uint32 persisted;
} ExecutorSlot;

typedef struct SharedState
{
	LWLock	   *lock;
	/* installs that found no slot: the launcher has to look everywhere again */
	pg_atomic_uint32 lost_installs;
	/* transactions from here on began after the server did; 0: not known yet */
	pg_atomic_uint64 start_xid;
	pg_atomic_uint32 slot_wanted;	/* 1: an owner waits for a place; an executor
									 * that becomes idle rings the launcher */
	Worker		launcher;
	Bell		launcher_bell;
	pg_atomic_uint32 databases_used;	/* slots beyond were never used; written
										 * under the lock */
	DatabaseSlot databases[MAX_DATABASES];
	ExecutorSlot executors[MAX_EXECUTOR_SLOTS];
	uint32		nreleased_tokens;	/* so far; the next one replaces the oldest */
	int64		released_tokens[MAX_RELEASED_TOKENS];
} SharedState;

/* NULL where the library was not preloaded */
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
extern void shared_let_calls_be(DatabaseSlot *database, int place);
extern bool shared_calls_are_to_end(const DatabaseSlot *database, const char *handler);

extern void worker_set_phase(Worker *worker, WorkerPhase phase);
extern void worker_report_error(Worker *worker, const char *message);

#endif							/* PNE_SHARED_H */
