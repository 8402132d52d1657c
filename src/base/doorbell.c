/*-------------------------------------------------------------------------
 *
 * doorbell.c
 *		Wakes the workers when a transaction commits.
 *
 * Whatever makes work for a worker calls doorbell_at_commit(), which notes a
 * request in backend-local memory.  A transaction callback, registered once per
 * backend, carries out the requests after the commit.  By then the rows are
 * visible, so a worker that is woken sees them.  A request belongs to its
 * subtransaction and is rolled back with it.  One ring too many would be
 * harmless.  But after a rollback it would be wrong to forget the counters of an
 * extension that was not dropped after all, or to refuse PREPARE TRANSACTION.
 *
 * A wake-up is never lost, without any lock:
 *
 *		committing backend				worker
 *		rows are visible				reset latch
 *		rung = 1						rung = 0 (exchange: a full barrier)
 *		set latch (begins with a		take snapshot, work
 *				full barrier)			rung still 0? sleep on the latch
 *
 * If the snapshot misses the rows, rung was set after the exchange.  Then the
 * worker either sees the flag before it sleeps, or finds its latch set.  Each
 * worker has its own flag, and the latch is always set.  With one flag for all
 * workers, or with a latch that only the first backend sets, that backend could
 * be descheduled between the two steps.  The backends that come after it would
 * have woken nobody.
 *
 * A handler's code may reset the latch of its worker; the flag stays set.
 *
 * A prepared transaction rings when it is committed.  COMMIT PREPARED runs in
 * another transaction, and pg_notify_events.c notes the request there.  If a
 * ring should ever be missing, the listener's poll finds the work within one
 * naptime.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "utils/memutils.h"

#include "base/compat.h"
#include "base/doorbell.h"
#include "base/fault.h"

/*
 * What a subtransaction has requested so far.  outer leads to the next
 * enclosing subtransaction that has requested anything.  In
 * TopTransactionContext.
 */
typedef struct RingRequests
{
	SubTransactionId subxact;
	int			what;
	struct RingRequests *outer;
} RingRequests;

static RingRequests *requests = NULL;

/*
 * The groups of owners whose handlers this transaction has changed: a bit for
 * each.
 */
static uint64 changed_owners = 0;
#define ALL_OWNERS PG_UINT64_MAX

/*
 * Called after the commit of a transaction that has dropped the extension; must
 * not throw.
 */
void		(*extension_dropped_hook) (Oid dboid) = NULL;

StaticAssertDecl(OWNER_GROUPS <= 64, "groups of owners must fit into a set of bits");

/*
 * Wake one worker.  Does not throw.
 */
void
doorbell_ring(Bell *bell)
{
	uint32		procno = pg_atomic_read_u32(&bell->procno);

	pg_atomic_write_u32(&bell->rung, 1);

	/*
	 * The process may be gone, and its number may be in use again.  Then
	 * another process wakes up for nothing, which every user of a latch must
	 * tolerate.
	 */
	if (procno != BELL_UNUSED)
		SetLatch(&GetPGProcByNumber(procno)->procLatch);
}

/*
 * Wake the executors of a database.
 */
void
doorbell_ring_executors(DatabaseSlot *slot)
{
	uint32		used = pg_atomic_read_u32(&slot->bells_used);

	for (uint32 i = LISTENER_BELL + 1; i < used; i++)
		doorbell_ring(&slot->bells[i]);
}

/*
 * Wake the executors and the listener of a database, if it has a slot.  The
 * executors come first, because users wait for what they do.
 */
void
doorbell_ring_database(Oid dboid)
{
	DatabaseSlot *slot = shared_find_database(dboid);

	if (slot == NULL)
		return;
	doorbell_ring_executors(slot);
	doorbell_ring(&slot->bells[LISTENER_BELL]);
}

/*
 * Wake the listener of a database, if it has a slot.
 */
static void
doorbell_ring_listener(Oid dboid)
{
	DatabaseSlot *slot = shared_find_database(dboid);

	if (slot != NULL)
		doorbell_ring(&slot->bells[LISTENER_BELL]);
}

/*
 * Wake the launcher, if the library was preloaded.
 */
void
doorbell_ring_launcher(void)
{
	if (shared != NULL)
		doorbell_ring(&shared->launcher_bell);
}

/*
 * Wake the sessions that wait for events of a consumer.  slot is that of the
 * database, or NULL: then nobody waits.
 */
void
doorbell_ring_waiters(DatabaseSlot *slot)
{
	if (slot != NULL)
		ConditionVariableBroadcast(&slot->news);
}

/*
 * Count the changes of definitions.  The workers compare these counters, so
 * they are counted before the workers are woken.  owners is a set of groups.
 */
static void
count_changes(DatabaseSlot *slot, int what, uint64 owners)
{
	if (slot == NULL)
		return;
	if (what & (RING_DEFINITIONS | RING_DROPPED))
		pg_atomic_fetch_add_u32(&slot->definitions, 1);
	if (what & (RING_CHANNELS | RING_DROPPED))
		pg_atomic_fetch_add_u32(&slot->channel_definitions, 1);
	for (int group = 0; group < OWNER_GROUPS; group++)
	{
		if (owners & (UINT64CONST(1) << group))
			pg_atomic_fetch_add_u32(&slot->owner_definitions[group], 1);
	}
}

/*
 * Carry out the requests at the end of a transaction.  After a commit nothing
 * here may throw.
 */
static void
doorbell_xact_callback(XactEvent event, void *arg)
{
	uint64		owners;
	int			what = 0;

	for (RingRequests *of = requests; of != NULL; of = of->outer)
		what |= of->what;
	owners = (what & RING_DROPPED) ? ALL_OWNERS : changed_owners;

	switch (event)
	{
		case XACT_EVENT_COMMIT:
			requests = NULL;
			changed_owners = 0;
			if (what == 0)
				return;
			FAULT_POINT("before-ring");
			if (what & RING_EXTENSION)
				shared_note_install(MyDatabaseId);
			if ((what & RING_DROPPED) && extension_dropped_hook)
				extension_dropped_hook(MyDatabaseId);
			if (what & (RING_DEFINITIONS | RING_CHANNELS | RING_DROPPED))
				count_changes(shared_find_database(MyDatabaseId), what, owners);
			if (what & (RING_EVENTS | RING_DEFINITIONS | RING_DROPPED))
				doorbell_ring_database(MyDatabaseId);
			else if (what & RING_CHANNELS)
				doorbell_ring_listener(MyDatabaseId);
			if (what & RING_CONSUMERS)
				doorbell_ring_waiters(shared_find_database(MyDatabaseId));
			if (what & (RING_EXTENSION | RING_LAUNCHER))
				doorbell_ring_launcher();
			break;

		case XACT_EVENT_PRE_PREPARE:
			if (what & (RING_DEFINITIONS | RING_CHANNELS | RING_EXTENSION | RING_DROPPED))
				ereport(ERROR,
						(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						 errmsg("cannot PREPARE a transaction that has changed event handlers, event channels or extension pg_notify_events"),
						 errhint("COMMIT it instead.")));
			break;

		case XACT_EVENT_ABORT:
			requests = NULL;
			changed_owners = 0;
			if (what & RING_CONSUMERS)
				doorbell_ring_waiters(shared_find_database(MyDatabaseId));
			break;

		case XACT_EVENT_PREPARE:
			requests = NULL;
			changed_owners = 0;
			break;

		default:
			break;
	}
}

/*
 * Pass the requests of a subtransaction on to its parent, or forget them if it
 * is rolled back.
 */
static void
doorbell_subxact_callback(SubXactEvent event, SubTransactionId subxact, SubTransactionId parent,
						  void *arg)
{
	RingRequests	   *own = requests;

	if (own == NULL || own->subxact != subxact)
		return;
	if (event == SUBXACT_EVENT_ABORT_SUB)
	{
		requests = own->outer;
		if (own->what & RING_CONSUMERS)
			doorbell_ring_waiters(shared_find_database(MyDatabaseId));
		pfree(own);
	}
	else if (event == SUBXACT_EVENT_COMMIT_SUB)
	{
		if (own->outer != NULL && own->outer->subxact == parent)
		{
			own->outer->what |= own->what;
			requests = own->outer;
			pfree(own);
		}
		else
			own->subxact = parent;
	}
}

/*
 * Request that what (RING_ flags) is rung when the current transaction commits.
 * A rollback to an earlier savepoint cancels the request.  RING_CONSUMERS is
 * rung after a rollback or an abort, too.  Must be called in a transaction.
 */
void
doorbell_at_commit(int what)
{
	static bool registered = false;
	SubTransactionId subxact = GetCurrentSubTransactionId();

	if (shared == NULL)
		return;
	if (!registered)
	{
		RegisterXactCallback(doorbell_xact_callback, NULL);
		RegisterSubXactCallback(doorbell_subxact_callback, NULL);
		registered = true;
	}
	if (requests == NULL || requests->subxact != subxact)
	{
		RingRequests	   *own = MemoryContextAllocZero(TopTransactionContext, sizeof(RingRequests));

		own->subxact = subxact;
		own->outer = requests;
		requests = own;
	}
	requests->what |= what;
}

/*
 * The same for a change of an owner's handlers.  InvalidOid means the handlers
 * of all owners.
 */
void
doorbell_handlers_at_commit(Oid owner)
{
	changed_owners |= OidIsValid(owner) ? UINT64CONST(1) << shared_owner_group(owner) : ALL_OWNERS;
	doorbell_at_commit(RING_DEFINITIONS);
}

/*
 * From now on, the bell wakes this process.  The bell starts as rung, because
 * the process has not yet looked at what happened before.
 */
void
doorbell_attach(Bell *bell)
{
	pg_atomic_write_u32(&bell->procno, (uint32) MyProcNumber);
	pg_memory_barrier();
	pg_atomic_write_u32(&bell->rung, 1);
}

/*
 * From now on, the bell wakes no process.
 */
void
doorbell_detach(Bell *bell)
{
	pg_atomic_write_u32(&bell->procno, BELL_UNUSED);
	pg_memory_barrier();
}

/*
 * Reset the latch and the bell.  Returns whether the bell was rung.  Whatever
 * is visible to a snapshot taken after this needs no further ring.
 */
bool
doorbell_answer(Bell *bell)
{
	ResetLatch(MyLatch);
	return pg_atomic_exchange_u32(&bell->rung, 0) != 0;
}

/*
 * Returns whether the bell was rung since the last doorbell_answer().
 */
bool
doorbell_is_rung(Bell *bell)
{
	return pg_atomic_read_u32(&bell->rung) != 0;
}
