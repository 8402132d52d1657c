/*-------------------------------------------------------------------------
 *
 * internal_trigger.h
 *		No triggers of others on the extension's internal tables.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_OWN_TRIGGER_H
#define PNE_OWN_TRIGGER_H

extern void internal_trigger_created(Oid trigger);

#endif							/* PNE_OWN_TRIGGER_H */
