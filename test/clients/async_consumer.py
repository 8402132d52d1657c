#!/usr/bin/env python3
"""Print each event once, as "id name": psycopg 3, asyncio, no LISTEN.

usage: async_consumer.py CONNECTION_STRING

wait_for_events() is a long poll: it needs no session of its own and so works
through a pooler.  Created before: SELECT create_event_consumer('async').
"""
import asyncio
import os
import re
import socket
import sys

import psycopg

LOOK_EVERY = float(os.environ.get("LOOK_EVERY", 60))    # seconds, the longest poll; as long again for the rest
AWAY = re.compile("08|25006|25P03|53|57P0|$")           # SQLSTATEs of a server that comes back
ALIVE = {"connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10,
         "keepalives_count": 3, "tcp_user_timeout": 60000}


def hang_up(connection):
    """The server does not answer: whoever waits for it sees the connection end."""
    with socket.socket(fileno=os.dup(connection.fileno())) as server:
        server.shutdown(socket.SHUT_RDWR)


async def handle_next_events(connection):
    await connection.execute(f"CALL wait_for_events('async', '{LOOK_EVERY} s')")
    async with connection.transaction():            # fetch, effects and ack are one
        # if we vanish, the server is to let go of the consumer
        await connection.execute(f"SET LOCAL idle_in_transaction_session_timeout = '{LOOK_EVERY} s'")
        events = await connection.execute("SELECT id, event_name FROM fetch_events('async')")
        async for event_id, name in events:
            print(event_id, name, flush=True)
        await connection.execute("SELECT ack_events('async')")


async def main():
    delay = 0
    while True:
        try:
            await asyncio.sleep(delay)
            delay = min(2 * delay + 0.2, 10)
            async with await psycopg.AsyncConnection.connect(
                    sys.argv[1], autocommit=True, prepare_threshold=None, **ALIVE) as connection:
                while True:
                    watchdog = asyncio.get_running_loop().call_later(2 * LOOK_EVERY, hang_up, connection)
                    try:
                        await handle_next_events(connection)
                    finally:
                        watchdog.cancel()
                    delay = 0
        except psycopg.Error as error:
            if isinstance(error, psycopg.ProgrammingError) or not AWAY.match(error.sqlstate or ""):
                raise                               # a mistake
            print(error, file=sys.stderr)           # the server is away: it comes back


asyncio.run(main())
