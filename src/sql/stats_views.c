/*-------------------------------------------------------------------------
 *
 * stats_views.c
 *		The SQL functions behind the statistics views.
 *
 * What must be exact, across crashes too (delivered, failed), is in tables.  The
 * transactions that do the work write it there, and the views read it there.  Shared
 * memory holds what may start from zero with the server.  These functions show it: the
 * counters of event names (event_counters.c) and of handlers (handler_counters.c), and
 * the state of the workers (shared.c).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/pg_authid.h"
#include "commands/dbcommands.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/rls.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "base/catalog.h"
#include "base/compat.h"
#include "base/foreign_text.h"
#include "base/shared.h"
#include "consumer/consumer.h"
#include "handler/event_counters.h"
#include "handler/handler.h"
#include "handler/handler_counters.h"
#include "listener/channel.h"
#include "log/pending.h"
#include "sql/stats_views.h"

PG_FUNCTION_INFO_V1(pne_handler_statistics);
PG_FUNCTION_INFO_V1(pne_consumer_statistics);
PG_FUNCTION_INFO_V1(pne_worker_statistics);
PG_FUNCTION_INFO_V1(pne_event_statistics);
PG_FUNCTION_INFO_V1(pne_reset_event_stats);

/* what statistics may reveal about the log */
typedef enum LogSight
{
	LOG_HIDDEN,					/* nothing */
	LOG_TOTALS,					/* how much there is, without names */
	LOG_VISIBLE
} LogSight;

/*
 * What statistics may reveal about the log to the current role.  They count all
 * events, so only a role that may read every event sees them.  Members of pg_monitor
 * need no right to read the log.  But if row security applies to them, they do not see
 * event names either.
 */
static LogSight
log_sight(void)
{
	Oid			log = catalog_lookup(false)->log;
	bool		monitors = has_privs_of_role(GetUserId(), ROLE_PG_MONITOR);

	if (check_enable_rls(log, InvalidOid, true) == RLS_ENABLED)
		return monitors ? LOG_TOTALS : LOG_HIDDEN;
	if (monitors || pg_class_aclcheck(log, GetUserId(), ACL_SELECT) == ACLCHECK_OK)
		return LOG_VISIBLE;
	return LOG_HIDDEN;
}

/*
 * Fill in three columns about what is pending behind a position: how many events of
 * fitting names, whether the count is exact, and the age of the oldest one.  They stay
 * null for a role that may not know.
 */
static void
put_pending(FunctionCallInfo fcinfo, const EventPattern *pattern, const EventPosition *position,
			Datum *values, bool *nulls)
{
	Relation	log;
	Pending		pending;

	/* a cursor cannot be compared with the snapshot of a standby */
	if (GetActiveSnapshot()->takenDuringRecovery || log_sight() == LOG_HIDDEN)
		return;
	log = table_open(catalog_lookup(false)->log, AccessShareLock);
	pending = pending_count(fcinfo->flinfo, log, pattern, position);
	table_close(log, AccessShareLock);
	values[0] = Int64GetDatum(pending.count);
	values[1] = BoolGetDatum(pending.exact);
	nulls[0] = nulls[1] = false;
	values[2] = TimestampTzGetDatum(pending.oldest);
	nulls[2] = (pending.oldest == DT_NOEND);
}

/*
 * The state of a handler.  If it is suspended, reason says why; otherwise reason is
 * NULL.
 */
const char *
stats_handler_state(const Handler *handler, char **reason)
{
	HandlerProblem problem;
	const char *state = "ready";
	ExecutorSlot *slot;
	int			failed_trials;
	Instant		next_trial_at;

	*reason = NULL;
	if (handler->dormant)
		return "dormant";
	if (handler->paused)
		return "paused";
	if (!handler_check(handler, &problem))
	{
		*reason = pstrdup(problem.message);
		return "suspended";
	}
	if (shared == NULL)
		return state;

	handler_counters_read_backoff(handler, &failed_trials, &next_trial_at);
	LWLockAcquire(shared->lock, LW_SHARED);
	slot = shared_find_executor(MyDatabaseId, handler->owner);
	if (failed_trials > 0 || (slot != NULL && slot->worker.phase == WORKER_BACKING_OFF))
		state = "backing off";
	else if (slot != NULL && slot->worker.phase == WORKER_RUNNING &&
			 strcmp(slot->handler, handler->name) == 0)
		state = "running";
	LWLockRelease(shared->lock);
	return state;
}

/*
 * Return a row as a function's result.  It must outlive SPI's memory.
 */
static Datum
finish_with_row(TupleDesc desc, Datum *values, bool *nulls)
{
	Datum		result = PointerGetDatum(SPI_returntuple(heap_form_tuple(desc, values, nulls), desc));

	SPI_finish();
	return result;
}

/*
 * Fill in eight columns with the counters of a handler's calls.  They stay null if the
 * counters are not known.
 */
static void
put_times(const Handler *handler, Datum *values, bool *nulls)
{
	static const double shares[] = {0.50, 0.95, 0.99};
	HandlerCounters counters;

	if (!handler_counters_read(handler, &counters))
		return;
	values[0] = Int64GetDatum(counters.calls);
	values[1] = Int64GetDatum(counters.batches);
	values[2] = Float8GetDatum(counters.total_time);
	values[4] = Float8GetDatum(counters.max_time);
	nulls[0] = nulls[1] = nulls[2] = nulls[4] = false;
	if (counters.calls > 0)
	{
		values[3] = Float8GetDatum(counters.total_time / (double) counters.calls);
		nulls[3] = false;
	}
	for (int i = 0; i < (int) lengthof(shares); i++)
	{
		double		ms;

		if (!handler_counters_percentile(&counters, shares[i], &ms))
			continue;
		values[5 + i] = Float8GetDatum(ms);
		nulls[5 + i] = false;
	}
}

/*
 * _handler_statistics(handler) returns one row.  All columns are null for a handler
 * that the caller may not see.
 */
Datum
pne_handler_statistics(PG_FUNCTION_ARGS)
{
#define HANDLER_STATISTICS 13
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	Datum		values[HANDLER_STATISTICS] = {0};
	bool		nulls[HANDLER_STATISTICS];
	TupleDesc	desc;
	List	   *handlers;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	memset(nulls, true, sizeof(nulls));

	SPI_connect();
	handlers = handler_load(name, InvalidOid, CurrentMemoryContext);
	if (handlers != NIL)
	{
		Handler    *handler = linitial(handlers);

		if (catalog_owner_is_visible(handler->owner))
		{
			char	   *reason;

			values[0] = CStringGetTextDatum(pstrdup(stats_handler_state(handler, &reason)));
			nulls[0] = false;
			if (reason != NULL)
			{
				values[1] = CStringGetTextDatum(reason);
				nulls[1] = false;
			}

			put_pending(fcinfo, &handler->pattern, &handler->position, &values[2], &nulls[2]);

			put_times(handler, &values[5], &nulls[5]);
		}
	}
	PG_RETURN_DATUM(finish_with_row(desc, values, nulls));
}

/*
 * Fill in three columns: the state of a consumer, and which process holds it since
 * when.
 */
static void
put_consumer_state(const Consumer *consumer, Datum *values, bool *nulls)
{
	const char *state = consumer->nbatch > 0 ? "fetched" : "ready";
	LockHolder	holder;

	if (consumer->dormant)
		state = "dormant";
	else if (consumer_is_held(consumer, &holder))
	{
		state = "held";
		values[1] = Int32GetDatum(holder.pid);
		nulls[1] = (holder.pid == 0);
		values[2] = TimestampTzGetDatum(holder.since);
		nulls[2] = (holder.since == DT_NOBEGIN);
	}
	else if (consumer_is_leased(consumer))
		state = "leased";
	values[0] = CStringGetTextDatum(state);
	nulls[0] = false;
}

/*
 * _consumer_statistics(consumer) returns one row.  All columns are null for a consumer
 * that the caller may not see.
 */
Datum
pne_consumer_statistics(PG_FUNCTION_ARGS)
{
#define CONSUMER_STATISTICS 6
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	Datum		values[CONSUMER_STATISTICS] = {0};
	bool		nulls[CONSUMER_STATISTICS];
	TupleDesc	desc;
	Consumer   *consumer;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	memset(nulls, true, sizeof(nulls));

	SPI_connect();
	consumer = consumer_find(name);
	if (consumer != NULL && catalog_owner_is_visible(consumer->owner))
	{
		put_consumer_state(consumer, &values[0], &nulls[0]);
		put_pending(fcinfo, &consumer->pattern, &consumer->position, &values[3], &nulls[3]);
	}
	PG_RETURN_DATUM(finish_with_row(desc, values, nulls));
}

static const char *
phase_name(WorkerPhase phase)
{
	switch (phase)
	{
		case WORKER_WAITING:
		case WORKER_STARTING:
			return "starting";
		case WORKER_LISTENING:
			return "listening";
		case WORKER_IDLE:
			return "idle";
		case WORKER_RUNNING:
			return "running";
		case WORKER_BACKING_OFF:
			return "backing off";
		case WORKER_NONE:
			break;
	}
	return NULL;
}

/*
 * Convert a name of any encoding to one that can be read here.  The result may be
 * longer, and is cut between two characters if it does not fit.
 */
static void
put_foreign_name(NameData *to, const char *from)
{
	memset(to, 0, sizeof(NameData));
	text_cut(NameStr(*to), text_made_readable(from, PG_SQL_ASCII), NAMEDATALEN);
}

/*
 * Add the row of one worker.  The caller passes a copy of its slot.
 */
static void
put_worker(ReturnSetInfo *rsinfo, const char *kind, Oid dboid, Oid owner, Worker *worker)
{
#define WORKER_STATISTICS 12
	Datum		values[WORKER_STATISTICS] = {0};
	bool		nulls[WORKER_STATISTICS] = {false};
	NameData	database;
	NameData	owner_name;
	char	   *name;

	if (worker->phase == WORKER_NONE)
		return;

	name = OidIsValid(dboid) ? get_database_name(dboid) : NULL;
	nulls[0] = (name == NULL);
	if (name != NULL)
	{
		put_foreign_name(&database, name);
		values[0] = NameGetDatum(&database);
	}
	values[1] = CStringGetTextDatum(kind);
	name = OidIsValid(owner) ? GetUserNameFromId(owner, true) : NULL;
	nulls[2] = (name == NULL);
	if (name != NULL)
	{
		put_foreign_name(&owner_name, name);
		values[2] = NameGetDatum(&owner_name);
	}
	values[3] = Int32GetDatum((int32) worker->pid);
	nulls[3] = (worker->pid == 0);
	values[4] = CStringGetTextDatum(phase_name(worker->phase));
	values[5] = TimestampTzGetDatum(worker->started_at);
	nulls[5] = (worker->started_at == 0);
	values[6] = Int64GetDatum((int64) pg_atomic_read_u64(&worker->wakeups));
	values[7] = Int64GetDatum((int64) pg_atomic_read_u64(&worker->notifications_received));
	values[8] = Int64GetDatum((int64) pg_atomic_read_u64(&worker->events_announced));
	values[9] = Int64GetDatum((int64) pg_atomic_read_u64(&worker->events_handled));
	nulls[10] = nulls[11] = worker->last_error_at == 0 ||
		!catalog_owner_is_visible(owner);
	if (!nulls[10])
	{
		values[10] = CStringGetTextDatum(text_made_readable(worker->last_error, worker->last_error_encoding));
		values[11] = TimestampTzGetDatum(worker->last_error_at);
	}
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/*
 * _worker_statistics() returns one row for each worker of the cluster.
 */
Datum
pne_worker_statistics(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	SharedState *copy;

	InitMaterializedSRF(fcinfo, 0);
	if (shared == NULL)
		return (Datum) 0;

	/* the names are looked up without the lock */
	copy = palloc(sizeof(SharedState));
	LWLockAcquire(shared->lock, LW_SHARED);
	memcpy(copy, shared, sizeof(SharedState));
	LWLockRelease(shared->lock);

	put_worker(rsinfo, "launcher", InvalidOid, InvalidOid, &copy->launcher);
	for (int i = 0; i < MAX_DATABASES; i++)
	{
		Oid			dboid = pg_atomic_read_u32(&copy->databases[i].dboid);

		if (dboid != InvalidOid)
			put_worker(rsinfo, "listener", dboid, InvalidOid, &copy->databases[i].listener);
	}
	for (int i = 0; i < MAX_EXECUTOR_SLOTS; i++)
	{
		ExecutorSlot *slot = &copy->executors[i];

		if (slot->in_use)
			put_worker(rsinfo, "executor", slot->dboid, slot->owner, &slot->worker);
	}
	pfree(copy);
	return (Datum) 0;
}

/*
 * The sum over all event names, without a name.
 */
static EventCounters
total_of_events(const EventCounters *entries, int count)
{
	EventCounters	total = {0};

	for (int i = 0; i < count; i++)
	{
		total.emitted += entries[i].emitted;
		total.announced += entries[i].announced;
		total.delivered += entries[i].delivered;
		total.failed += entries[i].failed;
		total.last_emitted_at = Max(total.last_emitted_at, entries[i].last_emitted_at);
	}
	return total;
}

/*
 * Add the row of one event name, or of their sum.
 */
static void
put_event(ReturnSetInfo *rsinfo, const EventCounters *event)
{
#define EVENT_STATISTICS 6
	Datum		values[EVENT_STATISTICS] = {0};
	bool		nulls[EVENT_STATISTICS] = {false};

	/* the sum has an empty name; no event has */
	nulls[0] = (event->key.name[0] == '\0');
	if (!nulls[0])
		values[0] = CStringGetTextDatum(event->key.name);
	values[1] = Int64GetDatum(event->emitted);
	values[2] = Int64GetDatum(event->announced);
	values[3] = Int64GetDatum(event->delivered);
	values[4] = Int64GetDatum(event->failed);
	values[5] = TimestampTzGetDatum(event->last_emitted_at);
	nulls[5] = (event->last_emitted_at == 0);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/*
 * _event_statistics() returns one row for each event name of this database.  A role
 * that may not see the names gets one row without a name for their sum, or none.
 */
Datum
pne_event_statistics(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	EventCounters *entries;
	LogSight	sight;
	int			count;

	InitMaterializedSRF(fcinfo, 0);
	if (shared == NULL)
		return (Datum) 0;
	sight = log_sight();
	if (sight == LOG_HIDDEN)
		return (Datum) 0;

	entries = event_counters_copy(&count);
	if (sight == LOG_TOTALS && count > 0)
	{
		EventCounters	total = total_of_events(entries, count);

		put_event(rsinfo, &total);
	}
	for (int i = 0; i < count && sight == LOG_VISIBLE; i++)
		put_event(rsinfo, &entries[i]);
	return (Datum) 0;
}

/*
 * reset_event_stats() returns void
 *
 * Sets this database's counters in shared memory to zero.  Errors: not preloaded.
 */
Datum
pne_reset_event_stats(PG_FUNCTION_ARGS)
{
	shared_require_preload("reset_event_stats()");
	event_counters_forget_database(MyDatabaseId);
	channel_forget_database(MyDatabaseId, true);
	handler_counters_reset();
	PG_RETURN_VOID();
}
