/*-------------------------------------------------------------------------
 *
 * unserved.c
 *		What the listener knows of handlers whose owner has no executor.
 *
 * It looks at them whenever there is an event.  So it remembers of each up to
 * where there is nothing for it, and what it has logged of it, and that does not
 * depend on what becomes of other handlers' definitions: a change would else have
 * it look through the log for all of them, and say everything again.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "listener/unserved.h"

/* a stored position is never more events of others behind than this */
#define MAX_PASSED 10000

typedef struct Unserved
{
	char		name[HANDLER_NAME_SIZE];
	int64		created;
	bool		seen;			/* in the present look */
	uint32		complaint;		/* hash of what was logged and still stands; or 0 */
	/* there is nothing for this pattern between the two; or NULL */
	char	   *event_name;
	EventSnapshot *stored;		/* its stored cursor */
	EventSnapshot *upto;
	int64		passed;			/* events of others between the two */
} Unserved;

static MemoryContext unserved_context = NULL;
static HTAB *unserved = NULL;

/*
 * Forget up to where there is nothing for a handler.
 */
static void
forget_quiet(Unserved *entry)
{
	if (entry->event_name == NULL)
		return;
	pfree(entry->event_name);
	pfree(entry->stored);
	pfree(entry->upto);
	entry->event_name = NULL;
	entry->stored = entry->upto = NULL;
	entry->passed = 0;
}

/*
 * What is known of a handler; nothing, if it was another one of that name.
 */
static Unserved *
lookup(const Handler *handler)
{
	bool		found;
	Unserved   *entry = hash_search(unserved, handler->name, HASH_ENTER, &found);

	if (found && entry->created != handler->created)
		forget_quiet(entry);
	if (!found || entry->created != handler->created)
	{
		memset((char *) entry + offsetof(Unserved, created), 0,
			   sizeof(Unserved) - offsetof(Unserved, created));
		entry->created = handler->created;
	}
	entry->seen = true;
	return entry;
}

/*
 * A look at all handlers begins.
 */
void
unserved_begin(void)
{
	HASH_SEQ_STATUS status;
	Unserved   *entry;

	if (unserved == NULL)
	{
		HASHCTL		info = {.keysize = HANDLER_NAME_SIZE, .entrysize = sizeof(Unserved)};

		unserved_context = AllocSetContextCreate(TopMemoryContext, "handlers without executor", ALLOCSET_DEFAULT_SIZES);
		info.hcxt = unserved_context;
		unserved = hash_create("handlers without executor", 64, &info, HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
	}
	hash_seq_init(&status, unserved);
	while ((entry = hash_seq_search(&status)) != NULL)
		entry->seen = false;
}

/*
 * It has come to a handler, whether that is served or not.
 */
void
unserved_see(const Handler *handler)
{
	(void) lookup(handler);
}

/*
 * It has seen all of them: forget the others.
 */
void
unserved_end(void)
{
	HASH_SEQ_STATUS status;
	Unserved   *entry;

	hash_seq_init(&status, unserved);
	while ((entry = hash_seq_search(&status)) != NULL)
	{
		if (entry->seen)
			continue;
		forget_quiet(entry);
		(void) hash_search(unserved, entry->name, HASH_REMOVE, NULL);
	}
}

/*
 * Whether a complaint about a handler is new; if so, it is noted.
 */
bool
unserved_complaint_is_news(const Handler *handler, const char *text)
{
	Unserved   *entry = lookup(handler);
	uint32		hash = hash_bytes((const unsigned char *) text, (int) strlen(text)) | 1;
	bool		news = (entry->complaint != hash);

	entry->complaint = hash;
	return news;
}

/*
 * The handler can run, or its executor complains for itself.
 */
void
unserved_can_run(const Handler *handler)
{
	lookup(handler)->complaint = 0;
}

/*
 * Whether there is nothing for a handler.  Each event is looked at once: what was
 * found before is known, as long as the pattern and the stored position are the
 * same.  Where many events of others were passed, an executor is to store that,
 * so that nobody has to look through them again; then no more are looked at.  And
 * one is to bring a position out of its window: what is left of that could be
 * found only among all that it has passed, and anew with each look.
 */
bool
unserved_is_quiet(const Handler *handler, Relation log, Snapshot snapshot, const EventSnapshot *upto)
{
	Unserved   *entry = lookup(handler);
	EventSnapshot *reached;
	MemoryContext old;
	int64		passed;

	if (handler->position.window != NULL)
		return false;
	if (entry->event_name != NULL &&
		(strcmp(entry->event_name, handler->pattern.event_name) != 0 ||
		 !event_snapshot_equal(entry->stored, handler->position.cursor)))
		forget_quiet(entry);
	if (entry->passed >= MAX_PASSED)
		return false;
	if (match_pending(&handler->pattern, entry->event_name ? entry->upto : handler->position.cursor,
					  log, snapshot, upto, MAX_PASSED - entry->passed, &passed))
		return false;

	old = MemoryContextSwitchTo(unserved_context);
	reached = event_snapshot_copy(upto);
	if (entry->event_name == NULL)
	{
		entry->stored = event_snapshot_copy(handler->position.cursor);
		entry->event_name = pstrdup(handler->pattern.event_name);
	}
	else
		pfree(entry->upto);
	entry->upto = reached;
	entry->passed += passed;
	MemoryContextSwitchTo(old);
	return entry->passed < MAX_PASSED;
}
