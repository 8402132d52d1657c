/*-------------------------------------------------------------------------
 *
 * memcheck.h
 *	  Valgrind's client requests, answered by AddressSanitizer.
 *
 * AddressSanitizer knows what malloc() handed out; PostgreSQL's memory contexts
 * cut many chunks from one such block, so what is written past the end of a
 * palloc() or read after a pfree() stays unseen.  But the server tells valgrind
 * about each chunk and about each shared buffer that is not pinned, if it is
 * built with USE_VALGRIND.  With this file in place of valgrind's own it tells
 * AddressSanitizer.
 *
 * There is no notion of undefined contents: undefined memory is accessible.
 *
 *-------------------------------------------------------------------------
 */
#ifndef MEMCHECK_H
#define MEMCHECK_H

#include <sanitizer/asan_interface.h>

#define VALGRIND_MAKE_MEM_NOACCESS(addr, size) \
	__asan_poison_memory_region((addr), (size))
#define VALGRIND_MAKE_MEM_DEFINED(addr, size) \
	__asan_unpoison_memory_region((addr), (size))
#define VALGRIND_MAKE_MEM_UNDEFINED(addr, size) \
	__asan_unpoison_memory_region((addr), (size))
#define VALGRIND_MEMPOOL_ALLOC(context, addr, size) \
	__asan_unpoison_memory_region((addr), (size))

/* what was freed is made inaccessible by wipe_mem() */
#define VALGRIND_MEMPOOL_FREE(context, addr) ((void) 0)
#define VALGRIND_MEMPOOL_CHANGE(context, optr, nptr, size) ((void) 0)
#define VALGRIND_CREATE_MEMPOOL(context, redzones, zeroed) ((void) 0)
#define VALGRIND_DESTROY_MEMPOOL(context) ((void) 0)
#define VALGRIND_CHECK_MEM_IS_DEFINED(addr, size) ((void) 0)

/* tcop/postgres.c asks which query made valgrind report something */
#define RUNNING_ON_VALGRIND 0
#define VALGRIND_COUNT_ERRORS 0
#define VALGRIND_PRINTF(...) ((void) 0)

#endif							/* MEMCHECK_H */
