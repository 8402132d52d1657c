/*-------------------------------------------------------------------------
 *
 * consumer_batch.c
 *		The open batch of a consumer as it is stored.
 *
 * Each fetch writes a batch.  Each acknowledgement reads it and writes what is left.
 * As arrays, 10,000 events would take 160 kB, which would be compressed and stored out
 * of line each time.  But ids and transactions mostly follow each other closely.  So
 * two numbers are stored for each event: by how much its id and its transaction are
 * larger than those of the event before.  The second one may be negative and is folded
 * so that small numbers stay small: 0, -1, 1, -2, ... A number is written seven bits
 * to the byte, the lowest first.  All of its bytes but the last have the highest bit
 * set.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/compat.h"
#include "consumer/consumer_batch.h"

#define BITS_PER_BYTE_USED 7
#define MORE_FOLLOWS 0x80

/* how many bytes a number takes at most */
#define MAX_NUMBER_BYTES 10

/* two numbers for each event, at least one byte each */
#define MIN_EVENT_BYTES 2

static unsigned char *
put_number(unsigned char *to, uint64 number)
{
	while (number >= MORE_FOLLOWS)
	{
		*to++ = (unsigned char) (number | MORE_FOLLOWS);
		number >>= BITS_PER_BYTE_USED;
	}
	*to++ = (unsigned char) number;
	return to;
}

/*
 * Encode a batch as a bytea, in the current memory context.
 */
Datum
batch_datum(const EventIdentity *events, int nevents)
{
	bytea	   *result = palloc(VARHDRSZ + (Size) nevents * 2 * MAX_NUMBER_BYTES);
	unsigned char *to = (unsigned char *) VARDATA(result);
	EventIdentity before = {0, 0};

	for (int i = 0; i < nevents; i++)
	{
		uint64		step = events[i].txid - before.txid;

		to = put_number(to, (uint64) events[i].id - (uint64) before.id);
		to = put_number(to, (step << 1) ^ (uint64) ((int64) step >> 63));
		before = events[i];
	}
	SET_VARSIZE(result, (char *) to - (char *) result);
	return PointerGetDatum(result);
}

/*
 * Read a number.  Returns NULL if the data is no number.
 */
static const unsigned char *
get_number(const unsigned char *from, const unsigned char *end, uint64 *number)
{
	*number = 0;
	for (int shift = 0; from < end && shift < 64; shift += BITS_PER_BYTE_USED)
	{
		*number |= (uint64) (*from & ~MORE_FOLLOWS) << shift;
		if ((*from++ & MORE_FOLLOWS) == 0)
			return from;
	}
	return NULL;
}

/*
 * Decode a stored batch into the current memory context.  Returns NULL if the data is
 * no batch, or its ids do not ascend; a restore may have brought anything.
 */
EventIdentity *
batch_from_datum(Datum value, int *nevents)
{
	bytea	   *stored = DatumGetByteaPP(value);
	const unsigned char *from = (const unsigned char *) VARDATA_ANY(stored);
	const unsigned char *end = from + VARSIZE_ANY_EXHDR(stored);
	EventIdentity *events = palloc(sizeof(EventIdentity) * (VARSIZE_ANY_EXHDR(stored) / MIN_EVENT_BYTES + 1));
	EventIdentity event = {0, 0};
	int			count = 0;

	*nevents = 0;
	while (from < end)
	{
		int64		id_before = event.id;
		uint64		number;

		from = get_number(from, end, &number);
		event.id = (int64) ((uint64) event.id + number);
		if (from != NULL)
			from = get_number(from, end, &number);
		if (from == NULL || (count > 0 && event.id <= id_before))
			return NULL;
		event.txid += (number >> 1) ^ -(number & 1);
		events[count++] = event;
	}
	*nevents = count;
	return events;
}
