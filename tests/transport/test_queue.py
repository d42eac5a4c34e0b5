"""What waits for a peer: bounded in messages and in bytes, sent once, and thrown away with its stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import pytest
from transport.test_link import PEER, US, bulk, connected, heartbeat
from waiting import until

from kvorum.raft.codec import decode
from kvorum.raft.messages import Message
from kvorum.telemetry.counters import Counters
from kvorum.transport import link as link_module
from kvorum.transport.link import Link
from kvorum.transport.settings import Dialling


class Wire:
    """Dials that fail until the peer is up, and the frames of the streams to it."""

    def __init__(self) -> None:
        self.is_up = False
        self.urls: list[str] = []
        self.frames: list[tuple[Message, ...]] = []
        self.counters = Counters()
        self.counters.keep_peers([PEER.name])
        self._closed = asyncio.Event()

    async def ws_connect(self, url: str, **_: Any) -> Any:
        self.urls.append(url)
        if not self.is_up:
            raise aiohttp.ClientConnectionError("connection refused")
        return SimpleNamespace(
            send_bytes=self._send_bytes,
            receive=self._receive,
            close=self._close,
            get_extra_info=lambda _: None,
            _response=SimpleNamespace(headers={}, connection=None),
        )

    async def _send_bytes(self, frame: bytes) -> None:
        self.frames.append(decode(frame))

    async def _receive(self) -> aiohttp.WSMessage:
        await self._closed.wait()
        return aiohttp.WSMessage(aiohttp.WSMsgType.CLOSED, None, None)

    async def _close(self) -> bool:
        return True

    @property
    def messages(self) -> list[Message]:
        return [message for frame in self.frames for message in frame]

    @property
    def dropped(self) -> int:
        return self.counters.messages_dropped[PEER.name]


class Middle(Random):
    """Draws the middle of every pause."""

    def random(self) -> float:
        return 0.5


@asynccontextmanager
async def link_over(wire: Wire) -> AsyncIterator[Link]:
    session = cast("aiohttp.ClientSession", SimpleNamespace(ws_connect=wire.ws_connect))
    dialling = Dialling(lambda: US, "http://us", "", lambda: session, wire.counters, Middle())
    link = Link(PEER.node_id, "http://peer:1", dialling, lambda _: None)
    task = asyncio.create_task(link.run())
    try:
        yield link
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_what_waits_is_bounded_in_bytes() -> None:
    async def run() -> None:
        wire = Wire()
        async with link_over(wire) as link:
            for _ in range(70):
                link.send(bulk(1 << 20))
            assert wire.dropped == 7, "64 MiB are 63 of these, each with its overhead"

    asyncio.run(run())


def test_what_waits_is_bounded_in_messages() -> None:
    async def run() -> None:
        wire = Wire()
        async with link_over(wire) as link:
            for number in range(link_module.QUEUE_MESSAGES_MAX + 5):
                link.send(heartbeat(number))
            assert wire.dropped == 5

    asyncio.run(run())


def test_entries_that_wait_leave_room_for_heartbeats() -> None:
    async def run() -> None:
        wire = Wire()
        async with link_over(wire) as link:
            for _ in range(link_module.QUEUE_MESSAGES_MAX):
                link.send(bulk(1))
            link.send(heartbeat(1))
            assert wire.dropped == 0

    asyncio.run(run())


def test_what_was_sent_gives_its_bytes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "QUEUE_BYTES_MAX", 10_000)

    async def run() -> None:
        async with connected() as (transport, peer, counters, _):
            peer.may_read.set()
            for _ in range(50):
                transport.send([bulk(1000)])
                await asyncio.sleep(0)
            await until("all of them", lambda: sum(map(len, peer.frames)) == 50)
            assert counters.messages_dropped["n2"] == 0

    asyncio.run(run())


def test_what_waited_for_a_stream_that_never_opened_is_thrown_away_and_gives_its_bytes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Consensus knows what to send on a new stream; what is old would only be in its way."""
    monkeypatch.setattr(link_module, "QUEUE_BYTES_MAX", 10_000)

    async def run() -> None:
        wire = Wire()
        async with link_over(wire) as link:
            for _ in range(20):
                link.send(bulk(1020))
            dropped = wire.dropped
            assert dropped
            link.send(bulk(1))
            assert wire.dropped == (dropped := dropped + 1), "there is room left: the test shows nothing"
            await until("two dials fail", lambda: len(wire.urls) >= 2)
            link.send(bulk(2))
            assert wire.dropped == dropped, "the bytes were not given back"
            wire.is_up = True
            link.hurry()
            # Whether it is sent depends on when the next dial fails; what came before it never is.
            await until("a stream", lambda: link.connected)
            link.send(heartbeat(8))
            link.flush()
            assert wire.messages in ([heartbeat(8)], [bulk(2), heartbeat(8)])

    asyncio.run(run())


def test_a_frame_ends_at_its_size_however_much_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "FRAME_BYTES", 5_000)

    async def run() -> None:
        wire = Wire()
        wire.is_up = True
        async with link_over(wire) as link:
            for _ in range(20):
                link.send(bulk(1000))
            await until("all of them", lambda: len(wire.messages) == 20)
            assert [len(frame) for frame in wire.frames] == [5, 5, 5, 5]

    asyncio.run(run())


def test_the_pause_between_dials_doubles_up_to_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def wait_for(waiting: Any, timeout_s: float) -> None:
        waiting.close()
        pauses.append(timeout_s)
        await asyncio.sleep(0)
        raise TimeoutError

    async def run() -> None:
        wire = Wire()
        monkeypatch.setattr(asyncio, "wait_for", wait_for)
        async with link_over(wire):
            await until("dials", lambda: len(wire.urls) >= 8)

    asyncio.run(run())
    assert pauses[:7] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]


def test_a_peer_that_takes_the_connection_and_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "CONNECT_TIMEOUT_S", 0.05)

    async def never(*_: Any, **__: Any) -> Any:
        await asyncio.Event().wait()

    async def run() -> None:
        wire = Wire()
        monkeypatch.setattr(wire, "ws_connect", never)
        async with link_over(wire):
            await until("it is given up", lambda: wire.counters.peer_failures["n2", "unreachable"] >= 2)

    asyncio.run(run())


def test_the_next_dial_goes_to_where_the_peer_moved() -> None:
    async def run() -> None:
        wire = Wire()
        async with link_over(wire) as link:
            await until("a dial", lambda: wire.urls)
            link.urls.set_first("http://moved:2")
            link.hurry()
            await until("a dial there", lambda: wire.urls[-1] == "http://moved:2/raft/v1/stream")

    asyncio.run(run())


def test_an_idle_stream_carries_an_empty_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "KEEP_ALIVE_S", 0.01)

    async def run() -> None:
        wire = Wire()
        wire.is_up = True
        async with link_over(wire):
            await until("frames", lambda: len(wire.frames) >= 2)
            assert wire.messages == []

    asyncio.run(run())


def test_a_stream_that_is_in_use_carries_no_empty_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "KEEP_ALIVE_S", 0.05)

    async def run() -> None:
        wire = Wire()
        wire.is_up = True
        async with link_over(wire) as link:
            # Timers fire in their order, however late: each period of the keep-alive has messages.
            for number in range(60):
                link.send(heartbeat(number))
                link.flush()
                await asyncio.sleep(0.005)
            assert len(wire.messages) == 60
            assert () not in wire.frames

    asyncio.run(run())
