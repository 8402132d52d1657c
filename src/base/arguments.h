/*-------------------------------------------------------------------------
 *
 * arguments.h
 *		Checks of the arguments of SQL functions, and of the transaction that
 *		calls them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_ARGUMENTS_H
#define PNE_ARGUMENTS_H

#include "fmgr.h"

/* maximum length of an event's name */
#define EVENT_NAME_MAX_CHARS	100

/*
 * Limits on what is kept in memory of a definition, in bytes.  The SQL
 * functions accept nothing longer; a restore may bring it.
 */
#define MAX_PATTERN_BYTES ((Size) 1024)
#define MAX_FILTER_BYTES ((Size) 64 * 1024)

extern void require_argument(FunctionCallInfo fcinfo, int argument, const char *name);
extern char *name_argument(FunctionCallInfo fcinfo, int argument, const char *argument_name, const char *what);
extern int	integer_argument(FunctionCallInfo fcinfo, int argument, const char *name, int max);
extern int64 interval_argument(FunctionCallInfo fcinfo, int argument, const char *name);
extern int64 timeout_argument(FunctionCallInfo fcinfo, int argument);
extern int64 delay_argument(FunctionCallInfo fcinfo, int argument);
extern Oid	owner_argument(FunctionCallInfo fcinfo, int argument, const char *what);
extern void check_event_name(const char *name, int length);
extern Datum parse_event_data(const char *json, const char *hint);
extern char *event_name_argument(FunctionCallInfo fcinfo, int argument);
extern Datum filter_argument(FunctionCallInfo fcinfo, int argument);
extern int64 interval_to_ms(Datum interval);
extern Size stored_size(Datum value);
extern void require_read_committed(const char *function, const char *what);
extern void require_writable(const char *function);

#endif							/* PNE_ARGUMENTS_H */
