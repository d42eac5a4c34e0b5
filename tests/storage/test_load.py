"""Entries that are read back from the disk, one load at a time."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from storage.support import Disk, entries, run, snapshot, take_snapshot

from kvorum.errors import StorageError
from kvorum.raft.log import OnDisk, entry_bytes
from kvorum.raft.messages import Entry


async def fill(disk: Disk) -> None:
    """Entries 1 to 9 of term 1 and 6 to 8 of term 3 in their place, in several rows, with votes between."""
    await disk.save(1, *entries(1, 3))
    await disk.save(2, vote="n1@00")
    await disk.save(2, *entries(4, 6))
    await disk.save(2, *entries(7, 9))
    await disk.save(3, *entries(6, 7, 3))
    await disk.save(3, vote="n1@00")
    await disk.save(3, *entries(8, 8, 3))


LOG = (*entries(1, 5), *entries(6, 8, 3))


@pytest.mark.parametrize("first", range(1, 9))
@pytest.mark.parametrize("last", [5, 6, 8])
def test_what_is_read_back_is_the_log_and_not_what_it_replaced(tmp_path: Path, first: int, last: int) -> None:
    async def act(disk: Disk) -> None:
        await fill(disk)
        assert await disk.read(first, last) == LOG[first - 1 : last]

    run(tmp_path, act)


@pytest.mark.parametrize("bytes_max", [0, 60, 100, 200])
def test_a_load_is_bounded_in_bytes_and_brings_at_least_one_entry(tmp_path: Path, bytes_max: int) -> None:
    async def act(disk: Disk) -> None:
        await fill(disk)
        found: tuple[Entry, ...] = ()
        while len(found) < 8:
            some = await disk.read(1 + len(found), 8, bytes_max)
            assert some
            assert len(some) == 1 or sum(map(entry_bytes, some)) <= bytes_max
            found += some
        assert found == LOG

    run(tmp_path, act)


def test_after_a_start_the_rest_of_the_log_is_read_back(tmp_path: Path) -> None:
    run(tmp_path, fill)

    async def main() -> None:
        async with Disk(tmp_path, log_memory_bytes_max=entry_bytes(LOG[-1])) as disk:
            assert disk.loaded.entries == LOG[-1:]
            assert disk.loaded.on_disk == OnDisk(((1, 1), (6, 3)), 7)
            assert await disk.read(1, 7) == LOG[:7]

    asyncio.run(main())


def test_what_a_compaction_took_is_not_read_and_the_rest_is(tmp_path: Path) -> None:
    async def act(disk: Disk) -> None:
        await fill(disk)
        take_snapshot(disk.storage.snapshots, 5)
        await disk.compact(6)
        assert await disk.read(6, 8) == LOG[5:]
        assert await disk.read(1, 3) == ()

    run(tmp_path, act)


def test_an_adopted_snapshot_leaves_nothing_to_read(tmp_path: Path) -> None:
    async def act(disk: Disk) -> None:
        await fill(disk)
        take_snapshot(disk.storage.snapshots, 20, last_term=4)
        await disk.save(4, *entries(21, 22, 4), base=snapshot(20, 4))
        assert await disk.read(1, 8) == ()
        assert await disk.read(21, 22) == entries(21, 22, 4)

    run(tmp_path, act)


def test_a_row_that_was_damaged_after_the_start_ends_the_node(tmp_path: Path) -> None:
    async def act(disk: Disk) -> None:
        await fill(disk)
        table = disk.storage._table
        assert table is not None
        table.run("UPDATE kvorum SET value = zeroblob(40) WHERE key LIKE '%3'")
        with pytest.raises(StorageError, match="could not be read back: the checksum of a row does not match"):
            await disk.read(1, 8)

    run(tmp_path, act)


def test_a_row_that_is_gone_ends_the_node(tmp_path: Path) -> None:
    async def act(disk: Disk) -> None:
        await fill(disk)
        table = disk.storage._table
        assert table is not None
        table.run("DELETE FROM kvorum WHERE key LIKE '%3'")
        with pytest.raises(StorageError, match="entry 6 stands where 4 belongs"):
            await disk.read(4, 8)

    run(tmp_path, act)
