/*-------------------------------------------------------------------------
 *
 * served_databases.h
 *		Which databases of the cluster are to be served, and can be.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_SERVED_DATABASES_H
#define PNE_SERVED_DATABASES_H

#include "nodes/pg_list.h"

typedef struct ServedDatabase
{
	Oid			oid;
	bool		available;		/* no session holds its lock for DDL */
} ServedDatabase;

extern List *served_databases_read(void);
extern ServedDatabase *served_databases_find(List *served, Oid dboid);

#endif							/* PNE_SERVED_DATABASES_H */
