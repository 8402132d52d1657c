/*-------------------------------------------------------------------------
 *
 * bound_sql.h
 *		Statements that are bound to their tables by oid.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_BOUND_SQL_H
#define PNE_BOUND_SQL_H

typedef struct BoundSql
{
	const char *sql;			/* the text of the statement */
	const Oid  *tables;			/* the tables that it may read */
	int			ntables;
	Oid			target;			/* the table that it may change, or InvalidOid */
	/* private to bound_sql.c */
	int			checks;			/* how often it was checked */
	struct BoundSql *outer;
} BoundSql;

extern void bound_sql_init(void);
extern void bound_sql_begin(BoundSql *bound);
extern void bound_sql_require_check(const BoundSql *bound);
extern void bound_sql_end(const BoundSql *bound);

#endif							/* PNE_BOUND_SQL_H */
