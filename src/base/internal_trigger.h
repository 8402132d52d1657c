/*-------------------------------------------------------------------------
 *
 * internal_trigger.h
 *		Keeps foreign triggers off the extension's internal tables.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_INTERNAL_TRIGGER_H
#define PNE_INTERNAL_TRIGGER_H

extern void internal_trigger_created(Oid trigger);

#endif							/* PNE_INTERNAL_TRIGGER_H */
