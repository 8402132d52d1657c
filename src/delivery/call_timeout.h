/*-------------------------------------------------------------------------
 *
 * call_timeout.h
 *		How long the code of a handler may run.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_CALL_TIMEOUT_H
#define PNE_CALL_TIMEOUT_H

extern void call_timeout_init(void);
extern void call_timeout_arm(int timeout);
extern void call_timeout_begin_call(int timeout);
extern void call_timeout_call_returned(void);
extern void call_timeout_disarm(void);
extern void call_timeout_stop_watch(void);
extern bool call_timeout_overran(void);
extern bool call_timeout_call_in_doubt(void);

#endif							/* PNE_CALL_TIMEOUT_H */
