"""Servers of tests that leave no connection open.

A connection that is accepted while its server ends stays open with aiohttp's ``cleanup`` and with ``asyncio.Server``.
The garbage collector reports it later, in whatever test it runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from asyncio.trsock import TransportSocket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import cast

from aiohttp import web


async def _accept_no_more(listeners: Iterable[socket.socket | TransportSocket]) -> None:
    """A server that is closed in the turn in which it accepted a connection loses it."""
    for listener in listeners:
        asyncio.get_running_loop().remove_reader(listener.fileno())
    for _ in range(5):
        await asyncio.sleep(0)


async def stop_server(runner: web.BaseRunner) -> None:
    """Stop listening and close every connection, also one that arrives meanwhile."""
    servers = [cast(asyncio.Server, site._server) for site in runner.sites]
    await _accept_no_more(listener for server in servers for listener in server.sockets)
    await runner.cleanup()


@contextlib.asynccontextmanager
async def stream_server(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    listener: socket.socket | None = None,
    limit: int = 1 << 16,
) -> AsyncIterator[str]:
    """Serve connections on ``listener``, or on a port of loopback, yield ``HOST:PORT``, and close what is left of them.

    ``limit``: so many bytes are read ahead.
    """
    if listener is None:
        listener = socket.create_server(("127.0.0.1", 0))
    connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections[task] = writer
        await serve(reader, writer)

    host, port = listener.getsockname()
    server = await asyncio.start_server(serve_one, sock=listener, limit=limit)
    try:
        yield f"{host}:{port}"
    finally:
        await _accept_no_more([listener])
        server.close()
        for task, writer in connections.items():
            task.cancel()
            writer.transport.abort()
        await asyncio.gather(*connections, return_exceptions=True)
