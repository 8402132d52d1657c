/*-------------------------------------------------------------------------
 *
 * retry.c
 *		Events that failed: recording them, trying them again.
 *
 * A row of _event_retries is an event that a handler's position has moved past
 * without success.  It waits until next_attempt_at, and goes away when an
 * attempt succeeds, in the transaction of that success; after max_attempts it
 * is dead and stays.
 *
 * A row is about the event that has this id and was recorded by this transaction.
 * Where that is not there any more the row is about nothing, whatever event has
 * the id now.
 *
 * An attempt may never come back (crash_guard.c).  So each is two transactions:
 * the first counts it, sets attempt_began_at and is flushed, the second calls
 * the handler.  Whoever finds attempt_began_at set knows how that ended.  A
 * failure only adds its error; where the event is not to blame for it, it takes
 * the count back (backoff.c).
 *
 * The delay doubles with each attempt up to max_retry_delay.  Each is cut
 * short by up to a quarter at random, so that events which failed together do
 * not come back together.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/relscan.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "common/pg_prng.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/xid8.h"

#include "base/catalog.h"
#include "base/compat.h"
#include "base/fault.h"
#include "base/index_lookup.h"
#include "base/loglimit.h"
#include "base/settings.h"
#include "delivery/backoff.h"
#include "delivery/crash_guard.h"
#include "delivery/executor.h"
#include "delivery/progress.h"
#include "delivery/retry.h"
#include "handler/event_counters.h"

/* columns of _event_retries; the install script has the same order */
#define Anum_retry_handler			1
#define Anum_retry_event_id			2
#define Anum_retry_event_txid		3
#define Anum_retry_state			4
#define Anum_retry_next_attempt_at	6

/* the row of one event, where $1 is the handler */
#define OF_EVENT(id, txid) \
	"handler OPERATOR(pg_catalog.=) $1 AND event_id OPERATOR(pg_catalog.=) " id " " \
	"AND event_txid OPERATOR(pg_catalog.=) " txid " "

/* retries that one look takes up */
#define DUE_RETRIES 100

/* the share of a delay that chance may cut off */
#define JITTER 0.25

/* what is recorded of an attempt that ended its process */
#define LOST_ATTEMPT ERRCODE_CRASH_SHUTDOWN

/* what is kept of an error message, in bytes */
#define STORED_ERROR_SIZE 4096

/* the attempt that this process is making, which is counted; none: attempts is 0 */
static struct
{
	char		handler[HANDLER_NAME_SIZE];
	EventIdentity event;
	int			attempts;
}			under_way;

/*
 * When an event is due again that has been tried so often.
 */
TimestampTz
retry_due_after(const Handler *handler, int attempts)
{
	double		delay = (double) handler->retry_delay;

	for (int i = 1; i < attempts && delay < (double) handler->max_retry_delay; i++)
		delay *= 2;
	delay = Min(delay, (double) handler->max_retry_delay);
	delay *= 1 - JITTER * pg_prng_double(&pg_global_prng_state);
	return TimestampTzPlusMilliseconds(GetCurrentTimestamp(), (int64) delay);
}

static Datum
error_text(const ErrorData *error)
{
	const char *message = error->message ? error->message : "(no message)";

	return PointerGetDatum(cstring_to_text_with_len(message,
													pg_mbcliplen(message, (int) strlen(message), STORED_ERROR_SIZE)));
}

/*
 * Count a failure of the handler.
 */
static void
count_failure(HandlerRun *run, const ErrorData *error)
{
	static OwnStatement upsert_failure = {
		.sql = "INSERT INTO @s._event_handler_failures AS f "
		"(handler, failed, last_error, last_sqlstate, last_error_at) "
		"VALUES ($1, 1, $2, $3, pg_catalog.clock_timestamp()) "
		"ON CONFLICT (handler) DO UPDATE SET failed = f.failed OPERATOR(pg_catalog.+) 1, "
		"last_error = excluded.last_error, last_sqlstate = excluded.last_sqlstate, "
		"last_error_at = excluded.last_error_at",
		.target = OWN_FAILURES,
		.nargs = 3,
		.argtypes = {TEXTOID, TEXTOID, TEXTOID},
	};
	Datum		values[3] = {CStringGetTextDatum(run->definition->name), error_text(error),
	CStringGetTextDatum(unpack_sql_state(error->sqlerrcode))};

	own_execute(&upsert_failure, values, NULL, 0);
}

/*
 * What is recorded of an attempt that no error told of: its process ended.
 */
static ErrorData *
lost_attempt_error(void)
{
	ErrorData  *error = palloc0(sizeof(ErrorData));

	error->sqlerrcode = LOST_ATTEMPT;
	error->message = pstrdup("the process that ran the attempt ended");
	return error;
}

/*
 * Write the row of an event that failed and was tried so often, this time
 * included if it is charged: until due, or dead where that is DT_NOEND.
 */
static void
write_failure(HandlerRun *run, EventIdentity event, int attempts, TimestampTz due, bool in_outage,
			  const ErrorData *error)
{
	static OwnStatement upsert_retry = {
		.sql = "INSERT INTO @s._event_retries AS t "
		"(handler, event_id, state, attempts, next_attempt_at, last_error, last_sqlstate, last_error_at, in_outage, "
		"event_txid) VALUES ($1, $2, $3, $4, $5, $6, $7, pg_catalog.clock_timestamp(), $8, $9) "
		"ON CONFLICT (handler, event_id, event_txid) DO UPDATE SET state = excluded.state, "
		"attempts = excluded.attempts, next_attempt_at = excluded.next_attempt_at, "
		"last_error = excluded.last_error, last_sqlstate = excluded.last_sqlstate, "
		"last_error_at = excluded.last_error_at, in_outage = excluded.in_outage, "
		"attempt_began_at = NULL, untried = false",
		.target = OWN_RETRIES,
		.nargs = 9,
		.argtypes = {TEXTOID, INT8OID, TEXTOID, INT4OID, TIMESTAMPTZOID, TEXTOID, TEXTOID, BOOLOID, XID8OID},
	};
	Datum		values[9];
	char		nulls[9] = {' ', ' ', ' ', ' ', ' ', ' ', ' ', ' ', ' '};

	values[0] = CStringGetTextDatum(run->definition->name);
	values[1] = Int64GetDatum(event.id);
	values[2] = CStringGetTextDatum(due == DT_NOEND ? "dead" : "waiting");
	values[3] = Int32GetDatum(attempts);
	values[4] = TimestampTzGetDatum(due);
	if (due == DT_NOEND)
		nulls[4] = 'n';
	values[5] = error_text(error);
	values[6] = CStringGetTextDatum(unpack_sql_state(error->sqlerrcode));
	values[7] = BoolGetDatum(in_outage);
	values[8] = event_txid_datum(event.txid);
	own_execute(&upsert_retry, values, nulls, 0);
	count_failure(run, error);
}

static void
log_failure(const HandlerRun *run, int64 event_id, int attempts, bool dead, const ErrorData *error)
{
	if (!loglimit_allows(LOG_TOPIC_EVENTS))
		return;
	ereport(LOG,
			(errcode(error->sqlerrcode),
			 errmsg("event handler \"%s\" failed for event %lld (attempt %d of %d)%s: %s",
					run->definition->name, (long long) event_id, attempts,
					run->definition->max_attempts, dead ? ", the event is dead" : "",
					error->message ? error->message : "")));
}

/*
 * The same where there is no failure to tell of.
 */
static void
log_death(const HandlerRun *run, int64 event_id, int attempts)
{
	if (!loglimit_allows(LOG_TOPIC_EVENTS))
		return;
	ereport(LOG,
			(errmsg("event %lld is dead for event handler \"%s\": it has had %d of %d attempts",
					(long long) event_id, run->definition->name, attempts, run->definition->max_attempts)));
}

/*
 * When an event that has failed is tried again; DT_NOEND: never, it is dead.
 */
static TimestampTz
due_again(const HandlerRun *run, int attempts)
{
	if (attempts >= run->definition->max_attempts)
		return DT_NOEND;
	return retry_due_after(run->definition, attempts);
}

/*
 * The failure of an event's attempt of that number is committed: tell everybody.
 * parked: it is not charged for it.  Returns whether the handler can go on.
 */
static BatchOutcome
failure_recorded(HandlerRun *run, int64 event_id, const char *event_name, int attempts,
				 bool parked, TimestampTz due, ErrorData *error)
{
	if (event_name != NULL)
		stats_event_failed(event_name);
	run->next_retry_at = Min(run->next_retry_at, due);
	if (parked)
		outage_event_parked(run, event_id, due, error);
	else
	{
		log_failure(run, event_id, attempts, due == DT_NOEND, error);
		outage_event_charged(run, due, attempts == 1, error);
	}
	executor_progress_committed(0);
	FreeErrorData(error);
	return run->health->probes > 0 ? BATCH_SUSPENDED : BATCH_DONE;
}

/*
 * An event failed alone, at its first attempt: record that and move the
 * handler's position, index next of its window, past it.  An error here is not
 * the event's.
 */
BatchOutcome
retry_record_failure(HandlerRun *run, Event *event, int64 next, ErrorData *error)
{
	static const ProgressFigures nothing = {0};
	bool		parked = outage_is_to_blame(run, error);
	TimestampTz due = parked ? outage_next_probe(run) : due_again(run, 1);
	EventIdentity identity = {event->id, event->txid};
	/* no name: the event was deleted, and what failed is to pass it */
	char	   *event_name = event->name ? pstrdup(event->name) : NULL;

	batch_start_own_transaction();
	if (!progress_lock(run))
	{
		batch_commit_transaction(0);
		FreeErrorData(error);
		return BATCH_STALE;
	}
	write_failure(run, identity, parked ? 0 : 1, due, parked, error);
	progress_store(run, next, &nothing);
	FAULT_POINT("before-failure-commit");
	batch_commit_transaction(0);

	progress_stored(run, next);
	careful_note_commit(run, 1);
	return failure_recorded(run, identity.id, event_name, 1, parked, due, error);
}

/* ----------
 * What is due
 * ----------
 */

typedef struct DueRetry
{
	EventIdentity event;
	TimestampTz due;
} DueRetry;

/*
 * The first waiting retries of a handler, at most so many: in the order in which
 * they are due; or, of an ordered handler, the one that holds it, which is that
 * of the smallest id.  Returns how many.
 *
 * By index, so that the number of rows that wait or are dead does not matter,
 * whatever the planner knows of it.
 */
static int
find_waiting(const char *handler, bool ordered, DueRetry *found, int limit)
{
	static const WantedIndex by_id = {
		.nkeys = 2,
		.keys = {Anum_retry_handler, Anum_retry_event_id},
	};
	static const WantedIndex by_time = {
		.nkeys = 3,
		.keys = {Anum_retry_handler, Anum_retry_next_attempt_at, Anum_retry_event_id},
		.only_column = Anum_retry_state,
		.only_value = "waiting",
	};
	Relation	retries = table_open(catalog_lookup(false)->own_tables[OWN_RETRIES], AccessShareLock);
	Relation	index = index_open_wanted(retries, ordered ? &by_id : &by_time);
	IndexScanDesc scan = pne_index_beginscan(retries, index, GetActiveSnapshot(), 1);
	TupleTableSlot *slot = table_slot_create(retries, NULL);
	ScanKeyData key;
	int			count = 0;

	if (ordered)
		limit = 1;
	ScanKeyEntryInitialize(&key, 0, 1, BTEqualStrategyNumber, InvalidOid,
						   index->rd_indcollation[0], F_TEXTEQ, CStringGetTextDatum(handler));
	index_rescan(scan, &key, 1, NULL, 0);
	while (count < limit && index_getnext_slot(scan, ForwardScanDirection, slot))
	{
		char	   *state;
		bool		isnull;

		CHECK_FOR_INTERRUPTS();
		state = TextDatumGetCString(slot_getattr(slot, Anum_retry_state, &isnull));
		if (strcmp(state, "waiting") == 0)
		{
			found[count].event.id = DatumGetInt64(slot_getattr(slot, Anum_retry_event_id, &isnull));
			found[count].event.txid = event_txid_from_datum(slot_getattr(slot, Anum_retry_event_txid, &isnull));
			found[count++].due = DatumGetTimestampTz(slot_getattr(slot, Anum_retry_next_attempt_at, &isnull));
		}
		pfree(state);
	}
	index_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	index_close(index, AccessShareLock);
	table_close(retries, AccessShareLock);
	return count;
}

/*
 * When the first of a handler's retries is due; DT_NOEND if none waits.  The
 * caller has an active snapshot.
 */
TimestampTz
retry_earliest(const Handler *handler)
{
	DueRetry	first;

	return find_waiting(handler->name, handler->ordered, &first, 1) == 1 ? first.due : DT_NOEND;
}

/*
 * The same for a handler in an executor, noted there.
 */
void
retry_read_deadline(HandlerRun *run)
{
	run->next_retry_at = retry_earliest(run->definition);
}

/* ----------
 * Attempts
 * ----------
 */

/*
 * Lock the row of a retry that is due.  Returns how often it was tried, or -1
 * if it is not waiting any more.  An attempt that has no end does not count: of
 * those that a lost executor was making there are none left by now
 * (retry_recover_attempts).
 */
static int
lock_due_retry(const char *handler, EventIdentity event)
{
	static OwnStatement lock_row = {
		.sql = "SELECT t.attempts OPERATOR(pg_catalog.-) "
		"CASE WHEN t.attempt_began_at IS NULL THEN 0 ELSE 1 END FROM @s._event_retries AS t WHERE " OF_EVENT("$2", "$3")
		"AND t.state OPERATOR(pg_catalog.=) 'waiting' "
		"AND t.next_attempt_at OPERATOR(pg_catalog.<=) pg_catalog.clock_timestamp() "
		"FOR UPDATE SKIP LOCKED",
		.target = OWN_RETRIES,
		.nargs = 3,
		.argtypes = {TEXTOID, INT8OID, XID8OID},
	};
	Datum		values[3] = {CStringGetTextDatum(handler), Int64GetDatum(event.id), event_txid_datum(event.txid)};
	bool		isnull;

	if (own_execute(&lock_row, values, NULL, 1) != 1)
		return -1;
	return DatumGetInt32(own_value(0, 1, &isnull));
}

/*
 * Whether a handler's position has passed an event that upto sees, and that has
 * not come to the end of its first attempt.  One whose executor was lost has: it
 * waits for the next one.  One whose executor ended in order is to be made again.
 */
bool
retry_first_attempt_open(const Handler *handler, const EventSnapshot *upto)
{
	static OwnStatement select_untried = {
		.sql = "SELECT t.event_txid, t.attempt_began_at IS NOT NULL, p.in_use "
		"FROM @s._event_retries AS t "
		"JOIN @s._event_handler_progress AS p ON p.handler OPERATOR(pg_catalog.=) t.handler "
		"WHERE t.handler OPERATOR(pg_catalog.=) $1 AND t.untried",
		.target = OWN_NONE,
		.nargs = 1,
		.argtypes = {TEXTOID},
	};
	Datum		name = CStringGetTextDatum(handler->name);
	int			count = own_execute(&select_untried, &name, NULL, 0);
	bool		found = false;
	bool		isnull;

	for (int i = 0; i < count && !found; i++)
	{
		uint64		txid = U64FromFullTransactionId(DatumGetFullTransactionId(own_value(i, 1, &isnull)));
		bool		began = DatumGetBool(own_value(i, 2, &isnull));
		int64		mark = DatumGetInt64(own_value(i, 3, &isnull));

		if (began && !isnull && careful_mark_is_lost(mark))
			continue;
		found = event_snapshot_sees(upto, txid);
	}
	return found;
}

/*
 * Lock the row of an attempt that is under way.  False if it is not any more.
 * never_failed tells whether no error is known of the event; only processes may
 * have ended while they tried it, perhaps before they had asked policies and filter.
 */
static bool
lock_attempt(const char *handler, EventIdentity event, int attempts, bool *never_failed)
{
	static OwnStatement lock_row = {
		.sql = "SELECT t.last_sqlstate IS NULL OR t.last_sqlstate OPERATOR(pg_catalog.=) $4 "
		"FROM @s._event_retries AS t WHERE " OF_EVENT("$2", "$5")
		"AND t.state OPERATOR(pg_catalog.=) 'waiting' AND t.attempts OPERATOR(pg_catalog.=) $3 "
		"FOR UPDATE SKIP LOCKED",
		.target = OWN_RETRIES,
		.nargs = 5,
		.argtypes = {TEXTOID, INT8OID, INT4OID, TEXTOID, XID8OID},
	};
	Datum		values[5] = {CStringGetTextDatum(handler), Int64GetDatum(event.id), Int32GetDatum(attempts),
	CStringGetTextDatum(unpack_sql_state(LOST_ATTEMPT)), event_txid_datum(event.txid)};
	bool		isnull;

	if (own_execute(&lock_row, values, NULL, 1) != 1)
		return false;
	*never_failed = DatumGetBool(own_value(0, 1, &isnull));
	return true;
}

/*
 * Write that an attempt begins: of a retry, or of an event that is fresh.  Should
 * it not come back, the event is due when its failure would have made it due; the
 * last one is looked at at once.
 */
static void
write_attempt(HandlerRun *run, EventIdentity event, int attempts, bool fresh)
{
	static OwnStatement upsert_attempt = {
		.sql = "INSERT INTO @s._event_retries AS t (handler, event_id, state, attempts, next_attempt_at, attempt_began_at, "
		"event_txid, untried) VALUES ($1, $2, 'waiting', $3, $4, pg_catalog.clock_timestamp(), $5, $6) "
		"ON CONFLICT (handler, event_id, event_txid) DO UPDATE SET attempts = excluded.attempts, "
		"next_attempt_at = excluded.next_attempt_at, attempt_began_at = excluded.attempt_began_at, "
		"untried = t.untried OR excluded.untried",
		.target = OWN_RETRIES,
		.nargs = 6,
		.argtypes = {TEXTOID, INT8OID, INT4OID, TIMESTAMPTZOID, XID8OID, BOOLOID},
	};
	TimestampTz due = due_again(run, attempts);
	Datum		values[6];

	if (due == DT_NOEND)
		due = GetCurrentTimestamp();
	values[0] = CStringGetTextDatum(run->definition->name);
	values[1] = Int64GetDatum(event.id);
	values[2] = Int32GetDatum(attempts);
	values[3] = TimestampTzGetDatum(due);
	values[4] = event_txid_datum(event.txid);
	values[5] = BoolGetDatum(fresh);
	own_execute(&upsert_attempt, values, NULL, 0);
}

static void
delete_retry(const char *handler, EventIdentity event)
{
	static OwnStatement delete_row = {
		.sql = "DELETE FROM @s._event_retries WHERE " OF_EVENT("$2", "$3"),
		.target = OWN_RETRIES,
		.nargs = 3,
		.argtypes = {TEXTOID, INT8OID, XID8OID},
	};
	Datum		values[3] = {CStringGetTextDatum(handler), Int64GetDatum(event.id), event_txid_datum(event.txid)};

	own_execute(&delete_row, values, NULL, 0);
}

/*
 * The event of a retry is not for the handler any more: that is the end of it,
 * and the row says why.
 */
static void
discard_retry(const char *handler, EventIdentity event, const char *reason)
{
	static OwnStatement update_row = {
		.sql = "UPDATE @s._event_retries SET state = 'discarded', next_attempt_at = NULL, "
		"last_error = $3, attempt_began_at = NULL, in_outage = false, untried = false, "
		"last_error_at = pg_catalog.clock_timestamp() WHERE " OF_EVENT("$2", "$4"),
		.target = OWN_RETRIES,
		.nargs = 4,
		.argtypes = {TEXTOID, INT8OID, TEXTOID, XID8OID},
	};
	Datum		values[4] = {CStringGetTextDatum(handler), Int64GetDatum(event.id),
	CStringGetTextDatum(reason), event_txid_datum(event.txid)};

	own_execute(&update_row, values, NULL, 0);
}

/*
 * The same of an event that the handler is not to be called with.  One that has
 * never failed was never to be on the list.
 */
static void
drop_retry(const char *handler, EventIdentity event, bool never_failed, const char *reason)
{
	if (never_failed)
		delete_retry(handler, event);
	else
		discard_retry(handler, event, reason);
}

/*
 * An attempt was counted and then not made, or not to its end: take that back, in
 * a transaction that was started for it, unless somebody has the row.  He is not
 * waited for: whoever tries the event next does it then (lock_due_retry).
 */
static bool
give_back(const char *handler, EventIdentity event, int attempts)
{
	static OwnStatement update_row = {
		.sql = "UPDATE @s._event_retries SET attempts = attempts OPERATOR(pg_catalog.-) 1, "
		"attempt_began_at = NULL, next_attempt_at = pg_catalog.clock_timestamp() WHERE " OF_EVENT("$2", "$4")
		"AND attempts OPERATOR(pg_catalog.=) $3 AND attempt_began_at IS NOT NULL",
		.target = OWN_RETRIES,
		.nargs = 4,
		.argtypes = {TEXTOID, INT8OID, INT4OID, XID8OID},
	};
	Datum		values[4] = {CStringGetTextDatum(handler), Int64GetDatum(event.id),
	Int32GetDatum(attempts), event_txid_datum(event.txid)};
	bool		unused;

	return lock_attempt(handler, event, attempts, &unused) &&
		own_execute(&update_row, values, NULL, 0) == 1;
}

static void
release_attempt(HandlerRun *run, EventIdentity event, int attempts)
{
	batch_start_own_transaction();
	if (give_back(run->definition->name, event, attempts))
		ForceSyncCommit();
	batch_commit_transaction(0);
	run->next_retry_at = 0;		/* now */
}

/*
 * Whether this process is making an attempt: it is counted, and its end is not
 * recorded.  Who ends in between leaves that to the successor, who looks for such
 * attempts where it finds a mark (retry_recover_attempts).
 */
bool
retry_attempt_is_under_way(void)
{
	return under_way.attempts > 0;
}

/*
 * The attempt has come to an end, which is recorded; or an error that was not its
 * own kept that from being recorded, and it is made again (lock_due_retry).
 */
void
retry_forget_attempt(void)
{
	under_way.attempts = 0;
}

/*
 * The process ends in the middle of an attempt, and that is nobody's doing: take
 * it back, in the transaction that takes the marks.  Nobody is waited for.
 */
void
retry_give_back_attempt(void)
{
	if (retry_attempt_is_under_way() &&
		ConditionalLockRelationOid(catalog_lookup(false)->own_tables[OWN_RETRIES], RowExclusiveLock))
		(void) give_back(under_way.handler, under_way.event, under_way.attempts);
}

/*
 * An attempt failed: write that down in a transaction of its own.  The event's
 * name is NULL where it failed before it was read.
 *
 * Only the row is locked, which is the attempt's as long as it has its number,
 * whatever was done to the handler meanwhile.  Who drops the handler may have
 * it; he is not waited for.
 */
static BatchOutcome
record_failed_attempt(HandlerRun *run, EventIdentity event, const char *event_name, int attempts,
					  ErrorData *error)
{
	bool		parked = outage_is_to_blame(run, error);
	TimestampTz due = parked ? outage_next_probe(run) : due_again(run, attempts);
	bool		unused;

	FAULT_POINT("before-record");
	batch_start_own_transaction();
	if (lock_attempt(run->definition->name, event, attempts, &unused))
	{
		write_failure(run, event, parked ? attempts - 1 : attempts, due, parked, error);
		ForceSyncCommit();
	}
	batch_commit_transaction(0);
	return failure_recorded(run, event.id, event_name, attempts, parked, due, error);
}

/*
 * Call the handler with one event whose attempt is counted, and with that take
 * it off the list.  Called in the transaction that has locked the row.  Returns
 * whether the handler was called.  An error before *ready is set is neither its
 * doing nor the event's.
 */
static bool
call_for_retry(HandlerRun *run, Relation log, EventIdentity identity, Event *event, bool fresh,
			   bool never_failed, MemoryContext context, BatchFigures *figures,
			   volatile bool *ready)
{
	const char *name = run->definition->name;
	ProgressFigures progress = {.delivered = 1, .retried = fresh ? 0 : 1, .last_event_id = identity.id};
	MemoryContext old = MemoryContextSwitchTo(context);
	bool		found = event_fetch(event, log, GetActiveSnapshot(), identity.id) && event->txid == identity.txid;
	bool		passes;
	int			suspect;

	MemoryContextSwitchTo(old);
	if (!found)
	{
		discard_retry(name, identity, "the event was deleted from notification_events");
		return false;
	}

	batch_apply_row_security(run, log, event, 1);
	*ready = true;
	batch_reading_works(run);
	if (event->hidden)
	{
		drop_retry(name, identity, never_failed, "row security hides the event");
		return false;
	}
	if (batch_filter_events(run, &event, 1, RelationGetDescr(log), &passes, &suspect) == 0)
	{
		drop_retry(name, identity, never_failed, "the filter does not let the event pass any more");
		return false;
	}

	handler_prepare_call(&run->call, run->definition, run->approved);
	batch_call_handler(run, &event, 1, RelationGetDescr(log), figures);
	careful_disarm_timeout();
	delete_retry(name, identity);
	progress_store(run, run->next, &progress);
	outage_charge_parked(run);
	return true;
}

/*
 * Make an attempt that is counted, as a transaction of its own.
 */
static BatchOutcome
try_attempt(HandlerRun *run, EventIdentity identity, int attempts, bool fresh, char **event_name,
			ErrorData **failure)
{
	MemoryContext context = CurrentMemoryContext;
	BatchFigures figures;
	volatile BatchOutcome outcome = BATCH_DONE;
	volatile bool called = false;
	volatile bool ready = false;
	Event		event = {.id = identity.id};
	ErrorData  *volatile error = NULL;

	stats_batch_begins(&figures, 1);
	PG_TRY();
	{
		Relation	log;
		bool		never_failed;

		batch_start_transaction();
		log = table_open(catalog_lookup(false)->log, AccessShareLock);
		if (!batch_check_handler(run))
			outcome = BATCH_SUSPENDED;
		else if (!progress_lock(run))
			outcome = BATCH_STALE;
		else if (lock_attempt(run->definition->name, identity, attempts, &never_failed))
			called = call_for_retry(run, log, identity, &event, fresh, never_failed, context, &figures,
									&ready);
		ForceSyncCommit();
		table_close(log, NoLock);
		batch_commit_transaction(called ? handler_timeout(run->definition) : 0);
	}
	PG_CATCH();
	{
		outcome = BATCH_SUSPENDED;
		if (!ready)
			batch_reading_failed(run, context);
		else
		{
			error = batch_abort_transaction(context);
			if (!batch_was_unwanted(run, error))
				outcome = BATCH_FAILED;
		}
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);

	if (called && outcome == BATCH_DONE)
	{
		stats_batch_committed(run->definition, &figures);
		progress_stored(run, run->next);
		outage_over(run);
		executor_progress_committed(1);
	}
	/* it is recorded: should the process end while it cleans its session, no event is the cause */
	if (outcome == BATCH_DONE)
		retry_forget_attempt();
	executor_discard_session();
	*event_name = event.name;
	*failure = error;
	return outcome;
}

/*
 * Make an attempt that is counted and flushed, and see to what comes of it.
 */
static BatchOutcome
run_attempt(HandlerRun *run, EventIdentity event, int attempts, bool fresh)
{
	char	   *event_name;
	ErrorData  *error;
	BatchOutcome outcome;
	int			tries = 0;

	strlcpy(under_way.handler, run->definition->name, HANDLER_NAME_SIZE);
	under_way.event = event;
	under_way.attempts = attempts;
	FAULT_POINT("after-charge");
	for (;;)
	{
		outcome = try_attempt(run, event, attempts, fresh, &event_name, &error);
		if (outcome != BATCH_FAILED || !batch_try_again(error, tries++))
			break;
		FreeErrorData(error);
	}
	if (outcome == BATCH_DONE)
		return outcome;
	if (outcome == BATCH_FAILED)
		outcome = record_failed_attempt(run, event, event_name, attempts, error);
	else
		release_attempt(run, event, attempts);
	retry_forget_attempt();
	return outcome;
}

/*
 * Try an event of the window for the first time, carefully: count the attempt
 * and move the position, index next of the window, past it before the call.
 */
BatchOutcome
retry_run_fresh(HandlerRun *run, EventIdentity event, int64 next)
{
	static const ProgressFigures nothing = {0};
	BatchOutcome outcome = BATCH_DONE;

	executor_report_running(run->definition->name, event.id, 1);
	batch_start_transaction();
	if (executor_asked_to_leave() || !batch_check_handler(run))
		outcome = BATCH_SUSPENDED;
	else if (!progress_lock(run))
		outcome = BATCH_STALE;
	else
	{
		write_attempt(run, event, 1, true);
		progress_store(run, next, &nothing);
		ForceSyncCommit();
	}
	batch_commit_transaction(0);
	if (outcome != BATCH_DONE)
		return outcome;

	progress_stored(run, next);
	outcome = run_attempt(run, event, 1, true);
	careful_note_passed(run, 1);
	return outcome;
}

/*
 * A retry has had as many attempts as it may have by now.
 */
static void
bury(HandlerRun *run, EventIdentity event, int attempts)
{
	static OwnStatement update_row = {
		.sql = "UPDATE @s._event_retries SET state = 'dead', next_attempt_at = NULL, "
		"in_outage = false, attempt_began_at = NULL, untried = false WHERE " OF_EVENT("$2", "$3"),
		.target = OWN_RETRIES,
		.nargs = 3,
		.argtypes = {TEXTOID, INT8OID, XID8OID},
	};
	Datum		values[3] = {CStringGetTextDatum(run->definition->name), Int64GetDatum(event.id),
	event_txid_datum(event.txid)};

	own_execute(&update_row, values, NULL, 0);
	log_death(run, event.id, attempts);
}

/*
 * Count an attempt of a retry that is due, flushed.  Sets how often the event
 * was tried then, or -1 where there is nothing to try.
 */
static BatchOutcome
retry_charge(HandlerRun *run, EventIdentity event, int *attempts)
{
	BatchOutcome outcome = BATCH_DONE;

	*attempts = -1;
	batch_start_transaction();
	if (executor_asked_to_leave() || !batch_check_handler(run))
		outcome = BATCH_SUSPENDED;
	else if (!progress_lock(run))
		outcome = BATCH_STALE;
	else
	{
		int			before = lock_due_retry(run->definition->name, event);

		if (before < 0)
		{
			/* somebody has it, and will not ring */
			batch_leave_alone(run);
			outcome = BATCH_SUSPENDED;
		}
		else if (before >= run->definition->max_attempts)
			bury(run, event, before);
		else
		{
			*attempts = before + 1;
			write_attempt(run, event, *attempts, false);
			ForceSyncCommit();
		}
	}
	batch_commit_transaction(0);
	return outcome;
}

/*
 * Try the retries of a handler that are due, oldest first, until the batch's
 * time is up; in an outage one.
 */
void
retry_run_due(HandlerRun *run)
{
	Instant		deadline = instant_in(pne_batch_time);
	DueRetry	waiting[DUE_RETRIES];
	int			count;
	BatchOutcome outcome = BATCH_DONE;

	batch_start_transaction();
	count = find_waiting(run->definition->name, run->definition->ordered, waiting,
						 run->health->probes > 0 ? 1 : DUE_RETRIES);
	batch_commit_transaction(0);

	for (int i = 0; i < count && outcome == BATCH_DONE; i++)
	{
		int			attempts;

		CHECK_FOR_INTERRUPTS();
		if (waiting[i].due > GetCurrentTimestamp() || (i > 0 && instant_now() >= deadline))
			break;
		if (!run->health->taken_up)
			careful_take_up(list_make1(run));
		if (!run->health->taken_up)
			return;
		executor_report_running(run->definition->name, waiting[i].event.id, 1);
		outcome = retry_charge(run, waiting[i].event, &attempts);
		if (attempts > 0)
			outcome = run_attempt(run, waiting[i].event, attempts, false);
	}

	batch_start_transaction();
	retry_read_deadline(run);
	batch_commit_transaction(0);
}

/*
 * Charge an event that was parked in an outage its attempt, in the transaction
 * of the success that tells it was not one.
 */
void
retry_charge_parked(HandlerRun *run, EventIdentity event, int attempts)
{
	static OwnStatement update_row = {
		.sql = "UPDATE @s._event_retries SET attempts = $3, state = $4, next_attempt_at = $5, in_outage = false "
		"WHERE " OF_EVENT("$2", "$6"),
		.target = OWN_RETRIES,
		.nargs = 6,
		.argtypes = {TEXTOID, INT8OID, INT4OID, TEXTOID, TIMESTAMPTZOID, XID8OID},
	};
	TimestampTz due = due_again(run, attempts);
	Datum		values[6];
	char		nulls[6] = {' ', ' ', ' ', ' ', ' ', ' '};

	values[0] = CStringGetTextDatum(run->definition->name);
	values[1] = Int64GetDatum(event.id);
	values[2] = Int32GetDatum(attempts);
	values[3] = CStringGetTextDatum(due == DT_NOEND ? "dead" : "waiting");
	values[4] = TimestampTzGetDatum(due);
	if (due == DT_NOEND)
		nulls[4] = 'n';
	values[5] = event_txid_datum(event.txid);
	own_execute(&update_row, values, nulls, 0);
	run->next_retry_at = Min(run->next_retry_at, due);
	if (due == DT_NOEND)
		log_death(run, event.id, attempts);
}

/* an attempt that began and whose end is not recorded, where $1 is the handler */
#define SELECT_OPEN_ATTEMPT \
	"SELECT t.event_id, t.event_txid, t.attempts FROM @s._event_retries AS t " \
	"WHERE t.handler OPERATOR(pg_catalog.=) $1 AND t.attempt_began_at IS NOT NULL " \
	"AND t.state OPERATOR(pg_catalog.=) 'waiting' LIMIT 1"

/*
 * An executor was lost: take note of the attempt that it was making, in the
 * transaction that takes up the handler.  The delay begins now, so that others
 * get on between two deaths.
 */
void
retry_recover_attempts(HandlerRun *run)
{
	static OwnStatement select_lost = {
		.sql = SELECT_OPEN_ATTEMPT " FOR UPDATE",
		.target = OWN_RETRIES,
		.nargs = 1,
		.argtypes = {TEXTOID},
	};
	Datum		name = CStringGetTextDatum(run->definition->name);
	ErrorData  *error = lost_attempt_error();
	bool		isnull;

	while (own_execute(&select_lost, &name, NULL, 1) == 1)
	{
		EventIdentity event = {DatumGetInt64(own_value(0, 1, &isnull)),
		event_txid_from_datum(own_value(0, 2, &isnull))};
		int			attempts = DatumGetInt32(own_value(0, 3, &isnull));
		TimestampTz due = due_again(run, attempts);

		write_failure(run, event, attempts, due, false, error);
		log_failure(run, event.id, attempts, due == DT_NOEND, error);
	}
}

/*
 * No executor was lost, but one may have ended in the middle of an attempt, when
 * the server was stopped, or with the primary that this was a standby of: take
 * such an attempt back, in the transaction that takes up the handler.
 */
void
retry_give_back_attempts(HandlerRun *run)
{
	static OwnStatement select_ended = {
		.sql = SELECT_OPEN_ATTEMPT " FOR UPDATE SKIP LOCKED",
		.target = OWN_RETRIES,
		.nargs = 1,
		.argtypes = {TEXTOID},
	};
	const char *handler = run->definition->name;
	Datum		name = CStringGetTextDatum(handler);
	bool		isnull;

	while (own_execute(&select_ended, &name, NULL, 1) == 1)
	{
		EventIdentity event = {DatumGetInt64(own_value(0, 1, &isnull)),
		event_txid_from_datum(own_value(0, 2, &isnull))};

		if (!give_back(handler, event, DatumGetInt32(own_value(0, 3, &isnull))))
			break;
		run->next_retry_at = 0; /* now */
	}
}
