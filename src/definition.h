/*-------------------------------------------------------------------------
 *
 * definition.h
 *		What SQL functions that change a handler have in common.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_DEFINITION_H
#define PNE_DEFINITION_H

#include "handler.h"

extern Handler *lock_own_handler(const char *name);

#endif							/* PNE_DEFINITION_H */
