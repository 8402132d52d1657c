/*-------------------------------------------------------------------------
 *
 * session.h
 *		The executor's session between two batches.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_SESSION_H
#define PNE_SESSION_H

extern void session_discard(void);

#endif							/* PNE_SESSION_H */
