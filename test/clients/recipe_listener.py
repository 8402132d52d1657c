#!/usr/bin/env python3
"""Print each notification on channel event_notification as "channel - payload".

usage: recipe_listener.py CONNECTION_STRING
"""
import select
import sys

import psycopg2

connection = psycopg2.connect(sys.argv[1])
connection.autocommit = True    # LISTEN takes effect at commit
connection.cursor().execute("LISTEN event_notification")

while True:
    select.select([connection], [], [])    # sleep until the server sends something
    connection.poll()
    while connection.notifies:
        notification = connection.notifies.pop(0)
        print(f"{notification.channel} - {notification.payload}", flush=True)
