"""The driver alone: its disk answers when it is told to, and its peers are messages."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Mapping
from random import Random
from typing import cast

import msgspec
import pytest
from waiting import until

from kvorum.config import Config
from kvorum.errors import PeerError
from kvorum.identity import Identity
from kvorum.kv.state_hash import Mismatch
from kvorum.kv.store import Store
from kvorum.node import Node, Ports, Supervisor
from kvorum.node import fetch as fetch_module
from kvorum.node.compose import compose
from kvorum.node.ports import Peers
from kvorum.node.runtime import LoopTasks, LoopThreads, SystemClock
from kvorum.node.snapshots import load_store
from kvorum.raft.messages import (
    AppendEntries,
    Configuration,
    Entry,
    EntryKind,
    InstallSnapshot,
    Member,
    Message,
    Snapshot,
)
from kvorum.storage.interface import Loaded, SnapshotFile, SnapshotInfo
from kvorum.storage.memory import MemoryReceiver, MemoryStorage
from kvorum.telemetry.counters import Counters
from kvorum.transport import SnapshotChunk

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


def test_a_fetched_state_that_contradicts_its_own_sum_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(files: SnapshotFile, snapshot: Snapshot) -> Store:
        store = load_store(files, snapshot)
        if len(source.wanted) == 1:
            store.mismatch = Mismatch(snapshot.last_index, 1, 2)
        return store

    monkeypatch.setattr(fetch_module, "load_store", load)
    source = Source()

    async def scenario() -> None:
        storage = MemoryStorage()
        node = a_node(storage, source)
        node.parts.driver.on_messages("b@1", (offer(10, term=1),))
        await until("it is wanted", lambda: source.wanted == [10])
        source.arrive()
        await until("it is wanted again", lambda: source.wanted == [10, 10])
        assert node.counters.snapshots["install", "failed"] == 1
        assert node.raft.snapshot is None
        assert not storage.snapshots.files
        source.arrive()
        await until("the right one is adopted", lambda: node.raft.snapshot)
        await node.close()

    asyncio.run(scenario())


class HeldReceivers(MemoryStorage):
    """A disk that takes its time over each snapshot that has arrived."""

    def __init__(self) -> None:
        super().__init__()
        self.verifying = threading.Event()
        self.go_on = threading.Event()
        receive = self.snapshots.receive

        def held(snapshot: Snapshot, sha256: str = "") -> MemoryReceiver:
            receiver = receive(snapshot, sha256)
            commit = receiver.commit

            def slow(sha256: str) -> SnapshotInfo:
                self.verifying.set()
                assert self.go_on.wait(60)
                return commit(sha256)

            receiver.commit = slow  # type: ignore[method-assign]
            return receiver

        self.snapshots.receive = held  # type: ignore[method-assign]


def test_a_file_that_has_arrived_is_not_given_up_while_it_is_verified() -> None:
    """Another fetch would remove it under the thread that renames it, and the node would take that for a bad disk."""

    async def scenario() -> None:
        storage, source = HeldReceivers(), Source()
        node = a_node(storage, source)
        driver = node.parts.driver
        message = offer(20, term=1)
        newer = msgspec.structs.replace(message, term=2, sender="c@1", snapshot=Snapshot(30, 1, MEMBERS))
        driver.on_messages("b@1", (message,))
        await until("the first is wanted", lambda: source.wanted == [20])
        source.arrive()
        await until("it is verified", storage.verifying.is_set)
        for _ in range(4):
            driver.on_messages("c@1", (newer,))
            await asyncio.sleep(0)
        wanted = list(source.wanted)
        storage.go_on.set()
        await until("it is adopted", lambda: node.raft.snapshot)
        assert node.raft.snapshot == message.snapshot
        assert wanted == [20]
        assert not node.ports.supervisor.has_failed
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
