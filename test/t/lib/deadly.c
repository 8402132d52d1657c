/*
 * Handlers that end their own process, for the tests that compile this file.
 */
#include "postgres.h"

#include <signal.h>
#include <unistd.h>

#include "executor/executor.h"
#include "fmgr.h"
#include "storage/ipc.h"
#include "utils/builtins.h"

PG_MODULE_MAGIC;

PG_FUNCTION_INFO_V1(die_of);
PG_FUNCTION_INFO_V1(die_late);
PG_FUNCTION_INFO_V1(linger_at_exit);

/*
 * die_of(text): ends the process by a segmentation fault, by SIGKILL as the kernel sends
 * it when memory is short, or by exit() without the server's knowledge.
 */
Datum
die_of(PG_FUNCTION_ARGS)
{
	char	   *cause = text_to_cstring(PG_GETARG_TEXT_PP(0));

	switch (cause[0])
	{
		case 's':
			raise(SIGSEGV);
			break;
		case 'k':
			raise(SIGKILL);
			break;
		case 'e':
			exit(3);
		default:
			break;
	}
	PG_RETURN_VOID();
}

/*
 * die_late(notification_events): an event "die late" sends its process SIGTERM, as
 * pg_terminate_backend() does.  The call ends before the process checks for that.
 */
Datum
die_late(PG_FUNCTION_ARGS)
{
	bool		isnull;
	Datum		name = GetAttributeByName(PG_GETARG_HEAPTUPLEHEADER(0), "event_name", &isnull);

	if (!isnull && strcmp(TextDatumGetCString(name), "die late") == 0)
		raise(SIGTERM);
	PG_RETURN_VOID();
}

static void
linger(int code, Datum milliseconds)
{
	long		left = DatumGetInt32(milliseconds);

	/* signals cut it short */
	for (; left > 0; left -= 10)
		pg_usleep(10000);
}

/*
 * linger_at_exit(integer): when the process ends, it stays for this many milliseconds
 * after it has detached from shared memory.
 */
Datum
linger_at_exit(PG_FUNCTION_ARGS)
{
	on_proc_exit(linger, Int32GetDatum(PG_GETARG_INT32(0)));
	PG_RETURN_VOID();
}
