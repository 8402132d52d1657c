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
 * Our putmessage must not throw: since February 2026 an error while the queue
 * is read ends the process, and before, it lost the message.  One read hands
 * over the whole queue, which may be gigabytes.  So every notification is
 * counted, but its text is kept only as far as there is room for it.
 *
 * A notification that we send ourselves raises notifyInterruptPending without
 * setting the latch, so the flag is tested before each sleep (listener.c).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/slru.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/async.h"
#include "executor/spi.h"
#include "libpq/libpq.h"
#include "libpq/pqformat.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "tcop/dest.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"

#include "compat.h"
#include "notify_queue.h"

/* the type of a NotificationResponse message */
#define NOTIFICATION_RESPONSE 'A'

/* bytes of notifications that are kept at once */
#define MAX_KEPT_BYTES ((Size) 16 * 1024 * 1024)

static MemoryContext kept_context = NULL;
static Notification *first_kept = NULL;
static Notification **last_kept = &first_kept;
static Size kept_bytes = 0;

/* since notify_queue_read() began */
static int	received = 0;

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
 * Keep a notification: int32 pid, channel, payload, each string terminated.
 */
static int
queue_putmessage(char msgtype, const char *s, size_t len)
{
	Notification *notification;
	char	   *bytes;
	uint32		pid;
	size_t		channel_length;

	if (msgtype != NOTIFICATION_RESPONSE || len < sizeof(pid) + 2)
		return 0;

	memcpy(&pid, s, sizeof(pid));
	s += sizeof(pid);
	len -= sizeof(pid);
	if ((int) pg_ntoh32(pid) == MyProcPid)
		return 0;
	received++;

	/* the rest is needed by whoever wants to look at it: best effort */
	if (kept_bytes + len > MAX_KEPT_BYTES)
		return 0;
	notification = MemoryContextAllocExtended(kept_context, sizeof(Notification) + len,
											  MCXT_ALLOC_NO_OOM);
	if (notification == NULL)
		return 0;
	bytes = (char *) (notification + 1);
	memcpy(bytes, s, len);
	bytes[len - 1] = '\0';
	channel_length = strlen(bytes);
	notification->next = NULL;
	notification->sender = (int) pg_ntoh32(pid);
	notification->channel = bytes;
	notification->payload = channel_length + 1 < len ? bytes + channel_length + 1 : "";
	*last_kept = notification;
	last_kept = &notification->next;
	kept_bytes += len;
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

/*
 * Listen on a channel, instead of the previous one if given.  In force when
 * this returns: what is sent from then on is received.
 */
void
notify_queue_listen(const char *channel, const char *previous)
{
	if (kept_context == NULL)
		kept_context = AllocSetContextCreate(TopMemoryContext, "notifications", ALLOCSET_DEFAULT_SIZES);

	Assert(channel[0] != '\0' && strlen(channel) < NAMEDATALEN);
	StartTransactionCommand();
	if (previous != NULL)
		Async_Unlisten(previous);
	Async_Listen(channel);
	CommitTransactionCommand();
}

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
	return received;
}

/*
 * The oldest notification that was kept, or NULL; to be freed by the caller.
 */
Notification *
notify_queue_take(void)
{
	Notification *notification = first_kept;

	if (notification == NULL)
		return NULL;
	first_kept = notification->next;
	if (first_kept == NULL)
		last_kept = &first_kept;
	return notification;
}

void
notify_queue_free(Notification *notification)
{
	Size		length = strlen(notification->channel) + strlen(notification->payload) + 2;

	kept_bytes -= Min(kept_bytes, length);
	pfree(notification);
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

/*
 * The process that has read least of the queue and so keeps it from getting
 * shorter, or 0 if that cannot be told.
 *
 * Nobody but core's own warning at half full tells it, so this reads what
 * async.c has in shared memory (compat.h).  Should that be of another size than
 * we think, we know nothing of it.
 */
int
notify_queue_slowest(void)
{
	static const char name[] = "Async Queue Control";
	Size		size = offsetof(PneQueueControl, backend) + sizeof(PneQueueBackend) * PNE_QUEUE_BACKENDS;
	Oid			argtype = TEXTOID;
	Datum		value = CStringGetTextDatum(name);
	PneQueueControl *control;
	const PneQueueBackend *slowest = NULL;
	bool		isnull;
	bool		found;
	int			pid = 0;

	SPI_connect();
	if (SPI_execute_with_args("SELECT s.size FROM pg_catalog.pg_shmem_allocations AS s "
							  "WHERE s.name OPERATOR(pg_catalog.=) $1",
							  1, &argtype, &value, NULL, true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read the sizes of shared memory");
	found = SPI_processed == 1 &&
		(Size) DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull)) == size;
	SPI_finish();
	if (!found)
		return 0;

	control = ShmemInitStruct(name, size, &found);
	LWLockAcquire(NotifyQueueLock, LW_EXCLUSIVE);
	for (int i = 0; i < PNE_QUEUE_BACKENDS; i++)
	{
		const PneQueueBackend *backend = &control->backend[i];

		if (backend->pid == InvalidPid)
			continue;
		/* what has been read least is at the queue's tail, or next to it */
		if (slowest == NULL || pne_queue_precedes(control, backend, slowest))
			slowest = backend;
	}
	if (slowest != NULL)
		pid = slowest->pid;
	LWLockRelease(NotifyQueueLock);
	return pid;
}
