"""Whom the transport calls, and where: members, and for a while whoever called."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import pytest
from aiohttp import web
from bench.processes import free_ports
from transport.test_link import US, connected
from transport.test_peers import CALLER, SERVER, FakeNode
from waiting import until

from kvorum.errors import IdentityRejectedError, PeerError
from kvorum.telemetry.counters import Counters
from kvorum.transport.handshake import check_greeting, dialling_headers
from kvorum.transport.server import PeerServer
from kvorum.transport.settings import Dialling
from kvorum.transport.transport import Transport

N2, N3 = "n2@" + "2" * 16, "n3@" + "3" * 16


class Dials:
    """Dials that all fail, and where they went."""

    def __init__(self) -> None:
        self.urls: list[str] = []

    async def ws_connect(self, url: str, **_: Any) -> Any:
        self.urls.append(url.removesuffix("/raft/v1/stream"))
        raise aiohttp.ClientConnectionError("connection refused")


@asynccontextmanager
async def dialling() -> AsyncIterator[tuple[Transport, Dials]]:
    dials = Dials()
    session = cast("aiohttp.ClientSession", SimpleNamespace(ws_connect=dials.ws_connect))
    transport = Transport(Dialling(lambda: US, "http://us", "", lambda: session, Counters(), Random(1)), lambda _: None)
    try:
        yield transport, dials
    finally:
        await transport.close()


def test_a_member_that_moved_is_called_where_it_is() -> None:
    async def run() -> None:
        async with dialling() as (transport, dials):
            transport.set_members({N2: "http://before:1"})
            await until("a dial", lambda: dials.urls)
            transport.set_members({N2: "http://after:1"})
            await until("a dial there", lambda: dials.urls[-1] == "http://after:1")

    asyncio.run(run())


def test_a_caller_does_not_choose_where_a_member_is_called() -> None:
    async def run() -> None:
        async with dialling() as (transport, dials):
            transport.set_members({N2: "http://member:1"})
            await until("a dial", lambda: dials.urls)
            dials.urls.clear()
            transport.add_stranger(N2, "http://elsewhere:1")
            await until("more dials", lambda: len(dials.urls) >= 2)
            assert set(dials.urls) == {"http://member:1"}
            assert transport.url_of(N2) == "http://member:1"

    asyncio.run(run())


def test_a_member_that_was_removed_is_answered_while_its_stream_is_open_and_no_longer() -> None:
    """A leader that removes itself needs the answers to the entry that says so (thesis 4.2.2)."""

    async def run() -> None:
        async with dialling() as (transport, _):
            transport.set_members({N2: "http://n2:1", N3: "http://n3:1"})
            transport.set_members({}, callers=(N2,))
            assert transport.url_of(N2) == "http://n2:1"
            assert transport.url_of(N3) is None
            transport.remove_stranger(N2)
            assert transport.url_of(N2) is None

    asyncio.run(run())


def test_the_stream_to_a_server_that_is_no_member_ends_when_it_hangs_up() -> None:
    async def run() -> None:
        async with connected() as (transport, peer, _, _):
            peer.may_read.set()
            transport.set_members({}, callers=("n2@" + "2" * 16,))
            assert transport.is_connected(N2)
            transport.remove_stranger(N2)
            assert not transport.is_connected(N2)
            await until("it is closed", lambda: peer.streams[0].closed)

    asyncio.run(run())


def test_a_link_that_dies_of_a_bug_is_reported() -> None:
    async def run() -> None:
        reported: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))

        def session() -> aiohttp.ClientSession:
            raise LookupError("a bug")

        transport = Transport(Dialling(lambda: US, "http://us", "", session, Counters(), Random(1)), lambda _: None)
        transport.set_members({N2: "http://n2:1"})
        await until("it is reported", lambda: reported)
        assert reported[0]["message"] == f"link to {N2} failed"
        await transport.close()

    asyncio.run(run())


@asynccontextmanager
async def answering(answer: Any) -> AsyncIterator[tuple[Transport, str]]:
    """Yield a transport and the URL of a peer port where ``answer`` answers every hello."""
    app = web.Application()
    app.router.add_get("/raft/v1/hello", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    number = free_ports(1)[0]
    await web.TCPSite(runner, "127.0.0.1", number).start()
    async with aiohttp.ClientSession() as session:
        transport = Transport(
            Dialling(lambda: US, "http://us", "", lambda: session, Counters(), Random(1)), lambda _: None
        )
        try:
            yield transport, f"http://127.0.0.1:{number}"
        finally:
            await transport.close()
            await runner.cleanup()


def test_a_peer_sends_no_request_elsewhere() -> None:
    async def run() -> None:
        followed: list[str] = []

        async def answer(request: web.Request) -> web.Response:
            if request.query:
                followed.append(request.path_qs)
            raise web.HTTPTemporaryRedirect("/raft/v1/hello?elsewhere=1")

        async with answering(answer) as (transport, url):
            with pytest.raises(PeerError, match="307"):
                await transport.hello(url)
            assert followed == []

    asyncio.run(run())


def test_a_peer_that_never_answers_a_request_is_given_up() -> None:
    async def run() -> None:
        async def answer(_: web.Request) -> web.Response:
            await asyncio.Event().wait()
            raise AssertionError

        async with answering(answer) as (transport, url), asyncio.timeout(20):
            with pytest.raises(PeerError):
                await transport.hello(url, timeout_s=0.05)

    asyncio.run(run())


def test_the_bootstrap_token_is_not_sent() -> None:
    headers = dialling_headers(CALLER, SERVER.node_id, "http://n2:1", "the word")
    assert [value for value in headers.values() if "the word" in value] == []


def test_what_a_caller_says_of_itself_is_cut_to_a_length() -> None:
    headers = dialling_headers(CALLER, SERVER.node_id, "http://" + "x" * 10_000, "")
    assert len(check_greeting(headers, SERVER, "").peer_url) == 512


def test_refusals_are_logged_once_each_and_remembered_up_to_a_bound(caplog: pytest.LogCaptureFixture) -> None:
    server = PeerServer(FakeNode(), Counters(), "", 1.0)
    request = cast("web.Request", SimpleNamespace(remote="10.0.0.1"))
    for _ in range(3):
        server._refusal(IdentityRejectedError("token", "one"), request)
    assert [record.getMessage() for record in caplog.records] == ["refused a peer at 10.0.0.1: one"]
    for number in range(1000):
        server._refusal(IdentityRejectedError("token", f"another {number}"), request)
        assert len(server._rejections) <= 256
