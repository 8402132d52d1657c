/*-------------------------------------------------------------------------
 *
 * channel.c
 *		Event channels: the functions that define them, and their counters.
 *
 * A notification on an event channel, whoever sends it, becomes an event; the listener
 * does that (ingest.c).  Any role may NOTIFY, so a definition gives all roles a way to
 * write events.  Therefore nobody is granted EXECUTE on listen_event_channel().
 *
 * Counters and states are in a hash table of fixed size in shared memory.  The
 * listener of a database writes the entries of its channels, so the state in an entry
 * is valid as long as that process lives.  Everybody may read them.  A channel that
 * finds no room in the table works, and its counters are shown as null.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/keywords.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "parser/scansup.h"
#include "storage/shmem.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/arguments.h"
#include "base/catalog.h"
#include "base/compat.h"
#include "base/doorbell.h"
#include "base/internal_sql.h"
#include "base/settings.h"
#include "base/shared.h"
#include "handler/handler.h"
#include "listener/channel.h"
#include "log/match.h"

/* entries in shared memory */
#define MAX_CHANNEL_ENTRIES 1024

typedef struct ChannelKey
{
	Oid			dboid;
	char		name[NAMEDATALEN];	/* zero-padded */
} ChannelKey;

typedef struct ChannelEntry
{
	ChannelKey	key;
	TimestampTz created_at;		/* created_at of the definition that the entry is about */
	QueueCounters counters;
	pid_t		listener;		/* the process that listens */
	bool		suspended;
} ChannelEntry;

static LWLock *channel_lock = NULL;
static HTAB *channel_entries = NULL;

PG_FUNCTION_INFO_V1(pne_listen_event_channel);
PG_FUNCTION_INFO_V1(pne_unlisten_event_channel);
PG_FUNCTION_INFO_V1(pne_channel_statistics);

/* ----------
 * Definitions
 * ----------
 */

#define IS_DORMANT \
	"(c.install_id OPERATOR(pg_catalog.<>) i.install_id OR c.database OPERATOR(pg_catalog.<>) $1)"
#define SELECT_CHANNELS \
	"SELECT c.channel, c.event_name, c.owner, c.created_at, " IS_DORMANT " " \
	"FROM @s._event_channels AS c CROSS JOIN @s._event_install AS i "

/*
 * Copy one row of a statement that is built with the macro above.
 */
static EventChannel *
channel_from_row(int row)
{
	EventChannel *channel = palloc0(sizeof(EventChannel));
	Datum		event_name;
	bool		isnull;

	strlcpy(channel->queue.name, internal_text(row, 1), NAMEDATALEN);
	event_name = internal_value(row, 2, &isnull);
	channel->unfit = stored_size(event_name) > MAX_PATTERN_BYTES;
	channel->event_name = channel->unfit ? pstrdup("") : TextDatumGetCString(event_name);
	channel->unfit = channel->unfit || channel->event_name[0] == '\0' ||
		pg_mbstrlen(channel->event_name) > EVENT_NAME_MAX_CHARS;
	channel->owner = DatumGetObjectId(internal_value(row, 3, &isnull));
	channel->created_at = DatumGetTimestampTz(internal_value(row, 4, &isnull));
	channel->dormant = DatumGetBool(internal_value(row, 5, &isnull));
	return channel;
}

/*
 * The channels to listen on: the oldest ones that are not dormant.
 *
 * The caller is connected to SPI and has an active snapshot.  The list and its
 * EventChannels are allocated in context.
 */
List *
channel_load_all(MemoryContext context, ChannelsLeftOut *left_out)
{
	static InternalStatement select_channels = {
		.sql = SELECT_CHANNELS "WHERE NOT " IS_DORMANT " ORDER BY c.created_at, c.channel",
		.target = TABLE_NONE,
		.nargs = 1,
		.argtypes = {OIDOID},
	};
	static InternalStatement count_channels = {
		.sql = "SELECT pg_catalog.count(*), pg_catalog.count(*) FILTER (WHERE " IS_DORMANT ") "
		"FROM @s._event_channels AS c CROSS JOIN @s._event_install AS i",
		.target = TABLE_NONE,
		.nargs = 1,
		.argtypes = {OIDOID},
	};
	Datum		database = ObjectIdGetDatum(MyDatabaseId);
	List	   *result = NIL;
	MemoryContext old;
	int64		all;
	int			count;
	bool		isnull;

	internal_execute(&count_channels, &database, NULL, 1);
	all = DatumGetInt64(internal_value(0, 1, &isnull));
	left_out->dormant = DatumGetInt64(internal_value(0, 2, &isnull));

	count = internal_execute(&select_channels, &database, NULL, MAX_CHANNELS);
	/* another transaction may have committed in between */
	left_out->beyond = (count < MAX_CHANNELS) ? 0 : Max(all - left_out->dormant - count, 0);
	old = MemoryContextSwitchTo(context);
	for (int row = 0; row < count; row++)
		result = lappend(result, channel_from_row(row));
	MemoryContextSwitchTo(old);
	return result;
}

/*
 * One channel, or NULL.
 */
static EventChannel *
find_channel(const char *name)
{
	static InternalStatement select_channel = {
		.sql = SELECT_CHANNELS "WHERE c.channel OPERATOR(pg_catalog.=) $2",
		.target = TABLE_NONE,
		.nargs = 2,
		.argtypes = {OIDOID, TEXTOID},
	};
	Datum		values[2] = {ObjectIdGetDatum(MyDatabaseId), CStringGetTextDatum(name)};

	return internal_execute(&select_channel, values, NULL, 1) == 1 ? channel_from_row(0) : NULL;
}

/*
 * Refuse a channel beyond the number that the listener can have.
 */
static void
check_number_of_channels(void)
{
	static InternalStatement select_any = {
		.sql = "SELECT 1 FROM @s._event_channels",
		.target = TABLE_NONE,
	};

	if (internal_execute(&select_any, NULL, NULL, MAX_CHANNELS + 1) > MAX_CHANNELS)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("a database cannot have more than %d event channels", MAX_CHANNELS),
				 errhint("End one with unlisten_event_channel(), or tell the events of one channel apart by their payload.")));
}

/*
 * Whether NOTIFY can name the channel without double quotes: the server's lexer does
 * not change the name, and it is no keyword that the grammar refuses there.
 */
static bool
is_plain_name(const char *channel)
{
	int			length = (int) strlen(channel);
	int			keyword;

	for (const char *c = channel; *c != '\0'; c++)
	{
		if (!(IS_HIGHBIT_SET(*c) || *c == '_' || (*c >= 'a' && *c <= 'z') ||
			  (c > channel && ((*c >= '0' && *c <= '9') || *c == '$'))))
			return false;
	}
	if (strcmp(channel, downcase_identifier(channel, length, false, false)) != 0)
		return false;
	keyword = ScanKeywordLookup(channel, &ScanKeywords);
	return keyword < 0 || ScanKeywordCategories[keyword] == UNRESERVED_KEYWORD ||
		ScanKeywordCategories[keyword] == COL_NAME_KEYWORD;
}

/*
 * listen_event_channel(channel text, event_name text default null) returns void
 *
 * From the listener's next look on, notifications on the channel become events of that
 * name, by default the channel's.  A NOTICE tells if NOTIFY must quote the name.
 * Errors: null, empty or too long names; the channel on which events are announced; a
 * channel that is defined already; too many channels.
 */
Datum
pne_listen_event_channel(PG_FUNCTION_ARGS)
{
	static InternalStatement insert_channel = {
		.sql = "INSERT INTO @s._event_channels (channel, event_name, owner, owner_name, install_id, database) "
		"VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
		.target = TABLE_CHANNELS,
		.nargs = 6,
		.argtypes = {TEXTOID, TEXTOID, OIDOID, NAMEOID, UUIDOID, OIDOID},
	};
	char	   *channel = name_argument(fcinfo, 0, "channel", "event channel");
	char	   *event_name = PG_ARGISNULL(1) ? channel : text_to_cstring(PG_GETARG_TEXT_PP(1));
	Datum		values[6];
	NameData	owner_name;
	pg_uuid_t	install_id;

	require_writable("listen_event_channel()");
	check_event_name(event_name, (int) strlen(event_name));
	if (strcmp(channel, pne_channel) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("channel \"%s\" is the one on which events are announced", channel),
				 errhint("Each event would become another one. Use another channel, or set pg_notify_events.channel to another one.")));
	if (shared == NULL)
		ereport(WARNING,
				(errcode(ERRCODE_WARNING),
				 errmsg("nobody will listen on event channel \"%s\": pg_notify_events is not preloaded", channel),
				 errhint("Add pg_notify_events to \"shared_preload_libraries\" and restart the server.")));

	SPI_connect();
	namestrcpy(&owner_name, GetUserNameFromId(GetUserId(), false));
	internal_install_id(&install_id);
	values[0] = CStringGetTextDatum(channel);
	values[1] = CStringGetTextDatum(event_name);
	values[2] = ObjectIdGetDatum(GetUserId());
	values[3] = NameGetDatum(&owner_name);
	values[4] = UUIDPGetDatum(&install_id);
	values[5] = ObjectIdGetDatum(MyDatabaseId);
	if (internal_execute(&insert_channel, values, NULL, 0) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("event channel \"%s\" exists already", channel),
				 errhint("End it with unlisten_event_channel() first.")));
	check_number_of_channels();
	SPI_finish();

	if (!is_plain_name(channel))
		ereport(NOTICE,
				(errmsg("NOTIFY reaches event channel \"%s\" only with its name in double quotes", channel),
				 errhint("Write NOTIFY %s, or pg_notify(%s, ...).", quote_identifier(channel),
						 quote_literal_cstr(channel))));
	doorbell_at_commit(RING_CHANNELS);
	PG_RETURN_VOID();
}

/*
 * Refuse a channel that does not exist or that is not the caller's.  The statement
 * finds it.
 */
static void
check_own_channel(InternalStatement *return_owner, const char *channel)
{
	Datum		value = CStringGetTextDatum(channel);
	bool		isnull;

	if (internal_execute(return_owner, &value, NULL, 0) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("event channel \"%s\" does not exist", channel),
				 errhint("The view event_channels shows those that you may see.")));
	if (!has_privs_of_role(GetUserId(), DatumGetObjectId(internal_value(0, 1, &isnull))))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be owner of event channel \"%s\"", channel),
				 errhint("Members of the owner may do this, too.")));
}

/*
 * unlisten_event_channel(channel text) returns void
 *
 * Notifications that the listener has received by then still become events.  Errors:
 * no such channel; not the owner.
 */
Datum
pne_unlisten_event_channel(PG_FUNCTION_ARGS)
{
	static InternalStatement find_channel = {
		.sql = "SELECT c.owner FROM @s._event_channels AS c "
		"WHERE c.channel OPERATOR(pg_catalog.=) $1",
		.target = TABLE_NONE,
		.nargs = 1,
		.argtypes = {TEXTOID},
	};
	static InternalStatement delete_channel = {
		.sql = "DELETE FROM @s._event_channels AS c "
		"WHERE c.channel OPERATOR(pg_catalog.=) $1 RETURNING c.owner",
		.target = TABLE_CHANNELS,
		.nargs = 1,
		.argtypes = {TEXTOID},
	};
	char	   *channel = name_argument(fcinfo, 0, "channel", "event channel");

	require_writable("unlisten_event_channel()");
	SPI_connect();
	/* first of all: a role without rights must not wait for the owner */
	check_own_channel(&find_channel, channel);
	check_own_channel(&delete_channel, channel);
	SPI_finish();

	doorbell_at_commit(RING_CHANNELS);
	PG_RETURN_VOID();
}

/* ----------
 * Figures
 * ----------
 */

Size
channel_shmem_size(void)
{
	return hash_estimate_size(MAX_CHANNEL_ENTRIES, sizeof(ChannelEntry));
}

/*
 * Called once per process, while the server starts.
 */
void
channel_shmem_startup(LWLock *lock)
{
	HASHCTL		info;

	channel_lock = lock;
	memset(&info, 0, sizeof(info));
	info.keysize = sizeof(ChannelKey);
	info.entrysize = sizeof(ChannelEntry);
	channel_entries = pne_shmem_init_hash("pg_notify_events channels", MAX_CHANNEL_ENTRIES, &info,
										  HASH_ELEM | HASH_BLOBS);
}

static ChannelEntry *
channel_entry(const char *name, HASHACTION action, bool *found)
{
	ChannelKey	key;

	memset(&key, 0, sizeof(key));
	key.dboid = MyDatabaseId;
	strlcpy(key.name, name, NAMEDATALEN);
	return hash_search(channel_entries, &key, action, found);
}

/*
 * Show that this process listens on a channel, and whether the channel is suspended.
 * Add what was counted since the last time to its counters.  Does not throw.
 */
void
channel_publish(EventChannel *channel)
{
	QueueCounters *counted = &channel->queue.counted;
	ChannelEntry *entry;
	bool		found;
	bool		full;

	LWLockAcquire(channel_lock, LW_EXCLUSIVE);
	full = hash_get_num_entries(channel_entries) >= MAX_CHANNEL_ENTRIES;
	entry = channel_entry(channel->queue.name, full ? HASH_FIND : HASH_ENTER_NULL, &found);
	if (entry != NULL && (!found || entry->created_at < channel->created_at))
	{
		entry->created_at = channel->created_at;
		memset(&entry->counters, 0, sizeof(entry->counters));
	}
	/* what was kept for an earlier definition does not belong to the present one */
	if (entry != NULL && entry->created_at == channel->created_at)
	{
		entry->listener = MyProcPid;
		entry->suspended = channel->suspended;
		entry->counters.notifications += counted->notifications;
		entry->counters.bytes += counted->bytes;
		entry->counters.dropped += counted->dropped;
		entry->counters.last_received_at = Max(entry->counters.last_received_at, counted->last_received_at);
	}
	LWLockRelease(channel_lock);
	memset(counted, 0, sizeof(QueueCounters));
}

/*
 * Remove the entries of this database's channels that are not in the list.
 */
void
channel_forget_others(const List *channels)
{
	HASH_SEQ_STATUS status;
	ChannelEntry *entry;
	ListCell   *lc;

	LWLockAcquire(channel_lock, LW_EXCLUSIVE);
	hash_seq_init(&status, channel_entries);
	while ((entry = hash_seq_search(&status)) != NULL)
	{
		bool		found = (entry->key.dboid != MyDatabaseId);

		foreach(lc, channels)
			found = found || strcmp(((EventChannel *) lfirst(lc))->queue.name, entry->key.name) == 0;
		if (!found)
			hash_search(channel_entries, &entry->key, HASH_REMOVE, NULL);
	}
	LWLockRelease(channel_lock);
}

/*
 * Remove the entries of a database's channels, or set their counters to zero and keep
 * the states.
 */
void
channel_forget_database(Oid dboid, bool keep_states)
{
	HASH_SEQ_STATUS status;
	ChannelEntry *entry;

	LWLockAcquire(channel_lock, LW_EXCLUSIVE);
	hash_seq_init(&status, channel_entries);
	while ((entry = hash_seq_search(&status)) != NULL)
	{
		if (entry->key.dboid != dboid)
			continue;
		if (keep_states)
			memset(&entry->counters, 0, sizeof(entry->counters));
		else
			hash_search(channel_entries, &entry->key, HASH_REMOVE, NULL);
	}
	LWLockRelease(channel_lock);
}

/*
 * Copy what shared memory has about a channel; zeroes if its listener has not written
 * it yet.  Returns false if there was no room for it.
 */
static bool
read_entry(const EventChannel *channel, ChannelEntry *copy)
{
	ChannelEntry *entry;
	bool		full;

	memset(copy, 0, sizeof(ChannelEntry));
	if (channel_lock == NULL)
		return true;
	LWLockAcquire(channel_lock, LW_SHARED);
	full = hash_get_num_entries(channel_entries) >= MAX_CHANNEL_ENTRIES;
	entry = channel_entry(channel->queue.name, HASH_FIND, NULL);
	if (entry != NULL && entry->created_at == channel->created_at)
		*copy = *entry;
	LWLockRelease(channel_lock);
	return entry != NULL || !full;
}

/*
 * The pid of the process that listens in this database, or 0.
 */
static pid_t
listener_pid(void)
{
	DatabaseSlot *slot = shared_find_database(MyDatabaseId);
	pid_t		pid;

	if (slot == NULL)
		return 0;
	LWLockAcquire(shared->lock, LW_SHARED);
	pid = slot->listener.pid;
	LWLockRelease(shared->lock);
	return pid;
}

/*
 * Show the last channel that is listened on, if there are too many; otherwise NULL.
 * Does not throw.
 */
void
channel_publish_last(const EventChannel *last)
{
	DatabaseSlot *slot = shared_find_database(MyDatabaseId);

	if (slot == NULL)
		return;
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	slot->last_channel_at = last ? last->created_at : DT_NOEND;
	strlcpy(slot->last_channel, last ? last->queue.name : "", NAMEDATALEN);
	LWLockRelease(shared->lock);
}

/*
 * Whether the channel is beyond the last one that this listener listens on.
 */
static bool
is_beyond_last(const EventChannel *channel, pid_t listener)
{
	DatabaseSlot *slot = shared_find_database(MyDatabaseId);
	bool		beyond = false;

	if (slot == NULL || listener == 0)
		return false;
	LWLockAcquire(shared->lock, LW_SHARED);
	if (slot->last_channel[0] != '\0')
		beyond = channel->created_at > slot->last_channel_at ||
			(channel->created_at == slot->last_channel_at && strcmp(channel->queue.name, slot->last_channel) > 0);
	LWLockRelease(shared->lock);
	return beyond;
}

static const char *
channel_state(const EventChannel *channel, const ChannelEntry *entry)
{
	if (channel->dormant)
		return "dormant";
	if (is_beyond_last(channel, listener_pid()))
		return "left out";
	/* no listener has written it, or only an earlier one */
	if (entry->listener == 0 || entry->listener != listener_pid())
		return "starting";
	return entry->suspended ? "suspended" : "listening";
}

/*
 * _channel_statistics(channel text) returns one row.  All columns are null for a
 * channel that the caller may not see, or that has no room in shared memory.
 */
Datum
pne_channel_statistics(PG_FUNCTION_ARGS)
{
#define CHANNEL_STATISTICS 5
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	Datum		values[CHANNEL_STATISTICS] = {0};
	bool		nulls[CHANNEL_STATISTICS];
	ChannelEntry entry;
	TupleDesc	desc;
	EventChannel *channel;
	Datum		result;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	memset(nulls, true, sizeof(nulls));

	SPI_connect();
	channel = find_channel(name);
	if (channel != NULL && catalog_owner_is_visible(channel->owner) && read_entry(channel, &entry))
	{
		memset(nulls, false, sizeof(nulls));
		values[0] = Int64GetDatum(entry.counters.notifications);
		values[1] = Int64GetDatum(entry.counters.bytes);
		values[2] = Int64GetDatum(entry.counters.dropped);
		values[3] = TimestampTzGetDatum(entry.counters.last_received_at);
		nulls[3] = (entry.counters.last_received_at == 0);
		values[4] = CStringGetTextDatum(channel_state(channel, &entry));
	}
	/* the row must outlive SPI's memory */
	result = PointerGetDatum(SPI_returntuple(heap_form_tuple(desc, values, nulls), desc));
	SPI_finish();
	PG_RETURN_DATUM(result);
}
