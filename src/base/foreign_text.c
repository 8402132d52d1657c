/*-------------------------------------------------------------------------
 *
 * foreign_text.c
 *		Texts that come from another database, or from nobody knows where.
 *
 * Shared memory has texts from all databases, and each database has an encoding
 * of its own.  A text that is not valid in the encoding of the database whose
 * table or view shows it makes the whole statement fail for who reads it: when it
 * is sent to a client, or where a function looks at its characters.  So one is
 * converted character by character here, and what cannot be is written as its
 * bytes, \xNN.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"

#include "base/foreign_text.h"

/* what one character can become, with its terminator */
#define CONVERTED_SIZE (MAX_MULTIBYTE_CHAR_LEN * MAX_CONVERSION_GROWTH + 1)

/*
 * The bytes of the next character, 1 for a byte that begins none.
 */
static int
length_of_character(int encoding, const char *text, size_t left)
{
	return Max(pg_encoding_verifymbchar(encoding, text, (int) left), 1);
}

/*
 * Copy a text in the encoding of this database, as much of it as has room
 * without the last character being cut.  Does not throw.
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
 * A text of the given encoding in that of this database.  Of a text in SQL_ASCII
 * nobody knows the encoding, and it is taken for this one; where this one is
 * SQL_ASCII, no client could be sure to get anything but ASCII.
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
