/*-------------------------------------------------------------------------
 *
 * pace.c
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
 * an hour then, and not shrink again.
 *
 * So an executor counts the versions that it has left and that cannot be removed.
 * When they are many its rounds are farther apart.  As long as there is a backlog
 * batches are full, and nothing is gained by waiting.
 *
 * How many they are is known by two numbers: a transaction of ours, and how often
 * we have written before it, since the one of last time, and after it.  When it
 * is behind the horizon the versions before it can go.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "storage/procarray.h"
#include "utils/timestamp.h"

#include "pace.h"

/* rounds that follow each other are so far apart, but for so many, in us */
#define ROUND_US INT64CONST(5000)
#define ROUNDS_AT_ONCE 20

/* so many versions may stay, and each for so long, in ms, before rounds are paced */
#define MAX_KEPT 500
#define MAX_KEPT_MS 1000

/* the interval for each handler at work, and the longest one, in ms */
#define INTERVAL_MS 10
#define MAX_INTERVAL_MS 100

/* how often to look at the horizon, in ms */
#define LOOK_MS 100

/* how long, in us, this process was idle and may work at once */
static int64 credit = ROUNDS_AT_ONCE * ROUND_US;
static TimestampTz last_round_at = 0;

static int	kept_before = 0;
static int	kept_after = 0;
static TransactionId mark = InvalidTransactionId;
static TimestampTz marked_at = 0;
static TransactionId last_written = InvalidTransactionId;
static TimestampTz looked_at = 0;

/*
 * A transaction has stored progress.
 */
void
pace_progress_written(TransactionId xid)
{
	last_written = xid;
	kept_after++;
}

/*
 * Look, now and then, whether old versions can be removed.  The log is a table of
 * the database like that of the progress.
 */
void
pace_look(Relation log)
{
	TimestampTz now = GetCurrentTimestamp();

	if (!TimestampDifferenceExceeds(looked_at, now, LOOK_MS))
		return;
	looked_at = now;
	if (TransactionIdIsNormal(mark) &&
		!TransactionIdPrecedes(mark, GetOldestNonRemovableTransactionId(log)))
		return;
	kept_before = kept_after;
	kept_after = 0;
	mark = last_written;
	marked_at = now;
}

/*
 * A round has come to its end.  How long, in ms, to wait before the next one.
 */
int
pace_round(void)
{
	TimestampTz now = GetCurrentTimestamp();
	int64		passed = Max(now - last_round_at, 0);	/* somebody may set the clock back */

	credit = Min(credit + passed, ROUNDS_AT_ONCE * ROUND_US) - ROUND_US;
	last_round_at = now;
	return (credit < 0) ? (int) (-credit / 1000) : 0;
}

/*
 * The same where so many handlers had batches in it.
 */
int
pace_batches(int nhandlers)
{
	int			interval = pace_round();

	if (kept_before + kept_after >= MAX_KEPT &&
		TimestampDifferenceExceeds(marked_at, last_round_at, MAX_KEPT_MS))
		interval = Max(interval, Min(nhandlers * INTERVAL_MS, MAX_INTERVAL_MS));
	return interval;
}
