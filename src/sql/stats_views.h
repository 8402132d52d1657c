/*-------------------------------------------------------------------------
 *
 * stats_views.h
 *		The SQL functions behind the statistics views.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_STATS_VIEWS_H
#define PNE_STATS_VIEWS_H

#include "handler/handler.h"

extern const char *stats_handler_state(const Handler *handler, char **reason);

#endif							/* PNE_STATS_VIEWS_H */
