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
	QueueChannel queue;			/* its name, and what was received; must be first */
	char	   *event_name;
	Oid			owner;
	TimestampTz created_at;		/* tells it from an earlier channel of that name */
	bool		dormant;
	bool		unfit;			/* no event can have its event_name */
	bool		suspended;		/* its notifications do not become events now; the log says why */
} EventChannel;

extern Size channel_shmem_size(void);
extern void channel_shmem_startup(LWLock *lock);

/*
 * How many channels a database may have.  The server looks through all channels of a
 * session for each LISTEN and for each notification.
 */
#define MAX_CHANNELS 1000

/* channels that are defined but not listened on */
typedef struct ChannelsLeftOut
{
	int64		dormant;
	int64		beyond;			/* beyond the first MAX_CHANNELS */
} ChannelsLeftOut;

extern List *channel_load_all(MemoryContext context, ChannelsLeftOut *left_out);
extern void channel_publish_last(const EventChannel *last);
extern void channel_publish(EventChannel *channel);
extern void channel_forget_others(const List *channels);
extern void channel_forget_database(Oid dboid, bool keep_states);

#endif							/* PNE_CHANNEL_H */
