"""A fault that repeats itself is counted each time and told once."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import aiohttp
import pytest
from aiohttp import web
from bench.processes import free_ports
from serving import stop_server
from waiting import until

from kvorum.identity import Identity
from kvorum.kv.state_hash import StateDigest
from kvorum.raft.messages import Message, PeerMark
from kvorum.telemetry.counters import Counters
from kvorum.telemetry.logs import LIBRARY_INTERVAL_S, configure
from kvorum.transport import Greeting, Hello, SnapshotChunk
from kvorum.transport.handshake import dialling_headers
from kvorum.transport.server import PeerServer

SERVER = Identity("n1", "1" * 16, "c" * 32)


class SilentNode:
    """What the peer port asks of a node, with nothing behind it."""

    identity = SERVER
    start_id = ""

    def marks_of(self, node: str) -> tuple[PeerMark, ...]:
        """Return nothing."""
        return ()

    def hello(self) -> Hello:
        """Not asked here."""
        raise NotImplementedError

    async def join(self, greeting: Greeting) -> None:
        """Not asked here."""
        raise NotImplementedError

    def on_messages(self, sender: str, messages: tuple[Message, ...]) -> None:
        """Take no notice."""

    def on_connected(self, greeting: Greeting) -> None:
        """Take no notice."""

    def on_disconnected(self, sender: str) -> None:
        """Take no notice."""

    def is_member(self, node: str) -> bool:
        """Not asked here."""
        raise NotImplementedError

    async def snapshot_chunk(
        self, last_index: int, offset_bytes: int, size_bytes: int, at_least: int | None
    ) -> SnapshotChunk:
        """Not asked here."""
        raise NotImplementedError

    def state_hash_at(self, index: int) -> StateDigest | None:
        """Not asked here."""
        raise NotImplementedError

    def suspect_state(self, index: int) -> None:
        """Not asked here."""
        raise NotImplementedError


@asynccontextmanager
async def peer_port(counters: Counters) -> AsyncIterator[tuple[str, aiohttp.ClientSession]]:
    counters.keep_peers(["n2", "n3"])
    server = PeerServer(SilentNode(), counters, "word", 10.0)
    runner = web.AppRunner(server.app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    (number,) = free_ports(1)
    await web.TCPSite(runner, "127.0.0.1", number).start()
    try:
        async with aiohttp.ClientSession() as session:
            yield f"http://127.0.0.1:{number}/raft/v1/stream", session
    finally:
        await server.close()
        await stop_server(runner)


def test_peers_that_are_refused_again_and_again_are_told_once_each(caplog: pytest.LogCaptureFixture) -> None:
    counters = Counters()

    async def scenario() -> None:
        async with peer_port(counters) as (url, session):
            for _ in range(20):
                # Two of them behind one address, in turn: neither may make the other's complaint new.
                for name in ("n2", "n3"):
                    caller = Identity(name, "2" * 16, "d" * 32)
                    headers = dialling_headers(caller, SERVER.node_id, "http://127.0.0.1:1", "word")
                    with pytest.raises(aiohttp.WSServerHandshakeError):
                        await session.ws_connect(url, headers=headers)

    asyncio.run(scenario())
    assert counters.identity_rejected == {"cluster": 40}
    refusals = [record.getMessage() for record in caplog.records if "refused a peer" in record.getMessage()]
    assert len(refusals) == 2
    assert "n2@" in refusals[0]
    assert "n3@" in refusals[1]


def test_a_peer_that_sends_nonsense_again_and_again_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    counters = Counters()
    caller = Identity("n2", "2" * 16, SERVER.cluster_id)

    async def scenario() -> None:
        headers = dialling_headers(caller, SERVER.node_id, "http://127.0.0.1:1", "word")
        async with peer_port(counters) as (url, session):
            for turn in range(10):
                async with session.ws_connect(url, headers=headers) as stream:
                    await stream.send_bytes(b"nonsense")

                    def counted(turn: int = turn) -> bool:
                        return counters.peer_failures["n2", "malformed"] == turn + 1

                    await until("the nonsense is counted", counted)

    asyncio.run(scenario())
    told = [record for record in caplog.records if "closed the stream of n2@" in record.getMessage()]
    assert len(told) == 1


@contextmanager
def configured() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    stream = io.StringIO()
    configure("n1", "text", "info", stream)
    try:
        yield stream
    finally:
        root.handlers[:], root.level = handlers, level


def test_a_library_that_repeats_itself_is_told_once_a_minute_with_how_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """An OpenTelemetry exporter whose collector is away says so with every attempt, for ever."""
    now = 1000.0
    monkeypatch.setattr("kvorum.telemetry.logs.monotonic", lambda: now)
    exporter = logging.getLogger("opentelemetry.exporter.otlp")
    with configured() as stream:
        for attempt in range(22):
            now = 1000.0 if attempt < 20 else 1000.0 + LIBRARY_INTERVAL_S
            exporter.warning("attempt %d failed", attempt)
            if attempt == 19:
                exporter.error("gave up")
    said = [line.split(": ", 1)[1] for line in stream.getvalue().splitlines()]
    assert said == ["attempt 0 failed", "gave up", "attempt 20 failed (19 more since the last such line)"]


def test_our_own_sentences_are_never_held_back() -> None:
    with configured() as stream:
        for _ in range(5):
            logging.getLogger("kvorum.node").warning("a sentence")
    assert stream.getvalue().count("a sentence") == 5
