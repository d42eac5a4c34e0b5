"""Whom the transport calls, and where: members, and for a while whoever called."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import msgspec
import pytest
from aiohttp import web
from bench.processes import free_ports
from serving import stop_server
from transport.test_link import US, connected
from transport.test_peers import CALLER, SERVER, FakeNode, Port, message, port
from waiting import until

from kvorum.config import Config, parse_peers, resolve
from kvorum.errors import IdentityRejectedError, PeerError
from kvorum.identity import Identity
from kvorum.raft.codec import encode
from kvorum.raft.messages import HeartbeatResponse, Message
from kvorum.telemetry.counters import Counters
from kvorum.transport import Hello, NodeHandler
from kvorum.transport import transport as transport_module
from kvorum.transport.handshake import check_greeting, dialling_headers
from kvorum.transport.port import PeerPort
from kvorum.transport.server import ANSWERS_MAX, PeerServer
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


def test_a_member_is_tried_at_each_of_its_addresses_and_the_first_comes_first() -> None:
    async def run() -> None:
        async with dialling() as (transport, dials):
            transport.set_members({N2: "http://first:1"})
            transport.set_alternatives(N2, ("http://second:1", "", "http://first:1", "http://third:1"))
            transport.set_alternatives(N3, ("http://nobody:1",))
            await until("each is tried, and again", lambda: len(dials.urls) >= 7)
            order = ["http://first:1", "http://second:1", "http://third:1"]
            assert dials.urls[:7] == [*order, *order, order[0]]
            transport.set_members({N2: "http://moved:1"})
            transport.set_alternatives(N2, ())
            tried = len(dials.urls)
            await until("the new one is tried", lambda: len(dials.urls) >= tried + 2)
            assert set(dials.urls[tried:]) == {"http://moved:1"}

    asyncio.run(run())


def test_a_member_that_is_reached_stays_where_it_is_reached() -> None:
    async def run() -> None:
        async with connected() as (transport, peer, _, _):
            url = f"http://127.0.0.1:{peer.port}"
            transport.set_members({})
            transport.set_members({N2: "http://127.0.0.1:1"})
            transport.set_alternatives(N2, (url,))
            await until("its stream", lambda: transport.is_connected(N2))
            assert transport.url_of(N2) == url
            peer.may_read.set()

    asyncio.run(run())


def test_a_link_that_ends_of_a_bug_is_reported_and_made_anew(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport_module, "REPLACE_LINK_S", 0.01)

    async def run() -> None:
        dials = Dials()
        bugs = [LookupError("a bug"), RecursionError("another")]

        def session() -> aiohttp.ClientSession:
            if bugs:
                raise bugs.pop()
            return cast("aiohttp.ClientSession", SimpleNamespace(ws_connect=dials.ws_connect))

        transport = Transport(Dialling(lambda: US, "http://us", "", session, Counters(), Random(1)), lambda _: None)
        transport.set_members({N2: "http://n2:1"})
        await until("a new link dials", lambda: dials.urls == ["http://n2:1"])
        assert [m for m in caplog.messages if "unexpectedly" in m] == [
            f"link to {N2} ended unexpectedly: RecursionError('another')",
            f"link to {N2} ended unexpectedly: LookupError('a bug')",
        ]
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
            await stop_server(runner)


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


@pytest.mark.parametrize("url", ["http://a..b:9004", "ftp://h:1", "http://h:1/path", "h:1", ""])
def test_a_peer_url_that_cannot_be_dialled_counts_as_none(url: str) -> None:
    headers = dialling_headers(CALLER, SERVER.node_id, url, "")
    assert check_greeting(headers, SERVER, "").peer_url == ""


def test_a_member_whose_url_cannot_be_dialled_is_called_where_it_moves_to() -> None:
    async def run() -> None:
        async with connected() as (transport, peer, counters, _):
            peer.may_read.set()
            url = f"http://127.0.0.1:{peer.port}"
            transport.set_members({N2: url, N3: "http://a..b:9004"})
            await until("it is not reached", lambda: counters.peer_failures["n3", "unreachable"])
            transport.set_members({N2: url, N3: url})
            await until("it is reached", lambda: transport.is_connected(N3), 20)

    asyncio.run(run())


def test_refusals_are_logged_once_a_reason_and_minute_whatever_name_a_stranger_takes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = [0.0]
    counters = Counters()
    counters.keep_peers(["n2"])
    server = PeerServer(FakeNode(), counters, "", 1.0, lambda: now[0])

    def refuse(sender: str, reason: str = "token") -> None:
        request = cast("web.Request", SimpleNamespace(remote="10.0.0.1", headers={"X-Kvorum-From": sender}))
        server._refusal(IdentityRejectedError(reason, sender), request)

    for number in range(1000):
        refuse(f"s{number}@1")
    refuse("n2@1")
    refuse("s@1", "cluster")
    assert [record.getMessage() for record in caplog.records] == [
        f"refused a peer at 10.0.0.1: {sender}" for sender in ("s0@1", "n2@1", "s@1")
    ]
    now[0] = 60.0
    refuse("s@1")
    assert caplog.messages[-1] == "refused a peer at 10.0.0.1: s@1 (999 more since the last such line)"
    assert len(server._limits) == 3


def _has_received(it: Port, count: int) -> bool:
    return len(it.node.received) == count


def test_a_stranger_chooses_no_label_and_the_figures_of_a_removed_member_go() -> None:
    async def run() -> None:
        async with port() as it:
            for number in range(20):
                sender = f"s{number}@{number}"
                stream = await it.dial(**{"from": sender})
                await stream.send_bytes(encode([message(sender=sender)]))
                await until("it is read", partial(_has_received, it, number + 1))
                await stream.send_bytes(b"nonsense")
                assert (await stream.receive()).type is aiohttp.WSMsgType.CLOSE
                await until("it is closed", partial(it.node.disconnected.__contains__, sender))
                await stream.close()
            stream = await it.dial()
            await stream.send_bytes(encode([message()]))
            await until("it is read", lambda: len(it.node.received) == 21)
            counters = it.counters
            assert dict(counters.messages_received) == {"other": 20, "n2": 1}
            assert dict(counters.peer_failures) == {("other", "malformed"): 20}
            counters.keep_peers(["n3"])
            assert dict(counters.messages_received) == {"other": 20}
            await stream.close()

    asyncio.run(run())


def test_no_redirect_of_a_peer_is_followed_when_a_stream_is_opened() -> None:
    async def run() -> None:
        followed: list[str] = []

        async def elsewhere(request: web.Request) -> web.Response:
            followed.append(request.path)
            return web.Response()

        async def redirect(_: web.Request) -> web.Response:
            raise web.HTTPTemporaryRedirect("/elsewhere")

        app = web.Application()
        app.router.add_get("/raft/v1/stream", redirect)
        app.router.add_get("/elsewhere", elsewhere)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        config = resolve(Config(name="n1", listen_peer="127.0.0.1:1"), host_name="n1")
        counters = Counters()
        peers = PeerPort(config, counters, Random(1))
        peers._handler = cast(
            "NodeHandler",
            SimpleNamespace(identity=US, start_id="", marks_of=lambda _: (), on_broken=print, on_marks=print),
        )
        peers._closing.push_async_callback(peers._close_outgoing)
        peers.set_members({N2: f"http://127.0.0.1:{runner.addresses[0][1]}"})
        await until("it is refused", lambda: counters.peer_failures["n2", "unreachable"] >= 2)
        assert followed == []
        await peers.close()
        await stop_server(runner)

    asyncio.run(run())


def test_a_caller_that_becomes_a_member_is_called_where_the_configuration_says() -> None:
    """Its stream was opened when it was none, where it said itself."""

    async def run() -> None:
        async with connected() as (transport, peer, _, _):
            url = f"http://127.0.0.1:{peer.port}"
            transport.set_members({})
            transport.add_stranger(N2, url)
            await until("its stream", lambda: transport.is_connected(N2))
            moved = f"http://localhost:{peer.port}"
            transport.set_members({N2: moved})
            assert not transport.is_connected(N2)
            await until("another stream", lambda: transport.is_connected(N2))
            assert transport._links[N2].url == moved
            peer.may_read.set()

    asyncio.run(run())


@asynccontextmanager
async def calling(it: Port) -> AsyncIterator[tuple[Transport, Counters, list[Message]]]:
    """Yield what calls this peer port, and what it takes of the answers there."""
    taken: list[Message] = []
    counters = Counters()
    counters.keep_peers(["n1"])
    session = aiohttp.ClientSession()
    settings = Dialling(
        lambda: CALLER, "", "word", lambda: session, counters, Random(1), lambda _, messages: taken.extend(messages)
    )
    transport = Transport(settings, lambda _: None)
    transport.set_members({SERVER.node_id: it.url})
    try:
        yield transport, counters, taken
    finally:
        await transport.close()
        await session.close()


def test_a_caller_takes_answers_on_its_stream_and_in_order() -> None:
    async def run() -> None:
        async with port() as it, calling(it) as (_, counters, taken):
            await until("a call", lambda: it.server.takes_answers(CALLER.node_id))
            answers = [HeartbeatResponse(1, SERVER.node_id, CALLER.node_id, round=number) for number in range(100)]
            for answer in answers:
                it.server.answer(answer)
            it.server.answer(HeartbeatResponse(1, SERVER.node_id, "n3@1", round=1))
            await until("all of them", lambda: len(taken) == 100)
            assert taken == answers
            assert counters.messages_received["n1"] == 100

    asyncio.run(run())


def test_a_caller_of_protocol_1_is_not_answered_on_its_stream() -> None:
    """Version 0.1.0 hangs up on whatever comes there."""

    async def run() -> None:
        async with port() as it:
            for protocols, takes_answers in (("1-1", False), ("1-2", True), ("1-1", False)):
                stream = await it.dial(protocols=protocols)
                await until("it is taken", lambda: it.server.callers and it.node.connected)
                assert it.server.takes_answers(CALLER.node_id) is takes_answers
                await stream.close()
                await until("its end", lambda: not it.server.callers)
                it.node.connected.clear()

    asyncio.run(run())


def test_a_stranger_that_takes_answers_is_not_called() -> None:
    async def run() -> None:
        async with dialling() as (transport, dials):
            transport.set_members({})
            transport.add_stranger(N2, "http://n2:1", takes_answers=True)
            transport.add_stranger(N3, "http://n3:1")
            await until("a dial", lambda: len(dials.urls) >= 2)
            assert set(dials.urls) == {"http://n3:1"}
            assert transport.url_of(N2) == "http://n2:1", "for requests"

    asyncio.run(run())


def test_answers_to_a_caller_that_does_not_read_are_bounded() -> None:
    async def run() -> None:
        async with port() as it:
            stream = await it.dial()
            for number in range(ANSWERS_MAX + 7):
                it.server.answer(HeartbeatResponse(1, SERVER.node_id, CALLER.node_id, round=number))
            assert it.counters.messages_dropped["n2"] == 7
            await stream.close()
            await until("it has hung up", lambda: not it.server.takes_answers(CALLER.node_id))

    asyncio.run(run())


@pytest.mark.parametrize("frame", [b"nonsense", encode([message(sender="n3@1")])])
def test_an_answer_that_is_none_ends_the_stream_and_is_counted(frame: bytes) -> None:
    async def run() -> None:
        async with port() as it, calling(it) as (_, counters, taken):
            await until("a call", lambda: it.server.takes_answers(CALLER.node_id))
            await it.server._streams[CALLER.node_id].send_bytes(frame)
            await until("it is counted", lambda: counters.peer_failures["n1", "malformed"] == 1)
            await until("it calls again", lambda: len(it.node.connected) == 2)
            assert taken == []

    asyncio.run(run())


def test_only_a_hello_of_our_own_cluster_says_where_a_stranger_is() -> None:
    class Saying(FakeNode):
        def hello(self) -> Hello:
            name = self.identity.name
            return Hello(
                name,
                "1" * 16,
                self.identity.cluster_id,
                (),
                "",
                "",
                "",
                members=("n9@1",),
                member_urls=(f"http://{name}:1",),
            )

    async def run() -> None:
        other = Saying(Identity("n4", "1" * 16, "d" * 32))
        async with port(other) as theirs, port(Saying(SERVER)) as ours, aiohttp.ClientSession() as session:
            settings = Dialling(lambda: CALLER, "", "word", lambda: session, Counters(), Random(1))
            transport = Transport(settings, lambda _: None, {"n1": ours.url})
            transport.set_members({"n4@" + "1" * 16: theirs.url})
            assert await transport._ask_for_url("n9@1") == "http://n1:1"
            with pytest.raises(PeerError, match="no address of n8@1"):
                await transport.suspect("n8@1", 1)
            await transport.close()

    asyncio.run(run())


def test_the_peer_port_answers_only_under_names_that_it_knows() -> None:
    async def run() -> None:
        listen = f"127.0.0.1:{free_ports(1)[0]}"
        config = resolve(Config(name="n1", peers=parse_peers(f"n1={listen},n2=two.example:9002")), host_name="n1")
        peers = PeerPort(msgspec.structs.replace(config, listen_peer=listen), Counters(), Random(1))
        await peers.start(cast("NodeHandler", FakeNode()))
        async with aiohttp.ClientSession() as session:

            async def status(host: str) -> int:
                async with session.get(f"http://{listen}/raft/v1/hello", headers={"Host": host}) as answer:
                    return answer.status

            assert await status("evil.example:9001") == 421
            assert [await status(host) for host in (listen, "two.example:9002", "localhost")] == [200] * 3
            assert await status("three.example") == 421
            peers.set_members({N3: "http://three.example:9003"})
            assert await status("three.example") == 200
        await peers.close()

    asyncio.run(run())
