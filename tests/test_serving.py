"""A test's server leaves no connection open, in whatever turn of the loop one arrives."""

from __future__ import annotations

import asyncio
import gc
import socket
import warnings
from pathlib import Path

import pytest
from aiohttp import web
from serving import stop_server, stream_server

from kvorum.connections import LimitedServer, Site
from kvorum.telemetry.counters import Counters


async def _nothing(_request: web.BaseRequest) -> web.StreamResponse:
    raise AssertionError


@pytest.mark.parametrize("turns", range(6))
def test_a_connection_that_arrives_while_a_server_ends_is_closed(turns: int) -> None:
    async def with_aiohttp() -> socket.socket:
        runner = web.AppRunner(web.Application(), access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        client = socket.create_connection(runner.addresses[0])
        for _ in range(turns):
            await asyncio.sleep(0)
        await stop_server(runner)
        return client

    async def with_streams() -> socket.socket:
        async def serve(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
            await reader.read()

        async with stream_server(serve) as address:
            client = socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])))
            for _ in range(turns):
                await asyncio.sleep(0)
            return client

    async def with_a_site() -> socket.socket:
        """As the nodes serve."""
        server = LimitedServer(_nothing, Counters(), connections_max=lambda: 8)
        runner = web.ServerRunner(server, shutdown_timeout=0.1)
        await runner.setup()
        await Site(runner, "127.0.0.1", 0).start()
        client = socket.create_connection(runner.addresses[0])
        for _ in range(turns):
            await asyncio.sleep(0)
        await runner.cleanup()
        return client

    for scenario in (with_aiohttp, with_streams, with_a_site):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ResourceWarning)
            client = asyncio.run(scenario())
            gc.collect()
            client.close()
        assert [str(warning.message) for warning in caught] == []


def test_every_server_of_a_test_ends_in_this_way() -> None:
    here = Path(__file__).parent
    for path in here.rglob("*.py"):
        if path.name not in ("serving.py", "test_serving.py"):
            text = path.read_text()
            assert "runner.cleanup()" not in text and "asyncio.start_server" not in text, path
