"""The driver alone: its disk answers when it is told to, and its peers are messages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import cast

from kvorum.config import Config
from kvorum.counters import Counters
from kvorum.errors import FatalError
from kvorum.identity import Identity
from kvorum.kv.store import Store
from kvorum.node.driver import Driver
from kvorum.node.snapshots import Fetcher
from kvorum.raft.messages import Configuration, InstallSnapshot, Member, Message, Snapshot
from kvorum.storage.interface import Loaded
from kvorum.storage.memory import MemoryStorage
from kvorum.transport import Transport


class NoPeers:
    """Where messages go."""

    def send(self, messages: Iterable[Message]) -> None:
        pass


class HeldFetcher:
    """Fetches when it is told to."""

    def __init__(self, storage: MemoryStorage) -> None:
        self.storage = storage
        self.wanted: list[tuple[Snapshot, Callable[[Snapshot, Store], None]]] = []

    def begin(self, source: str, snapshot: Snapshot, then: Callable[[Snapshot, Store], None]) -> None:
        self.wanted.append((snapshot, then))

    def arrive(self) -> None:
        """The oldest that is wanted is here."""
        snapshot, then = self.wanted.pop(0)
        writer = self.storage.snapshots.create(snapshot)
        writer.write(b"state")
        writer.commit()
        store = Store()
        store.applied_index, store.applied_term = snapshot.last_index, snapshot.last_term
        then(snapshot, store)

    async def close(self) -> None:
        pass


def offer(last_index: int, term: int) -> InstallSnapshot:
    members = Configuration((Member("a@1", True), Member("b@1", True)))
    return InstallSnapshot(term=term, sender="b@1", recipient="a@1", snapshot=Snapshot(last_index, 1, members))


def test_a_fetched_state_that_is_of_no_use_takes_no_other_with_it() -> None:
    """One snapshot is being saved; another, fetched for a leader that is gone, arrives and is thrown away."""

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
        driver.on_messages((offer(20, term=1), offer(30, term=2), offer(10, term=2)))
        stale, _, adopted = fetcher.wanted
        fetcher.wanted = [adopted, stale]
        fetcher.arrive()
        await asyncio.sleep(0)
        fetcher.arrive()
        while storage.pending:
            storage.complete()
            await asyncio.sleep(0)
        assert failures == []
        assert driver.store.applied_index == 10
        await driver.close()

    asyncio.run(scenario())
