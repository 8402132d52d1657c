/*-------------------------------------------------------------------------
 *
 * numbered_lock.c
 *		Locks of handlers and of consumers.
 *
 * These are heavyweight locks that are held until the end of the transaction.
 * Unlike a row lock they leave no row version and do not hold VACUUM back, and
 * a process can see without waiting that one is taken.
 *
 * A lock is identified by the number that a definition got when its row was
 * inserted.  The extension draws these numbers; they are unique and mean nothing
 * outside of the database.  So nobody can choose a definition that shares a lock
 * with another role's.  That would be possible if a hash of the name identified
 * the lock.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"

#include "base/internal_sql.h"
#include "base/numbered_lock.h"

/*
 * The bits of the object's oid in a lock tag; the higher bits of the number go
 * into the sub-id.
 */
#define OID_BITS 32

/*
 * Returns the tag of a lock: that of an object whose class is the table.
 * Nobody else locks such objects, because rows of ordinary tables have no oids.
 */
static LOCKTAG
lock_tag(InternalTable table, int64 number)
{
	LOCKTAG		tag;

	Assert(IsTransactionState());

	SET_LOCKTAG_OBJECT(tag, MyDatabaseId, catalog_lookup(false)->internal_tables[table],
					   (uint32) number, (uint16) ((uint64) number >> OID_BITS));
	return tag;
}

/*
 * Take a lock, which is held until the end of the transaction.  Waits while
 * other sessions hold it in a conflicting mode.  Must be called in a
 * transaction.
 */
void
numbered_lock(InternalTable table, int64 number, LOCKMODE mode)
{
	LOCKTAG		tag = lock_tag(table, number);

	(void) LockAcquire(&tag, mode, false, false);
}

/*
 * Take a lock if that is possible without waiting.  Returns whether it was
 * taken.  Must be called in a transaction.
 */
bool
numbered_lock_if_free(InternalTable table, int64 number, LOCKMODE mode)
{
	LOCKTAG		tag = lock_tag(table, number);

	return LockAcquire(&tag, mode, false, true) != LOCKACQUIRE_NOT_AVAIL;
}

/*
 * Release a lock before the end of the transaction.
 */
void
numbered_unlock(InternalTable table, int64 number, LOCKMODE mode)
{
	LOCKTAG		tag = lock_tag(table, number);

	LockRelease(&tag, mode, false);
}

/*
 * Returns whether another session holds a lock in a mode that conflicts with
 * this one.  It does not try to take the lock, because that would keep the lock
 * from a session that asks for it at that moment.
 */
bool
numbered_lock_is_taken(InternalTable table, int64 number, LOCKMODE mode)
{
	LOCKTAG		tag = lock_tag(table, number);
	int			count;

	(void) GetLockConflicts(&tag, mode, &count);
	return count > 0;
}

/*
 * Find the session or prepared transaction that holds an exclusive lock.
 * Returns false if no other session holds it.
 *
 * Most locks are free, which one look at that lock tells.  Only if it is taken,
 * all locks are searched, as pg_locks does.  The caller must be connected to
 * SPI and have an active snapshot, and it decides who may see the result.
 */
bool
numbered_lock_holder(InternalTable table, int64 number, LockHolder *holder)
{
	/* a prepared transaction is found by the lock on its transaction id */
	static InternalStatement select_holder = {
		.sql = "SELECT l.pid, COALESCE(a.xact_start, x.prepared) "
		"FROM pg_catalog.pg_lock_status() AS l "
		"LEFT JOIN LATERAL pg_catalog.pg_stat_get_activity(l.pid) AS a ON a.pid OPERATOR(pg_catalog.=) l.pid "
		"LEFT JOIN (pg_catalog.pg_lock_status() AS t "
		"JOIN pg_catalog.pg_prepared_xact() AS x ON x.transaction OPERATOR(pg_catalog.=) t.transactionid) "
		"ON l.pid IS NULL AND t.pid IS NULL AND t.locktype OPERATOR(pg_catalog.=) 'transactionid' "
		"AND t.virtualtransaction OPERATOR(pg_catalog.=) l.virtualtransaction "
		"WHERE l.locktype OPERATOR(pg_catalog.=) 'object' AND l.granted "
		"AND l.mode OPERATOR(pg_catalog.=) 'ExclusiveLock' "
		"AND l.database OPERATOR(pg_catalog.=) $1 AND l.classid OPERATOR(pg_catalog.=) $2 "
		"AND l.objid OPERATOR(pg_catalog.=) $3 AND l.objsubid OPERATOR(pg_catalog.=) $4 "
		"AND (l.pid IS NULL OR l.pid OPERATOR(pg_catalog.<>) pg_catalog.pg_backend_pid())",
		.target = TABLE_NONE,
		.nargs = 4,
		.argtypes = {OIDOID, OIDOID, OIDOID, INT2OID},
	};
	LOCKTAG		tag = lock_tag(table, number);
	Datum		values[4] = {
		ObjectIdGetDatum(tag.locktag_field1), ObjectIdGetDatum(tag.locktag_field2),
		ObjectIdGetDatum(tag.locktag_field3), Int16GetDatum((int16) tag.locktag_field4)
	};
	bool		found;
	bool		isnull;
	Datum		value;

	if (!numbered_lock_is_taken(table, number, ExclusiveLock))
		return false;
	found = internal_execute(&select_holder, values, NULL, 1) == 1;
	if (found)
	{
		value = internal_value(0, 1, &isnull);
		holder->pid = isnull ? 0 : DatumGetInt32(value);
		value = internal_value(0, 2, &isnull);
		holder->since = isnull ? DT_NOBEGIN : DatumGetTimestampTz(value);
	}
	SPI_freetuptable(SPI_tuptable);
	return found;
}
