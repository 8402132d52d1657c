/*-------------------------------------------------------------------------
 *
 * handler_function.h
 *		The function that create_event_handler() and alter_event_handler() name.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_HANDLER_FUNCTION_H
#define PNE_HANDLER_FUNCTION_H

#include "handler/handler.h"

extern void function_argument(FunctionCallInfo fcinfo, int argument, Handler *handler);

#endif							/* PNE_HANDLER_FUNCTION_H */
