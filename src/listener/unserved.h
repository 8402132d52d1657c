/*-------------------------------------------------------------------------
 *
 * unserved.h
 *		What the listener knows about handlers whose owner has no executor.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_UNSERVED_H
#define PNE_UNSERVED_H

#include "utils/relcache.h"

#include "handler/handler.h"

extern void unserved_begin(void);
extern void unserved_see(const Handler *handler);
extern void unserved_end(void);
extern bool unserved_is_quiet(const Handler *handler, Relation log, Snapshot snapshot,
							  const EventSnapshot *upto);
extern bool unserved_complaint_is_news(const Handler *handler, const char *text);
extern void unserved_can_run(const Handler *handler);

#endif							/* PNE_UNSERVED_H */
