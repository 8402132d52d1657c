/*-------------------------------------------------------------------------
 *
 * notify_queue.c
 *		LISTEN inside the server.
 *
 * SQL's LISTEN is refused in a background worker, because core has no way to
 * hand it what arrives; it leaves that to workers that call Async_Listen()
 * themselves.  We do, and get the notifications where a client would:
 * ProcessNotifyInterrupt() reads the queue and writes NotificationResponse
 * messages to "the frontend", and for the time of that call the frontend is us.
 *
 * Two kinds of channels are listened on.  On that of the announcements a
 * notification is counted, and shown in a debug log.  Those on channels that
 * are to be kept (ingest.c) stay in memory, in the order of their arrival,
 * until they are told to be forgotten.
 *
 * Our putmessage must not throw: since February 2026 an error while the queue
 * is read ends the process, and before, it lost the message.  One read hands
 * over the whole queue, which may be gigabytes.  So every notification is
 * counted, but its text is kept only where somebody wants it, and as far as
 * there is room.
 *
 * A notification that we send ourselves raises notifyInterruptPending without
 * setting the latch, so the flag is tested before each sleep (listener.c).  It
 * is neither counted nor kept, or the announcement of an event could become an
 * event.
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
 * Room for notifications that are kept: 16,000 of the longest, so that a burst
 * survives while events cannot be inserted, and yet a server with listeners in
 * several databases survives the burst.
 */
#define KEPT_ROOM ((Size) 128 * 1024 * 1024)

/* room for announcements that are to be logged; each read empties it */
#define ANNOUNCEMENTS_ROOM ((Size) 16 * 1024 * 1024)

typedef struct NotificationList
{
	Notification *first;
	Notification **last;
	Size		bytes;
	Size		room;
} NotificationList;

static MemoryContext queue_context = NULL;
static NotificationList kept = {NULL, &kept.first, 0, KEPT_ROOM};
static NotificationList announcements = {NULL, &announcements.first, 0, ANNOUNCEMENTS_ROOM};

/* what is listened on: one channel, if not empty, and those to be kept, by name */
static char announce_channel[NAMEDATALEN] = "";
static QueueChannel **channels = NULL;
static int	nchannels = 0;

/* since notify_queue_read() began */
static int	received = 0;
static bool log_announcements = false;

/* ----------
 * Lists
 * ----------
 */

/*
 * Append a notification, if there is room.  Does not throw.
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

static int
compare_channels(const void *a, const void *b)
{
	return strcmp((*(QueueChannel *const *) a)->name, (*(QueueChannel *const *) b)->name);
}

static int
compare_name(const void *name, const void *channel)
{
	return strcmp(name, (*(QueueChannel *const *) channel)->name);
}

/*
 * The channel of that name in a sorted array, or NULL.
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
 * Take a notification: int32 pid, channel, payload, each string terminated.
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

	/* the announcements' channel is never kept, or announcing would not end */
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
 * Listen on these channels and on no other, in one transaction.
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
		/* once more would do no harm, but there may be many */
		if (find_channel(wanted[i]->name, channels, nchannels) == NULL)
			Async_Listen(wanted[i]->name);
	}
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
}

/*
 * Listen on a channel for announcements, instead of the previous one if there
 * is any.  In force when this returns: what is sent from then on is received.
 */
void
notify_queue_listen(const char *channel)
{
	Assert(channel[0] != '\0' && strlen(channel) < NAMEDATALEN);
	change_channels(channel, channels, nchannels);
	strlcpy(announce_channel, channel, NAMEDATALEN);
}

/*
 * Listen on these channels and keep what comes there, instead of the previous
 * ones.  In force when this returns; the channels must live until the next
 * call, and as long as notifications of theirs are kept.
 */
void
notify_queue_keep(QueueChannel **wanted, int count)
{
	QueueChannel **sorted = MemoryContextAlloc(TopMemoryContext, sizeof(QueueChannel *) * (count + 1));

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
 * Read the queue to its end, outside of a transaction.  Returns how many
 * notifications of other processes were received.
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
 * The oldest notification that is kept, the others behind it; or NULL.
 */
Notification *
notify_queue_kept(void)
{
	return kept.first;
}

/*
 * Forget the oldest ones of those that are kept.
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
 * The share of the queue that is in use, from 0 to 1.
 */
double
notify_queue_usage(void)
{
	return DatumGetFloat8(OidFunctionCall0(F_PG_NOTIFICATION_QUEUE_USAGE));
}

/*
 * The share of the queue that so many bytes are.
 */
double
notify_queue_share(uint64 bytes)
{
	return (double) bytes / ((double) PNE_NOTIFY_QUEUE_PAGES * BLCKSZ);
}
