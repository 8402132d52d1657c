/*-------------------------------------------------------------------------
 *
 * handler.h
 *		Handlers: their definitions, whether they can run, how they are called.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_HANDLER_H
#define PNE_HANDLER_H

#include "fmgr.h"
#include "nodes/pg_list.h"
#include "utils/timestamp.h"

#include "base/shared.h"
#include "log/match.h"
#include "log/window.h"

/* the shapes of a handler's function, as _event_handlers stores them */
#define SHAPE_EVENT			'e' /* f(notification_events) */
#define SHAPE_EVENT_ARRAY	'a' /* f(notification_events[]) */
#define SHAPE_TEXT			't' /* f(text, jsonb) */
#define SHAPE_VARCHAR		'v' /* f(varchar, jsonb) */

typedef struct Handler
{
	char		name[HANDLER_NAME_SIZE];
	int64		number;			/* identifies its lock */
	Oid			owner;
	NameData	function_schema;
	NameData	function_name;
	char		function_shape;
	Oid			function_owner;
	EventPattern pattern;
	int			batch_size;
	int			max_attempts;
	int64		retry_delay;	/* ms */
	int64		max_retry_delay;	/* ms */
	int			timeout;		/* ms */
	bool		ordered;
	bool		paused;
	bool		dormant;
	TimestampTz created_at;
	int64		created;		/* the transaction that created it ... */
	int64		version;		/* ... and the one that changed it last */
	EventPosition position;		/* as it was stored when this was read */
	EventSnapshot *start;		/* where it began */
	int64		group_end;		/* stored with the position: the last event of the
								 * group that is being tried (crash_guard.c), or NO_GROUP */
} Handler;

/* no event has this id */
#define NO_GROUP PG_INT64_MIN

/* why a handler cannot run */
typedef struct HandlerProblem
{
	int			sqlstate;
	const char *message;
	const char *hint;
} HandlerProblem;

/* a handler's function, ready to be called within a transaction */
typedef struct HandlerCall
{
	FmgrInfo	function;
	char		shape;
	MemoryContext context;		/* of one call */
} HandlerCall;

extern List *handler_load(const char *name, Oid owner, MemoryContext context);
extern List *handler_load_without_filters(Oid owner, MemoryContext context);
extern Oid	handler_find_function(const Handler *handler);
extern int	handler_timeout(const Handler *handler);
extern bool handler_begin_batch(const Handler *handler);
extern void handler_wait_for_batch(const Handler *handler);
extern void handler_end_batch(const Handler *handler);
extern bool handler_check(const Handler *handler, HandlerProblem *problem);
extern Oid	handler_approve(const Handler *handler, HandlerProblem *problem);
extern void handler_prepare_call(HandlerCall *call, const Handler *handler, Oid function);
extern void handler_call(HandlerCall *call, Event **events, int nevents, TupleDesc desc);
extern void handler_undo_settings(int nest_level, Oid role);

#endif							/* PNE_HANDLER_H */
