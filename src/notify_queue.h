/*-------------------------------------------------------------------------
 *
 * notify_queue.h
 *		LISTEN inside the server.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_NOTIFY_QUEUE_H
#define PNE_NOTIFY_QUEUE_H

/* a notification as it was read from the queue */
typedef struct Notification
{
	struct Notification *next;
	int			sender;			/* pid */
	const char *channel;
	const char *payload;		/* both terminated, in the same allocation */
} Notification;

extern void notify_queue_listen(const char *channel, const char *previous);
extern int	notify_queue_read(void);
extern Notification *notify_queue_take(void);
extern void notify_queue_free(Notification *notification);
extern double notify_queue_usage(void);
extern double notify_queue_share(uint64 bytes);
extern int	notify_queue_slowest(void);

#endif							/* PNE_NOTIFY_QUEUE_H */
