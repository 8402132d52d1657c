/*-------------------------------------------------------------------------
 *
 * unserved.c
 *		What the listener knows about handlers whose owner has no executor.
 *
 * The listener looks at them whenever there is an event.  So it remembers for each
 * handler up to where the log has nothing for it, and what was logged about it.  This
 * does not depend on the definitions of other handlers.  Otherwise a changed
 * definition would have the listener look through the log for all of them, and log
 * everything again.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "listener/unserved.h"

/* how many events of others may lie between a stored position and the log's end */
#define MAX_PASSED 10000

typedef struct Unserved
{
	char		name[HANDLER_NAME_SIZE];
	int64		created;
	bool		seen;			/* seen in the present look */
	uint32		complaint;		/* hash of the logged complaint that still holds; or 0 */
	/* the log has nothing for this pattern between stored and upto; or NULL */
	char	   *event_name;
	EventSnapshot *stored;		/* its stored cursor */
	EventSnapshot *upto;
	int64		passed;			/* events of others between stored and upto */
} Unserved;

static MemoryContext unserved_context = NULL;
static HTAB *unserved = NULL;

/*
 * Forget up to where the log has nothing for a handler.
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
 * What is known about a handler: nothing, if it was about another handler of that
 * name.
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
 * Begin a look at all handlers.
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
 * The look has come to a handler, with or without an executor.
 */
void
unserved_see(const Handler *handler)
{
	(void) lookup(handler);
}

/*
 * The look has seen all handlers: forget those that it did not see.
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
 * Whether a complaint about a handler is new.  If so, it is noted.
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
 * The handler can run, or its executor logs its complaints.
 */
void
unserved_can_run(const Handler *handler)
{
	lookup(handler)->complaint = 0;
}

/*
 * Whether the log has nothing for a handler.  Each event is looked at once: the
 * earlier result is kept as long as the pattern and the stored position are the same.
 *
 * If many events of others were passed, the result is false, so that an executor
 * stores the new position and nobody has to look through them again.  It is false,
 * too, for a position inside a window: the rest of the window could be found only
 * among all that the position has passed, and again with each look.
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
