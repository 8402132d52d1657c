/*-------------------------------------------------------------------------
 *
 * catalog.h
 *		The extension's objects in this database.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_CATALOG_H
#define PNE_CATALOG_H

#include "utils/relcache.h"

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

/* what is special about each of the internal tables */
typedef struct InternalTableProperties
{
	const char *name;
	bool		restorable;		/* a restore may insert rows */
	bool		definitions;	/* its column "database" is cleared in restored
								 * rows: they belong to no database yet */
	bool		numbered;		/* its column "number" is set anew in restored
								 * rows */
	const char *functions;		/* the SQL functions that change it */
} InternalTableProperties;

extern const InternalTableProperties internal_table_properties[INTERNAL_TABLES];

extern const EventCatalog *catalog_lookup(bool missing_ok);
extern bool catalog_extension_exists(void);
extern Relation catalog_open_log(void);
extern uint64 catalog_log_changes(void);
extern const char *internal_table_functions(InternalTable table);
extern bool catalog_owner_is_visible(Oid owner);

#endif							/* PNE_CATALOG_H */
