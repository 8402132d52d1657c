/*-------------------------------------------------------------------------
 *
 * foreign_text.h
 *		Texts that come from another database, or whose encoding is unknown.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_FOREIGN_TEXT_H
#define PNE_FOREIGN_TEXT_H

extern void text_cut(char *to, const char *from, size_t size);
extern char *text_made_readable(const char *text, int encoding);

#endif							/* PNE_FOREIGN_TEXT_H */
