/*-------------------------------------------------------------------------
 *
 * extension.c
 *		The first and the last step of the install script, and activate_events().
 *
 * The script calls the two functions; they refuse to run outside of CREATE EXTENSION.
 * What they write commits with the extension, and so does the wake-up that starts the
 * workers.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "commands/extension.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "base/arguments.h"
#include "base/catalog.h"
#include "base/doorbell.h"
#include "base/fault.h"
#include "base/internal_sql.h"
#include "base/shared.h"
#include "log/window.h"

PG_FUNCTION_INFO_V1(pne_extension_installing);
PG_FUNCTION_INFO_V1(pne_extension_installed);
PG_FUNCTION_INFO_V1(pne_activate_events);

/*
 * The roles, other than superusers, that may create objects in a schema, or NULL.  The
 * schema's owner may, because it can grant itself that right.  pg_database_owner
 * stands for the owner of the database.
 */
static char *
schema_creators(Oid schema)
{
	static const char sql[] =
		"SELECT pg_catalog.string_agg(DISTINCT COALESCE(pg_catalog.quote_ident(r.rolname), 'PUBLIC') COLLATE pg_catalog.\"C\", ', ') "
		"FROM pg_catalog.pg_namespace AS n "
		"CROSS JOIN pg_catalog.pg_database AS d "
		"JOIN pg_catalog.pg_authid AS o ON o.oid OPERATOR(pg_catalog.=) d.datdba "
		"CROSS JOIN LATERAL (SELECT n.nspowner UNION ALL SELECT a.grantee "
		"FROM pg_catalog.aclexplode(COALESCE(n.nspacl, pg_catalog.acldefault('n', n.nspowner))) AS a "
		"WHERE a.privilege_type OPERATOR(pg_catalog.=) 'CREATE') AS c (role) "
		"LEFT JOIN pg_catalog.pg_authid AS r ON r.oid OPERATOR(pg_catalog.=) c.role "
		"WHERE n.oid OPERATOR(pg_catalog.=) $1 "
		"AND d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database() "
		"AND (r.oid IS NULL OR NOT (r.rolsuper OR "
		"(r.rolname OPERATOR(pg_catalog.=) 'pg_database_owner' AND o.rolsuper)))";
	Oid			argtype = OIDOID;
	Datum		value = ObjectIdGetDatum(schema);
	MemoryContext context = CurrentMemoryContext;
	char	   *creators;

	SPI_connect();
	if (SPI_execute_with_args(sql, 1, &argtype, &value, NULL, true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read the privileges on a schema");
	creators = internal_text(0, 1);
	if (creators != NULL)
		creators = MemoryContextStrdup(context, creators);
	SPI_finish();
	return creators;
}

/*
 * _extension_installing(): the first step of the install script.  Check that the
 * extension can be installed into this schema.
 */
Datum
pne_extension_installing(PG_FUNCTION_ARGS)
{
	static const char *const names[] = {
		LOG_NAME, LOG_NAME "_pkey", LOG_NAME "_id_seq", LOG_NAME "_txid_idx"
	};
	Oid			schema = get_func_namespace(fcinfo->flinfo->fn_oid);
	const char *schema_name = quote_identifier(get_namespace_name(schema));
	char	   *creators;

	if (!creating_extension)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("_extension_installing() is part of CREATE EXTENSION")));

	for (int i = 0; i < (int) lengthof(names); i++)
	{
		if (OidIsValid(get_relname_relid(names[i], schema)))
			ereport(ERROR,
					(errcode(ERRCODE_DUPLICATE_TABLE),
					 errmsg("relation %s.%s exists already", schema_name, names[i]),
					 errhint("Move it out of the way with ALTER TABLE %s.%s RENAME TO ..., its index and sequence too, "
							 "create the extension, and copy the rows: INSERT INTO %s.%s (event_name, event_data, created_at) SELECT ... .",
							 schema_name, LOG_NAME, schema_name, LOG_NAME)));
	}

	creators = schema_creators(schema);
	if (creators != NULL)
		ereport(WARNING,
				(errcode(ERRCODE_WARNING),
				 errmsg("others may create objects in schema %s: %s", schema_name, creators),
				 errhint("REVOKE CREATE ON SCHEMA %s from them, or install the extension in a schema that belongs to a superuser.",
						 schema_name)));

	if (shared == NULL)
		ereport(WARNING,
				(errcode(ERRCODE_WARNING),
				 errmsg("pg_notify_events is not preloaded: events are recorded and announced, but no handler will run"),
				 errhint("Add pg_notify_events to \"shared_preload_libraries\" and restart the server.")));
	PG_RETURN_VOID();
}

/*
 * _extension_installed(): the last step of the install script.  Draw the install id,
 * start the listener's cursor, and have the workers start at commit.
 */
Datum
pne_extension_installed(PG_FUNCTION_ARGS)
{
	static InternalStatement insert_install = {
		.sql = "INSERT INTO @s._event_install (install_id, database) "
		"VALUES (pg_catalog.gen_random_uuid(), $1)",
		.target = TABLE_INSTALL,
		.nargs = 1,
		.argtypes = {OIDOID},
	};
	static InternalStatement insert_announcer = {
		.sql = "INSERT INTO @s._event_announcer (cursor) VALUES ($1::pg_catalog.pg_snapshot)",
		.target = TABLE_ANNOUNCER,
		.nargs = 1,
		.argtypes = {TEXTOID},
	};
	Datum		value;

	if (!creating_extension)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("_extension_installed() is part of CREATE EXTENSION")));

	SPI_connect();
	value = ObjectIdGetDatum(MyDatabaseId);
	internal_execute(&insert_install, &value, NULL, 0);
	value = CStringGetTextDatum(event_snapshot_text(event_snapshot_build(GetActiveSnapshot())));
	internal_execute(&insert_announcer, &value, NULL, 0);
	SPI_finish();

	doorbell_at_commit(RING_EXTENSION);
	PG_RETURN_VOID();
}

/* definitions of this installation that were made in another database */
#define ADOPT_DEFINITIONS(table) \
	"UPDATE @s." table " AS d SET database = $1 " \
	"FROM @s._event_install AS i " \
	"WHERE d.install_id OPERATOR(pg_catalog.=) i.install_id " \
	"AND d.database OPERATOR(pg_catalog.=) i.database " \
	"AND d.database OPERATOR(pg_catalog.<>) $1"

#define COUNT_DORMANT(table) \
	"SELECT pg_catalog.count(*) FROM @s." table " AS d " \
	"WHERE d.database OPERATOR(pg_catalog.<>) $1"

/*
 * Adopt the definitions of one table.  Returns how many, and warns about those that
 * stay dormant.
 */
static int64
adopt_definitions(InternalStatement *adopt, InternalStatement *count_dormant, const char *what)
{
	Datum		database = ObjectIdGetDatum(MyDatabaseId);
	int64		adopted = internal_execute(adopt, &database, NULL, 0);
	int64		dormant;
	bool		isnull;

	internal_execute(count_dormant, &database, NULL, 0);
	dormant = DatumGetInt64(internal_value(0, 1, &isnull));
	if (dormant > 0)
		ereport(WARNING,
				(errcode(ERRCODE_WARNING),
				 errmsg_plural("%lld restored %s stays dormant",
							   "%lld restored %ss stay dormant",
							   (unsigned long) dormant, (long long) dormant, what),
				 errhint("End them and make them again with %s.",
						 internal_table_functions(adopt->target))));
	return adopted;
}

/*
 * activate_events() returns bigint
 *
 * Adopts the definitions of a copied database.  A database made with TEMPLATE has the
 * same install id and another oid.  Transaction ids belong to the whole cluster, so
 * the cursors stay true.  Leases end, because their holders work with the original.
 * Returns how many handlers, consumers and channels were activated.  Errors: not a
 * superuser; a read-only transaction.
 */
Datum
pne_activate_events(PG_FUNCTION_ARGS)
{
#define OF_DATABASE(text, table) {.sql = (text), .target = (table), .nargs = 1, .argtypes = {OIDOID}}
	static InternalStatement adopt_handlers = OF_DATABASE(ADOPT_DEFINITIONS("_event_handlers"), TABLE_HANDLERS);
	static InternalStatement adopt_consumers = OF_DATABASE(ADOPT_DEFINITIONS("_event_consumers"), TABLE_CONSUMERS);
	static InternalStatement adopt_channels = OF_DATABASE(ADOPT_DEFINITIONS("_event_channels"), TABLE_CHANNELS);
	static InternalStatement dormant_handlers = OF_DATABASE(COUNT_DORMANT("_event_handlers"), TABLE_NONE);
	static InternalStatement dormant_consumers = OF_DATABASE(COUNT_DORMANT("_event_consumers"), TABLE_NONE);
	static InternalStatement dormant_channels = OF_DATABASE(COUNT_DORMANT("_event_channels"), TABLE_NONE);
	static InternalStatement end_leases =
		OF_DATABASE("UPDATE @s._event_consumer_progress AS p SET leased_until = NULL "
					"FROM @s._event_consumers AS d "
					"WHERE d.name OPERATOR(pg_catalog.=) p.consumer "
					"AND d.database OPERATOR(pg_catalog.<>) $1", TABLE_CONSUMER_PROGRESS);
	static InternalStatement adopt_install =
		OF_DATABASE("UPDATE @s._event_install SET database = $1 "
					"WHERE database OPERATOR(pg_catalog.<>) $1", TABLE_INSTALL);
	Datum		database = ObjectIdGetDatum(MyDatabaseId);
	int64		activated;

	if (!superuser())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to activate events"),
				 errhint("Only superusers may call activate_events().")));
	require_writable("activate_events()");

	LockRelationOid(catalog_lookup(false)->log, ExclusiveLock);

	SPI_connect();
	internal_execute(&end_leases, &database, NULL, 0);
	activated = adopt_definitions(&adopt_handlers, &dormant_handlers, "event handler");
	activated += adopt_definitions(&adopt_consumers, &dormant_consumers, "event consumer");
	activated += adopt_definitions(&adopt_channels, &dormant_channels, "event channel");
	internal_execute(&adopt_install, &database, NULL, 0);
	SPI_finish();

	doorbell_handlers_at_commit(InvalidOid);
	doorbell_at_commit(RING_CHANNELS | RING_CONSUMERS);
	FAULT_POINT("activated");
	PG_RETURN_INT64(activated);
}
