/*-------------------------------------------------------------------------
 *
 * definition.h
 *		What SQL functions that name a handler have in common.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_DEFINITION_H
#define PNE_DEFINITION_H

#include "fmgr.h"

#include "handler.h"

extern void require_argument(FunctionCallInfo fcinfo, int argument, const char *name);
extern char *handler_name_argument(FunctionCallInfo fcinfo, int argument, const char *argument_name);
extern Handler *lock_own_handler(const char *name);

#endif							/* PNE_DEFINITION_H */
