/*-------------------------------------------------------------------------
 *
 * owner.h
 *		Whether an executor's owner is what it was when its session began.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_OWNER_H
#define PNE_OWNER_H

extern void owner_settings_altered(void);
extern void owner_watch(void);
extern void owner_connected(Oid role);
extern bool owner_has_changed(void);

#endif							/* PNE_OWNER_H */
