/*-------------------------------------------------------------------------
 *
 * fault.h
 *		Fault points, at which tests can stop or break a process.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_FAULT_H
#define PNE_FAULT_H

#ifdef PNE_FAULT_POINTS
#define FAULT_POINT(name) fault_point(name)
#define FAULT_NUMBER(name, number) fault_number((name), (number))
extern void fault_point(const char *name);
extern int64 fault_number(const char *name, int64 number);
#else
#define FAULT_POINT(name) ((void) 0)
#define FAULT_NUMBER(name, number) (number)
#endif

#endif							/* PNE_FAULT_H */
