/*-------------------------------------------------------------------------
 *
 * owner.c
 *		Whether an executor's owner is what it was when its session began.
 *
 * A session keeps what it has begun with: the settings of role and database,
 * and on 15 and 16 whether its user is a superuser.  So an executor whose owner
 * was changed needs a new one.
 *
 * An invalidation of pg_authid says when to look, and the rows themselves say
 * whether anything is different.  Whoever alters settings of roles or databases
 * (pg_db_role_setting) sends such an invalidation, too, of which the server has
 * none for them.  It goes with his commit, to all databases, and is kept by
 * PREPARE TRANSACTION.  One for everything, as a session that has missed too
 * many gets it: looking costs little, a new session does not.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
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

/* whose settings a row of pg_db_role_setting has, and what they count as */
typedef struct SettingsPlace
{
	Oid			database;
	Oid			role;
	GucSource	source;
} SettingsPlace;

#define SETTINGS_PLACES 4

static Oid	owner = InvalidOid;

/* of the owner's row; 0 as long as it is not known */
static uint32 owner_hash = 0;

/* something may have changed since the last look */
static bool suspect = false;

/* what describe() said when the session began */
static StringInfo known = NULL;

/*
 * Settings of a role, of a database or of all were altered in this transaction:
 * have executors look at them when it has committed.
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
 * Where settings stand that a session of the owner begins with: those that go
 * before others first, as the server has it.
 */
static void
settings_places(SettingsPlace *places)
{
	places[0] = (SettingsPlace) {MyDatabaseId, owner, PGC_S_DATABASE_USER};
	places[1] = (SettingsPlace) {InvalidOid, owner, PGC_S_USER};
	places[2] = (SettingsPlace) {MyDatabaseId, InvalidOid, PGC_S_DATABASE};
	places[3] = (SettingsPlace) {InvalidOid, InvalidOid, PGC_S_GLOBAL};
}

static void
describe_settings(StringInfo text, Relation settings, const SettingsPlace *place)
{
	ScanKeyData keys[2];
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&keys[0], Anum_pg_db_role_setting_setdatabase, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(place->database));
	ScanKeyInit(&keys[1], Anum_pg_db_role_setting_setrole, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(place->role));
	scan = systable_beginscan(settings, DbRoleSettingDatidRolidIndexId, true, NULL, lengthof(keys), keys);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		bool		isnull;
		Datum		value = heap_getattr(tuple, Anum_pg_db_role_setting_setconfig,
										 RelationGetDescr(settings), &isnull);

		if (!isnull)
		{
			ArrayType  *config = DatumGetArrayTypePCopy(value);

			appendStringInfo(text, "%d:", (int) place->source);
			appendBinaryStringInfo(text, (char *) config, (int) ARR_SIZE(config));
			pfree(config);
		}
	}
	systable_endscan(scan);
}

/*
 * All that a session of the owner depends on.  Password, limits and memberships
 * are not of that kind.  Empty if the role is gone.
 */
static StringInfo
describe(Relation settings)
{
	StringInfo	text = makeStringInfo();
	HeapTuple	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(owner));
	Form_pg_authid role;
	SettingsPlace places[SETTINGS_PLACES];

	if (!HeapTupleIsValid(tuple))
		return text;
	role = (Form_pg_authid) GETSTRUCT(tuple);
	appendStringInfo(text, "%s %d%d%d%d%d%d%d", NameStr(role->rolname),
					 role->rolsuper, role->rolinherit, role->rolcreaterole, role->rolcreatedb,
					 role->rolcanlogin, role->rolreplication, role->rolbypassrls);
	ReleaseSysCache(tuple);

	settings_places(places);
	for (int i = 0; i < SETTINGS_PLACES; i++)
		describe_settings(text, settings, &places[i]);
	return text;
}

/*
 * Before the process connects: from now on nothing is missed.
 */
void
owner_watch(void)
{
	CacheRegisterSyscacheCallback(AUTHOID, invalidated, (Datum) 0);
}

/*
 * It has connected as role, and is in a transaction: remember what the session
 * began with.
 */
void
owner_connected(Oid role)
{
	Relation	settings = table_open(DbRoleSettingRelationId, AccessShareLock);
	bool		changed = suspect;
	MemoryContext old;

	owner = role;
	/* the cache may have to be filled for it */
	owner_hash = GetSysCacheHashValue1(AUTHOID, ObjectIdGetDatum(role));

	suspect = false;
	old = MemoryContextSwitchTo(TopMemoryContext);
	known = describe(settings);
	MemoryContextSwitchTo(old);

	/*
	 * Settings that were altered while it connected apply, too.  They are not the
	 * reason for another session: whoever alters some without end would let no
	 * executor begin.
	 */
	if (changed)
	{
		SettingsPlace places[SETTINGS_PLACES];

		settings_places(places);
		for (int i = 0; i < SETTINGS_PLACES; i++)
			ApplySetting(NULL, places[i].database, places[i].role, settings, places[i].source);
	}
	table_close(settings, AccessShareLock);
}

/*
 * Whether the owner is not any more what it was when the session began.  To be
 * called in a transaction; it looks only where there is reason to.
 */
bool
owner_has_changed(void)
{
	Relation	settings;
	StringInfo	now;
	bool		changed;

	if (!suspect)
		return false;
	settings = table_open(DbRoleSettingRelationId, AccessShareLock);
	/* what comes from here on is another reason */
	suspect = false;
	now = describe(settings);
	table_close(settings, AccessShareLock);

	changed = (now->len != known->len || memcmp(now->data, known->data, now->len) != 0);
	if (changed)
		suspect = true;			/* it stays so */
	pfree(now->data);
	pfree(now);
	return changed;
}
