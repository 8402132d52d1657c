#!/usr/bin/env python3
"""Print each notification on channel event_notification as "channel - payload".

usage: recipe_listener.py CONNECTION_STRING

What is announced while it has no connection is missed.
"""
import contextlib
import os
import re
import select
import sys
import time

import psycopg2
import psycopg2.extensions

LOOK_EVERY = float(os.environ.get("LOOK_EVERY", 60))    # seconds without a word from the server
AWAY = re.compile("08|25006|25P03|53|57P0|$")           # SQLSTATEs of a server that comes back
ALIVE = {"connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10,
         "keepalives_count": 3, "tcp_user_timeout": 60000}


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


delay = 0
while True:
    try:
        time.sleep(delay)
        delay = min(2 * delay + 0.2, 10)
        with contextlib.closing(connect()) as connection:
            while True:
                connection.cursor().execute("LISTEN event_notification")  # once more: is it there?
                delay = 0
                heard = True
                while heard:
                    connection.poll()
                    while connection.notifies:
                        notification = connection.notifies.pop(0)
                        print(f"{notification.channel} - {notification.payload}", flush=True)
                    heard, _, _ = select.select([connection], [], [], LOOK_EVERY)
    except psycopg2.Error as error:
        if isinstance(error, psycopg2.ProgrammingError) or not AWAY.match(error.pgcode or ""):
            raise                       # a mistake
        print(error, file=sys.stderr)   # the server is away: it comes back
