/*-------------------------------------------------------------------------
 *
 * throttle.c
 *		src/base/throttle.c with a simulated clock and simulated transactions, so that
 *		years of a worker pass in a moment.  Prints the results in TAP.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/snapmgr.h"

#include "base/instant.h"
#include "base/throttle.h"

#undef printf					/* the server has one of its own */

static Instant now_us = INT64CONST(1) << 50;
static uint64 next_xid = 1000;
static uint64 horizon = 1000;
static int	tests = 0;

Instant
instant_now(void)
{
	return now_us;
}

bool
GlobalVisCheckRemovableFullXid(Relation rel, FullTransactionId fxid)
{
	(void) rel;
	return U64FromFullTransactionId(fxid) < horizon;
}

static void
ok(bool right, const char *what)
{
	printf("%sok %d - %s\n", right ? "" : "not ", ++tests, what);
}

/*
 * Runs this many rounds as fast as they may come.  Each has a transaction for each of
 * nhandlers handlers, while nxids other transactions are running.  held: nothing can be
 * removed.  Returns the duration in ms.
 */
static int64
run_rounds_among(int nxids, int rounds, int nhandlers, bool held)
{
	Instant		began = now_us;

	for (int i = 0; i < rounds; i++)
	{
		throttle_look(NULL);
		for (int j = 0; j < nhandlers; j++)
			throttle_progress_written(FullTransactionIdFromU64(next_xid++), nxids);
		if (!held)
			horizon = next_xid;
		now_us += 10;
		now_us += INT64CONST(1000) * throttle_round(nhandlers);
	}
	return (now_us - began) / 1000;
}

static int64
run_rounds(int rounds, int nhandlers, bool held)
{
	return run_rounds_among(0, rounds, nhandlers, held);
}

static void
idle(int64 ms)
{
	now_us += ms * 1000;
}

int
main(void)
{
	int64		ms;

	ok(run_rounds(20, 1, false) == 0, "some rounds come at once");
	ms = run_rounds(1000, 1, false);
	ok(ms >= 4800 && ms <= 5100, "rounds are some ms apart");
	idle(200);
	ok(run_rounds(20, 1, false) == 0, "some come at once again");

	(void) run_rounds(300, 1, true);
	ms = run_rounds(100, 1, true);
	ok(ms >= 950 && ms <= 1100, "rounds are farther apart where old versions stay");
	ms = run_rounds(100, 5, true);
	ok(ms >= 4900 && ms <= 5200, "even more so for many handlers");
	ms = run_rounds(100, 50, true);
	ok(ms >= 9900 && ms <= 10500, "but not endlessly");
	ms = run_rounds_among(100, 100, 1, true);
	ok(ms >= 950 && ms <= 1100, "no more so where some transactions are running");
	ms = run_rounds_among(600, 100, 1, true);
	ok(ms >= 4700 && ms <= 4900, "but where hundreds are, whose list takes kilobytes");
	ms = run_rounds_among(900, 100, 5, true);
	ok(ms >= 9900 && ms <= 10500, "not endlessly either");
	idle(1000);
	ok(run_rounds(5, 1, true) == 0, "what happens now and then does not wait");
	(void) run_rounds(100, 1, true);
	horizon = next_xid;
	(void) run_rounds(100, 1, false);
	ms = run_rounds(100, 1, false);
	ok(ms >= 450 && ms <= 550, "as before, when they can be removed");
	ms = run_rounds_among(900, 100, 1, false);
	ok(ms >= 450 && ms <= 550, "whatever their size");

	/* a watched transaction is not taken for a future one some billions later */
	for (int i = 1; i <= 4; i++)
	{
		(void) run_rounds(100, 1, true);
		next_xid += UINT64CONST(3000000000);
		horizon = next_xid;
		idle(1000000);
		(void) run_rounds(100, 1, false);
		ms = run_rounds(100, 1, false);
		ok(ms >= 450 && ms <= 550, "nor does the number of transactions matter");
	}
	printf("1..%d\n", tests);
	return 0;
}
