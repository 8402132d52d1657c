#!/usr/bin/env python3
"""The LISTEN client of the recipe, test/clients/recipe_listener.py, with a clock.

usage: latency_psycopg2.py COUNT

Prints what "latency COUNT RATE listen" prints: "listening" when it does, and
after COUNT notifications when each was received, in microseconds since the
epoch.  The database comes from the environment.
"""
import select
import sys
import time

import psycopg2

connection = psycopg2.connect("")
connection.autocommit = True    # LISTEN takes effect at commit
connection.cursor().execute("LISTEN event_notification")
print("listening", flush=True)

received = []
while len(received) < int(sys.argv[1]):
    if select.select([connection], [], [], 60) == ([], [], []):
        sys.exit("an event is not announced")
    connection.poll()
    while connection.notifies:
        connection.notifies.pop(0)
        received.append(time.time_ns() // 1000)
print(*received, sep="\n")
