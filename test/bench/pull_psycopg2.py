#!/usr/bin/env python3
"""pull_psycopg2.py fetch|pgq MAX_EVENTS - all waiting events, read with psycopg2

fetch: those of the consumer "bench", MAX_EVENTS at a time; pgq: those of PgQ's
queue "events", batch by batch.  Each statement commits.  Prints how many it read.
"""

import sys

import psycopg2


def fetch(cursor, max_events):
    """The events of one batch, acknowledged; None if there is none."""
    cursor.execute("SELECT id, event_name, event_data::text FROM fetch_events('bench', %s)", (max_events,))
    rows = cursor.fetchall()
    if rows:
        cursor.execute("SELECT ack_events('bench', %s)", (rows[-1][0],))
    return rows or None


def pgq(cursor, _):
    """The events of the next batch, finished; None if there is none."""
    cursor.execute("SELECT pgq.next_batch('events', 'bench')")
    batch = cursor.fetchone()[0]
    if batch is None:
        return None
    cursor.execute("SELECT ev_id, ev_type, ev_data FROM pgq.get_batch_events(%s)", (batch,))
    rows = cursor.fetchall()
    cursor.execute("SELECT pgq.finish_batch(%s)", (batch,))
    return rows


def main():
    next_batch = {"fetch": fetch, "pgq": pgq}[sys.argv[1]]
    connection = psycopg2.connect("")
    connection.autocommit = True
    count = 0
    with connection.cursor() as cursor:
        while (rows := next_batch(cursor, int(sys.argv[2]))) is not None:
            count += len(rows)
    print(count)


main()
