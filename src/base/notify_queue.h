/*-------------------------------------------------------------------------
 *
 * notify_queue.h
 *		LISTEN inside the server.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_NOTIFY_QUEUE_H
#define PNE_NOTIFY_QUEUE_H

#include "datatype/timestamp.h"

/* counters of what was received on a channel */
typedef struct QueueCounters
{
	int64		notifications;
	int64		bytes;			/* of their payloads */
	int64		dropped;		/* notifications for which there was no room */
	TimestampTz last_received_at;
} QueueCounters;

/* a channel whose notifications are kept */
typedef struct QueueChannel
{
	char		name[NAMEDATALEN];
	QueueCounters counted;		/* notify_queue_read() adds to it */
} QueueChannel;

/* a notification as it was read from the queue */
typedef struct Notification
{
	struct Notification *next;
	QueueChannel *channel;		/* NULL: the channel of the announcements */
	int			sender;			/* pid */
	char		payload[FLEXIBLE_ARRAY_MEMBER]; /* terminated */
} Notification;

extern void notify_queue_listen(const char *channel);
extern void notify_queue_keep(QueueChannel **wanted, int count);
extern int	notify_queue_read(void);
extern Notification *notify_queue_kept(void);
extern void notify_queue_forget(int count);
extern double notify_queue_usage(void);
extern double notify_queue_share(uint64 bytes);

#endif							/* PNE_NOTIFY_QUEUE_H */
