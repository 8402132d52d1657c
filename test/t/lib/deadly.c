/*
 * Handlers that end their process, for 051_deadly.pl, which compiles this.
 */
#include "postgres.h"

#include <signal.h>
#include <unistd.h>

#include "fmgr.h"
#include "utils/builtins.h"

PG_MODULE_MAGIC;

PG_FUNCTION_INFO_V1(die_of);

/*
 * die_of(text): of a segmentation fault, of SIGKILL as the kernel sends it when
 * memory is short, or by exit() behind the server's back.
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
