"""The driver alone: its disk answers when it is told to, and its peers are messages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from random import Random
from typing import cast

import msgspec
import pytest
from waiting import until

from kvorum.config import Config
from kvorum.errors import PeerError
from kvorum.identity import Identity
from kvorum.kv.store import Store
from kvorum.node import Node, Ports, Supervisor
from kvorum.node.compose import compose
from kvorum.node.driver import Driver
from kvorum.node.ports import Peers
from kvorum.node.runtime import LoopTasks, LoopThreads, SystemClock
from kvorum.raft.messages import (
    AppendEntries,
    Configuration,
    Entry,
    EntryKind,
    HeartbeatResponse,
    InstallSnapshot,
    Member,
    Message,
    Snapshot,
)
from kvorum.storage.interface import Loaded
from kvorum.storage.memory import MemoryStorage
from kvorum.telemetry.counters import Counters
from kvorum.transport.server import SnapshotChunk

ANSWER = HeartbeatResponse(term=1, sender="b@1", recipient="a@1", round=1)
MEMBERS = Configuration((Member("a@1", True), Member("b@1", True)))


class NoPeers:
    """Messages go nowhere."""

    def send(self, messages: Iterable[Message]) -> None:
        pass

    def set_members(self, urls: Mapping[str, str]) -> None:
        pass

    async def close(self) -> None:
        pass


class Source(NoPeers):
    """Gives a snapshot when it is told to."""

    def __init__(self) -> None:
        self.wanted: list[int] = []
        self._arrived = asyncio.Event()

    def arrive(self) -> None:
        """What is wanted comes."""
        self._arrived.set()

    async def snapshot_chunk(self, node: str, last_index: int, offset_bytes: int, at_least: int = 0) -> SnapshotChunk:
        self.wanted.append(last_index)
        await self._arrived.wait()
        self._arrived.clear()
        store = Store()
        store.applied_index, store.applied_term = last_index, 1
        files = MemoryStorage().snapshots
        cut, writer = store.begin_snapshot(), files.create(Snapshot(last_index, 1, MEMBERS))
        while (piece := cut.next_chunk()) is not None:
            writer.write(piece)
        cut.close()
        info = writer.commit()
        return SnapshotChunk(files.chunk(last_index, 0, 1 << 20), last_index, info.size_bytes, info.sha256)


def offer(last_index: int, term: int) -> InstallSnapshot:
    return InstallSnapshot(term=term, sender="b@1", recipient="a@1", snapshot=Snapshot(last_index, 1, MEMBERS))


def test_a_fetched_state_that_is_of_no_use_takes_no_other_with_it() -> None:
    """One snapshot is being saved; another, which the log has passed meanwhile, arrives and is thrown away."""

    async def scenario() -> None:
        storage, source = MemoryStorage(), Source()
        node = a_node(storage, source)
        driver = node.parts.driver
        driver.on_messages("b@1", (offer(10, term=1),))
        await until("the first is wanted", lambda: source.wanted == [10])
        source.arrive()
        await until("it is adopted", lambda: node.raft.snapshot is not None)
        assert storage.pending, "nothing of it is durable yet"
        driver.on_messages("b@1", (offer(20, term=1),))
        await until("the second is wanted", lambda: source.wanted == [10, 20])
        entries = tuple(Entry(index, 1, EntryKind.NOOP, b"") for index in range(11, 31))
        driver.on_messages(
            "b@1",
            (AppendEntries(1, "b@1", "a@1", prev_log_index=10, prev_log_term=1, entries=entries, leader_commit=30),),
        )
        source.arrive()
        await until("it is here", lambda: node.counters.snapshots["install", "ok"] == 2)
        while storage.pending:
            storage.complete()
            await asyncio.sleep(0)
        assert not node.ports.supervisor.has_failed
        assert node.store.applied_index == 30
        await node.close()

    asyncio.run(scenario())


class SilentPeers(NoPeers):
    """They are asked, and never answer."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def snapshot_chunk(self, node: str, last_index: int, offset_bytes: int, at_least: int = 0) -> SnapshotChunk:
        self.asked.append(node)
        await asyncio.Event().wait()
        raise AssertionError


def test_the_snapshot_of_a_leader_that_is_gone_is_not_waited_for() -> None:
    async def scenario() -> None:
        storage, peers = MemoryStorage(), SilentPeers()
        node = a_node(storage, peers)
        driver = node.parts.driver
        message = offer(20, term=1)
        driver.on_messages("b@1", (message,))
        await until("its leader is asked", lambda: peers.asked == ["b@1"])
        driver.on_messages("b@1", (message,))
        await asyncio.sleep(0)
        assert peers.asked == ["b@1"], "the same one is not fetched twice"

        newer = msgspec.structs.replace(message, term=2, sender="c@1")
        driver.on_messages("c@1", (newer,))
        await asyncio.sleep(0)
        assert peers.asked == ["b@1"], "one is fetched at a time, and what the former leader has would still help"
        driver.on_messages("c@1", (newer,))
        driver.on_messages("c@1", (newer,))
        await until("the new leader is asked", lambda: peers.asked == ["b@1", "c@1"])
        await node.close()

    asyncio.run(scenario())


class SlowPeers(NoPeers):
    """They give a byte whenever they are told to, of a file of 100."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.give = asyncio.Event()

    async def snapshot_chunk(self, node: str, last_index: int, offset_bytes: int, at_least: int = 0) -> SnapshotChunk:
        self.asked.append(node)
        await self.give.wait()
        self.give.clear()
        return SnapshotChunk(b"x", last_index, 100, "0" * 64)


def test_a_former_leader_that_still_gives_its_snapshot_is_not_given_up() -> None:
    """It covers committed entries only: what has arrived of it is not thrown away for the new leader's."""

    async def scenario() -> None:
        storage, peers = MemoryStorage(), SlowPeers()
        node = a_node(storage, peers)
        driver = node.parts.driver
        message = offer(20, term=1)
        newer = msgspec.structs.replace(message, term=2, sender="c@1")
        driver.on_messages("b@1", (message,))
        for count in range(1, 6):
            await until("the next piece is asked for", lambda count=count: len(peers.asked) == count)  # type: ignore[misc]
            driver.on_messages("c@1", (newer,))
            peers.give.set()
        assert set(peers.asked) == {"b@1"}
        await node.close()

    asyncio.run(scenario())


class RefusingPeers(SilentPeers):
    """They are asked, and have nothing."""

    async def snapshot_chunk(self, node: str, last_index: int, offset_bytes: int, at_least: int = 0) -> SnapshotChunk:
        self.asked.append(node)
        raise PeerError("no such snapshot")


def test_a_fetch_that_a_former_leader_fails_is_given_up_at_once() -> None:
    """The present leader offers its own: nothing is gained by asking the former one again and again."""

    async def scenario() -> None:
        storage, peers = MemoryStorage(), RefusingPeers()
        node = a_node(storage, peers)
        driver = node.parts.driver
        message = offer(20, term=1)
        driver.on_messages("b@1", (message,))
        newer = msgspec.structs.replace(message, term=2, sender="c@1")
        await until("its leader is asked", lambda: peers.asked == ["b@1"])
        driver.on_messages("c@1", (newer,))
        await until("it is asked once more", lambda: peers.asked == ["b@1", "b@1"])
        driver.on_messages("c@1", (newer,))
        await until("the next offer is taken", lambda: peers.asked[2:3] == ["c@1"])
        await node.close()

    asyncio.run(scenario())


def test_a_disk_is_given_as_long_as_the_configuration_says() -> None:
    async def scenario() -> None:
        storage = MemoryStorage()
        node = a_node(storage, NoPeers(), save_timeout_ms=2000)
        driver = node.parts.driver
        node.raft.bootstrap(Configuration((Member("a@1", True),)))
        node.parts.turns.schedule()
        await asyncio.sleep(0)
        assert storage.pending, "a save is in flight"
        for _ in range(79):
            driver.tick()
        assert not node.raft.is_disk_stalled, "after 1975 ms of 2000"
        driver.tick()
        assert node.raft.is_disk_stalled
        await node.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("method", "call_back"),
    [
        ("tick", lambda driver: driver.tick()),
        (
            "step",
            lambda driver: driver.on_messages(
                "b@1", (HeartbeatResponse(term=1, sender="b@1", recipient="a@1", round=1),)
            ),
        ),
        ("peer_unreachable", lambda driver: driver.peer_unreachable("b@1")),
    ],
)
def test_a_bug_of_consensus_in_any_callback_ends_the_node(
    method: str, call_back: Callable[[Driver], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    async def scenario() -> None:
        node = a_node(MemoryStorage(), NoPeers())
        monkeypatch.setattr(node.raft, method, fail)
        call_back(node.parts.driver)
        assert node.ports.supervisor.has_failed
        await node.close()

    asyncio.run(scenario())


def a_node(storage: MemoryStorage, peers: NoPeers, **settings: int) -> Node:
    identity = Identity("a", "1", "c")
    storage.write_identity(identity)
    supervisor = Supervisor()
    ports = Ports(
        supervisor=supervisor,
        clock=SystemClock(),
        tasks=LoopTasks(supervisor),
        threads=LoopThreads(),
        storage=storage,
        peers=cast(Peers, peers),
        random=Random(1),
        counters=Counters(),
    )
    config = Config(name="a", **settings)  # type: ignore[arg-type]
    return compose(config, identity, Loaded(identity), Store(), ports)
