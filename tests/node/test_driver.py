"""The driver alone: its disk answers when it is told to, and its peers are messages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import cast

import msgspec
from node.trio import eventually

from kvorum.config import Config
from kvorum.errors import FatalError, PeerError
from kvorum.identity import Identity
from kvorum.kv.store import Store
from kvorum.node.driver import Driver
from kvorum.node.snapshots import Fetcher
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
from kvorum.storage.interface import Loaded
from kvorum.storage.memory import MemoryStorage
from kvorum.telemetry.counters import Counters
from kvorum.transport import Transport
from kvorum.transport.server import SnapshotChunk


class NoPeers:
    """Where messages go."""

    def send(self, messages: Iterable[Message]) -> None:
        pass


class HeldFetcher:
    """Fetches when it is told to."""

    def __init__(self, storage: MemoryStorage) -> None:
        self.storage = storage
        self.wanted: list[tuple[Snapshot, Callable[[Snapshot, Store], None]]] = []

    def begin(
        self,
        source: str,
        snapshot: Snapshot,
        then: Callable[[Snapshot, Store], None],
        failed: Callable[[Snapshot], None],
    ) -> None:
        assert not self.wanted, "one fetch at a time"
        self.wanted.append((snapshot, then))

    def arrive(self) -> None:
        """What is wanted is here."""
        snapshot, then = self.wanted.pop()
        writer = self.storage.snapshots.create(snapshot)
        writer.write(b"state")
        writer.commit()
        store = Store()
        store.applied_index, store.applied_term = snapshot.last_index, snapshot.last_term
        then(snapshot, store)

    def offered(self, by: str) -> None:
        pass

    async def close(self) -> None:
        pass


def offer(last_index: int, term: int) -> InstallSnapshot:
    members = Configuration((Member("a@1", True), Member("b@1", True)))
    return InstallSnapshot(term=term, sender="b@1", recipient="a@1", snapshot=Snapshot(last_index, 1, members))


def test_a_fetched_state_that_is_of_no_use_takes_no_other_with_it() -> None:
    """One snapshot is being saved; another, which the log has passed meanwhile, arrives and is thrown away."""

    async def scenario() -> None:
        failures: list[FatalError] = []
        storage = MemoryStorage()
        identity = Identity("a", "1", "c")
        storage.write_identity(identity)
        driver = Driver(
            Config(name="a"),
            identity,
            Loaded(identity),
            Store(),
            storage,
            cast(Transport, NoPeers()),
            Counters(),
            failures.append,
        )
        fetcher = HeldFetcher(storage)
        driver.fetcher = cast(Fetcher, fetcher)
        driver.on_messages((offer(10, term=1),))
        await asyncio.sleep(0)
        fetcher.arrive()
        driver.on_messages((offer(20, term=1),))
        await asyncio.sleep(0)
        entries = tuple(Entry(index, 1, EntryKind.NOOP, b"") for index in range(11, 31))
        driver.on_messages(
            (AppendEntries(1, "b@1", "a@1", prev_log_index=10, prev_log_term=1, entries=entries, leader_commit=30),)
        )
        await asyncio.sleep(0)
        fetcher.arrive()
        while storage.pending:
            storage.complete()
            await asyncio.sleep(0)
        assert failures == []
        assert driver.store.applied_index == 30
        assert driver.fetched == {}
        await driver.close()

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
        driver = a_driver(storage, peers)
        message = offer(20, term=1)
        driver.on_messages((message,))
        await eventually("its leader is asked", lambda: peers.asked == ["b@1"])
        driver.on_messages((message,))
        await asyncio.sleep(0)
        assert peers.asked == ["b@1"], "the same one is not fetched twice"

        newer = msgspec.structs.replace(message, term=2, sender="c@1")
        driver.on_messages((newer,))
        await asyncio.sleep(0)
        assert peers.asked == ["b@1"], "one is fetched at a time, and what the former leader has would still help"
        driver.on_messages((newer,))
        driver.on_messages((newer,))
        await eventually("the new leader is asked", lambda: peers.asked == ["b@1", "c@1"])
        await driver.close()

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
        driver = a_driver(storage, peers)
        message = offer(20, term=1)
        newer = msgspec.structs.replace(message, term=2, sender="c@1")
        driver.on_messages((message,))
        for count in range(1, 6):
            await eventually("the next piece is asked for", lambda count=count: len(peers.asked) == count)  # type: ignore[misc]
            driver.on_messages((newer,))
            peers.give.set()
        assert set(peers.asked) == {"b@1"}
        await driver.close()

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
        driver = a_driver(storage, peers)
        message = offer(20, term=1)
        driver.on_messages((message,))
        newer = msgspec.structs.replace(message, term=2, sender="c@1")
        await eventually("its leader is asked", lambda: bool(peers.asked))
        driver.on_messages((newer,))

        def asked_the_new_leader() -> bool:
            driver.on_messages((newer,))
            return peers.asked[-1] == "c@1"

        await eventually("the new leader is asked", asked_the_new_leader)
        assert peers.asked.count("b@1") <= 2
        await driver.close()

    asyncio.run(scenario())


def test_a_disk_is_given_as_long_as_the_configuration_says() -> None:
    async def scenario() -> None:
        storage = MemoryStorage()
        driver = a_driver(storage, NoPeers(), save_timeout_ms=2000)
        driver.raft.bootstrap(Configuration((Member("a@1", True),)))
        driver._drive()
        assert storage.pending, "a save is in flight"
        for _ in range(79):
            driver.tick()
        assert not driver.raft.is_disk_stalled, "after 1975 ms of 2000"
        driver.tick()
        assert driver.raft.is_disk_stalled
        await driver.close()

    asyncio.run(scenario())


def a_driver(storage: MemoryStorage, peers: NoPeers, **knobs: int) -> Driver:
    identity = Identity("a", "1", "c")
    storage.write_identity(identity)
    config = Config(name="a", **knobs)  # type: ignore[arg-type]
    return Driver(
        config, identity, Loaded(identity), Store(), storage, cast(Transport, peers), Counters(), lambda _: None
    )
