/*-------------------------------------------------------------------------
 *
 * instant.h
 *		Points in time that setting the clock does not move.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_INSTANT_H
#define PNE_INSTANT_H

#include "datatype/timestamp.h"

/* in us; 0 is long ago */
typedef int64 Instant;

#define INSTANT_NEVER PG_INT64_MAX

extern Instant instant_now(void);
extern Instant instant_of_time(TimestampTz when);

/*
 * Returns the instant ms milliseconds after another.
 */
static inline Instant
instant_after(Instant since, int64 ms)
{
	return since + ms * 1000;
}

/*
 * Returns the instant ms milliseconds from now.
 */
static inline Instant
instant_in(int64 ms)
{
	return instant_after(instant_now(), ms);
}

/*
 * Returns whether at least ms milliseconds have passed from since until now.
 */
static inline bool
instant_passed(Instant since, Instant now, int64 ms)
{
	return now - since >= ms * 1000;
}

/*
 * Returns the time from now until an instant in ms, rounded up, or 0 if it is
 * past.
 */
static inline int64
instant_ms_left(Instant now, Instant until)
{
	return until <= now ? 0 : (until - now) / 1000 + ((until - now) % 1000 != 0);
}

#endif							/* PNE_INSTANT_H */
