/*-------------------------------------------------------------------------
 *
 * name_set.c
 *		The names of a window's events, each once.
 *
 * A window has many events and, mostly, few names.  So names get numbers, each
 * event has one, and each handler matches its pattern with each name once
 * (match_names): after that it finds its events among all others by a look at a
 * number, and reads no row that is not for it: so a handler's batches are full
 * however many others share the log.
 *
 * Somebody may use a new name for each event.  Only the first MAX_NAMES of a
 * window are told from each other; the rest is one number, and whether such an
 * event is for a handler is seen when its row is read.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "log/name_set.h"

/* numbers of a window, NAME_UNKNOWN among them */
#define MAX_NAMES 10000

StaticAssertDecl(MAX_NAMES <= PG_UINT16_MAX, "numbers of names fit");

/* first room for them; as long as that is enough they are just compared */
#define FEW_NAMES 8

typedef struct NameKey
{
	const char *text;			/* not terminated */
	int			length;
} NameKey;

typedef struct NameEntry
{
	NameKey		key;
	NameNumber	number;
} NameEntry;

static uint32
hash_name(const void *key, Size keysize)
{
	const NameKey *name = key;

	return hash_bytes((const unsigned char *) name->text, name->length);
}

static int
compare_names(const void *a, const void *b, Size keysize)
{
	const NameKey *left = a;
	const NameKey *right = b;

	return left->length != right->length || memcmp(left->text, right->text, left->length) != 0;
}

/*
 * No names yet.  They are kept in the memory context that is current now.
 */
NameSet *
name_set_create(void)
{
	NameSet *names = palloc0(sizeof(NameSet));

	names->context = CurrentMemoryContext;
	names->room = FEW_NAMES;
	names->names = palloc(sizeof(char *) * names->room);
	names->names[NAME_UNKNOWN] = NULL;
	names->count = NAME_UNKNOWN + 1;
	return names;
}

static bool
is_name(const NameSet *names, NameNumber number, const NameKey *key)
{
	const char *name = names->names[number];

	return name != NULL && strncmp(name, key->text, key->length) == 0 && name[key->length] == '\0';
}

/*
 * The number of a name that is there, or NAME_UNKNOWN.
 */
static NameNumber
find_name(const NameSet *names, const NameKey *key)
{
	NameEntry  *entry;

	if (names->table == NULL)
	{
		for (NameNumber number = NAME_UNKNOWN + 1; number < names->count; number++)
		{
			if (is_name(names, number, key))
				return number;
		}
		return NAME_UNKNOWN;
	}
	entry = hash_search(names->table, key, HASH_FIND, NULL);
	return entry != NULL ? entry->number : NAME_UNKNOWN;
}

static void
enter_name(NameSet *names, NameNumber number)
{
	NameKey		key = {names->names[number], (int) strlen(names->names[number])};
	NameEntry  *entry = hash_search(names->table, &key, HASH_ENTER, NULL);

	entry->number = number;
}

/*
 * There are more than a few: from now on they are found by their hashes.
 */
static void
begin_table(NameSet *names)
{
	HASHCTL		control = {
		.keysize = sizeof(NameKey),
		.entrysize = sizeof(NameEntry),
		.hash = hash_name,
		.match = compare_names,
		.hcxt = names->context
	};

	names->table = hash_create("event names", names->room, &control,
							   HASH_ELEM | HASH_FUNCTION | HASH_COMPARE | HASH_CONTEXT);
	for (NameNumber number = NAME_UNKNOWN + 1; number < names->count; number++)
		enter_name(names, number);
}

/*
 * The number of a name, which is given as length bytes.
 */
NameNumber
name_set_number(NameSet *names, const char *text, int length)
{
	NameKey		key = {text, length};
	char	   *name;
	NameNumber	number;

	/* neighbours mostly have the same name */
	if (is_name(names, names->last, &key))
		return names->last;

	number = find_name(names, &key);
	if (number == NAME_UNKNOWN && names->count < MAX_NAMES)
	{
		if (names->count == names->room)
		{
			names->room *= 2;
			names->names = repalloc(names->names, sizeof(char *) * names->room);
			if (names->table == NULL)
				begin_table(names);
		}
		number = names->count++;
		name = names->names[number] = MemoryContextAlloc(names->context, length + 1);
		memcpy(name, text, length);
		name[length] = '\0';
		if (names->table != NULL)
			enter_name(names, number);
	}
	if (number == NAME_UNKNOWN)
		names->has_unknown = true;
	names->last = number;
	return number;
}
