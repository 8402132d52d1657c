/*-------------------------------------------------------------------------
 *
 * retry_table.h
 *		The rows of _event_retries: events that failed, or wait.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_RETRY_TABLE_H
#define PNE_RETRY_TABLE_H

#include "handler/handler.h"
#include "log/event.h"

typedef struct DueRetry
{
	EventIdentity event;
	TimestampTz due;
} DueRetry;

extern TimestampTz retry_due_after(const Handler *handler, int attempts);
extern void retry_write_failure(const Handler *handler, EventIdentity event, int attempts, TimestampTz due,
								bool deferred, const ErrorData *error);
extern void retry_log_failure(const Handler *handler, int64 event_id, int attempts, bool dead,
							  const ErrorData *error);
extern TimestampTz retry_due_again(const Handler *handler, int attempts);
extern int	retry_find_waiting(const char *handler, bool ordered, DueRetry *found, int limit);
extern TimestampTz retry_earliest(const Handler *handler);
extern int	retry_lock_due(const char *handler, EventIdentity event);
extern bool retry_lock_attempt(const char *handler, EventIdentity event, int attempts, bool *never_failed);
extern void retry_write_attempt(const Handler *handler, EventIdentity event, int attempts, bool fresh);
extern void retry_delete(const char *handler, EventIdentity event);
extern void retry_discard(const char *handler, EventIdentity event, const char *reason);
extern void retry_drop(const char *handler, EventIdentity event, bool never_failed, const char *reason);
extern bool retry_give_back(const char *handler, EventIdentity event, int attempts);
extern void retry_mark_dead(const Handler *handler, EventIdentity event, int attempts);
extern TimestampTz retry_charge_deferred(const Handler *handler, EventIdentity event, int attempts);
extern void retry_recover_attempts(const Handler *handler);
extern bool retry_give_back_attempts(const Handler *handler);

#endif							/* PNE_RETRY_TABLE_H */
