/*-------------------------------------------------------------------------
 *
 * log_insert.h
 *		Inserting events into the log.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_LOG_INSERT_H
#define PNE_LOG_INSERT_H

typedef struct LogAppend LogAppend;

extern LogAppend *log_insert_begin(Oid function, bool many);
extern bool log_insert_event(LogAppend *append, Datum name, Datum data, bool data_is_null, int64 *id);
extern void log_insert_end(LogAppend *append);

#endif							/* PNE_LOG_INSERT_H */
