/*-------------------------------------------------------------------------
 *
 * throttle.c
 *		How often a worker looks for events, and an executor stores progress.
 *
 * Who commits rings, and a worker that is idle has the event a moment later.  But
 * where many commit, a worker that looks for each event takes the processor from
 * those who write them, and finds one event where a moment later it would find
 * ten.  So rounds that follow each other are some milliseconds apart; a few may
 * come at once, so that what happens now and then never waits.
 *
 * Each batch leaves an old version of the handler's progress row.  The server
 * removes those as it goes, unless somebody may still see them: a transaction that
 * was forgotten, a dump, a standby's feedback.  With an event in each batch, and
 * a thousand batches a second, the table would grow by hundreds of megabytes in
 * an hour then, and not shrink again.  So as long as old versions stay, a round is
 * worth more time.  Whether they do is known by a transaction of ours that has
 * stored progress, and since when it is watched: when it is behind the horizon
 * the next one is.  Where there is a backlog batches are full, and nothing is
 * gained by waiting.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/snapmgr.h"

#include "base/instant.h"
#include "base/throttle.h"

/* what a round is worth, in us, and how many may come at once */
#define ROUND_US INT64CONST(5000)
#define ROUNDS_AT_ONCE 20

/* where old versions stay: that of each handler at work, and of all at most, in us */
#define HELD_BATCH_US INT64CONST(10000)
#define HELD_ROUND_US INT64CONST(100000)

/* so long, in ms, any version may stay; and how often to look at the horizon */
#define MAX_KEPT_MS 1000
#define LOOK_MS 100

/* how long, in us, this process was idle and may work at once */
static int64 credit = ROUNDS_AT_ONCE * ROUND_US;
static Instant last_round = 0;

/* a transaction that has stored progress, watched since then; and the last one */
static FullTransactionId watched = {0};
static Instant watched_since = 0;
static FullTransactionId last_written = {0};
static Instant looked = 0;

/*
 * A transaction has stored progress.
 */
void
throttle_progress_written(FullTransactionId xid)
{
	last_written = xid;
}

/*
 * Look, now and then, whether old versions can be removed.  The log is a table of
 * the database like that of the progress.
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
 * What a round in which so many handlers had batches is worth, in us.
 */
static int64
worth(int nhandlers, Instant now)
{
	if (nhandlers == 0 || !FullTransactionIdIsValid(watched) ||
		!instant_passed(watched_since, now, MAX_KEPT_MS))
		return ROUND_US;
	return Min(nhandlers * HELD_BATCH_US, HELD_ROUND_US);
}

/*
 * A round has come to its end, in which so many handlers had batches; 0 for a
 * worker that has none.  How long, in ms, to wait before the next one.
 */
int
throttle_round(int nhandlers)
{
	Instant		now = instant_now();
	int64		price = worth(nhandlers, now);

	credit = Min(credit + now - last_round, ROUNDS_AT_ONCE * ROUND_US) - price;
	last_round = now;
	return (credit < 0) ? (int) (-credit / 1000) : 0;
}
