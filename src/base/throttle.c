/*-------------------------------------------------------------------------
 *
 * throttle.c
 *		Limits how often a worker looks for events, and how often an executor
 *		stores progress.
 *
 * A committing backend wakes the workers, and an idle worker has the event a
 * moment later.  But if there are many commits, a worker that looks for each
 * event takes processor time from the backends that write them.  It finds one
 * event where a moment later it would find ten.  So there are some milliseconds
 * between rounds that follow each other.  A few rounds may follow without
 * delay, so that occasional events never wait.
 *
 * Each batch leaves an old version of the handler's progress row.  The server
 * removes old versions in passing, unless a snapshot may still see them: that
 * of a forgotten transaction, of a dump, or of a standby with feedback.  Then,
 * with one event in each batch and a thousand batches a second, the table would
 * grow by hundreds of megabytes an hour, and not shrink again.  Therefore
 * rounds are farther apart as long as old versions stay.  If hundreds of
 * transactions are running, a version has a list of them, which takes
 * kilobytes; then its size counts.
 *
 * Whether they stay is known from a transaction of this process that has stored
 * progress.  It is watched since a known instant.  When it is behind the
 * horizon, the next one is watched.  If there is a backlog, batches are full,
 * and waiting gains nothing.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/snapmgr.h"

#include "base/instant.h"
#include "base/throttle.h"

/*
 * The time that a round takes from the credit, in us, and how many rounds may
 * follow without delay.
 */
#define ROUND_US INT64CONST(5000)
#define ROUNDS_AT_ONCE 20

/*
 * The same while old versions stay, in us: for each handler that had a batch, or
 * for each running transaction that was stored, whichever is more; and the
 * maximum.
 */
#define HELD_BATCH_US INT64CONST(10000)
#define HELD_XID_US INT64CONST(80)
#define HELD_ROUND_US INT64CONST(100000)

/*
 * How long old versions may stay before this counts, and how often to look at
 * the horizon, in ms.
 */
#define MAX_KEPT_MS 1000
#define LOOK_MS 100

/*
 * The time for which this process may work without delay, in us; it grows while
 * the process is idle.
 */
static int64 credit = ROUNDS_AT_ONCE * ROUND_US;
static Instant last_round = 0;

/*
 * The transaction that is watched, since when, and the last one that has stored
 * progress.
 */
static FullTransactionId watched = {0};
static Instant watched_since = 0;
static FullTransactionId last_written = {0};
static Instant looked = 0;

/* How many running transactions this round has stored in progress rows. */
static int64 xids_written = 0;

/*
 * Note that a transaction has stored progress, with so many running
 * transactions.
 */
void
throttle_progress_written(FullTransactionId xid, int nxids)
{
	last_written = xid;
	xids_written += nxids;
}

/*
 * Look, now and then, whether old versions of progress rows can be removed.
 * Takes the log, because its horizon is that of any table of the database.
 * Must be called in a transaction.
 */
void
throttle_look(Relation log)
{
	Instant		now = instant_now();

	if (!instant_passed(looked, now, LOOK_MS))
		return;
	looked = now;
	if (FullTransactionIdIsValid(watched) && !GlobalVisCheckRemovableFullXid(log, watched))
		return;
	watched = last_written;
	watched_since = now;
}

/*
 * Returns how much time a round takes from the credit, in us.  nhandlers is the
 * number of handlers that had batches in it.
 */
static int64
worth(int nhandlers, Instant now)
{
	if (nhandlers == 0 || !FullTransactionIdIsValid(watched) ||
		!instant_passed(watched_since, now, MAX_KEPT_MS))
		return ROUND_US;
	return Min(Max(nhandlers * HELD_BATCH_US, xids_written * HELD_XID_US), HELD_ROUND_US);
}

/*
 * Note the end of a round.  nhandlers is the number of handlers that had
 * batches in it; 0 for a worker that has none.  Returns how long to wait before
 * the next round, in ms.
 */
int
throttle_round(int nhandlers)
{
	Instant		now = instant_now();
	int64		price = worth(nhandlers, now);

	credit = Min(credit + now - last_round, ROUNDS_AT_ONCE * ROUND_US) - price;
	last_round = now;
	xids_written = 0;
	return (credit < 0) ? (int) (-credit / 1000) : 0;
}
