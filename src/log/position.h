/*-------------------------------------------------------------------------
 *
 * position.h
 *		Snapshots that outlive their transactions, and positions in the log that
 *		are made of them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PNE_POSITION_H
#define PNE_POSITION_H

#include "fmgr.h"
#include "utils/snapshot.h"

/*
 * A snapshot that outlives its transaction: the C form of pg_snapshot, with
 * top-level transaction ids that include the epoch.
 */
typedef struct EventSnapshot
{
	uint64		xmin;			/* every xid before it has ended */
	uint64		xmax;			/* no xid from it on has ended */
	int			nxip;
	uint64		xip[FLEXIBLE_ARRAY_MEMBER]; /* running in between, ascending */
} EventSnapshot;

/*
 * How far a reader has come.  Every event whose transaction cursor sees is done.  If
 * there is a window, so is every event that the window sees up to last_id.
 */
typedef struct EventPosition
{
	EventSnapshot *cursor;
	EventSnapshot *window;		/* or NULL */
	int64		last_id;
	int64		rows;			/* how many rows a scan of the window by txid looks at; 0: not known */
	int64		end;			/* if rows is known: no event of the window is behind this id */
} EventPosition;

extern EventSnapshot *event_snapshot_build(Snapshot snapshot);
extern EventSnapshot *event_snapshot_before(uint64 xid);
extern EventSnapshot *event_snapshot_copy(const EventSnapshot *snapshot);
extern EventSnapshot *event_snapshot_parse(const char *text);
extern char *event_snapshot_text(const EventSnapshot *snapshot);
extern bool event_snapshot_equal(const EventSnapshot *a, const EventSnapshot *b);
extern bool event_snapshot_sees(const EventSnapshot *snapshot, uint64 xid);
extern bool event_snapshot_covers(const EventSnapshot *snapshot, const EventSnapshot *other);
extern EventSnapshot *event_snapshot_common(const EventSnapshot *a, const EventSnapshot *b);
extern bool event_snapshot_sees_nothing(const EventSnapshot *snapshot);

extern EventPosition event_position_copy(const EventPosition *position);
extern void event_position_free(EventPosition *position);
extern bool event_position_passed(const EventPosition *position, uint64 xid, int64 id);
extern EventSnapshot *start_argument(FunctionCallInfo fcinfo, int argument);

#endif							/* PNE_POSITION_H */
