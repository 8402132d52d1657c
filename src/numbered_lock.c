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

#include "miscadmin.h"

#include "numbered_lock.h"

/* a tag of an object has room for so many bits of a number below those of an oid */
#define OID_BITS 32

/*
 * The tag of a lock: that of an object of the table's own class.  Nobody else
 * locks such objects, as rows of tables that are no catalogs have no oids.
 */
static LOCKTAG
lock_tag(OwnTable table, int64 number)
{
	LOCKTAG		tag;

	SET_LOCKTAG_OBJECT(tag, MyDatabaseId, catalog_lookup(false)->own_tables[table],
					   (uint32) number, (uint16) ((uint64) number >> OID_BITS));
	return tag;
}

/*
 * Take a lock, once those who have it let go of it.
 */
void
numbered_lock(OwnTable table, int64 number, LOCKMODE mode)
{
	LOCKTAG		tag = lock_tag(table, number);

	(void) LockAcquire(&tag, mode, false, false);
}

/*
 * The same if that is possible at once.
 */
bool
numbered_lock_if_free(OwnTable table, int64 number, LOCKMODE mode)
{
	LOCKTAG		tag = lock_tag(table, number);

	return LockAcquire(&tag, mode, false, true) != LOCKACQUIRE_NOT_AVAIL;
}

/*
 * Let go of it before the end of the transaction.
 */
void
numbered_unlock(OwnTable table, int64 number, LOCKMODE mode)
{
	LOCKTAG		tag = lock_tag(table, number);

	LockRelease(&tag, mode, false);
}

/*
 * Whether another session has it.  To find that out by taking it would keep one
 * from it who comes at that moment.
 */
bool
numbered_lock_is_taken(OwnTable table, int64 number, LOCKMODE mode)
{
	LOCKTAG		tag = lock_tag(table, number);
	int			count;

	(void) GetLockConflicts(&tag, mode, &count);
	return count > 0;
}
