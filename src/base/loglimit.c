/*-------------------------------------------------------------------------
 *
 * loglimit.c
 *		Limits how many lines a worker logs about what users own.
 *
 * A user who may create handlers and events decides how many of them exist, and
 * how many fail.  Therefore a worker logs at most MAX_LINES lines of each topic
 * a minute, and then how many lines it has left out.  Views show the state of
 * each handler and each event.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/loglimit.h"

/* the maximum number of lines of a topic within LIMIT_MS (ms) */
#define MAX_LINES 100
#define LIMIT_MS 60000

typedef struct LogLimit
{
	Instant		since;			/* when the first line was logged; 0: none was */
	int			lines;			/* logged since then */
	int			left_out;		/* not logged since then */
} LogLimit;

static LogLimit limits[LOG_TOPICS];

/*
 * Log how many lines of a topic were left out, if any, and start again.
 */
static void
report_topic(LogTopic topic)
{
	int			left_out = limits[topic].left_out;

	memset(&limits[topic], 0, sizeof(LogLimit));
	if (left_out == 0)
		return;
	if (topic == LOG_TOPIC_HANDLERS)
		ereport(LOG,
				(errmsg("left out %d more messages about event handlers", left_out),
				 errhint("The view event_handler_stats shows the state of each.")));
	else
		ereport(LOG,
				(errmsg("left out %d more messages about events that failed", left_out),
				 errhint("The view event_retries shows them.")));
}

/*
 * Returns whether another line of a topic may be logged.  If not, counts it as
 * left out.
 */
bool
loglimit_allows(LogTopic topic)
{
	LogLimit   *limit = &limits[topic];

	loglimit_report(false);
	if (limit->since == 0)
		limit->since = instant_now();
	if (limit->lines < MAX_LINES)
	{
		limit->lines++;
		return true;
	}
	limit->left_out++;
	return false;
}

/*
 * Log what was left out, if it is time for that, or if the worker is about to
 * exit.
 */
void
loglimit_report(bool exiting)
{
	Instant		now = instant_now();

	for (int topic = 0; topic < LOG_TOPICS; topic++)
	{
		if (limits[topic].since != 0 &&
			(exiting || instant_passed(limits[topic].since, now, LIMIT_MS)))
			report_topic(topic);
	}
}

/*
 * Returns when loglimit_report() is to be called next; INSTANT_NEVER if nothing
 * was left out.
 */
Instant
loglimit_due(void)
{
	Instant		due = INSTANT_NEVER;

	for (int topic = 0; topic < LOG_TOPICS; topic++)
	{
		if (limits[topic].left_out > 0)
			due = Min(due, instant_after(limits[topic].since, LIMIT_MS));
	}
	return due;
}
