#!/usr/bin/env python3
"""Forward TCP connections to a server, until told to be silent.

usage: relay.py NAME=PORT...

It listens on these ports of localhost.  Commands on standard input, a line each,
each answered by a line "done":

    forward DIRECTORY PORT  new connections go to the server with this socket
    silent                  all connections there are, and new ones, are left open
                            and nothing goes through them any more, as if the
                            peer had vanished without a word; they stay so

Of each connection that is accepted while it is silent, it says "silent NAME".
"""
import asyncio
import sys

target = None           # a path, or nothing where it is silent
pumps = set()           # tasks of the connections that are forwarded
vanished = []           # streams that are to stay open


async def pump(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


async def forward(name, reader, writer):
    if target is None:
        vanished.append((reader, writer))
        print("silent", name, flush=True)
        return
    pumps.add(asyncio.current_task())
    streams = [writer]
    try:
        server_reader, server_writer = await asyncio.open_unix_connection(target)
        streams.append(server_writer)
        both = [asyncio.ensure_future(pump(reader, server_writer)),
                asyncio.ensure_future(pump(server_reader, writer))]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in both:
                one.cancel()
    except asyncio.CancelledError:
        vanished.append(streams)
        return
    except OSError:
        pass
    finally:
        pumps.discard(asyncio.current_task())
    for one in streams:
        one.close()


async def main():
    global target
    servers = []
    for name, port in (argument.split("=") for argument in sys.argv[1:]):
        servers.append(await asyncio.start_server(
            lambda reader, writer, name=name: forward(name, reader, writer), "localhost", int(port)))
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    print("done", flush=True)
    while line := (await commands.readline()).split():
        if line[0] == b"silent":
            target = None
            for task in list(pumps):
                task.cancel()
        else:
            target = f"{line[1].decode()}/.s.PGSQL.{line[2].decode()}"
        print("done", flush=True)


asyncio.run(main())
