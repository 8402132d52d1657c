/*-------------------------------------------------------------------------
 *
 * doorbell.c
 *		Wake the workers at commit, and only then.
 *
 * Whatever makes work for a worker leaves a wish in a variable of its backend
 * (doorbell_at_commit); a callback, registered once per backend, carries the
 * wishes out when the transaction has committed: that is after its rows have
 * become visible, so that a woken worker sees them.  A wish is that of its
 * subtransaction and goes with it.  To ring once too often would be harmless; to
 * forget the figures of an extension that was not dropped after all, or to
 * refuse PREPARE TRANSACTION for what was rolled back, is not.
 *
 * A wake-up is never lost, without any lock:
 *
 *		committer						worker
 *		rows are visible				reset latch
 *		rung = 1						rung = 0 (exchange: a full barrier)
 *		set latch (begins with a		take snapshot, work
 *				full barrier)			rung still 0? sleep on the latch
 *
 * If the snapshot misses the rows, rung was set after the exchange, and the
 * worker either sees it before it sleeps or finds its latch set.  Each worker
 * has a flag of its own and the latch is set always: with one flag for all, or
 * a latch set only by the first, the committer between the two steps could be
 * descheduled and the others would have rung nobody.
 *
 * Handler code may reset the latch of its worker; the flag stays.
 *
 * A prepared transaction rings when it is committed: COMMIT PREPARED runs in
 * another transaction, which is made to wish for it (pg_notify_events.c).  What
 * rings nobody, should it come to that, is found by the listener's poll once
 * per naptime.
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
 * What a subtransaction has asked for so far, and before it those around it that
 * have asked for anything; in TopTransactionContext.
 */
typedef struct Wishes
{
	SubTransactionId subxact;
	int			what;
	struct Wishes *outer;
} Wishes;

static Wishes *wishes = NULL;

/* groups of owners whose handlers it has changed: a bit for each */
static uint64 changed_owners = 0;
#define ALL_OWNERS PG_UINT64_MAX

/* called when a transaction has committed in which the extension was dropped; must
 * not throw */
void		(*extension_dropped_hook) (Oid dboid) = NULL;

StaticAssertDecl(OWNER_GROUPS <= 64, "groups of owners must fit into a set of bits");

/*
 * Wake one worker.
 */
void
doorbell_ring(Bell *bell)
{
	uint32		procno = pg_atomic_read_u32(&bell->procno);

	pg_atomic_write_u32(&bell->rung, 1);

	/*
	 * The process may be gone and its number used again by now.  Then somebody
	 * wakes up for nothing, which every user of a latch must stand.
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
 * Wake listener and executors of a database; the latter first, as what they do
 * is waited for.
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

static void
doorbell_ring_listener(Oid dboid)
{
	DatabaseSlot *slot = shared_find_database(dboid);

	if (slot != NULL)
		doorbell_ring(&slot->bells[LISTENER_BELL]);
}

void
doorbell_ring_launcher(void)
{
	if (shared != NULL)
		doorbell_ring(&shared->launcher_bell);
}

/*
 * Wake those who wait for events of a consumer, if the database has a slot.
 */
void
doorbell_ring_waiters(DatabaseSlot *slot)
{
	if (slot != NULL)
		ConditionVariableBroadcast(&slot->news);
}

/*
 * Count the changes of definitions, before those are woken who compare.
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
 * Carry the wishes out.  After a commit nothing here may throw.
 */
static void
doorbell_xact_callback(XactEvent event, void *arg)
{
	uint64		owners;
	int			what = 0;

	for (Wishes *of = wishes; of != NULL; of = of->outer)
		what |= of->what;
	owners = (what & RING_DROPPED) ? ALL_OWNERS : changed_owners;

	switch (event)
	{
		case XACT_EVENT_COMMIT:
			wishes = NULL;
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
			wishes = NULL;
			changed_owners = 0;
			if (what & RING_CONSUMERS)
				doorbell_ring_waiters(shared_find_database(MyDatabaseId));
			break;

		case XACT_EVENT_PREPARE:
			wishes = NULL;
			changed_owners = 0;
			break;

		default:
			break;
	}
}

/*
 * The wishes of a subtransaction become those of its parent, or go with it.
 */
static void
doorbell_subxact_callback(SubXactEvent event, SubTransactionId subxact, SubTransactionId parent,
						  void *arg)
{
	Wishes	   *own = wishes;

	if (own == NULL || own->subxact != subxact)
		return;
	if (event == SUBXACT_EVENT_ABORT_SUB)
	{
		wishes = own->outer;
		if (own->what & RING_CONSUMERS)
			doorbell_ring_waiters(shared_find_database(MyDatabaseId));
		pfree(own);
	}
	else if (event == SUBXACT_EVENT_COMMIT_SUB)
	{
		if (own->outer != NULL && own->outer->subxact == parent)
		{
			own->outer->what |= own->what;
			wishes = own->outer;
			pfree(own);
		}
		else
			own->subxact = parent;
	}
}

/*
 * Have something rung if and when the current transaction commits, as far as it
 * is not rolled back to a savepoint before; RING_CONSUMERS also when it is, or
 * aborts.
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
	if (wishes == NULL || wishes->subxact != subxact)
	{
		Wishes	   *own = MemoryContextAllocZero(TopTransactionContext, sizeof(Wishes));

		own->subxact = subxact;
		own->outer = wishes;
		wishes = own;
	}
	wishes->what |= what;
}

/*
 * The same where handlers of an owner were changed, or of any (InvalidOid).
 */
void
doorbell_handlers_at_commit(Oid owner)
{
	changed_owners |= OidIsValid(owner) ? UINT64CONST(1) << shared_owner_group(owner) : ALL_OWNERS;
	doorbell_at_commit(RING_DEFINITIONS);
}

/*
 * From now on the bell wakes this process.  It starts rung: what came before
 * has to be looked at, too.
 */
void
doorbell_attach(Bell *bell)
{
	pg_atomic_write_u32(&bell->procno, (uint32) MyProcNumber);
	pg_memory_barrier();
	pg_atomic_write_u32(&bell->rung, 1);
}

void
doorbell_detach(Bell *bell)
{
	pg_atomic_write_u32(&bell->procno, BELL_UNUSED);
	pg_memory_barrier();
}

/*
 * Take note that the bell was rung, if it was; whatever is visible to a
 * snapshot taken from now on needs no further ring.
 */
bool
doorbell_answer(Bell *bell)
{
	ResetLatch(MyLatch);
	return pg_atomic_exchange_u32(&bell->rung, 0) != 0;
}

bool
doorbell_is_rung(Bell *bell)
{
	return pg_atomic_read_u32(&bell->rung) != 0;
}
