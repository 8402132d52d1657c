/*-------------------------------------------------------------------------
 *
 * notify_queue.c
 *		LISTEN inside the server.
 *
 * The server refuses the SQL command LISTEN in a background worker, because it
 * cannot deliver notifications there.  It leaves that to workers that call
 * Async_Listen() themselves, as this file does.  The worker gets the
 * notifications as a client would: ProcessNotifyInterrupt() reads the queue and
 * writes NotificationResponse messages to "the frontend".  During that call the
 * functions of this file are the frontend.
 *
 * There are two kinds of channels.  A notification on the channel of the
 * announcements is counted, and shown in a debug log.  Notifications on
 * channels that are kept (ingest.c) stay in memory, in the order of their
 * arrival, until notify_queue_forget() is called for them.
 *
 * queue_putmessage() must not throw.  Since the minor releases of February 2026
 * an error while the queue is read ends the process; before, such an error lost
 * the message.  One read hands over the whole queue, which may be gigabytes.
 * Therefore every notification is counted, but its text is kept only if
 * it is needed, and only as long as there is room.
 *
 * A notification that this process sends sets notifyInterruptPending without
 * setting the latch, so listener.c tests the flag before each sleep.  Such a
 * notification is neither counted nor kept.  Otherwise the announcement of an
 * event could become another event.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/slru.h"
#include "access/xact.h"
#include "commands/async.h"
#include "libpq/libpq.h"
#include "libpq/pqformat.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "tcop/dest.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/compat.h"
#include "base/notify_queue.h"

/* the type of a NotificationResponse message */
#define NOTIFICATION_RESPONSE 'A'

/*
 * Room for notifications that are kept, in bytes: 16,000 of the longest.  That
 * is enough for a burst while events cannot be inserted, and little enough for
 * a server with listeners in several databases.
 */
#define KEPT_ROOM ((Size) 128 * 1024 * 1024)

/*
 * Room for announcements that are to be logged, in bytes; each read empties the
 * list.
 */
#define ANNOUNCEMENTS_ROOM ((Size) 16 * 1024 * 1024)

typedef struct NotificationList
{
	Notification *first;
	Notification **last;		/* the pointer that the next one is put into */
	Size		bytes;			/* in use */
	Size		room;			/* the limit of that */
} NotificationList;

static MemoryContext queue_context = NULL;
static NotificationList kept = {NULL, &kept.first, 0, KEPT_ROOM};
static NotificationList announcements = {NULL, &announcements.first, 0, ANNOUNCEMENTS_ROOM};

/*
 * The channels that are listened on: that of the announcements, unless empty,
 * and those that are kept, sorted by name.
 */
static char announce_channel[NAMEDATALEN] = "";
static QueueChannel **channels = NULL;
static int	nchannels = 0;

/* state of notify_queue_read() */
static int	received = 0;		/* notifications of other processes so far */
static bool log_announcements = false;

/* ----------
 * Lists
 * ----------
 */

/*
 * Append a notification, if there is room.  length is that of the payload,
 * without a terminator.  Returns false if there is no room.  Does not throw.
 */
static bool
list_append(NotificationList *list, QueueChannel *channel, int sender, const char *payload, size_t length)
{
	Size		size = offsetof(Notification, payload) + length + 1;
	Notification *notification;

	if (list->bytes + size > list->room)
		return false;
	notification = MemoryContextAllocExtended(queue_context, size, MCXT_ALLOC_NO_OOM);
	if (notification == NULL)
		return false;
	notification->next = NULL;
	notification->channel = channel;
	notification->sender = sender;
	memcpy(notification->payload, payload, length);
	notification->payload[length] = '\0';
	*list->last = notification;
	list->last = &notification->next;
	list->bytes += GetMemoryChunkSpace(notification);
	return true;
}

/*
 * Remove and free the first notification of a list that is not empty.
 */
static void
list_remove_first(NotificationList *list)
{
	Notification *notification = list->first;

	list->first = notification->next;
	if (list->first == NULL)
		list->last = &list->first;
	list->bytes -= GetMemoryChunkSpace(notification);
	pfree(notification);
}

/* ----------
 * The frontend
 * ----------
 */

/*
 * Compare two elements of an array of channels by name, for qsort().
 */
static int
compare_channels(const void *a, const void *b)
{
	return strcmp((*(QueueChannel *const *) a)->name, (*(QueueChannel *const *) b)->name);
}

/*
 * Compare a name with an element of an array of channels, for bsearch().
 */
static int
compare_name(const void *name, const void *channel)
{
	return strcmp(name, (*(QueueChannel *const *) channel)->name);
}

/*
 * Returns the channel of that name in a sorted array, or NULL.
 */
static QueueChannel *
find_channel(const char *name, QueueChannel **array, int count)
{
	QueueChannel **found = NULL;

	if (count > 0)
		found = bsearch(name, array, count, sizeof(QueueChannel *), compare_name);
	return found != NULL ? *found : NULL;
}

static void
queue_comm_reset(void)
{
}

static int
queue_flush(void)
{
	return 0;
}

static bool
queue_is_send_pending(void)
{
	return false;
}

/*
 * Receive a message.  A NotificationResponse consists of the sender's pid as an
 * int32, the channel and the payload, both terminated.  Other messages are
 * ignored.  Must not throw.
 */
static int
queue_putmessage(char msgtype, const char *s, size_t len)
{
	QueueChannel *channel;
	const char *payload;
	size_t		length;
	uint32		pid;
	int			sender;

	if (msgtype != NOTIFICATION_RESPONSE || len < sizeof(pid) + 2 || s[len - 1] != '\0')
		return 0;

	memcpy(&pid, s, sizeof(pid));
	sender = (int) pg_ntoh32(pid);
	if (sender == MyProcPid)
		return 0;
	received++;

	s += sizeof(pid);
	len -= sizeof(pid);
	length = strlen(s) + 1;
	payload = length < len ? s + length : "";
	length = strlen(payload);

	/*
	 * The announcements' channel is never kept, or each announcement would
	 * cause another.
	 */
	if (strcmp(s, announce_channel) == 0)
	{
		if (log_announcements)
			(void) list_append(&announcements, NULL, sender, payload, length);
		return 0;
	}
	channel = find_channel(s, channels, nchannels);
	if (channel == NULL)
		return 0;
	channel->counted.notifications++;
	channel->counted.bytes += (int64) length;
	channel->counted.last_received_at = GetCurrentTimestamp();
	if (!list_append(&kept, channel, sender, payload, length))
		channel->counted.dropped++;
	return 0;
}

static void
queue_putmessage_noblock(char msgtype, const char *s, size_t len)
{
	(void) queue_putmessage(msgtype, s, len);
}

static const PQcommMethods queue_methods = {
	.comm_reset = queue_comm_reset,
	.flush = queue_flush,
	.flush_if_writable = queue_flush,
	.is_send_pending = queue_is_send_pending,
	.putmessage = queue_putmessage,
	.putmessage_noblock = queue_putmessage_noblock
};

/* ----------
 * Listening
 * ----------
 */

/*
 * Listen on these channels and on no other.  announce is the channel for
 * announcements, or "".  wanted are the channels that are kept, sorted by name.
 * Runs a transaction of its own.
 */
static void
change_channels(const char *announce, QueueChannel **wanted, int count)
{
	MemoryContext context = CurrentMemoryContext;

	if (queue_context == NULL)
		queue_context = GenerationContextCreate(TopMemoryContext, "notifications",
												ALLOCSET_DEFAULT_SIZES);

	StartTransactionCommand();
	if (announce_channel[0] != '\0' && strcmp(announce_channel, announce) != 0 &&
		find_channel(announce_channel, wanted, count) == NULL)
		Async_Unlisten(announce_channel);
	for (int i = 0; i < nchannels; i++)
	{
		if (strcmp(channels[i]->name, announce) != 0 &&
			find_channel(channels[i]->name, wanted, count) == NULL)
			Async_Unlisten(channels[i]->name);
	}
	if (announce[0] != '\0')
		Async_Listen(announce);
	for (int i = 0; i < count; i++)
	{
		/* listening again would be harmless, but there may be many channels */
		if (find_channel(wanted[i]->name, channels, nchannels) == NULL)
			Async_Listen(wanted[i]->name);
	}
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
}

/*
 * Listen on a channel for announcements, in place of the previous one.  When
 * this returns, the worker receives whatever is sent from then on.  Runs a
 * transaction, so it must be called outside of one.
 */
void
notify_queue_listen(const char *channel)
{
	Assert(channel[0] != '\0' && strlen(channel) < NAMEDATALEN);
	Assert(!IsTransactionState());

	change_channels(channel, channels, nchannels);
	strlcpy(announce_channel, channel, NAMEDATALEN);
}

/*
 * Listen on these channels and keep their notifications, in place of the
 * previous channels.  When this returns, the worker receives whatever is sent
 * from then on.  Runs a transaction, so it must be called outside of one.
 *
 * The channels must stay allocated until the next call, and as long as
 * notifications of them are kept.
 */
void
notify_queue_keep(QueueChannel **wanted, int count)
{
	QueueChannel **sorted = MemoryContextAlloc(TopMemoryContext, sizeof(QueueChannel *) * (count + 1));

	Assert(!IsTransactionState());

	PG_TRY();
	{
		memcpy(sorted, wanted, sizeof(QueueChannel *) * count);
		qsort(sorted, count, sizeof(QueueChannel *), compare_channels);
		change_channels(announce_channel, sorted, count);
	}
	PG_CATCH();
	{
		pfree(sorted);
		PG_RE_THROW();
	}
	PG_END_TRY();

	if (channels != NULL)
		pfree(channels);
	channels = sorted;
	nchannels = count;
}

/* ----------
 * Reading
 * ----------
 */

/*
 * Read the queue to its end.  Must be called outside of a transaction.  Returns
 * how many notifications of other processes were received.
 */
int
notify_queue_read(void)
{
	const PQcommMethods *save_methods = PqCommMethods;
	CommandDest save_dest = whereToSendOutput;

	Assert(!IsTransactionState());

	received = 0;
	if (!notifyInterruptPending)
		return 0;

	log_announcements = message_level_is_interesting(DEBUG1);
	SetCurrentStatementStartTimestamp();
	PG_TRY();
	{
		PqCommMethods = &queue_methods;
		whereToSendOutput = DestRemote;
		ProcessNotifyInterrupt(false);
	}
	PG_FINALLY();
	{
		PqCommMethods = save_methods;
		whereToSendOutput = save_dest;
	}
	PG_END_TRY();

	while (announcements.first != NULL)
	{
		ereport(DEBUG1,
				(errmsg("notification on channel \"%s\" from process %d: \"%s\"",
						announce_channel, announcements.first->sender, announcements.first->payload)));
		list_remove_first(&announcements);
	}
	return received;
}

/*
 * Returns the oldest notification that is kept, or NULL.  The others follow it
 * in the list.
 */
Notification *
notify_queue_kept(void)
{
	return kept.first;
}

/*
 * Forget the oldest count notifications that are kept.  There must be so many.
 */
void
notify_queue_forget(int count)
{
	for (int i = 0; i < count; i++)
		list_remove_first(&kept);
}

/* ----------
 * How full it is
 * ----------
 */

/*
 * Returns the share of the queue that is in use, from 0 to 1.
 */
double
notify_queue_usage(void)
{
	return DatumGetFloat8(OidFunctionCall0(F_PG_NOTIFICATION_QUEUE_USAGE));
}

/*
 * Returns so many bytes as a share of the whole queue.
 */
double
notify_queue_share(uint64 bytes)
{
	return (double) bytes / ((double) PNE_NOTIFY_QUEUE_PAGES * BLCKSZ);
}
