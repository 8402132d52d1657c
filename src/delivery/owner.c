/*-------------------------------------------------------------------------
 *
 * owner.c
 *		Whether an executor's owner is what it was when its session began.
 *
 * A session keeps what it began with: the settings of its role and database, and on 15
 * and 16 also whether its user is a superuser.  So an executor whose owner was altered
 * needs a new session.
 *
 * An invalidation of pg_authid says when to look, and the rows themselves say whether
 * anything has changed.  The server sends no invalidation for settings of roles or
 * databases (pg_db_role_setting).  Therefore a session that alters such settings sends
 * an invalidation of pg_authid, too.  It takes effect at the commit, reaches all
 * databases, and is kept by PREPARE TRANSACTION.  It invalidates all of pg_authid, as
 * happens to a session that has missed too many messages.  Looking costs little; a new
 * session does not.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_db_role_setting.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "delivery/owner.h"

/* which row of pg_db_role_setting, and the source that its settings get */
typedef struct SettingsScope
{
	Oid			database;
	Oid			role;
	GucSource	source;
} SettingsScope;

#define SETTINGS_SCOPES 4

static Oid	owner = InvalidOid;

/* hash value of the owner's row; 0 while it is not known */
static uint32 owner_hash = 0;

/* something may have changed since the last look */
static bool suspect = false;

/* the result of describe() when the session began */
static StringInfo known = NULL;

/*
 * The current transaction has altered settings of a role, of a database or of all of
 * them: have executors look at them after its commit.
 */
void
owner_settings_altered(void)
{
	CacheInvalidateCatalog(AuthIdRelationId);
}

static void
invalidated(Datum arg, int cacheid, uint32 hashvalue)
{
	if (hashvalue == 0 || owner_hash == 0 || hashvalue == owner_hash)
		suspect = true;
}

/*
 * The rows whose settings a session of the owner begins with, in the order of
 * precedence that the server has.
 */
static void
settings_scopes(SettingsScope *scopes)
{
	scopes[0] = (SettingsScope) {MyDatabaseId, owner, PGC_S_DATABASE_USER};
	scopes[1] = (SettingsScope) {InvalidOid, owner, PGC_S_USER};
	scopes[2] = (SettingsScope) {MyDatabaseId, InvalidOid, PGC_S_DATABASE};
	scopes[3] = (SettingsScope) {InvalidOid, InvalidOid, PGC_S_GLOBAL};
}

static void
describe_settings(StringInfo text, Relation settings, const SettingsScope *scope)
{
	ScanKeyData keys[2];
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&keys[0], Anum_pg_db_role_setting_setdatabase, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(scope->database));
	ScanKeyInit(&keys[1], Anum_pg_db_role_setting_setrole, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(scope->role));
	scan = systable_beginscan(settings, DbRoleSettingDatidRolidIndexId, true, NULL, lengthof(keys), keys);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		bool		isnull;
		Datum		value = heap_getattr(tuple, Anum_pg_db_role_setting_setconfig,
										 RelationGetDescr(settings), &isnull);

		if (!isnull)
		{
			ArrayType  *config = DatumGetArrayTypePCopy(value);

			appendStringInfo(text, "%d:", (int) scope->source);
			appendBinaryStringInfo(text, (char *) config, (int) ARR_SIZE(config));
			pfree(config);
		}
	}
	systable_endscan(scan);
}

/*
 * Everything that a session of the owner depends on, as a string.  Password, limits
 * and memberships do not belong to it.  Empty if the role is gone.  Must be called in
 * a transaction.
 */
static StringInfo
describe(Relation settings)
{
	StringInfo	text = makeStringInfo();
	HeapTuple	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(owner));
	Form_pg_authid role;
	SettingsScope scopes[SETTINGS_SCOPES];

	if (!HeapTupleIsValid(tuple))
		return text;
	role = (Form_pg_authid) GETSTRUCT(tuple);
	appendStringInfo(text, "%s %d%d%d%d%d%d%d", NameStr(role->rolname),
					 role->rolsuper, role->rolinherit, role->rolcreaterole, role->rolcreatedb,
					 role->rolcanlogin, role->rolreplication, role->rolbypassrls);
	ReleaseSysCache(tuple);

	settings_scopes(scopes);
	for (int i = 0; i < SETTINGS_SCOPES; i++)
		describe_settings(text, settings, &scopes[i]);
	return text;
}

/*
 * Begin to watch the role.  Called before the process connects, so that no change is
 * missed.
 */
void
owner_watch(void)
{
	CacheRegisterSyscacheCallback(AUTHOID, invalidated, (Datum) 0);
}

/*
 * Remember what the session began with.  Called in the first transaction after the
 * process has connected as role.
 */
void
owner_connected(Oid role)
{
	Relation	settings = table_open(DbRoleSettingRelationId, AccessShareLock);
	bool		changed = suspect;
	MemoryContext old;

	owner = role;
	/* before suspect is reset: filling the cache may read invalidations */
	owner_hash = GetSysCacheHashValue1(AUTHOID, ObjectIdGetDatum(role));

	suspect = false;
	old = MemoryContextSwitchTo(TopMemoryContext);
	known = describe(settings);
	MemoryContextSwitchTo(old);

	/*
	 * Settings that were altered while the process connected are applied here.  They
	 * are not a reason for another session.  Otherwise somebody who alters settings
	 * all the time could keep every executor from starting.
	 */
	if (changed)
	{
		SettingsScope scopes[SETTINGS_SCOPES];

		settings_scopes(scopes);
		for (int i = 0; i < SETTINGS_SCOPES; i++)
			ApplySetting(NULL, scopes[i].database, scopes[i].role, settings, scopes[i].source);
	}
	table_close(settings, AccessShareLock);
}

/*
 * Whether the owner differs from what it was when the session began.  Must be called
 * in a transaction.  Reads the catalogs only if an invalidation has arrived; once
 * true, it stays true.
 */
bool
owner_has_changed(void)
{
	Relation	settings;
	StringInfo	now;
	bool		changed;

	Assert(IsTransactionState());

	if (!suspect)
		return false;
	settings = table_open(DbRoleSettingRelationId, AccessShareLock);
	/* what arrives from here on is another reason to look */
	suspect = false;
	now = describe(settings);
	table_close(settings, AccessShareLock);

	changed = (now->len != known->len || memcmp(now->data, known->data, now->len) != 0);
	if (changed)
		suspect = true;			/* the result stays true */
	pfree(now->data);
	pfree(now);
	return changed;
}
