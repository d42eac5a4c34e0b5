"""What the tests of the storage share: entries, snapshots, and a disk with a loop around it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from kvorum.errors import StorageError
from kvorum.raft.messages import Configuration, Entry, EntryKind, HardState, Load, Member, Save, Snapshot
from kvorum.storage.interface import Identity, Loaded, SnapshotFile
from kvorum.storage.log import SqliteStorage
from kvorum.telemetry.counters import Counters

IDENTITY = Identity("n1", "0123456789abcdef", "c" * 32)
DEADLINE_MS = 10_000


def entries(first_index: int, last_index: int, term: int = 1, size: int = 0) -> tuple[Entry, ...]:
    return tuple(
        Entry(i, term, EntryKind.COMMAND, (b"%d/%d" % (i, term)).ljust(size, b"."))
        for i in range(first_index, last_index + 1)
    )


def snapshot(last_index: int, last_term: int = 1) -> Snapshot:
    return Snapshot(last_index, last_term, Configuration((Member("n1@0123456789abcdef", True),)))


def take_snapshot(snapshots: SnapshotFile, last_index: int, payload: bytes = b"state", last_term: int = 1) -> None:
    writer = snapshots.create(snapshot(last_index, last_term))
    writer.write(payload)
    writer.commit()


def send(sender: SnapshotFile, receiver: SnapshotFile, wanted: Snapshot) -> None:
    """Let a snapshot file travel in one piece."""
    info = next(info for info in sender.kept() if info.snapshot == wanted)
    arriving = receiver.receive(wanted, info.sha256)
    arriving.write(sender.chunk(wanted.last_index, arriving.offset_bytes, info.size_bytes))
    arriving.commit(info.sha256)


class Disk:
    """A storage and the loop that it answers on, for tests that are written as straight lines."""

    def __init__(
        self,
        folder: Path,
        *,
        name: str = "",
        deadline_ms: int = DEADLINE_MS,
        log_memory_bytes_max: int | None = None,
        reserve_bytes: int = 0,
    ) -> None:
        self.failures: list[StorageError] = []
        self.failed = asyncio.Event()
        self.counters = Counters()
        self.storage = SqliteStorage(
            folder, self._on_failure, deadline_ms, self.counters, name, log_memory_bytes_max, reserve_bytes
        )
        self.loaded = Loaded()
        self._number = 0

    async def __aenter__(self) -> Disk:
        self.loaded = self.storage.load()
        if self.loaded.identity is None:
            self.storage.write_identity(IDENTITY)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.storage.close()

    def _on_failure(self, error: StorageError) -> None:
        self.failures.append(error)
        self.failed.set()

    async def save(self, term: int, *parts: Entry, vote: str | None = None, base: Snapshot | None = None) -> None:
        """Save, and wait until it is durable. Raises what the storage reports."""
        self._number += 1
        save = Save(self._number, HardState(term, vote), tuple(parts), base)
        await self.wait(lambda done: self.storage.save(save, done))

    async def compact(self, first_index: int) -> None:
        await self.wait(lambda done: self.storage.compact(first_index, done))

    async def read(self, first_index: int, last_index: int, bytes_max: int = 1 << 30) -> tuple[Entry, ...]:
        """Read entries back. Raises what the storage reports."""
        found: list[tuple[Entry, ...]] = []

        def begin(done: Callable[[], None]) -> None:
            def take(entries: tuple[Entry, ...]) -> None:
                found.append(entries)
                done()

            self.storage.load_entries(Load(first_index, last_index, bytes_max), take)

        await self.wait(begin)
        return found[0]

    async def wait(self, begin: Callable[[Callable[[], None]], None]) -> None:
        done = asyncio.Event()
        begin(done.set)
        finished = asyncio.create_task(done.wait())
        failed = asyncio.create_task(self.failed.wait())
        async with asyncio.timeout(60):
            await asyncio.wait({finished, failed}, return_when=asyncio.FIRST_COMPLETED)
        for task in (finished, failed):
            task.cancel()
        await asyncio.gather(finished, failed, return_exceptions=True)
        if self.failures:
            raise self.failures[0]


def run(folder: Path, act: Callable[[Disk], Awaitable[None]]) -> Loaded:
    """Open the folder, let ``act`` work on it, close it; returns what was loaded at the start."""

    async def main() -> Loaded:
        async with Disk(folder) as disk:
            await act(disk)
            return disk.loaded

    return asyncio.run(main())


def load(folder: Path, name: str = "") -> Loaded:
    """Load a folder and let it go."""
    storage = SqliteStorage(folder, _unexpected, DEADLINE_MS, Counters(), name)
    try:
        return storage.load()
    finally:
        storage.close()


def _unexpected(error: StorageError) -> None:
    raise error
