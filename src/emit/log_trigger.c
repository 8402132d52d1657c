/*-------------------------------------------------------------------------
 *
 * log_trigger.c
 *		What the extension sets in each row of the log.
 *
 * Each row of the log gets an id, its transaction, and who announces it
 * (announce.c), and a ring of the doorbell is requested for the commit.  This
 * holds for every row, whether it comes from notify_event(), a plain INSERT,
 * COPY or logical replication.  The log's row trigger does it.  Only
 * notify_event() does it without the trigger (log_insert.c), if there is no
 * other BEFORE trigger that would have to fire first.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "utils/rel.h"
#include "utils/xid8.h"

#include "base/arguments.h"
#include "base/catalog.h"
#include "base/doorbell.h"
#include "emit/announce.h"
#include "emit/ids.h"
#include "emit/log_trigger.h"

PG_FUNCTION_INFO_V1(pne_notification_event_row);

/*
 * Returns whether a trigger fires before a row is inserted.
 */
static bool
fires_before_insert(const Trigger *trigger)
{
	return TRIGGER_FOR_ROW(trigger->tgtype) && TRIGGER_FOR_BEFORE(trigger->tgtype) &&
		TRIGGER_FOR_INSERT(trigger->tgtype);
}

/*
 * Raise an error if another trigger would fire after the log's row trigger.  It
 * could change what was set here, and so hide the event from the processes that
 * follow the log.  Triggers fire in the order of their names, so checking the
 * later ones suffices.
 */
static void
check_fires_last(TriggerData *trigdata)
{
	TriggerDesc *triggers = trigdata->tg_relation->trigdesc;

	for (int i = triggers->numtriggers - 1; i >= 0; i--)
	{
		Trigger    *trigger = &triggers->triggers[i];

		if (trigger->tgoid == trigdata->tg_trigger->tgoid)
			return;
		if (fires_before_insert(trigger))
			ereport(ERROR,
					(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
					 errmsg("trigger \"%s\" on table \"%s\" would fire after the extension's own",
							trigger->tgname, RelationGetRelationName(trigdata->tg_relation)),
					 errhint("Triggers fire in the order of their names: give it one before \"%s\".",
							 trigdata->tg_trigger->tgname)));
	}
}

/*
 * Returns whether a table has the columns that are set here.
 */
static bool
has_columns_of_log(TupleDesc desc)
{
	return desc->natts >= Natts_event &&
		TupleDescAttr(desc, Anum_event_id - 1)->atttypid == INT8OID &&
		TupleDescAttr(desc, Anum_event_txid - 1)->atttypid == XID8OID;
}

/*
 * Returns whether the log's row trigger is the only trigger that fires before a
 * row is inserted into the log, and certainly fires.
 */
bool
log_trigger_is_alone(Relation log)
{
	const EventCatalog *catalog = catalog_lookup(true);
	const TriggerDesc *triggers = log->trigdesc;
	bool		found = false;

	if (catalog == NULL || catalog->log != RelationGetRelid(log) || triggers == NULL ||
		!has_columns_of_log(RelationGetDescr(log)))
		return false;
	for (int i = 0; i < triggers->numtriggers; i++)
	{
		const Trigger *trigger = &triggers->triggers[i];

		if (!fires_before_insert(trigger))
			continue;
		if (found || trigger->tgfoid != catalog->row_function || trigger->tgqual != NULL ||
			trigger->tgenabled != TRIGGER_FIRES_ALWAYS)
			return false;
		found = true;
	}
	return found;
}

/*
 * Set the columns of an event that is about to be stored.  values and nulls
 * have an element for each column of the log.  Draws an id if none is given.
 *
 * txid, origin_txid and announce are set whatever is given.  A row with a txid
 * can only come from elsewhere (a dump, a publisher): the txid goes to
 * origin_txid, and the row is not announced again.
 */
void
log_trigger_set_columns(Relation log, Datum *values, bool *nulls)
{
	bool		restored = !nulls[Anum_event_txid - 1];
	bool		announce = false;

	if (nulls[Anum_event_id - 1])
	{
		values[Anum_event_id - 1] = Int64GetDatum(id_draw(log));
		nulls[Anum_event_id - 1] = false;
	}
	else
		id_given(log, DatumGetInt64(values[Anum_event_id - 1]));

	if (!restored && !nulls[Anum_event_name - 1])
		announce = announce_emitted(DatumGetInt64(values[Anum_event_id - 1]), values[Anum_event_name - 1],
									values[Anum_event_data - 1], nulls[Anum_event_data - 1]);

	values[Anum_event_origin_txid - 1] = values[Anum_event_txid - 1];
	nulls[Anum_event_origin_txid - 1] = !restored;
	values[Anum_event_txid - 1] = FullTransactionIdGetDatum(GetTopFullTransactionId());
	nulls[Anum_event_txid - 1] = false;
	values[Anum_event_announce - 1] = BoolGetDatum(announce);
	nulls[Anum_event_announce - 1] = false;
	doorbell_at_commit(RING_EVENTS);
}

/*
 * The row trigger of notification_events.  Checks the name of a new event, and
 * sets the columns.  Errors: invalid name, another trigger that would fire
 * later, an id that may not be given.
 */
Datum
pne_notification_event_row(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;
	TupleDesc	desc;
	Datum	   *values;
	bool	   *nulls;

	if (!CALLED_AS_TRIGGER(fcinfo) ||
		!TRIGGER_FIRED_BEFORE(trigdata->tg_event) ||
		!TRIGGER_FIRED_FOR_ROW(trigdata->tg_event) ||
		!TRIGGER_FIRED_BY_INSERT(trigdata->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("_notification_event_row() must be called as a BEFORE INSERT row trigger")));

	check_fires_last(trigdata);
	desc = RelationGetDescr(trigdata->tg_relation);
	if (!has_columns_of_log(desc))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("_notification_event_row() is a trigger of notification_events only")));

	values = palloc(sizeof(Datum) * desc->natts);
	nulls = palloc(sizeof(bool) * desc->natts);
	heap_deform_tuple(trigdata->tg_trigtuple, desc, values, nulls);
	if (nulls[Anum_event_txid - 1] && !nulls[Anum_event_name - 1])
	{
		text	   *name = DatumGetTextPP(values[Anum_event_name - 1]);

		check_event_name(VARDATA_ANY(name), (int) VARSIZE_ANY_EXHDR(name));
	}
	log_trigger_set_columns(trigdata->tg_relation, values, nulls);
	return PointerGetDatum(heap_form_tuple(desc, values, nulls));
}
