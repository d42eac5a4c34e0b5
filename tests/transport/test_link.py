"""The stream to a peer: written at once while the peer reads, bounded and in order while it does not."""

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
from serving import stop_server
from waiting import until

from kvorum.identity import Identity
from kvorum.kv.state_hash import StateDigest
from kvorum.raft.codec import decode, encode
from kvorum.raft.messages import AppendEntries, Entry, EntryKind, Heartbeat, Message, PeerMark
from kvorum.telemetry.counters import Counters
from kvorum.transport import Greeting, Hello, SnapshotChunk
from kvorum.transport import link as link_module
from kvorum.transport.handshake import answer_headers, dialling_headers
from kvorum.transport.server import PeerServer
from kvorum.transport.settings import Dialling
from kvorum.transport.transport import Transport

US = Identity("n1", "1" * 16, "c" * 32)
PEER = Identity("n2", "2" * 16, "c" * 32)


class Peer:
    """Who reads what arrives, once it may."""

    def __init__(self, start: str = "") -> None:
        self.start = start
        self.frames: list[tuple[Message, ...]] = []
        self.streams: list[web.WebSocketResponse] = []
        self.may_read = asyncio.Event()
        self.port = 0

    async def stream(self, request: web.Request) -> web.StreamResponse:
        stream = web.WebSocketResponse(max_msg_size=1 << 26)
        if self.start:
            stream.headers.update(answer_headers(self.start, ()))
        await stream.prepare(request)
        self.streams.append(stream)
        await self.may_read.wait()
        async for frame in stream:
            self.frames.append(decode(frame.data))
        return stream

    @property
    def rounds(self) -> list[int]:
        return [m.round for frame in self.frames for m in frame if isinstance(m, Heartbeat)]


@asynccontextmanager
async def connected(start: str = "") -> AsyncIterator[tuple[Transport, Peer, Counters, list[str]]]:
    peer, counters, broken = Peer(start), Counters(), list[str]()
    app = web.Application()
    app.router.add_get("/raft/v1/stream", peer.stream)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    peer.port = runner.addresses[0][1]
    async with aiohttp.ClientSession() as session:
        dialling = Dialling(lambda: US, "http://us", "", lambda: session, counters, Random(1))
        transport = Transport(dialling, broken.append)
        transport.set_members({PEER.node_id: f"http://127.0.0.1:{peer.port}"})
        try:
            await until("a stream", lambda: transport.is_connected(PEER.node_id) and peer.streams)
            yield transport, peer, counters, broken
        finally:
            peer.may_read.set()
            await transport.close()
            await stop_server(runner)


def heartbeat(number: int) -> Heartbeat:
    return Heartbeat(term=1, sender=US.node_id, recipient=PEER.node_id, commit_index=0, round=number)


def bulk(size: int, index: int = 1) -> AppendEntries:
    entry = Entry(index, 1, EntryKind.COMMAND, bytes(size))
    return AppendEntries(
        term=1,
        sender=US.node_id,
        recipient=PEER.node_id,
        prev_log_index=index - 1,
        prev_log_term=min(index - 1, 1),
        entries=(entry,),
        leader_commit=0,
    )


def test_messages_are_written_in_the_turn_in_which_they_are_sent() -> None:
    async def run() -> None:
        async with connected() as (transport, peer, counters, _):
            peer.may_read.set()
            transport.send([heartbeat(1), heartbeat(2)])
            assert counters.messages_sent["n2"] == 2
            await until("both, in one frame", lambda: (heartbeat(1), heartbeat(2)) in peer.frames)

    asyncio.run(run())


def test_a_stream_that_shows_as_connected_is_written_to_at_once() -> None:
    async def run() -> None:
        async with connected() as (transport, peer, counters, _):
            peer.may_read.set()
            await peer.streams[0].close()
            while transport.is_connected(PEER.node_id):  # noqa: ASYNC110 (every single turn is looked at)
                await asyncio.sleep(0)
            while not transport.is_connected(PEER.node_id):  # noqa: ASYNC110
                await asyncio.sleep(0)
            transport.send([heartbeat(1)])
            assert counters.messages_sent["n2"] == 1

    asyncio.run(run())


def test_what_is_sent_to_a_peer_that_does_not_read_waits_and_arrives_in_order() -> None:
    async def run() -> None:
        async with connected() as (transport, peer, counters, broken):
            for number in range(1, 41):
                transport.send([bulk(1 << 20), heartbeat(number)])
                await asyncio.sleep(0)
            assert counters.messages_sent["n2"] < 80, "all of it was written, though nobody reads"
            peer.may_read.set()
            await until("all of it", lambda: sum(map(len, peer.frames)) == 80)
            assert peer.rounds == list(range(1, 41))
            assert counters.messages_sent["n2"] == 80
            transport.send([heartbeat(41)])
            assert counters.messages_sent["n2"] == 81, "not written at once, though the peer reads again"
            assert not broken

    asyncio.run(run())


def test_a_peer_that_never_reads_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "SEND_TIMEOUT_S", 0.1)
    # Its pings would be answered no more than its frames are read, and would end the stream much later.
    monkeypatch.setattr(link_module, "PING_S", 3600.0)

    async def run() -> None:
        async with connected() as (transport, _, counters, broken):
            for number in range(40):
                transport.send([bulk(1 << 20), heartbeat(number)])
            await until("it is given up", lambda: broken == [PEER.node_id])
            assert counters.peer_failures["n2", "broken"] == 1

    asyncio.run(run())


def test_a_peer_that_is_gone_without_a_word_is_dialled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that lost its power, or its network: little is sent, so nothing ever has to wait."""
    monkeypatch.setattr(link_module, "PING_S", 0.2)

    async def run() -> None:
        async with connected() as (transport, peer, counters, broken):
            transport.send([heartbeat(1)])
            await until("it is given up", lambda: broken == [PEER.node_id])
            await until("it is dialled again", lambda: len(peer.streams) == 2)
            assert counters.peer_failures["n2", "broken"] == 1

    asyncio.run(run())


def test_a_peer_that_calls_while_it_is_dialled_is_dialled_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It began to listen just after our dial had failed: the call that says so must not be lost."""
    monkeypatch.setattr(link_module, "BACKOFF_MIN_S", 60.0)

    async def run() -> None:
        dials = 0

        async def ws_connect(*_: Any, **__: Any) -> aiohttp.ClientWebSocketResponse:
            nonlocal dials
            dials += 1
            if dials == 1:
                link.hurry()
            raise aiohttp.ClientConnectionError("connection refused")

        session = cast("aiohttp.ClientSession", SimpleNamespace(ws_connect=ws_connect))
        dialling = Dialling(lambda: US, "http://us", "", lambda: session, Counters(), Random(1))
        link = link_module.Link(PEER.node_id, "http://127.0.0.1:1", dialling, lambda _: None)
        task = asyncio.create_task(link.run())
        try:
            await until("another dial", lambda: dials == 2)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())


def test_a_dial_to_where_the_peer_was_ends_soon_after_the_peer_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing answers at the old address of a pod. The new one waits for two election timeouts only."""
    monkeypatch.setattr(link_module, "CONNECT_TIMEOUT_S", 3600.0)
    monkeypatch.setattr(link_module, "HURRIED_DIAL_S", 0.05)

    async def run() -> None:
        dials = 0

        async def ws_connect(*_: Any, **__: Any) -> aiohttp.ClientWebSocketResponse:
            nonlocal dials
            dials += 1
            await asyncio.Event().wait()
            raise NotImplementedError

        session = cast("aiohttp.ClientSession", SimpleNamespace(ws_connect=ws_connect))
        dialling = Dialling(lambda: US, "http://us", "", lambda: session, Counters(), Random(1))
        link = link_module.Link(PEER.node_id, "http://127.0.0.1:1", dialling, lambda _: None)
        task = asyncio.create_task(link.run())
        try:
            await until("the dial to nowhere", lambda: dials == 1)
            link.hurry("2")
            await until("another dial", lambda: dials == 2)
            for _ in range(10):
                await asyncio.sleep(0.02)
            assert dials == 2, "the next dial has its whole time"
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())


@pytest.mark.parametrize("tells", [True, False], ids=["the answer tells the start", "only calls tell it"])
def test_a_stream_to_a_process_that_has_ended_is_replaced_when_the_next_one_calls(
    tells: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that lost its power closes nothing: its peers took the stream for open for 15 s."""
    monkeypatch.setattr(link_module, "PING_S", 3600.0)

    async def run() -> None:
        async with connected(start="1" if tells else "") as (transport, peer, _, broken):
            transport.add_stranger(PEER.node_id, "", start="1")
            transport.add_stranger(PEER.node_id, "", start="1")
            await asyncio.sleep(0)
            peer.start = "2" if tells else ""
            assert broken == []
            # Its first process neither reads nor closes.
            transport.add_stranger(PEER.node_id, "", start="2")
            await until("another stream", lambda: len(peer.streams) == 2)
            await until("it is open here too", lambda: transport.is_connected(PEER.node_id))
            assert broken == [PEER.node_id]
            for _ in range(3):
                transport.add_stranger(PEER.node_id, "", start="2")
                await asyncio.sleep(0)
            peer.may_read.set()
            transport.send([heartbeat(7)])
            await until("a message on the new one", lambda: peer.rounds == [7])
            assert len(peer.streams) == 2

    asyncio.run(run())


def test_a_stream_that_broke_is_opened_again_and_what_waited_is_forgotten() -> None:
    async def run() -> None:
        async with connected() as (transport, peer, _, broken):
            peer.may_read.set()
            await peer.streams[0].close()
            await until("it is noticed", lambda: broken == [PEER.node_id])
            await until("another stream", lambda: len(peer.streams) == 2)
            await until("it is open here too", lambda: transport.is_connected(PEER.node_id))
            transport.send([heartbeat(7)])
            await until("a message on the new one", lambda: peer.rounds == [7])

    asyncio.run(run())


class Handler:
    """A node that only listens."""

    identity = PEER
    start_id = ""

    def __init__(self) -> None:
        self.disconnected: list[str] = []

    def hello(self) -> Hello:
        raise NotImplementedError

    async def join(self, greeting: Greeting) -> None:
        raise NotImplementedError

    def on_messages(self, sender: str, messages: tuple[Message, ...]) -> None:
        return

    def on_connected(self, greeting: Greeting) -> None:
        return

    def marks_of(self, node: str) -> tuple[PeerMark, ...]:
        return ()

    def on_disconnected(self, sender: str) -> None:
        self.disconnected.append(sender)

    def is_member(self, node: str) -> bool:
        return True

    async def snapshot_chunk(
        self, last_index: int, offset_bytes: int, size_bytes: int, at_least: int | None
    ) -> SnapshotChunk:
        raise NotImplementedError

    def state_hash_at(self, index: int) -> StateDigest | None:
        return None

    def suspect_state(self, index: int) -> None:
        return


def test_a_stream_that_falls_silent_is_closed_and_one_that_does_not_stays() -> None:
    async def run() -> None:
        handler, counters = Handler(), Counters()
        counters.keep_peers(["n1"])
        server = PeerServer(handler, counters, "", stream_silence_s=2.0)
        runner = web.AppRunner(server.app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/raft/v1/stream"
        headers = dialling_headers(US, PEER.node_id, "http://us", "")
        try:
            async with aiohttp.ClientSession() as session, session.ws_connect(url, headers=headers) as stream:
                loop = asyncio.get_running_loop()
                end = loop.time() + 2.6
                while loop.time() < end:
                    await stream.send_bytes(encode([heartbeat(1)]))
                    await asyncio.sleep(0.05)  # well within the silence that is allowed
                assert not counters.peer_failures
                await until("it is given up", lambda: handler.disconnected == [US.node_id])
                assert counters.peer_failures["n1", "silent"] == 1
        finally:
            await server.close()
            await stop_server(runner)

    asyncio.run(run())
