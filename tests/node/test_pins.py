"""A snapshot that a peer reads is kept, a bounded number of them, for a bounded time."""

from __future__ import annotations

import asyncio

import pytest
from node.test_driver import NoPeers, a_node

from kvorum.errors import StorageCorruptError
from kvorum.node.snapshots import PIN_READ_S, PIN_S, PINS_MAX
from kvorum.raft.messages import Configuration, Snapshot
from kvorum.storage.memory import MemorySnapshots, MemoryStorage


class HandClock:
    """Goes on when it is told to."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def boottime(self) -> float:
        return self.now

    def wall_ms(self) -> int:
        return 0


def take(files: MemorySnapshots, *last_indexes: int) -> None:
    for last_index in last_indexes:
        writer = files.create(Snapshot(last_index, 1, Configuration()))
        writer.write(b"state" * 100)
        writer.commit()


def test_a_snapshot_that_a_peer_reads_is_kept_for_as_long_as_it_reads() -> None:
    async def scenario() -> None:
        storage = MemoryStorage()
        files, clock = storage.snapshots, HandClock()
        snapshots = a_node(storage, NoPeers()).parts.snapshots
        snapshots._clock = clock
        take(files, 10)
        for number in range(5):
            chunk = await snapshots.chunk(10, number, 1, 0)
            assert (chunk.last_index, len(chunk.data)) == (10, 1)
            take(files, 20 + 10 * number, 21 + 10 * number)
            clock.now += PIN_S - 1
        clock.now += 2
        snapshots._unpin_lapsed()
        take(files, 100)
        assert sorted(files.files) == [61, 100], "nobody has read it for a while"
        with pytest.raises(StorageCorruptError, match="no snapshot at 10"):
            await snapshots.chunk(10, 5, 1, 0)

    asyncio.run(scenario())


def test_the_snapshots_that_are_read_are_bounded_in_number_and_the_first_readers_get_there() -> None:
    async def scenario() -> None:
        storage = MemoryStorage()
        files, clock = storage.snapshots, HandClock()
        snapshots = a_node(storage, NoPeers()).parts.snapshots
        snapshots._clock = clock
        for last_index in range(1, PINS_MAX + 3):
            take(files, last_index)
            await snapshots.chunk(last_index, 0, 1, 0)
        take(files, 20, 21)
        pinned = list(range(1, PINS_MAX + 1))
        assert sorted(files.files) == [*pinned, 20, 21]
        # One is read to its end: another takes its place soon.
        await snapshots.chunk(1, 0, 1 << 20, 0)
        clock.now += PIN_READ_S + 1
        await snapshots.chunk(20, 0, 1, 0)
        take(files, 22, 23)
        assert sorted(files.files) == [*pinned[1:], 20, 22, 23]

    asyncio.run(scenario())
