#!/usr/bin/env python3
"""Print each event once, as "id name": psycopg 3, asyncio, no LISTEN.

usage: async_consumer.py CONNECTION_STRING

wait_for_events() is a long poll: it needs no session of its own and so works
through a pooler.  Created before: SELECT create_event_consumer('async').
"""
import asyncio
import sys

import psycopg


async def consume(connection):
    while True:
        await connection.execute("CALL wait_for_events('async', '1 min')")
        async with connection.transaction():        # fetch, effects and ack are one
            events = await connection.execute("SELECT id, event_name FROM fetch_events('async')")
            async for event_id, name in events:
                print(event_id, name, flush=True)
            await connection.execute("SELECT ack_events('async')")


async def main():
    while True:
        try:
            async with await psycopg.AsyncConnection.connect(
                    sys.argv[1], autocommit=True, prepare_threshold=None) as connection:
                await consume(connection)
        except psycopg.OperationalError:            # the server is away: it comes back
            await asyncio.sleep(0.2)


asyncio.run(main())
