/*-------------------------------------------------------------------------
 *
 * foreign_text.c
 *		Texts that come from another database, or whose encoding is unknown.
 *
 * Shared memory holds texts from all databases, and each database has its own
 * encoding.  A statement fails if it reads a text that is not valid in the
 * encoding of its database: when the text is sent to a client, or when a
 * function looks at its characters.  Therefore such a text is converted here,
 * character by character.  A character that cannot be converted is written as
 * its bytes, \xNN.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"

#include "base/foreign_text.h"

/* the longest conversion of one character, with a terminator */
#define CONVERTED_SIZE (MAX_MULTIBYTE_CHAR_LEN * MAX_CONVERSION_GROWTH + 1)

/*
 * Returns the length of the next character in bytes, or 1 if the next byte does
 * not begin a valid character.  left is the number of bytes that are left.
 */
static int
length_of_character(int encoding, const char *text, size_t left)
{
	return Max(pg_encoding_verifymbchar(encoding, text, (int) left), 1);
}

/*
 * Copy a text in the encoding of this database to a buffer of the given size,
 * terminator included.  Cuts it between characters if it is too long.  Does not
 * throw.
 */
void
text_cut(char *to, const char *from, size_t size)
{
	size_t		length = strlen(from);
	size_t		copied = 0;

	while (copied < length)
	{
		size_t		next = length_of_character(GetDatabaseEncoding(), from + copied, length - copied);

		if (copied + next >= size)
			break;
		copied += next;
	}
	memcpy(to, from, copied);
	to[copied] = '\0';
}

/*
 * Returns a text of the given encoding, converted to the encoding of this
 * database, as a palloc'd string.
 *
 * The encoding of a text in SQL_ASCII is not known.  It is treated as text in
 * this database's encoding.  If this database is SQL_ASCII, only ASCII is kept
 * as it is: no client could be sure to understand anything else.  Must be
 * called in a transaction.
 */
char *
text_made_readable(const char *text, int encoding)
{
	int			here = GetDatabaseEncoding();
	int			from = (encoding == PG_SQL_ASCII) ? here : encoding;
	Oid			conversion = InvalidOid;
	size_t		left = strlen(text);
	StringInfoData result;

	if (from != here && here != PG_SQL_ASCII)
		conversion = FindDefaultConversionProc(from, here);

	initStringInfo(&result);
	while (left > 0)
	{
		int			length = length_of_character(from, text, left);
		unsigned char converted[CONVERTED_SIZE];

		if (!IS_HIGHBIT_SET(*text) ||
			(from == here && here != PG_SQL_ASCII && pg_encoding_verifymbchar(from, text, (int) left) > 0))
			appendBinaryStringInfo(&result, text, length);
		else if (OidIsValid(conversion) &&
				 pg_do_encoding_conversion_buf(conversion, from, here, (unsigned char *) unconstify(char *, text),
											   length, converted, CONVERTED_SIZE, true) == length)
			appendStringInfoString(&result, (char *) converted);
		else
		{
			for (int i = 0; i < length; i++)
				appendStringInfo(&result, "\\x%02x", (unsigned char) text[i]);
		}
		text += length;
		left -= length;
	}
	return result.data;
}
