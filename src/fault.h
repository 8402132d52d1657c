/*-------------------------------------------------------------------------
 *
 * fault.h
 *		Places at which tests can stop or break a process.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_FAULT_H
#define PNE_FAULT_H

#ifdef PNE_FAULT_POINTS
#define FAULT_POINT(name) fault_point(name)
extern void fault_point(const char *name);
#else
#define FAULT_POINT(name) ((void) 0)
#endif

#endif							/* PNE_FAULT_H */
