/*-------------------------------------------------------------------------
 *
 * internal_sql.h
 *		Executes SQL on the internal tables, and lets nothing else change them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_INTERNAL_SQL_H
#define PNE_INTERNAL_SQL_H

#include "executor/spi.h"
#include "utils/relcache.h"
#include "utils/uuid.h"

#include "base/catalog.h"

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
	/* private to internal_sql.c */
	SPIPlanPtr	plan;
	Oid			plan_owner;
	char		plan_schema[NAMEDATALEN];
} InternalStatement;

extern bool internal_foreign_trigger(InternalTable table, char *name);
extern Relation internal_open(InternalTable table);
extern int	internal_execute(InternalStatement *statement, Datum *values, const char *nulls, long limit);
extern bool internal_insert_numbered(InternalStatement *insert, Datum *values, const char *nulls,
										InternalStatement *find);
extern Datum internal_value(int row, int column, bool *isnull);
extern char *internal_text(int row, int column);
extern Datum internal_ids(const int64 *ids, int nids);
extern void internal_install_id(pg_uuid_t *install_id);

#endif							/* PNE_INTERNAL_SQL_H */
