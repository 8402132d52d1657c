/*-------------------------------------------------------------------------
 *
 * handler_definition.h
 *		What SQL functions that change a handler have in common.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_HANDLER_DEFINITION_H
#define PNE_HANDLER_DEFINITION_H

#include "handler/handler.h"

extern Handler *lock_own_handler(const char *name);

#endif							/* PNE_HANDLER_DEFINITION_H */
