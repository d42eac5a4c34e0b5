"""Plain requests to a peer that answers more than it should, or breaks off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import aiohttp
import pytest
from aiohttp import web
from bench.processes import free_ports
from serving import stop_server

from kvorum.errors import PeerError
from kvorum.identity import Identity
from kvorum.telemetry.counters import Counters
from kvorum.transport.server import SNAPSHOT_CHUNK_BYTES
from kvorum.transport.settings import Dialling
from kvorum.transport.transport import Transport

ENDLESS = 64
"""Chunks after which a client that still reads has been had."""


class Endless:
    """A peer whose answers have no end."""

    def __init__(self, status: int) -> None:
        self.status = status
        self.chunks = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=self.status)
        await response.prepare(request)
        try:
            while self.chunks < ENDLESS:
                self.chunks += 1
                await response.write(b" " * SNAPSHOT_CHUNK_BYTES)
        except ConnectionError:
            pass
        return response


@asynccontextmanager
async def peer(answer: Endless) -> AsyncIterator[tuple[Transport, str]]:
    app = web.Application()
    app.router.add_get("/raft/v1/hello", answer.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    port = free_ports(1)[0]
    await web.TCPSite(runner, "127.0.0.1", port).start()
    async with aiohttp.ClientSession() as session:
        dialling = Dialling(lambda: Identity("n1", "1" * 16), "", "", lambda: session, Counters(), Random(1))
        transport = Transport(dialling, lambda _: None)
        try:
            yield transport, f"http://127.0.0.1:{port}"
        finally:
            await transport.close()
            await stop_server(runner)


@pytest.mark.parametrize("status", [200, 500])
def test_an_answer_without_an_end_is_not_read_to_it(status: int) -> None:
    async def scenario() -> None:
        endless = Endless(status)
        async with peer(endless) as (transport, url):
            with pytest.raises(PeerError):
                await transport.hello(url, timeout_s=20.0)

        assert endless.chunks < ENDLESS, "it was read to its end"

    asyncio.run(scenario())
