/*-------------------------------------------------------------------------
 *
 * loglimit.h
 *		Limits how many lines a worker logs about what users own.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_LOGLIMIT_H
#define PNE_LOGLIMIT_H

#include "base/instant.h"

typedef enum LogTopic
{
	LOG_TOPIC_HANDLERS,			/* states of handlers */
	LOG_TOPIC_EVENTS,			/* events that failed */
	LOG_TOPICS					/* how many there are */
} LogTopic;

extern bool loglimit_allows(LogTopic topic);
extern void loglimit_report(bool exiting);
extern Instant loglimit_due(void);

#endif							/* PNE_LOGLIMIT_H */
