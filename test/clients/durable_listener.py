#!/usr/bin/env python3
"""Handle each event outside of the database, losing none: psycopg2, LISTEN and fetch.

usage: durable_listener.py CONNECTION_STRING LEDGER

The ledger is what the events are for: an SQLite file here, a mail or another
service elsewhere.  An event may come again after a crash, so it is looked up
by its id.  Created before: SELECT create_event_consumer('durable').
"""
import contextlib
import os
import re
import select
import sqlite3
import sys
import time

import psycopg2
import psycopg2.extensions

LOOK_EVERY = float(os.environ.get("LOOK_EVERY", 60))    # seconds without an announcement
AWAY = re.compile("08|25006|25P03|53|57P0|$")           # SQLSTATEs of a server that comes back
ALIVE = {"connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10,
         "keepalives_count": 3, "tcp_user_timeout": 60000}

ledger = sqlite3.connect(sys.argv[2])
ledger.execute("CREATE TABLE IF NOT EXISTS done (id INTEGER PRIMARY KEY, name TEXT)")


def wait_for_answer(connection):
    while (state := connection.poll()) != psycopg2.extensions.POLL_OK:
        sockets = [connection], []
        if state == psycopg2.extensions.POLL_WRITE:
            sockets = [], [connection]
        if not any(select.select(*sockets, [], 2 * LOOK_EVERY)):
            raise psycopg2.OperationalError("the server does not answer")


def connect():
    psycopg2.extensions.set_wait_callback(None)             # connect_timeout is for each host
    connection = psycopg2.connect(sys.argv[1], **ALIVE)
    psycopg2.extensions.set_wait_callback(wait_for_answer)  # psycopg2 itself waits for ever
    connection.autocommit = True                            # LISTEN takes effect at commit
    return connection


def handle_waiting_events(cursor):
    while True:
        cursor.execute("SELECT id, event_name FROM fetch_events('durable')")
        events = cursor.fetchall()
        if not events:
            return
        with ledger:                                # one transaction of the ledger
            ledger.executemany("INSERT OR IGNORE INTO done VALUES (?, ?)", events)
        cursor.execute("SELECT ack_events('durable', %s)", (events[-1][0],))


delay = 0
while True:
    try:
        time.sleep(delay)
        delay = min(2 * delay + 0.2, 10)
        with contextlib.closing(connect()) as connection:
            cursor = connection.cursor()
            cursor.execute("LISTEN event_notification")  # first listen, then look
            while True:
                handle_waiting_events(cursor)
                delay = 0
                if not connection.notifies:
                    select.select([connection], [], [], LOOK_EVERY)
                connection.poll()
                connection.notifies.clear()
    except psycopg2.Error as error:
        if isinstance(error, psycopg2.ProgrammingError) or not AWAY.match(error.pgcode or ""):
            raise                                   # a mistake
        print(error, file=sys.stderr)               # the server is away: it comes back
