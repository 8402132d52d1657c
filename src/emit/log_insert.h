/*-------------------------------------------------------------------------
 *
 * log_insert.h
 *		Inserts events into the log.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_LOG_INSERT_H
#define PNE_LOG_INSERT_H

typedef struct LogInsert LogInsert;

extern LogInsert *log_insert_begin(Oid function, bool many);
extern bool log_insert_event(LogInsert *append, Datum name, Datum data, bool data_is_null, int64 *id);
extern void log_insert_end(LogInsert *append);

#endif							/* PNE_LOG_INSERT_H */
