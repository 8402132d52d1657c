/*-------------------------------------------------------------------------
 *
 * client.h
 *	  Functions shared by the measuring clients.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BENCH_CLIENT_H
#define BENCH_CLIENT_H

#include <inttypes.h>
#include <libpq-fe.h>
#include <stdio.h>

#define CHANNEL		"event_notification"	/* what is announced is announced here */
#define EVENT		"order_created" /* the name of the load's events */

extern void fail(const char *format,...) __attribute__((noreturn, format(printf, 1, 2)));
extern int64_t now_us(void);
extern PGconn *connect_to_server(const char *application_name);
extern void execute(PGconn *conn, const char *sql);
extern void prepare(PGconn *conn, const char *name, const char *sql);
extern void read_input(PGconn *conn);
extern PGresult *result_if_complete(PGconn *conn);
extern void wait_for_input(PGconn *a, PGconn *b, int other_fd, int64_t until);

#endif							/* BENCH_CLIENT_H */
