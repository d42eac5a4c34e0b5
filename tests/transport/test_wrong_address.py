"""A name that resolves to another node for a while: it is refused, and not for longer than the name says so."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web
from serving import stop_server
from transport.test_peers import CALLER, SERVER, port
from waiting import until

from kvorum.config import Config, resolve
from kvorum.errors import PeerError
from kvorum.telemetry.counters import Counters
from kvorum.transport import NodeHandler
from kvorum.transport.port import PeerPort

NAME = "n1.peers.test"


class Names:
    """A DNS server that says what it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.address = "127.0.0.1"
        real = socket.getaddrinfo

        def getaddrinfo(host: Any, *args: Any, **options: Any) -> Any:
            return real(self.address if host == NAME else host, *args, **options)

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@asynccontextmanager
async def calling() -> AsyncIterator[tuple[PeerPort, Counters]]:
    """Yield the peer port of a node that calls, and does not listen."""
    counters = Counters()
    peers = PeerPort(resolve(Config(name="n2", listen_peer="127.0.0.1:1"), host_name="n2"), counters, Random(1))
    peers._handler = cast(
        "NodeHandler",
        SimpleNamespace(identity=CALLER, start_id="", marks_of=lambda _: (), on_broken=print, on_marks=print),
    )
    peers._closing.push_async_callback(peers._close_outgoing)
    try:
        yield peers, counters
    finally:
        await peers.close()


@asynccontextmanager
async def serving(address: str, number: int, *, is_right: bool) -> AsyncIterator[int]:
    """Answer as version 0.1.0 does, whose refusals keep the connection open; yield the port."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path.endswith("hello"):
            return web.Response(body=b"{}")
        if not is_right:
            raise web.HTTPForbidden(text="name: somebody else\n")
        if not request.path.endswith("stream"):
            return web.Response(status=202)
        stream = web.WebSocketResponse()
        await stream.prepare(request)
        await stream.receive()
        return stream

    app = web.Application()
    app.router.add_route("*", "/raft/v1/{what:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, address, number).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await stop_server(runner)


def test_a_wrong_dns_answer_does_not_outlive_the_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(monkeypatch)

    async def run() -> None:
        async with (
            serving("127.0.0.1", 0, is_right=False) as number,
            serving("127.0.0.2", number, is_right=True),
            calling() as (peers, counters),
        ):
            url = f"http://{NAME}:{number}"
            peers.set_members({SERVER.node_id: url})
            with pytest.raises(PeerError):
                await peers.hello(url)
            with pytest.raises(PeerError, match="403"):
                await peers.suspect(SERVER.node_id, 1)
            await until("it is refused", lambda: counters.peer_failures["n1", "rejected"])
            names.address = "127.0.0.2"
            await until("the right one is called", lambda: peers.is_connected(SERVER.node_id), 20)
            await peers.suspect(SERVER.node_id, 1)

    asyncio.run(run())


def test_a_refused_caller_is_hung_up_on() -> None:
    """A caller of version 0.1.0 keeps the connection otherwise, and calls on it again."""

    async def run() -> None:
        async with port() as it:
            for path in ("stream", "state-hash/1"):
                headers = it.headers(to="n9@" + "9" * 16)
                async with it.session.get(f"{it.url}/raft/v1/{path}", headers=headers) as answer:
                    assert (answer.status, answer.headers.get("Connection")) == (403, "close")

    asyncio.run(run())
