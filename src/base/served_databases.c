/*-------------------------------------------------------------------------
 *
 * served_databases.c
 *		Which databases of the cluster are to be served, and can be.
 *
 * DDL on a database (DROP, RENAME, CREATE DATABASE ... TEMPLATE) needs it without
 * sessions.  A database on which such DDL holds its lock is not available.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "storage/lock.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "base/fault.h"
#include "base/served_databases.h"
#include "base/settings.h"

/*
 * Returns whether no session wants the database for DDL (DROP, RENAME, use as a
 * template).  Such a session waits until the workers are gone, so none is
 * started.  The lock is released at once, because there may be more databases
 * than the server has room for locks.
 */
static bool
database_is_available(Oid dboid)
{
	LOCKTAG		tag;

	SET_LOCKTAG_OBJECT(tag, InvalidOid, DatabaseRelationId, dboid, 0);
	if (LockAcquire(&tag, RowExclusiveLock, false, true) == LOCKACQUIRE_NOT_AVAIL)
		return false;
	LockRelease(&tag, RowExclusiveLock, false);
	return true;
}

/*
 * Returns the databases that are to be served, in the current memory context.
 * Runs a transaction of its own.
 */
List *
served_databases_read(void)
{
	MemoryContext context = CurrentMemoryContext;
	List	   *result = NIL;
	Relation	rel;
	TableScanDesc scan;
	HeapTuple	tuple;

	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	rel = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(rel, 0, NULL);
	while (HeapTupleIsValid(tuple = heap_getnext(scan, ForwardScanDirection)))
	{
		Form_pg_database database = (Form_pg_database) GETSTRUCT(tuple);
		ServedDatabase *served;
		MemoryContext old;

		if (!settings_serve_database(database))
			continue;
		old = MemoryContextSwitchTo(context);
		served = palloc(sizeof(ServedDatabase));
		served->oid = database->oid;
		served->available = database_is_available(database->oid);
		result = lappend(result, served);
		MemoryContextSwitchTo(old);
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	FAULT_POINT("databases-read");
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
	return result;
}

/*
 * Returns the element of a list for a database, or NULL.
 */
ServedDatabase *
served_databases_find(List *served, Oid dboid)
{
	ListCell   *lc;

	foreach(lc, served)
	{
		ServedDatabase *database = lfirst(lc);

		if (database->oid == dboid)
			return database;
	}
	return NULL;
}
