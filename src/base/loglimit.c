/*-------------------------------------------------------------------------
 *
 * loglimit.c
 *		How many lines a worker may log about what users own.
 *
 * Who may create handlers and events decides how many of them there are, and how
 * many fail.  So a worker logs of each topic so many lines a minute, and then how
 * many it has left out.  Views show the state of each.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/loglimit.h"

/* lines of each topic, and in what time, in ms */
#define MAX_LINES 100
#define LIMIT_MS 60000

typedef struct LogLimit
{
	Instant		since;			/* when the first line was logged; 0: none was */
	int			lines;
	int			left_out;
} LogLimit;

static LogLimit limits[LOG_TOPICS];

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
 * Whether another line may be logged.  If not, it is counted.
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
 * Say what was left out, if it is time for that, or the worker is about to leave.
 */
void
loglimit_report(bool leaving)
{
	Instant		now = instant_now();

	for (int topic = 0; topic < LOG_TOPICS; topic++)
	{
		if (limits[topic].since != 0 &&
			(leaving || instant_passed(limits[topic].since, now, LIMIT_MS)))
			report_topic(topic);
	}
}

/*
 * When there will be something to say; INSTANT_NEVER: not as it stands.
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
