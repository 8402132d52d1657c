/*-------------------------------------------------------------------------
 *
 * instant.c
 *		Points in time that setting the clock does not move.
 *
 * The time of day can be set back or forth by hours.  Therefore a time that is
 * only in memory, local or shared, and says when something happened or is due,
 * is an Instant.  A TimestampTz is for what users see and for what is stored in
 * tables.  If a stored time becomes a deadline, it is converted here.
 *
 * All processes read the same clock.  instr_time would not do: from PostgreSQL
 * 19 on it may count ticks of the processor, and each session decides whether
 * it does.  Signal handlers may call instant_now().
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <time.h>

#include "utils/timestamp.h"

#include "base/instant.h"

/*
 * The count begins this long (in us) before the system's start, so that 0 is
 * long ago.
 */
#define BEFORE_START (USECS_PER_DAY * 365)

/*
 * Returns the current instant.  Safe in a signal handler.
 */
Instant
instant_now(void)
{
	struct timespec now;

	(void) clock_gettime(CLOCK_MONOTONIC, &now);
	return BEFORE_START + (Instant) now.tv_sec * USECS_PER_SEC + now.tv_nsec / 1000;
}

/*
 * Returns the instant of a time of day, provided that nobody sets the clock
 * until then.  Infinity becomes INSTANT_NEVER, -infinity becomes 0.
 */
Instant
instant_of_time(TimestampTz when)
{
	if (TIMESTAMP_IS_NOEND(when))
		return INSTANT_NEVER;
	if (TIMESTAMP_IS_NOBEGIN(when))
		return 0;
	return instant_now() + (when - GetCurrentTimestamp());
}
