/*-------------------------------------------------------------------------
 *
 * compat.h
 *		Every difference between PostgreSQL 15 and 19 that this extension
 *		meets, and nothing else.
 *
 * A wrapper has the newest server's signature.  If that cannot be written for
 * an older server, the wrapper has a name of the extension's own.  Each comment
 * names the version in which the server changed.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_COMPAT_H
#define PNE_COMPAT_H

#include "access/slru.h"
#include "access/xact.h"
#include "catalog/dependency.h"
#include "commands/async.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "parser/parse_relation.h"
#include "storage/proc.h"
#include "utils/acl.h"
#include "utils/rel.h"

/* 16 has macros of varlena types in a header of their own (d952373a98) */
#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

#if PG_VERSION_NUM < 150000 || PG_VERSION_NUM >= 200000
#error "pg_notify_events supports PostgreSQL 15 to 19"
#endif

/* 16 declares _PG_init in fmgr.h (089480c077) */
#if PG_VERSION_NUM < 160000
extern PGDLLEXPORT void _PG_init(void);
#endif

/* 16 replaced the pg_xxx_ownercheck and aclcheck families */
#if PG_VERSION_NUM < 160000
#define object_ownercheck(classid, objectid, roleid) \
	pg_class_ownercheck((objectid), (roleid))
#define function_aclcheck(oid, roleid, mode) \
	pg_proc_aclcheck((oid), (roleid), (mode))
#define schema_aclcheck(oid, roleid, mode) \
	pg_namespace_aclcheck((oid), (roleid), (mode))
#define database_aclcheck(oid, roleid, mode) \
	pg_database_aclcheck((oid), (roleid), (mode))
#else
#define function_aclcheck(oid, roleid, mode) \
	object_aclcheck(ProcedureRelationId, (oid), (roleid), (mode))
#define schema_aclcheck(oid, roleid, mode) \
	object_aclcheck(NamespaceRelationId, (oid), (roleid), (mode))
#define database_aclcheck(oid, roleid, mode) \
	object_aclcheck(DatabaseRelationId, (oid), (roleid), (mode))
#endif

/* 16 gave the tree walkers prototypes (1c27d16e6e) */
#if PG_VERSION_NUM < 160000
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wstrict-prototypes"
#include "nodes/nodeFuncs.h"
#pragma GCC diagnostic pop
#else
#include "nodes/nodeFuncs.h"
#endif

/* 19 passes a post_parse_analyze_hook the jumble state as const */
#if PG_VERSION_NUM < 190000
#define PNE_JUMBLE_STATE JumbleState
#else
#define PNE_JUMBLE_STATE const JumbleState
#endif

/* 16 distinguishes the right to SET ROLE from membership */
#if PG_VERSION_NUM < 160000
#define member_can_set_role(member, role) is_member_of_role((member), (role))
#endif

/* 16 renamed a relation's file node to locator (b0a55e4329) */
#if PG_VERSION_NUM < 160000
#define pne_relation_locator(rel) ((rel)->rd_node)
#define pne_sequence_locator node
#else
#define pne_relation_locator(rel) ((rel)->rd_locator)
#define pne_sequence_locator locator
#endif

/* 19 moved the WAL records of sequences into a header of their own */
#if PG_VERSION_NUM >= 190000
#include "commands/sequence_xlog.h"
#endif

/* 17 renamed the variables of transaction ids */
#if PG_VERSION_NUM < 170000
#define TransamVariables ShmemVariableCache
#endif

/* 17 renamed a process's number */
#if PG_VERSION_NUM < 170000
#define MyProcNumber (MyProc->pgprocno)
#endif

/* 19 requires this call when a hand-made tuple descriptor is complete */
#if PG_VERSION_NUM < 190000
#define TupleDescFinalize(desc) ((void) (desc))
#endif

/* 17 takes the relation instead of its oid */
#if PG_VERSION_NUM < 170000
#define pne_identity_sequence(rel, attnum) \
	getIdentitySequence(RelationGetRelid(rel), (attnum), false)
#else
#define pne_identity_sequence(rel, attnum) \
	getIdentitySequence((rel), (attnum), false)
#endif

/*
 * 16 keeps permissions beside the range table.  18 counts the relids that were
 * not pruned.
 */
static inline void
pne_init_range_table(EState *estate, RangeTblEntry *rte)
{
#if PG_VERSION_NUM < 160000
	ExecInitRangeTable(estate, list_make1(rte));
#else
	List	   *perminfos = NIL;

	addRTEPermissionInfo(&perminfos, rte);
#if PG_VERSION_NUM < 180000
	ExecInitRangeTable(estate, list_make1(rte), perminfos);
#else
	ExecInitRangeTable(estate, list_make1(rte), perminfos, bms_make_singleton(1));
#endif
#endif
}

/*
 * 16 can insert into summarizing indexes only.  19 has flags and another order
 * of arguments.
 */
static inline List *
pne_insert_index_tuples(ResultRelInfo *result_rel, EState *estate, TupleTableSlot *slot)
{
#if PG_VERSION_NUM < 160000
	return ExecInsertIndexTuples(result_rel, slot, estate, false, false, NULL, NIL);
#elif PG_VERSION_NUM < 190000
	return ExecInsertIndexTuples(result_rel, slot, estate, false, false, NULL, NIL, false);
#else
	return ExecInsertIndexTuples(result_rel, estate, 0, slot, NIL, NULL);
#endif
}

/* 15.2 has a flag for other statements in a pipeline (20432f8731) */
#ifdef XACT_FLAGS_PIPELINING
#define pne_is_pipelining() ((MyXactFlags & XACT_FLAGS_PIPELINING) != 0)
#else
#define pne_is_pipelining() false
#endif

/* 16 added guc_malloc() for memory that belongs to settings */
#if PG_VERSION_NUM < 160000
#define pne_guc_malloc(size) malloc(size)
#else
#define pne_guc_malloc(size) guc_malloc(LOG, (size))
#endif

/* 17 added named wait events for extensions */
#if PG_VERSION_NUM < 170000
#define pne_wait_event(name) PG_WAIT_EXTENSION
#else
#define pne_wait_event(name) WaitEventExtensionNew(name)
#endif

/* 16 can report a malformed name without an error */
#if PG_VERSION_NUM < 160000
#define pne_qualified_name_list(string) stringToQualifiedNameList(string)
#else
#define pne_qualified_name_list(string) stringToQualifiedNameList((string), NULL)
#endif

/* 18 lets a module tell its name and version */
#ifdef PG_MODULE_MAGIC_EXT
#define PNE_MODULE_MAGIC PG_MODULE_MAGIC_EXT(.name = "pg_notify_events", .version = "1.0")
#else
#define PNE_MODULE_MAGIC PG_MODULE_MAGIC
#endif

/* 17 added transaction_timeout */
#if PG_VERSION_NUM >= 170000
#define PNE_HAVE_TRANSACTION_TIMEOUT
#define PNE_STATEMENT_TIMEOUTS STATEMENT_TIMEOUT, TRANSACTION_TIMEOUT
#else
#define PNE_STATEMENT_TIMEOUTS STATEMENT_TIMEOUT
#endif

/* 18 added instrumentation that counts index searches; 19 added flags */
#if PG_VERSION_NUM < 180000
#define pne_index_beginscan(heap, index, snapshot, nkeys) \
	index_beginscan((heap), (index), (snapshot), (nkeys), 0)
#elif PG_VERSION_NUM < 190000
#define pne_index_beginscan(heap, index, snapshot, nkeys) \
	index_beginscan((heap), (index), (snapshot), NULL, (nkeys), 0)
#else
#define pne_index_beginscan(heap, index, snapshot, nkeys) \
	index_beginscan((heap), (index), (snapshot), NULL, (nkeys), 0, SO_NONE)
#endif

/* 19 added flags */
#if PG_VERSION_NUM < 190000
#define pne_index_fetch_begin(rel) table_index_fetch_begin(rel)
#else
#define pne_index_fetch_begin(rel) table_index_fetch_begin((rel), 0)
#endif

/* 19 dropped the maximum size of a shared hash, which was the second size */
#if PG_VERSION_NUM < 190000
#define pne_shmem_init_hash(name, size, info, flags) \
	ShmemInitHash((name), (size), (size), (info), (flags))
#else
#define pne_shmem_init_hash(name, size, info, flags) \
	ShmemInitHash((name), (size), (info), (flags))
#endif

/*
 * 17 added the function that copies keys of a dshash table, between those that
 * hash and lock
 */
#if PG_VERSION_NUM < 170000
#define PNE_DSHASH_BINARY_KEY dshash_memcmp, dshash_memhash
#else
#define PNE_DSHASH_BINARY_KEY dshash_memcmp, dshash_memhash, dshash_memcpy
#endif

/* 19 passes a signal handler the sender of the signal */
#if PG_VERSION_NUM < 190000
#define PNE_PASS_SIGNAL_ARGS postgres_signal_arg
#else
#define PNE_PASS_SIGNAL_ARGS postgres_signal_arg, pg_siginfo
#endif

/*
 * A signal handler that gets the sender of the signal.  Before 19, pqsignal()
 * cannot set such a handler.
 */
#if PG_VERSION_NUM < 190000
#define PNE_SIGNAL_INFO_ARGS int postgres_signal_arg, siginfo_t *pg_siginfo, void *pg_context
#define PNE_SIGNAL_SENDER ((int) pg_siginfo->si_pid)

static inline void
pne_signal_with_info(int signo, void (*handler) (PNE_SIGNAL_INFO_ARGS))
{
	struct sigaction action;

	action.sa_sigaction = handler;
	sigemptyset(&action.sa_mask);
	action.sa_flags = SA_RESTART | SA_SIGINFO;
	if (sigaction(signo, &action, NULL) != 0)
		elog(FATAL, "cannot set the handler of signal %d: %m", signo);
}
#else
#define PNE_SIGNAL_INFO_ARGS SIGNAL_ARGS
#define PNE_SIGNAL_SENDER ((int) pg_siginfo->pid)
#define pne_signal_with_info(signo, handler) pqsignal(signo, handler)
#endif

/* 17 made the size of the notification queue a setting; it was 8 GB before */
#if PG_VERSION_NUM < 170000
#define PNE_NOTIFY_QUEUE_PAGES (SLRU_PAGES_PER_SEGMENT * 0x8000)
#else
#define PNE_NOTIFY_QUEUE_PAGES max_notify_queue_pages
#endif

#endif							/* PNE_COMPAT_H */
