/*-------------------------------------------------------------------------
 *
 * numbered_lock.c
 *		Locks of handlers and of consumers.
 *
 * Heavyweight locks, until the end of the transaction, that no row version tells
 * of and VACUUM does not see; who finds one taken can tell without waiting.
 *
 * They go by the number that a definition was given when its row was inserted.
 * Numbers are drawn by the extension and unique, and mean nothing outside of the
 * database.  So nobody can choose a definition of his own that shares a lock with
 * somebody else's, as he could where a hash of the name led to it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "miscadmin.h"

#include "base/numbered_lock.h"

/* a tag of an object has room for so many bits of a number below those of an oid */
#define OID_BITS 32

/*
 * The tag of a lock: that of an object of the table's own class.  Nobody else
 * locks such objects, as rows of tables that are no catalogs have no oids.
 */
static LOCKTAG
lock_tag(InternalTable table, int64 number)
{
	LOCKTAG		tag;

	SET_LOCKTAG_OBJECT(tag, MyDatabaseId, catalog_lookup(false)->internal_tables[table],
					   (uint32) number, (uint16) ((uint64) number >> OID_BITS));
	return tag;
}

/*
 * Take a lock, once those who have it let go of it.
 */
void
numbered_lock(InternalTable table, int64 number, LOCKMODE mode)
{
	LOCKTAG		tag = lock_tag(table, number);

	(void) LockAcquire(&tag, mode, false, false);
}

/*
 * The same if that is possible at once.
 */
bool
numbered_lock_if_free(InternalTable table, int64 number, LOCKMODE mode)
{
	LOCKTAG		tag = lock_tag(table, number);

	return LockAcquire(&tag, mode, false, true) != LOCKACQUIRE_NOT_AVAIL;
}

/*
 * Let go of it before the end of the transaction.
 */
void
numbered_unlock(InternalTable table, int64 number, LOCKMODE mode)
{
	LOCKTAG		tag = lock_tag(table, number);

	LockRelease(&tag, mode, false);
}

/*
 * Whether another session has it.  To find that out by taking it would keep one
 * from it who comes at that moment.
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
 * Who has an exclusive lock, if another session or a prepared transaction does.
 *
 * Most are free, which costs a look at the one lock; only for one that is taken
 * all locks are gone through, as pg_locks does.  The caller is connected to SPI,
 * has an active snapshot, and decides who may know.
 */
bool
numbered_lock_holder(InternalTable table, int64 number, LockHolder *holder)
{
	/* a prepared transaction is known by the lock on its transaction id */
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
