/*-------------------------------------------------------------------------
 *
 * transaction.h
 *		The transactions of an executor.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_TRANSACTION_H
#define PNE_TRANSACTION_H

#include "utils/elog.h"
#include "utils/palloc.h"

extern void transaction_never_wait(int timeout);
extern void transaction_start(void);
extern void transaction_start_own(void);
extern bool transaction_start_if_free(void);
extern void transaction_commit(int timeout);
extern ErrorData *transaction_abort(MemoryContext context);

#endif							/* PNE_TRANSACTION_H */
