#!/usr/bin/env python3
"""Write down every notification, as "pid payload", for tests that compare.

usage: audit_listener.py CONNECTION_STRING FILE [CHANNEL]

The file is there as soon as the LISTEN is committed.  A lost connection is the
end; so is a payload "stop", behind which nothing is written.
"""
import select
import sys

import psycopg2
from psycopg2 import sql

channel = sys.argv[3] if len(sys.argv) > 3 else "event_notification"
connection = psycopg2.connect(sys.argv[1])
connection.autocommit = True
connection.cursor().execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))

with open(sys.argv[2], "w", encoding="utf8") as heard:
    while True:
        select.select([connection], [], [])
        try:
            connection.poll()
        except psycopg2.OperationalError:
            sys.exit(0)
        for notification in connection.notifies:
            if notification.payload == "stop":
                sys.exit(0)
            heard.write(f"{notification.pid} {notification.payload}\n")
        connection.notifies.clear()
        heard.flush()
