/*-------------------------------------------------------------------------
 *
 * position.c
 *		Snapshots that outlive their transactions, and positions in the log that are
 *		made of them.
 *
 * Each of these rules lives in one place:
 *
 *	- event_snapshot_build() makes every cursor.  A server snapshot never lists its
 *	  own transaction as running.  Such a cursor, taken by a transaction that emits,
 *	  would treat that transaction's later events as done.  Therefore its own
 *	  transaction is added to the list.
 *	- event_position_passed() decides whether a position has passed an event.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"
#include "utils/xid8.h"

#include "base/arguments.h"
#include "base/compat.h"
#include "log/position.h"

static int
compare_uint64(const void *a, const void *b)
{
	uint64		left = *(const uint64 *) a;
	uint64		right = *(const uint64 *) b;

	return (left > right) - (left < right);
}

/*
 * A transaction id of a snapshot, with its epoch.  It is at most half of the id space
 * away from the next one.
 */
static uint64
widen_xid(TransactionId xid, FullTransactionId next)
{
	uint64		epoch = EpochFromFullTransactionId(next);

	if (xid > XidFromFullTransactionId(next))
		epoch--;
	return (epoch << 32) | xid;
}

static EventSnapshot *
allocate_snapshot(int nxip)
{
	EventSnapshot *result;

	result = palloc(offsetof(EventSnapshot, xip) + sizeof(uint64) * nxip);
	result->nxip = nxip;
	return result;
}

/*
 * Build the cursor for a server snapshot: what the snapshot sees, except its own
 * transaction.
 *
 * xmax is never raised to include the own xid, because the xids in between would count
 * as done.  An own xid from xmax on is not seen anyway.
 */
EventSnapshot *
event_snapshot_build(Snapshot snapshot)
{
	FullTransactionId next = ReadNextFullTransactionId();
	FullTransactionId own = GetTopFullTransactionIdIfAny();
	EventSnapshot *result;
	int			n = 0;

	/*
	 * the snapshot has no list of running transactions: the server is a standby, or
	 * was one just now
	 */
	if (snapshot->takenDuringRecovery)
		ereport(ERROR,
				(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
				 errmsg("cannot tell which events are done by a snapshot that was taken during recovery"),
				 errhint("Ask the primary; or, after a promotion, in a new transaction.")));
	Assert(snapshot->snapshot_type == SNAPSHOT_MVCC);
	result = allocate_snapshot((int) snapshot->xcnt + 1);
	result->xmin = widen_xid(snapshot->xmin, next);
	result->xmax = widen_xid(snapshot->xmax, next);
	for (uint32 i = 0; i < snapshot->xcnt; i++)
		result->xip[n++] = widen_xid(snapshot->xip[i], next);
	if (FullTransactionIdIsValid(own) &&
		U64FromFullTransactionId(own) >= result->xmin &&
		U64FromFullTransactionId(own) < result->xmax)
		result->xip[n++] = U64FromFullTransactionId(own);
	Assert(!FullTransactionIdIsValid(own) || U64FromFullTransactionId(own) >= result->xmin);
	result->nxip = n;
	qsort(result->xip, n, sizeof(uint64), compare_uint64);
	return result;
}

/*
 * The snapshot that sees each transaction before this one, and no other.
 */
EventSnapshot *
event_snapshot_before(uint64 xid)
{
	EventSnapshot *result = allocate_snapshot(0);

	result->xmin = result->xmax = xid;
	return result;
}

/*
 * The cursor that sees nothing: all events are still to be done.
 */
static EventSnapshot *
event_snapshot_nothing(void)
{
	return event_snapshot_before(FirstNormalTransactionId);
}

EventSnapshot *
event_snapshot_copy(const EventSnapshot *snapshot)
{
	EventSnapshot *result = allocate_snapshot(snapshot->nxip);

	memcpy(result, snapshot, offsetof(EventSnapshot, xip) + sizeof(uint64) * snapshot->nxip);
	return result;
}

/*
 * Parse the text form of pg_snapshot, "xmin:xmax:xip,xip,...", which the type's output
 * function wrote.
 */
EventSnapshot *
event_snapshot_parse(const char *text)
{
	EventSnapshot *result;
	const char *p;
	char	   *end;
	int			count = 0;

	for (p = text; *p != '\0'; p++)
		count += (*p == ',' || *p == ':');

	result = allocate_snapshot(count);
	result->nxip = 0;
	result->xmin = strtou64(text, &end, 10);
	if (*end != ':')
		elog(ERROR, "malformed snapshot \"%s\"", text);
	result->xmax = strtou64(end + 1, &end, 10);
	if (*end != ':')
		elog(ERROR, "malformed snapshot \"%s\"", text);
	for (p = end + 1; *p != '\0'; p = (*end == ',') ? end + 1 : end)
	{
		result->xip[result->nxip++] = strtou64(p, &end, 10);
		if (end == p || (*end != ',' && *end != '\0'))
			elog(ERROR, "malformed snapshot \"%s\"", text);
	}
	return result;
}

/*
 * Write the text form of pg_snapshot.
 */
char *
event_snapshot_text(const EventSnapshot *snapshot)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, UINT64_FORMAT ":" UINT64_FORMAT ":", snapshot->xmin, snapshot->xmax);
	for (int i = 0; i < snapshot->nxip; i++)
		appendStringInfo(&buf, "%s" UINT64_FORMAT, i > 0 ? "," : "", snapshot->xip[i]);
	return buf.data;
}

/*
 * Whether a transaction had ended when the snapshot was taken.
 */
bool
event_snapshot_sees(const EventSnapshot *snapshot, uint64 xid)
{
	if (xid < snapshot->xmin)
		return true;
	if (xid >= snapshot->xmax)
		return false;
	return bsearch(&xid, snapshot->xip, snapshot->nxip, sizeof(uint64), compare_uint64) == NULL;
}

bool
event_snapshot_equal(const EventSnapshot *a, const EventSnapshot *b)
{
	if (a == NULL || b == NULL)
		return a == b;
	return a->xmin == b->xmin && a->xmax == b->xmax && a->nxip == b->nxip &&
		memcmp(a->xip, b->xip, sizeof(uint64) * a->nxip) == 0;
}

/*
 * Whether the first snapshot sees everything that the other one sees.
 */
bool
event_snapshot_covers(const EventSnapshot *snapshot, const EventSnapshot *other)
{
	for (int i = 0; i < snapshot->nxip; i++)
	{
		if (event_snapshot_sees(other, snapshot->xip[i]))
			return false;
	}
	for (uint64 xid = snapshot->xmax; xid < other->xmax; xid++)
	{
		if (event_snapshot_sees(other, xid))
			return false;
	}
	return true;
}

/*
 * The snapshot that sees the transactions that both see, and no other.
 */
EventSnapshot *
event_snapshot_common(const EventSnapshot *a, const EventSnapshot *b)
{
	EventSnapshot *result = allocate_snapshot(a->nxip + b->nxip);
	int			n = 0;

	result->xmax = Min(a->xmax, b->xmax);
	for (int i = 0; i < a->nxip; i++)
	{
		if (a->xip[i] < result->xmax)
			result->xip[n++] = a->xip[i];
	}
	for (int i = 0; i < b->nxip; i++)
	{
		if (b->xip[i] < result->xmax && event_snapshot_sees(a, b->xip[i]))
			result->xip[n++] = b->xip[i];
	}
	qsort(result->xip, n, sizeof(uint64), compare_uint64);
	result->nxip = n;
	result->xmin = (n > 0) ? result->xip[0] : result->xmax;
	return result;
}

/*
 * Whether the snapshot sees nothing at all.
 */
bool
event_snapshot_sees_nothing(const EventSnapshot *snapshot)
{
	return snapshot->xmax <= FirstNormalTransactionId;
}

/*
 * Copy a position into the current memory context.
 */
EventPosition
event_position_copy(const EventPosition *position)
{
	EventPosition result = *position;

	result.cursor = event_snapshot_copy(position->cursor);
	if (position->window != NULL)
		result.window = event_snapshot_copy(position->window);
	return result;
}

void
event_position_free(EventPosition *position)
{
	if (position->cursor != NULL)
		pfree(position->cursor);
	if (position->window != NULL)
		pfree(position->window);
}

/*
 * Whether a position has passed an event with this transaction and id.
 */
bool
event_position_passed(const EventPosition *position, uint64 xid, int64 id)
{
	return event_snapshot_sees(position->cursor, xid) ||
		(position->window != NULL && id <= position->last_id &&
		 event_snapshot_sees(position->window, xid));
}

/*
 * The argument start_from of a new handler or consumer, as a cursor.
 */
EventSnapshot *
start_argument(FunctionCallInfo fcinfo, int argument)
{
	char	   *start;

	require_argument(fcinfo, argument, "start_from");
	start = text_to_cstring(PG_GETARG_TEXT_PP(argument));
	if (strcmp(start, "now") == 0)
		return event_snapshot_build(GetActiveSnapshot());
	if (strcmp(start, "beginning") == 0)
		return event_snapshot_nothing();
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("start_from \"%s\" is neither \"now\" nor \"beginning\"", start),
			 errhint("\"now\" leaves out what is visible already, \"beginning\" delivers the whole log.")));
	return NULL;				/* keep compiler quiet */
}
