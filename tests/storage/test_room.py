"""A disk that is full: the log waits for room, the reserve gives some, snapshots leave some, and a start finds some."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from storage.support import IDENTITY, Disk, entries, snapshot
from waiting import until

from kvorum.errors import SnapshotFailedError
from kvorum.storage.log import SqliteStorage
from kvorum.storage.room import LOG_BYTES, RESERVE, RESERVE_SHARE, SLACK_BYTES, Room
from kvorum.telemetry.counters import Counters

DISK_BYTES = 24_000_000
RESERVE_BYTES = DISK_BYTES // RESERVE_SHARE // 4096 * 4096
LARGE = 300_000


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    """Yield a small file system of its own."""
    folder = tmp_path / "volume"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0700", "kvorum-test", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a file system is not permitted")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(volume: Path, left_bytes: int = 0) -> None:
    """Let another program take all but ``left_bytes``."""
    status = os.statvfs(volume)
    with open(volume / "filler", "ab", buffering=0) as filler:
        filler.write(bytes(max(status.f_bavail * status.f_frsize - left_bytes, 0)))


async def folded(it: Disk) -> None:
    """Wait for the fold of the write-ahead log that a save began, which needs room of its own."""
    await it.read(1, 1)


def free(volume: Path) -> None:
    (volume / "filler").unlink()


def disk(volume: Path) -> Disk:
    return Disk(volume / "data", reserve_bytes=64 << 20)


def test_the_reserve_is_of_real_bytes_and_takes_at_most_its_share_of_the_disk(volume: Path) -> None:
    room = Room(volume, 64 << 20)
    room.measure()
    room.keep(0)
    status = (volume / RESERVE).stat()
    assert room.is_reserved
    assert status.st_blocks * 512 >= status.st_size > RESERVE_BYTES - 8192
    volume_status = os.statvfs(volume)
    assert status.st_size <= volume_status.f_blocks * volume_status.f_frsize // RESERVE_SHARE


def test_a_reserve_that_is_a_hole_does_not_count(volume: Path) -> None:
    with open(volume / RESERVE, "wb") as file:
        file.truncate(RESERVE_BYTES)
    room = Room(volume, 64 << 20)
    room.measure()
    assert not room.is_reserved
    room.keep(0)
    assert room.is_reserved


def test_the_reserve_is_made_again_only_if_what_is_wanted_remains_beside_it(volume: Path) -> None:
    room = Room(volume, 64 << 20)
    room.measure()
    room.keep(DISK_BYTES - RESERVE_BYTES)
    assert not room.is_reserved
    unreserved = room.unreserved_bytes
    assert unreserved is not None
    assert unreserved < (room.free_bytes or 0)
    room.keep(DISK_BYTES - RESERVE_BYTES - SLACK_BYTES - 65536)
    assert room.is_reserved
    assert room.unreserved_bytes == room.free_bytes
    assert abs((room.free_bytes or 0) - unreserved) < 65536


def test_what_is_not_known_is_enough(tmp_path: Path) -> None:
    room = Room(tmp_path / "missing", 1 << 20)
    room.measure()
    assert room.free_bytes is None
    assert room.holds(1 << 60)
    room.keep(0)


def test_a_save_without_room_waits_then_gives_the_reserve_up_and_the_storage_never_fails(volume: Path) -> None:
    async def scenario() -> None:
        async with disk(volume) as it:
            it.storage.measure(0)
            assert (volume / "data" / RESERVE).exists()
            await it.save(1, *entries(1, 1, size=LARGE))
            await folded(it)
            fill(volume)
            it.storage.measure(0)
            await it.save(1, *entries(2, 2, size=LARGE))
            assert not (volume / "data" / RESERVE).exists()
            await folded(it)
            fill(volume)
            it.storage.measure(0)
            waiting = asyncio.ensure_future(it.save(1, *entries(3, 3, size=LARGE)))
            await until("it waits for room", lambda: it.storage._waits_for_room)
            assert not waiting.done()
            free(volume)
            await waiting
            assert not it.failures
            it.storage.measure(0)
            assert (volume / "data" / RESERVE).exists()
        async with disk(volume) as again:
            assert [entry.index for entry in again.loaded.entries] == [1, 2, 3]

    asyncio.run(scenario())


def test_a_full_disk_is_no_disk_that_does_not_answer(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadline of a save runs from the moment at which the disk is asked."""
    monkeypatch.setattr("kvorum.storage.log.WATCHDOG_S", 0.02)

    async def scenario() -> None:
        async with Disk(volume / "data") as it:
            fill(volume)
            it.storage.measure(0)
            waiting = asyncio.ensure_future(it.save(1, *entries(1, 1)))
            await until("it waits for room", lambda: it.storage._waits_for_room)
            saving = it.storage._in_flight
            assert saving is not None
            saving.started = long_ago = saving.started - 1000.0
            await until("the watchdog has looked", lambda: saving.started != long_ago or it.failures)
            assert not it.failures
            free(volume)
            await waiting

    asyncio.run(scenario())


def test_a_node_starts_on_a_full_disk_from_its_reserve(volume: Path) -> None:
    async def scenario() -> None:
        async with disk(volume) as it:
            it.storage.measure(0)
            for index in range(1, 6):
                await it.save(1, *entries(index, index, size=LARGE))
            await folded(it)
            # As after a kill: the last rows are not folded into the database yet.
            shutil.copytree(volume / "data", volume / "killed")
        fill(volume)
        async with Disk(volume / "killed", reserve_bytes=64 << 20) as again:
            assert len(again.loaded.entries) == 5
            assert not (volume / "killed" / RESERVE).exists()
            await again.save(2, *entries(6, 6, term=2))
            assert not again.failures

    asyncio.run(scenario())


def test_a_start_without_any_room_waits_and_a_stop_ends_the_wait(
    volume: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with Disk(volume / "data") as it:
            await it.save(1, *entries(1, 1))
        fill(volume)
        storage = SqliteStorage(volume / "data", lambda _: None, 1000, Counters())
        loading = asyncio.ensure_future(asyncio.to_thread(storage.load))
        with caplog.at_level(logging.ERROR):
            await until("it says so", lambda: "waits for room before it starts" in caplog.text)
        assert not loading.done()
        free(volume)
        assert (await loading).identity == IDENTITY
        storage.close()

        fill(volume)
        storage = SqliteStorage(volume / "data", lambda _: None, 1000, Counters())
        loading = asyncio.ensure_future(asyncio.to_thread(storage.load))
        with caplog.at_level(logging.ERROR):
            await until("it says so", lambda: caplog.text.count("waits for room before it starts") == 2)
        storage.close()
        with pytest.raises(Exception, match="the disk is full"):
            await loading

    asyncio.run(scenario())


def test_a_snapshot_leaves_room_to_the_log(volume: Path) -> None:
    async def scenario() -> None:
        async with Disk(volume / "data") as it:
            await it.save(1, *entries(1, 5))
            fill(volume, left_bytes=LOG_BYTES + 2 * SLACK_BYTES)
            writer = it.storage.snapshots.create(snapshot(5))
            with pytest.raises(SnapshotFailedError):
                writer.write(bytes(LOG_BYTES))
            receiver = it.storage.snapshots.receive(snapshot(5), "a" * 64)
            with pytest.raises(SnapshotFailedError):
                receiver.write(bytes(LOG_BYTES))
            copy = it.storage.snapshots.copy(5)
            with pytest.raises(SnapshotFailedError):
                copy.write(bytes(LOG_BYTES))
            assert not list((volume / "data" / "snapshots").iterdir())
            await it.save(1, *entries(6, 6))
            assert not it.failures

    asyncio.run(scenario())


def test_room_that_a_compaction_frees_in_the_database_counts(volume: Path) -> None:
    async def scenario() -> None:
        async with Disk(volume / "data") as it:
            for index in range(1, 9):
                await it.save(1, *entries(index, index, size=LARGE))
            await folded(it)
            writer = it.storage.snapshots.create(snapshot(8))
            writer.commit()
            it.storage.measure(0)
            before = it.storage.free_bytes()
            await it.wait(lambda done: it.storage.compact(9, done))
            it.storage.measure(0)
            after = it.storage.free_bytes()
            assert before is not None
            assert after is not None
            assert after - before > 4 * LARGE

    asyncio.run(scenario())
