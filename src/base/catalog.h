/*-------------------------------------------------------------------------
 *
 * catalog.h
 *		Finds the extension's objects in this database, and executes SQL on its
 *		internal tables.
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

typedef enum InternalTable
{
	TABLE_LOG,					/* notification_events, only for inserts */
	TABLE_INSTALL,
	TABLE_ANNOUNCER,
	TABLE_HANDLERS,
	TABLE_PROGRESS,
	TABLE_FAILURES,
	TABLE_RETRIES,
	TABLE_CONSUMERS,
	TABLE_CONSUMER_PROGRESS,
	TABLE_CONSUMER_RETRIES,
	TABLE_CHANNELS,
	INTERNAL_TABLES,			/* how many there are */
	TABLE_NONE = INTERNAL_TABLES	/* for a statement that changes nothing */
} InternalTable;

typedef struct EventCatalog
{
	Oid			extension;
	Oid			owner;			/* the extension's owner */
	Oid			schema;
	char		schema_name[NAMEDATALEN];
	Oid			log;			/* notification_events */
	Oid			log_type;		/* its row type */
	Oid			log_array_type; /* the array type of that */
	Oid			internal_tables[INTERNAL_TABLES];
	Oid			guard_function;
	Oid			row_function;	/* the function of the log's row trigger */
} EventCatalog;

#define INTERNAL_STATEMENT_MAX_ARGS 20

/*
 * A statement on the extension's internal tables.  In its text, "@s" stands for
 * the schema.  The text qualifies everything else itself, operators included.
 */
typedef struct InternalStatement
{
	const char *sql;
	InternalTable target;		/* the table it changes, or TABLE_NONE */
	int			nargs;
	Oid			argtypes[INTERNAL_STATEMENT_MAX_ARGS];
	/* private to catalog.c */
	SPIPlanPtr	plan;
	Oid			plan_owner;
	char		plan_schema[NAMEDATALEN];
} InternalStatement;

extern const EventCatalog *catalog_lookup(bool missing_ok);
extern bool catalog_extension_exists(void);
extern Relation catalog_open_log(void);
extern uint64 catalog_log_changes(void);
extern bool catalog_foreign_trigger(InternalTable table, char *name);
extern Relation internal_open(InternalTable table);
extern int	internal_execute(InternalStatement *statement, Datum *values, const char *nulls, long limit);
extern bool internal_insert_numbered(InternalStatement *insert, Datum *values, const char *nulls, InternalStatement *find);
extern Datum internal_value(int row, int column, bool *isnull);
extern char *internal_text(int row, int column);
extern Datum internal_ids(const int64 *ids, int nids);
extern void catalog_install_id(pg_uuid_t *install_id);
extern const char *internal_table_functions(InternalTable table);
extern bool catalog_owner_is_visible(Oid owner);

#endif							/* PNE_CATALOG_H */
