/*-------------------------------------------------------------------------
 *
 * retry_table.c
 *		The rows of _event_retries: events that failed, or that wait.
 *
 * A row is an event that a handler's position has passed without success.  It waits
 * until next_attempt_at.  The transaction of a successful attempt deletes it.  After
 * max_attempts the event is dead, and the row stays.
 *
 * A row concerns the event that has this id and was recorded by this transaction.  If
 * that event is gone, the row concerns nothing, even if another event has the id now.
 *
 * The delay doubles with each attempt, up to max_retry_delay.  It is cut short at
 * random by up to a quarter, so that events which failed together do not come back
 * together.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/relscan.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/pg_type.h"
#include "common/pg_prng.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/xid8.h"

#include "base/catalog.h"
#include "base/compat.h"
#include "base/index_lookup.h"
#include "base/internal_sql.h"
#include "base/loglimit.h"
#include "handler/retry_table.h"

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

/* the largest share of a delay that is cut off at random */
#define JITTER 0.25

/* SQLSTATE recorded for an attempt that ended its process */
#define LOST_ATTEMPT ERRCODE_CRASH_SHUTDOWN

/* how much of an error message is kept, in bytes */
#define STORED_ERROR_SIZE 4096

/*
 * When an event is due again after that many attempts.
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
count_failure(const Handler *handler, const ErrorData *error)
{
	static InternalStatement upsert_failure = {
		.sql = "INSERT INTO @s._event_handler_failures AS f "
		"(handler, failed, last_error, last_sqlstate, last_error_at) "
		"VALUES ($1, 1, $2, $3, pg_catalog.clock_timestamp()) "
		"ON CONFLICT (handler) DO UPDATE SET failed = f.failed OPERATOR(pg_catalog.+) 1, "
		"last_error = excluded.last_error, last_sqlstate = excluded.last_sqlstate, "
		"last_error_at = excluded.last_error_at",
		.target = TABLE_FAILURES,
		.nargs = 3,
		.argtypes = {TEXTOID, TEXTOID, TEXTOID},
	};
	Datum		values[3] = {CStringGetTextDatum(handler->name), error_text(error),
	CStringGetTextDatum(unpack_sql_state(error->sqlerrcode))};

	internal_execute(&upsert_failure, values, NULL, 0);
}

/*
 * What is recorded for an attempt that left no error because its process ended.
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
 * Write the row of an event that failed.  attempts includes this attempt if it is
 * charged.  The event waits until due, or is dead if due is DT_NOEND.
 */
void
retry_write_failure(const Handler *handler, EventIdentity event, int attempts, TimestampTz due, bool deferred,
			  const ErrorData *error)
{
	static InternalStatement upsert_retry = {
		.sql = "INSERT INTO @s._event_retries AS t "
		"(handler, event_id, state, attempts, next_attempt_at, last_error, last_sqlstate, last_error_at, deferred, "
		"event_txid) VALUES ($1, $2, $3, $4, $5, $6, $7, pg_catalog.clock_timestamp(), $8, $9) "
		"ON CONFLICT (handler, event_id, event_txid) DO UPDATE SET state = excluded.state, "
		"attempts = excluded.attempts, next_attempt_at = excluded.next_attempt_at, "
		"last_error = excluded.last_error, last_sqlstate = excluded.last_sqlstate, "
		"last_error_at = excluded.last_error_at, deferred = excluded.deferred, "
		"attempt_began_at = NULL, untried = false",
		.target = TABLE_RETRIES,
		.nargs = 9,
		.argtypes = {TEXTOID, INT8OID, TEXTOID, INT4OID, TIMESTAMPTZOID, TEXTOID, TEXTOID, BOOLOID, XID8OID},
	};
	Datum		values[9];
	char		nulls[9] = {' ', ' ', ' ', ' ', ' ', ' ', ' ', ' ', ' '};

	values[0] = CStringGetTextDatum(handler->name);
	values[1] = Int64GetDatum(event.id);
	values[2] = CStringGetTextDatum(due == DT_NOEND ? "dead" : "waiting");
	values[3] = Int32GetDatum(attempts);
	values[4] = TimestampTzGetDatum(due);
	if (due == DT_NOEND)
		nulls[4] = 'n';
	values[5] = error_text(error);
	values[6] = CStringGetTextDatum(unpack_sql_state(error->sqlerrcode));
	values[7] = BoolGetDatum(deferred);
	values[8] = event_txid_datum(event.txid);
	internal_execute(&upsert_retry, values, nulls, 0);
	count_failure(handler, error);
}

void
retry_log_failure(const Handler *handler, int64 event_id, int attempts, bool dead, const ErrorData *error)
{
	if (!loglimit_allows(LOG_TOPIC_EVENTS))
		return;
	ereport(LOG,
			(errcode(error->sqlerrcode),
			 errmsg("event handler \"%s\" failed for event %lld (attempt %d of %d)%s: %s",
					handler->name, (long long) event_id, attempts,
					handler->max_attempts, dead ? ", the event is dead" : "",
					error->message ? error->message : "")));
}

/*
 * Log that an event is dead although no failure was reported.
 */
static void
log_death(const Handler *handler, int64 event_id, int attempts)
{
	if (!loglimit_allows(LOG_TOPIC_EVENTS))
		return;
	ereport(LOG,
			(errmsg("event %lld is dead for event handler \"%s\": it has had %d of %d attempts",
					(long long) event_id, handler->name, attempts, handler->max_attempts)));
}

/*
 * When a failed event is tried again; DT_NOEND if never, because it is dead.
 */
TimestampTz
retry_due_again(const Handler *handler, int attempts)
{
	if (attempts >= handler->max_attempts)
		return DT_NOEND;
	return retry_due_after(handler, attempts);
}

/*
 * Find the first waiting retries of a handler, at most limit, in the order in which
 * they are due.  For an ordered handler find only the one that holds it: the one with
 * the smallest id.  Returns how many were found.
 *
 * The scan uses an index, so the number of waiting and dead rows does not matter,
 * whatever the planner believes.
 */
int
retry_find_waiting(const char *handler, bool ordered, DueRetry *found, int limit)
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
	Relation	retries = table_open(catalog_lookup(false)->internal_tables[TABLE_RETRIES], AccessShareLock);
	Relation	index = index_open_wanted(retries, ordered ? &by_id : &by_time);
	IndexScanDesc scan = pne_index_beginscan(retries, index, GetActiveSnapshot(), 1);
	TupleTableSlot *slot = table_slot_create(retries, NULL);
	ScanKeyData key;
	int			count = 0;

	Assert(ActiveSnapshotSet());
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
 * When the first of a handler's retries is due; DT_NOEND if none waits.  The caller
 * has an active snapshot.
 */
TimestampTz
retry_earliest(const Handler *handler)
{
	DueRetry	first;

	return retry_find_waiting(handler->name, handler->ordered, &first, 1) == 1 ? first.due : DT_NOEND;
}

/*
 * Lock the row of a retry that is due.  Returns the number of its attempts, or -1 if
 * it does not wait any more.  An attempt without an end does not count: those of a
 * lost executor have been recorded by now (retry_recover_attempts).
 */
int
retry_lock_due(const char *handler, EventIdentity event)
{
	static InternalStatement lock_row = {
		.sql = "SELECT t.attempts OPERATOR(pg_catalog.-) "
		"CASE WHEN t.attempt_began_at IS NULL THEN 0 ELSE 1 END FROM @s._event_retries AS t WHERE " OF_EVENT("$2", "$3")
		"AND t.state OPERATOR(pg_catalog.=) 'waiting' "
		"AND t.next_attempt_at OPERATOR(pg_catalog.<=) pg_catalog.clock_timestamp() "
		"FOR UPDATE SKIP LOCKED",
		.target = TABLE_RETRIES,
		.nargs = 3,
		.argtypes = {TEXTOID, INT8OID, XID8OID},
	};
	Datum		values[3] = {CStringGetTextDatum(handler), Int64GetDatum(event.id), event_txid_datum(event.txid)};
	bool		isnull;

	if (internal_execute(&lock_row, values, NULL, 1) != 1)
		return -1;
	return DatumGetInt32(internal_value(0, 1, &isnull));
}

/*
 * Lock the row of an attempt that is under way.  Returns false if the attempt is not
 * under way any more.  never_failed tells that no error is known for the event.
 * Processes may have ended while they tried it, perhaps before they asked policies and
 * filter.
 */
bool
retry_lock_attempt(const char *handler, EventIdentity event, int attempts, bool *never_failed)
{
	static InternalStatement lock_row = {
		.sql = "SELECT t.last_sqlstate IS NULL OR t.last_sqlstate OPERATOR(pg_catalog.=) $4 "
		"FROM @s._event_retries AS t WHERE " OF_EVENT("$2", "$5")
		"AND t.state OPERATOR(pg_catalog.=) 'waiting' AND t.attempts OPERATOR(pg_catalog.=) $3 "
		"FOR UPDATE SKIP LOCKED",
		.target = TABLE_RETRIES,
		.nargs = 5,
		.argtypes = {TEXTOID, INT8OID, INT4OID, TEXTOID, XID8OID},
	};
	Datum		values[5] = {CStringGetTextDatum(handler), Int64GetDatum(event.id), Int32GetDatum(attempts),
	CStringGetTextDatum(unpack_sql_state(LOST_ATTEMPT)), event_txid_datum(event.txid)};
	bool		isnull;

	if (internal_execute(&lock_row, values, NULL, 1) != 1)
		return false;
	*never_failed = DatumGetBool(internal_value(0, 1, &isnull));
	return true;
}

/*
 * Write that an attempt begins; fresh tells that it is the event's first one.  If the
 * attempt does not come back, the event is due at once: whoever looks at it then counts
 * a failure, and the delay begins there, or takes the attempt back.
 */
void
retry_write_attempt(const Handler *handler, EventIdentity event, int attempts, bool fresh)
{
	static InternalStatement upsert_attempt = {
		.sql = "INSERT INTO @s._event_retries AS t (handler, event_id, state, attempts, next_attempt_at, attempt_began_at, "
		"event_txid, untried) VALUES ($1, $2, 'waiting', $3, pg_catalog.clock_timestamp(), "
		"pg_catalog.clock_timestamp(), $4, $5) "
		"ON CONFLICT (handler, event_id, event_txid) DO UPDATE SET attempts = excluded.attempts, "
		"next_attempt_at = excluded.next_attempt_at, attempt_began_at = excluded.attempt_began_at, "
		"untried = t.untried OR excluded.untried",
		.target = TABLE_RETRIES,
		.nargs = 5,
		.argtypes = {TEXTOID, INT8OID, INT4OID, XID8OID, BOOLOID},
	};
	Datum		values[5];

	values[0] = CStringGetTextDatum(handler->name);
	values[1] = Int64GetDatum(event.id);
	values[2] = Int32GetDatum(attempts);
	values[3] = event_txid_datum(event.txid);
	values[4] = BoolGetDatum(fresh);
	internal_execute(&upsert_attempt, values, NULL, 0);
}

void
retry_delete(const char *handler, EventIdentity event)
{
	static InternalStatement delete_row = {
		.sql = "DELETE FROM @s._event_retries WHERE " OF_EVENT("$2", "$3"),
		.target = TABLE_RETRIES,
		.nargs = 3,
		.argtypes = {TEXTOID, INT8OID, XID8OID},
	};
	Datum		values[3] = {CStringGetTextDatum(handler), Int64GetDatum(event.id), event_txid_datum(event.txid)};

	internal_execute(&delete_row, values, NULL, 0);
}

/*
 * The event of a retry does not concern the handler any more.  Mark the row discarded,
 * with the reason.
 */
void
retry_discard(const char *handler, EventIdentity event, const char *reason)
{
	static InternalStatement update_row = {
		.sql = "UPDATE @s._event_retries SET state = 'discarded', next_attempt_at = NULL, "
		"last_error = $3, attempt_began_at = NULL, deferred = false, untried = false, "
		"last_error_at = pg_catalog.clock_timestamp() WHERE " OF_EVENT("$2", "$4"),
		.target = TABLE_RETRIES,
		.nargs = 4,
		.argtypes = {TEXTOID, INT8OID, TEXTOID, XID8OID},
	};
	Datum		values[4] = {CStringGetTextDatum(handler), Int64GetDatum(event.id),
	CStringGetTextDatum(reason), event_txid_datum(event.txid)};

	internal_execute(&update_row, values, NULL, 0);
}

/*
 * Remove the row of an event that the handler is not to be called with.  If the event
 * has never failed, it should not be listed at all, and the row is deleted.
 */
void
retry_drop(const char *handler, EventIdentity event, bool never_failed, const char *reason)
{
	if (never_failed)
		retry_delete(handler, event);
	else
		retry_discard(handler, event, reason);
}

/*
 * An attempt was counted but not made, or not to its end.  Take the count back, in a
 * transaction that was started for that, unless another transaction has locked the
 * row.  The next attempt then takes the count back (retry_lock_due).
 */
bool
retry_give_back(const char *handler, EventIdentity event, int attempts)
{
	static InternalStatement update_row = {
		.sql = "UPDATE @s._event_retries SET attempts = attempts OPERATOR(pg_catalog.-) 1, "
		"attempt_began_at = NULL, next_attempt_at = pg_catalog.clock_timestamp() WHERE " OF_EVENT("$2", "$4")
		"AND attempts OPERATOR(pg_catalog.=) $3 AND attempt_began_at IS NOT NULL",
		.target = TABLE_RETRIES,
		.nargs = 4,
		.argtypes = {TEXTOID, INT8OID, INT4OID, XID8OID},
	};
	Datum		values[4] = {CStringGetTextDatum(handler), Int64GetDatum(event.id),
	Int32GetDatum(attempts), event_txid_datum(event.txid)};
	bool		unused;

	return retry_lock_attempt(handler, event, attempts, &unused) &&
		internal_execute(&update_row, values, NULL, 0) == 1;
}

/*
 * A retry has used up its attempts: mark it dead.
 */
void
retry_mark_dead(const Handler *handler, EventIdentity event, int attempts)
{
	static InternalStatement update_row = {
		.sql = "UPDATE @s._event_retries SET state = 'dead', next_attempt_at = NULL, "
		"deferred = false, attempt_began_at = NULL, untried = false WHERE " OF_EVENT("$2", "$3"),
		.target = TABLE_RETRIES,
		.nargs = 3,
		.argtypes = {TEXTOID, INT8OID, XID8OID},
	};
	Datum		values[3] = {CStringGetTextDatum(handler->name), Int64GetDatum(event.id),
	event_txid_datum(event.txid)};

	internal_execute(&update_row, values, NULL, 0);
	log_death(handler, event.id, attempts);
}

/*
 * Charge a deferred event its attempt, in the transaction of the success that proves
 * that the handler works.  Returns when the event is tried again; DT_NOEND if never,
 * because it is dead.
 */
TimestampTz
retry_charge_deferred(const Handler *handler, EventIdentity event, int attempts)
{
	static InternalStatement update_row = {
		.sql = "UPDATE @s._event_retries SET attempts = $3, state = $4, next_attempt_at = $5, deferred = false "
		"WHERE " OF_EVENT("$2", "$6"),
		.target = TABLE_RETRIES,
		.nargs = 6,
		.argtypes = {TEXTOID, INT8OID, INT4OID, TEXTOID, TIMESTAMPTZOID, XID8OID},
	};
	TimestampTz due = retry_due_again(handler, attempts);
	Datum		values[6];
	char		nulls[6] = {' ', ' ', ' ', ' ', ' ', ' '};

	values[0] = CStringGetTextDatum(handler->name);
	values[1] = Int64GetDatum(event.id);
	values[2] = Int32GetDatum(attempts);
	values[3] = CStringGetTextDatum(due == DT_NOEND ? "dead" : "waiting");
	values[4] = TimestampTzGetDatum(due);
	if (due == DT_NOEND)
		nulls[4] = 'n';
	values[5] = event_txid_datum(event.txid);
	internal_execute(&update_row, values, nulls, 0);
	if (due == DT_NOEND)
		log_death(handler, event.id, attempts);
	return due;
}

/* an attempt that began and has no recorded end; $1 is the handler */
#define SELECT_OPEN_ATTEMPT \
	"SELECT t.event_id, t.event_txid, t.attempts FROM @s._event_retries AS t " \
	"WHERE t.handler OPERATOR(pg_catalog.=) $1 AND t.attempt_began_at IS NOT NULL " \
	"AND t.state OPERATOR(pg_catalog.=) 'waiting' LIMIT 1"

/*
 * An executor was lost.  Record its attempt as failed, in the transaction that takes
 * up the handler.  The delay begins now, so that other events make progress between
 * two deaths.
 */
void
retry_recover_attempts(const Handler *handler)
{
	static InternalStatement select_lost = {
		.sql = SELECT_OPEN_ATTEMPT " FOR UPDATE",
		.target = TABLE_RETRIES,
		.nargs = 1,
		.argtypes = {TEXTOID},
	};
	Datum		name = CStringGetTextDatum(handler->name);
	ErrorData  *error = lost_attempt_error();
	bool		isnull;

	while (internal_execute(&select_lost, &name, NULL, 1) == 1)
	{
		EventIdentity event = {DatumGetInt64(internal_value(0, 1, &isnull)),
		event_txid_from_datum(internal_value(0, 2, &isnull))};
		int			attempts = DatumGetInt32(internal_value(0, 3, &isnull));
		TimestampTz due = retry_due_again(handler, attempts);

		retry_write_failure(handler, event, attempts, due, false, error);
		retry_log_failure(handler, event.id, attempts, due == DT_NOEND, error);
	}
}

/*
 * No executor was lost, but one may have ended during an attempt because the server
 * was stopped, or with the primary before a promotion.  Take such attempts back, in
 * the transaction that takes up the handler.  Returns whether there were any.
 */
bool
retry_give_back_attempts(const Handler *handler)
{
	static InternalStatement select_ended = {
		.sql = SELECT_OPEN_ATTEMPT " FOR UPDATE SKIP LOCKED",
		.target = TABLE_RETRIES,
		.nargs = 1,
		.argtypes = {TEXTOID},
	};
	Datum		name = CStringGetTextDatum(handler->name);
	bool		given_back = false;
	bool		isnull;

	while (internal_execute(&select_ended, &name, NULL, 1) == 1)
	{
		EventIdentity event = {DatumGetInt64(internal_value(0, 1, &isnull)),
		event_txid_from_datum(internal_value(0, 2, &isnull))};

		if (!retry_give_back(handler->name, event, DatumGetInt32(internal_value(0, 3, &isnull))))
			break;
		given_back = true;
	}
	return given_back;
}
