/*-------------------------------------------------------------------------
 *
 * instant.c
 *		Points in time that setting the clock does not move.
 *
 * The time of day can be set, back and forth, by hours.  So whatever is only in
 * memory, in this process or in shared memory, and says when something was or is
 * to be done, is an Instant.  A TimestampTz is for what users see and for what
 * stands in tables; where one of a table becomes a deadline it is converted here.
 *
 * All processes read the same clock.  Not with instr_time: from PostgreSQL 19 on
 * that may count the ticks of the processor, and each session sets whether it
 * does.  Signal handlers may ask, too.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <time.h>

#include "utils/timestamp.h"

#include "base/instant.h"

/* how long before the system's start the count begins, so that 0 is long ago */
#define BEFORE_START (USECS_PER_DAY * 365)

/*
 * What the clock says now.
 */
Instant
instant_now(void)
{
	struct timespec now;

	(void) clock_gettime(CLOCK_MONOTONIC, &now);
	return BEFORE_START + (Instant) now.tv_sec * USECS_PER_SEC + now.tv_nsec / 1000;
}

/*
 * When it will be that time of day, if nobody sets the clock.
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
