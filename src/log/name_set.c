/*-------------------------------------------------------------------------
 *
 * name_set.c
 *		The names of a window's events, each once.
 *
 * A window has many events and, mostly, few names.  So names get numbers, and each
 * event has one.  Each handler matches its pattern once with each name (match_names).
 * After that it finds its events among all others by their numbers, and reads no row
 * of another event.  So a handler's batches are full, however many handlers share the
 * log.
 *
 * An application may use a new name for each event.  Only the first MAX_NAMES names of
 * a window get numbers of their own.  All others share one number, and whether such an
 * event concerns a handler is seen when its row is read.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "log/name_set.h"

/* numbers in a window, including NAME_UNKNOWN */
#define MAX_NAMES 10000

StaticAssertDecl(MAX_NAMES <= PG_UINT16_MAX, "numbers of names fit");

/* how many there is room for at first; so few are just compared */
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
 * Create an empty set in the current memory context.
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
 * The number of a name in the set, or NAME_UNKNOWN.
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
 * There are more than a few names: from now on they are found by their hashes.
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
 * The number of a name, given as length bytes.  A new name is added.
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
