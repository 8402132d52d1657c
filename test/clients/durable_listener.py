#!/usr/bin/env python3
"""Handle each event outside of the database, losing none: psycopg2, LISTEN and fetch.

usage: durable_listener.py CONNECTION_STRING LEDGER

The ledger is what the events are for: an SQLite file here, a mail or another
service elsewhere.  An event may come again after a crash, so it is looked up
by its id.  Created before: SELECT create_event_consumer('durable').
"""
import select
import sqlite3
import sys
import time

import psycopg2

ledger = sqlite3.connect(sys.argv[2])
ledger.execute("CREATE TABLE IF NOT EXISTS done (id INTEGER PRIMARY KEY, name TEXT)")


def handle_waiting_events(cursor):
    while True:
        cursor.execute("SELECT id, event_name FROM fetch_events('durable')")
        events = cursor.fetchall()
        if not events:
            return
        with ledger:                                # one transaction of the ledger
            ledger.executemany("INSERT OR IGNORE INTO done VALUES (?, ?)", events)
        cursor.execute("SELECT ack_events('durable', %s)", (events[-1][0],))


while True:
    try:
        connection = psycopg2.connect(sys.argv[1])
        connection.autocommit = True
        cursor = connection.cursor()
        cursor.execute("LISTEN event_notification")  # first listen, then look
        while True:
            handle_waiting_events(cursor)
            if not connection.notifies:
                select.select([connection], [], [], 60)
            connection.poll()
            connection.notifies.clear()
    except psycopg2.Error as error:
        if error.pgcode and not isinstance(error, psycopg2.OperationalError):
            raise                                   # no lost connection, but a mistake
        time.sleep(0.2)                             # the server is away: it comes back
