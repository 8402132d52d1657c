/*-------------------------------------------------------------------------
 *
 * loglimit.h
 *		How many lines a worker may log about what users own.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_LOGLIMIT_H
#define PNE_LOGLIMIT_H

#include "base/instant.h"

typedef enum LogTopic
{
	LOG_TOPIC_HANDLERS,			/* their states */
	LOG_TOPIC_EVENTS,			/* each that failed */
	LOG_TOPICS					/* how many there are */
} LogTopic;

extern bool loglimit_allows(LogTopic topic);
extern void loglimit_report(bool leaving);
extern Instant loglimit_due(void);

#endif							/* PNE_LOGLIMIT_H */
