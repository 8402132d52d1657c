/*-------------------------------------------------------------------------
 *
 * channel.h
 *		Event channels: their definitions and counters.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_CHANNEL_H
#define PNE_CHANNEL_H

#include "nodes/pg_list.h"
#include "storage/lwlock.h"

#include "base/notify_queue.h"

typedef struct EventChannel
{
	QueueChannel queue;			/* its name, and what was received; first */
	char	   *event_name;
	Oid			owner;
	TimestampTz created_at;		/* tells it from an earlier one of that name */
	bool		dormant;
	bool		unfit;			/* its event_name is none that an event can have */
	bool		suspended;		/* it becomes no events now; the log says why */
} EventChannel;

extern Size channel_shmem_size(void);
extern void channel_shmem_startup(LWLock *lock);

/*
 * Channels of a database.  The server looks through all that a session listens on
 * for each LISTEN, and for each notification.
 */
#define MAX_CHANNELS 1000

/* those that are defined and not to be listened on */
typedef struct ChannelsLeftOut
{
	int64		dormant;
	int64		beyond;			/* the first MAX_CHANNELS of the others */
} ChannelsLeftOut;

extern List *channel_load_all(MemoryContext context, ChannelsLeftOut *left_out);
extern void channel_publish_last(const EventChannel *last);
extern void channel_publish(EventChannel *channel);
extern void channel_forget_others(const List *channels);
extern void channel_forget_database(Oid dboid, bool keep_states);

#endif							/* PNE_CHANNEL_H */
