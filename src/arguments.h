/*-------------------------------------------------------------------------
 *
 * arguments.h
 *		Arguments of SQL functions, checked.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_ARGUMENTS_H
#define PNE_ARGUMENTS_H

#include "fmgr.h"

#include "window.h"

extern void require_argument(FunctionCallInfo fcinfo, int argument, const char *name);
extern char *name_argument(FunctionCallInfo fcinfo, int argument, const char *argument_name, const char *what);
extern int	integer_argument(FunctionCallInfo fcinfo, int argument, const char *name, int max);
extern int64 interval_argument(FunctionCallInfo fcinfo, int argument, const char *name);
extern int64 timeout_argument(FunctionCallInfo fcinfo, int argument);
extern Oid	owner_argument(FunctionCallInfo fcinfo, int argument, const char *what);
extern char *event_name_argument(FunctionCallInfo fcinfo, int argument);
extern Datum filter_argument(FunctionCallInfo fcinfo, int argument);
extern EventSnapshot *start_argument(FunctionCallInfo fcinfo, int argument);
extern int64 interval_to_ms(Datum interval);

#endif							/* PNE_ARGUMENTS_H */
