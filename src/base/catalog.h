/*-------------------------------------------------------------------------
 *
 * catalog.h
 *		Where the extension lives in this database, and SQL on its own tables.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_CATALOG_H
#define PNE_CATALOG_H

#include "executor/spi.h"
#include "utils/relcache.h"
#include "utils/uuid.h"

#define LOG_NAME "notification_events"

/* columns of notification_events; the install script has the same order */
#define Anum_event_id			1
#define Anum_event_name			2
#define Anum_event_data			3
#define Anum_event_created_at	4
#define Anum_event_txid			5
#define Anum_event_origin_txid	6
#define Anum_event_announce		7
#define Natts_event				7

typedef enum OwnTable
{
	OWN_LOG,					/* notification_events, only to insert into */
	OWN_INCARNATION,
	OWN_RELAY,
	OWN_HANDLERS,
	OWN_PROGRESS,
	OWN_FAILURES,
	OWN_RETRIES,
	OWN_CONSUMERS,
	OWN_CONSUMER_PROGRESS,
	OWN_CONSUMER_RETRIES,
	OWN_CHANNELS,
	OWN_TABLES,					/* how many there are */
	OWN_NONE = OWN_TABLES		/* a statement that changes nothing */
} OwnTable;

typedef struct EventCatalog
{
	Oid			extension;
	Oid			owner;			/* of the extension */
	Oid			schema;
	char		schema_name[NAMEDATALEN];
	Oid			log;			/* notification_events */
	Oid			log_type;		/* its row type, and the array of that */
	Oid			log_array_type;
	Oid			own_tables[OWN_TABLES];
	Oid			guard_function;
	Oid			row_function;	/* of the log's row trigger */
} EventCatalog;

#define OWN_STATEMENT_MAX_ARGS 20

/*
 * A statement on the extension's own tables.  Its text writes "@s" for the
 * schema and qualifies everything else itself, operators included.
 */
typedef struct OwnStatement
{
	const char *sql;
	OwnTable	target;			/* the table it changes, or OWN_NONE */
	int			nargs;
	Oid			argtypes[OWN_STATEMENT_MAX_ARGS];
	/* private to catalog.c */
	SPIPlanPtr	plan;
	Oid			plan_owner;
	char		plan_schema[NAMEDATALEN];
} OwnStatement;

extern const EventCatalog *catalog_lookup(bool missing_ok);
extern bool catalog_extension_exists(void);
extern Relation catalog_open_log(void);
extern uint64 catalog_log_changes(void);
extern bool catalog_foreign_trigger(OwnTable table, char *name);
extern Relation own_open(OwnTable table);
extern int	own_execute(OwnStatement *statement, Datum *values, const char *nulls, long limit);
extern bool own_insert_numbered(OwnStatement *insert, Datum *values, const char *nulls, OwnStatement *find);
extern Datum own_value(int row, int column, bool *isnull);
extern char *own_text(int row, int column);
extern Datum own_ids(const int64 *ids, int nids);
extern void catalog_incarnation(pg_uuid_t *incarnation);
extern const char *own_table_functions(OwnTable table);
extern bool catalog_owner_is_visible(Oid owner);

#endif							/* PNE_CATALOG_H */
