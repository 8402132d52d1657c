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

extern LogAppend *append_begin(Oid function, bool many);
extern bool append_event(LogAppend *append, Datum name, Datum data, bool data_is_null, int64 *id);
extern void append_end(LogAppend *append);

#endif							/* PNE_LOG_INSERT_H */
