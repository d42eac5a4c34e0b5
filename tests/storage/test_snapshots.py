"""Snapshot files: complete or absent, verified, resumed, bounded in number."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import io
import os
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from storage.support import Disk, entries, load, run, send, snapshot, take_snapshot

from kvorum.errors import SnapshotFailedError, StorageCorruptError, StorageError
from kvorum.raft.messages import Configuration, Member, Snapshot
from kvorum.storage import snapshot_format
from kvorum.storage import snapshots as snapshots_module
from kvorum.storage.files import sync_folder
from kvorum.storage.memory import MemorySnapshots
from kvorum.storage.snapshot_format import FORMAT, MAGIC, encode_header, read_header
from kvorum.storage.snapshots import Snapshots


def unexpected(error: StorageError) -> None:
    raise AssertionError(error)


def opened(folder: Path, broken: Callable[[StorageError], None] = unexpected) -> Snapshots:
    snapshots = Snapshots(folder / "snapshots", broken)
    snapshots.open()
    return snapshots


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "snapshots").iterdir())


def name(last_index: int, kind: str = "snapshot") -> str:
    return f"{last_index:020d}.{kind}"


def damage(path: Path, offset: int = -35) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x10
    path.write_bytes(data)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    snapshots = opened(tmp_path)
    payload = os.urandom(3_000_000)
    writer = snapshots.create(snapshot(7))
    for start in range(0, len(payload), 70_001):
        writer.write(payload[start : start + 70_001])
    info = writer.commit()
    assert info.snapshot == snapshot(7)
    data = Path(snapshots.path(7)).read_bytes()
    assert info.size_bytes == len(data)
    assert info.sha256 == hashlib.sha256(data[:-32]).hexdigest() == data[-32:].hex()
    assert b"".join(snapshots.read(7)) == payload
    assert max(map(len, snapshots.read(7))) <= 256 * 1024
    again = opened(tmp_path)
    again.start_from(snapshot(7))
    assert again.latest() == info


def test_the_twin_in_memory_writes_the_same_bytes(tmp_path: Path) -> None:
    disk, memory = opened(tmp_path), MemorySnapshots()
    take_snapshot(disk, 7, b"the same")
    take_snapshot(memory, 7, b"the same")
    assert disk.latest() == memory.latest()
    assert disk.chunk(7, 0, 10_000) == memory.files[7]


def test_an_empty_payload_is_a_snapshot_too(tmp_path: Path) -> None:
    snapshots = opened(tmp_path)
    take_snapshot(snapshots, 7, b"")
    assert b"".join(snapshots.read(7)) == b""


def test_a_snapshot_does_not_exist_before_its_commit(tmp_path: Path) -> None:
    snapshots = opened(tmp_path)
    writer = snapshots.create(snapshot(7))
    writer.write(b"x" * 9_000_000)
    assert snapshots.latest() is None
    assert names(tmp_path) == [name(7, "writing")]
    writer.abort()
    assert names(tmp_path) == []


def test_a_snapshot_that_a_crash_left_half_written_is_removed_at_start(tmp_path: Path) -> None:
    async def act(disk: Disk) -> None:
        await disk.save(1, *entries(1, 3))

    run(tmp_path, act)
    (tmp_path / "snapshots" / name(3, "writing")).write_bytes(b"half")
    assert load(tmp_path).snapshot is None
    assert names(tmp_path) == []


def test_a_snapshot_is_synced_before_it_is_renamed_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshots = opened(tmp_path)
    calls: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def recorded_fsync(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        calls.append(
            f"fsync {Path(path).name} {os.fstat(descriptor).st_size if not Path(path).is_dir() else ''}".strip()
        )
        fsync(descriptor)

    def recorded_rename(self: Path, target: Path) -> Path:
        calls.append(f"rename {self.name} {target.name}")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "rename", recorded_rename)
    take_snapshot(snapshots, 7)
    info = snapshots.latest()
    assert info is not None
    own = [f"fsync {name(7, 'writing')} {info.size_bytes}", f"rename {name(7, 'writing')} {name(7)}", "fsync snapshots"]
    assert calls == own
    calls.clear()
    theirs = MemorySnapshots()
    take_snapshot(theirs, 9)
    send(theirs, snapshots, snapshot(9))
    part = f"{9:020d}-{theirs.kept()[0].sha256[:16]}.part"
    assert calls == [f"fsync {part} {theirs.kept()[0].size_bytes}", f"rename {part} {name(9)}", "fsync snapshots"]


def test_two_are_kept_and_a_reader_of_a_third_can_finish(tmp_path: Path) -> None:
    snapshots = opened(tmp_path)
    take_snapshot(snapshots, 1, b"x" * 1_000_000)
    reading = snapshots.read(1)
    first = next(iter(reading))
    for last_index in (2, 3, 4):
        take_snapshot(snapshots, last_index)
    assert names(tmp_path) == [name(3), name(4)]
    assert [info.snapshot.last_index for info in snapshots.kept()] == [4, 3]
    assert first + b"".join(reading) == b"x" * 1_000_000


def test_a_snapshot_taken_again_at_the_same_index_replaces_the_first(tmp_path: Path) -> None:
    snapshots = opened(tmp_path)
    take_snapshot(snapshots, 5, b"one")
    take_snapshot(snapshots, 5, b"two")
    assert b"".join(snapshots.read(5)) == b"two"
    assert len(snapshots.kept()) == 1


@pytest.mark.parametrize("offset", [0, 5, 9, 14, 40, 100, -33, -32, -1])
def test_a_flipped_bit_is_noticed_by_whoever_reads(tmp_path: Path, offset: int) -> None:
    snapshots = opened(tmp_path)
    take_snapshot(snapshots, 7, bytes(range(256)))
    damage(Path(snapshots.path(7)), offset)
    with pytest.raises(StorageCorruptError):
        b"".join(snapshots.read(7))


@pytest.mark.parametrize("size", [0, 4, 11, 20, 90, 300])
def test_a_file_that_is_too_short_or_too_long_is_noticed(tmp_path: Path, size: int) -> None:
    snapshots = opened(tmp_path)
    take_snapshot(snapshots, 7, bytes(range(256)))
    path = Path(snapshots.path(7))
    data = path.read_bytes()
    for changed in (data[:size], data + bytes(size + 1)):
        path.write_bytes(changed)
        with pytest.raises(StorageCorruptError):
            b"".join(snapshots.read(7))


def test_a_snapshot_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    snapshots = opened(tmp_path)
    with pytest.raises(StorageCorruptError, match="no snapshot at 7"):
        snapshots.chunk(7, 0, 1)
    with pytest.raises(StorageCorruptError, match="no snapshot at 7"):
        list(snapshots.read(7))


# --- Receiving --------------------------------------------------------------------------------------------------------


def test_what_has_arrived_survives_a_restart(tmp_path: Path) -> None:
    theirs = MemorySnapshots()
    take_snapshot(theirs, 9, os.urandom(100_000))
    info = theirs.kept()[0]
    first = opened(tmp_path).receive(snapshot(9), info.sha256)
    first.write(theirs.chunk(9, 0, 30_000))
    first.write(theirs.chunk(9, 30_000, 10_000))
    snapshots = opened(tmp_path)
    second = snapshots.receive(snapshot(9), info.sha256)
    assert second.offset_bytes == 40_000
    second.write(theirs.chunk(9, 40_000, 1_000_000))
    assert second.commit(info.sha256) == info
    assert b"".join(snapshots.read(9)) == b"".join(theirs.read(9))
    assert names(tmp_path) == [name(9)]


def test_a_part_of_another_file_is_not_resumed(tmp_path: Path) -> None:
    snapshots = opened(tmp_path)
    snapshots.receive(snapshot(9), "a" * 64).write(b"x" * 100)
    assert snapshots.receive(snapshot(9), "a" * 64).offset_bytes == 100
    assert snapshots.receive(snapshot(9), "b" * 64).offset_bytes == 0
    assert snapshots.receive(snapshot(10), "a" * 64).offset_bytes == 0
    assert names(tmp_path) == []


def test_a_copy_is_read_and_never_taken_for_a_snapshot_of_this_log(tmp_path: Path) -> None:
    snapshots, theirs = opened(tmp_path), MemorySnapshots()
    take_snapshot(snapshots, 5)
    take_snapshot(theirs, 9, payload := os.urandom(300_000))
    copy = snapshots.copy(9)
    copy.write(theirs.chunk(9, 0, 100_000))
    copy.write(theirs.chunk(9, 100_000, 1_000_000))
    assert copy.describe() == snapshot(9)
    assert b"".join(copy.read()) == payload
    again = opened(tmp_path)
    assert names(tmp_path) == [name(5)], "it does not outlast the process"
    again.start_from(snapshot(9))
    assert [info.snapshot for info in again.kept()] == [snapshot(5)]


def test_a_copy_that_is_damaged_removed_or_replaced_is_not_read(tmp_path: Path) -> None:
    snapshots, theirs = opened(tmp_path), MemorySnapshots()
    take_snapshot(theirs, 9, bytes(300_000))
    copy = snapshots.copy(9)
    copy.write(theirs.chunk(9, 0, 1_000_000))
    [path] = (tmp_path / "snapshots").iterdir()
    damage(path)
    with pytest.raises(StorageCorruptError, match="hash"):
        list(copy.read())
    snapshots.copy(10).write(b"x")
    assert names(tmp_path) == [name(10, "snapshot").replace(".snapshot", "-copy.writing")]
    with pytest.raises(StorageError, match="cannot read"):
        copy.describe()
    copy.abort()


@pytest.mark.parametrize("case", ["bit", "short", "hash", "index", "term"])
def test_what_arrives_must_be_what_was_announced(tmp_path: Path, case: str) -> None:
    snapshots, theirs = opened(tmp_path), MemorySnapshots()
    take_snapshot(theirs, 9, os.urandom(1000), last_term=2)
    info = theirs.kept()[0]
    data = bytearray(theirs.files[9])
    announced: Snapshot = snapshot(9, 2)
    sha256 = info.sha256
    match case:
        case "bit":
            data[500] ^= 1
        case "short":
            del data[-1]
        case "hash":
            sha256 = "0" * 64
        case "index":
            announced = snapshot(8, 2)
        case "term":
            announced = snapshot(9, 3)
    receiver = snapshots.receive(announced, sha256)
    receiver.write(bytes(data))
    with pytest.raises(SnapshotFailedError):
        receiver.commit(sha256)
    assert names(tmp_path) == []
    assert snapshots.receive(announced, sha256).offset_bytes == 0


def test_a_receive_without_room_gives_the_room_back_and_spares_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshots = opened(tmp_path)
    receiver = snapshots.receive(snapshot(9))
    receiver.write(b"x" * 1000)

    def full(descriptor: int, data: memoryview, offset: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(SnapshotFailedError, match="No space left on device"):
            receiver.write(b"x" * 1000)
    assert names(tmp_path) == []
    assert receiver.offset_bytes == 0


def test_a_short_write_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshots, theirs = opened(tmp_path), MemorySnapshots()
    take_snapshot(theirs, 9, os.urandom(1000))
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, offset: pwrite(descriptor, data[:77], offset))
    send(theirs, snapshots, snapshot(9))
    assert b"".join(snapshots.read(9)) == b"".join(theirs.read(9))


def test_our_own_snapshot_without_room_spares_the_node_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshots = opened(tmp_path)
    take_snapshot(snapshots, 5)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writer = snapshots.create(snapshot(9))
    writer.write(b"x")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(SnapshotFailedError, match="No space left on device"):
            writer.commit()
    assert names(tmp_path) == [name(5)]
    latest = snapshots.latest()
    assert latest is not None
    assert latest.snapshot == snapshot(5)


@pytest.mark.parametrize("which", ["ours", "theirs"])
@pytest.mark.parametrize("nth", [1, 2])
def test_a_snapshot_without_a_descriptor_spares_the_node_and_a_later_one_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str, nth: int
) -> None:
    snapshots, theirs = opened(tmp_path), MemorySnapshots()
    take_snapshot(theirs, 9)
    take_snapshot(snapshots, 5)
    calls = []
    really = os.open

    def full(path: str | os.PathLike[str], *arguments: int) -> int:
        calls.append(path)
        if len(calls) == nth:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return really(path, *arguments)

    def make() -> None:
        if which == "ours":
            take_snapshot(snapshots, 9)
        else:
            send(theirs, snapshots, snapshot(9))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", full)
        with pytest.raises(SnapshotFailedError, match="Too many open files"):
            make()
    assert len(calls) == nth
    assert name(9) not in names(tmp_path)
    make()
    assert name(9) in names(tmp_path)


def fails(*_: object) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize("which", ["ours", "theirs"])
@pytest.mark.parametrize("what", ["the file", "its name"])
def test_a_disk_that_fails_under_a_snapshot_ends_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str, what: str
) -> None:
    """Only a lack of room is survived; a sync that failed is not tried again, not even by the next snapshot."""
    module, function = (os, "fsync") if what == "the file" else (snapshots_module, "sync_folder")
    theirs = MemorySnapshots()
    take_snapshot(theirs, 9)

    async def main() -> None:
        async with Disk(tmp_path) as disk:
            await disk.save(1, *entries(1, 9))
            with monkeypatch.context() as patch:
                patch.setattr(module, function, fails)
                with pytest.raises(StorageError, match="Input/output error") as caught:
                    if which == "ours":
                        take_snapshot(disk.storage.snapshots, 9)
                    else:
                        send(theirs, disk.storage.snapshots, snapshot(9))
            assert not isinstance(caught.value, SnapshotFailedError)
            async with asyncio.timeout(30):
                await disk.failed.wait()
            assert [str(error) for error in disk.failures] == [f"{tmp_path}: {caught.value}"]

    asyncio.run(main())
    assert load(tmp_path).hard_state.current_term == 1


def test_a_disk_that_fails_under_a_snapshot_before_the_first_save_ends_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is met on a thread, and the storage had not seen its event loop yet: it went unheard."""

    async def prepare() -> None:
        async with Disk(tmp_path) as disk:
            await disk.save(1, *entries(1, 9))

    async def main() -> None:
        async with Disk(tmp_path) as disk:
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", fails)
                with pytest.raises(StorageError, match="Input/output error") as caught:
                    await asyncio.to_thread(take_snapshot, disk.storage.snapshots, 9)
            async with asyncio.timeout(10):
                await disk.failed.wait()
            assert [str(error) for error in disk.failures] == [f"{tmp_path}: {caught.value}"]

    asyncio.run(prepare())
    asyncio.run(main())


def test_a_snapshot_that_is_replaced_stays_whatever_becomes_of_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log needs the one or the other: a folder that cannot be synced is no reason to remove both."""
    broken: list[StorageError] = []
    snapshots = opened(tmp_path, broken.append)
    take_snapshot(snapshots, 5, b"one")
    with monkeypatch.context() as patch:
        patch.setattr(snapshots_module, "sync_folder", fails)
        with pytest.raises(StorageError, match="cannot make a snapshot durable"):
            take_snapshot(snapshots, 5, b"two")
    assert len(broken) == 1
    assert b"".join(snapshots.read(5)) == b"two"


@pytest.mark.parametrize("sha256", ["../../../../etc/passwd", "G" * 64, "A" * 64])
def test_a_peer_does_not_name_our_files(tmp_path: Path, sha256: str) -> None:
    with pytest.raises(SnapshotFailedError, match="announced an invalid hash"):
        opened(tmp_path).receive(snapshot(9), sha256)


def test_a_part_that_was_removed_meanwhile_is_a_failed_fetch_and_no_broken_disk(tmp_path: Path) -> None:
    snapshots, theirs = opened(tmp_path), MemorySnapshots()
    take_snapshot(theirs, 9)
    info = theirs.kept()[0]
    arriving = snapshots.receive(snapshot(9), info.sha256)
    arriving.write(theirs.files[9])
    snapshots.receive(snapshot(10), "ab")
    with pytest.raises(SnapshotFailedError, match="removed"):
        arriving.commit(info.sha256)
    assert snapshots.latest() is None


def test_the_loop_does_not_wait_for_a_folder_that_is_being_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is asked on the event loop is answered while a thread makes a snapshot durable on a slow disk."""
    snapshots = opened(tmp_path)
    take_snapshot(snapshots, 5)
    syncing, go_on = threading.Event(), threading.Event()

    def slow(folder: Path, *_: int) -> None:
        syncing.set()
        assert go_on.wait(60)
        sync_folder(folder)

    monkeypatch.setattr(snapshots_module, "sync_folder", slow)
    thread = threading.Thread(target=take_snapshot, args=(snapshots, 9))

    def ask() -> None:
        snapshots.kept()
        snapshots.latest()
        snapshots.begin_adoption(5)

    asking = threading.Thread(target=ask, daemon=True)
    thread.start()
    assert syncing.wait(60)
    asking.start()
    asking.join(10)
    answered = not asking.is_alive()
    go_on.set()
    thread.join()
    assert answered
    assert [info.snapshot.last_index for info in snapshots.kept()] == [9, 5]


def test_a_header_that_is_nested_too_deep_is_damage() -> None:
    """A peer's file is decoded before its hash is known."""
    described = bytearray(encode_header(snapshot(7))[len(MAGIC) + 4 :])
    described[0] += 1  # one field more, which is skipped: an array in an array in an array
    body = bytes(described) + b"\x91" * 500_000 + b"\x90"
    with pytest.raises(StorageCorruptError, match="header of a snapshot file is damaged"):
        read_header(io.BytesIO(MAGIC + len(body).to_bytes(4, "little") + body))


def test_written_pages_are_handed_to_the_kernel_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the fsync at the end does not hold up the log: after 20 MB, at most 4 MiB may be waiting."""
    begun: list[int] = []
    monkeypatch.setattr(snapshots_module, "_begin_write_back", lambda fd: begun.append(os.fstat(fd).st_size))
    writer = opened(tmp_path).create(snapshot(7))
    for _ in range(20):
        writer.write(bytes(1_000_000))
    writer.abort()
    assert len(begun) == 4
    assert all(0 < after - before <= 5_250_000 for before, after in zip([0, *begun], begun, strict=False))


# --- Falling back -----------------------------------------------------------------------------------------------------


def two_snapshots(folder: Path, compact: int) -> None:
    async def act(disk: Disk) -> None:
        for index in range(1, 10):
            await disk.save(1, *entries(index, index))
        take_snapshot(disk.storage.snapshots, 3)
        take_snapshot(disk.storage.snapshots, 6)
        await disk.compact(compact)

    run(folder, act)


def test_a_damaged_snapshot_gives_way_to_the_older(tmp_path: Path) -> None:
    two_snapshots(tmp_path, compact=4)
    damage(tmp_path / "snapshots" / name(6))
    loaded = load(tmp_path)
    assert (loaded.snapshot, loaded.entries) == (snapshot(3), entries(4, 9))
    assert names(tmp_path) == [name(3), name(6, "damaged")]
    assert load(tmp_path) == loaded


@pytest.mark.parametrize("offset", [3, 15, -35])
def test_where_the_log_no_longer_reaches_the_older_snapshot_the_node_stops(tmp_path: Path, offset: int) -> None:
    two_snapshots(tmp_path, compact=6)
    damage(tmp_path / "snapshots" / name(6), offset)
    for _ in range(2):
        with pytest.raises(StorageCorruptError) as caught:
            load(tmp_path)
        assert str(caught.value) == (
            "the log begins at entry 6, and no valid snapshot covers what came before; damaged: 6; "
            "if the other members are a healthy majority, remove the data folder to let the node rejoin as a new "
            "member; if there are none, keep it and restore a backup"
        )


def test_without_its_snapshots_a_compacted_log_is_refused(tmp_path: Path) -> None:
    two_snapshots(tmp_path, compact=4)
    for path in (tmp_path / "snapshots").iterdir():
        path.unlink()
    with pytest.raises(StorageCorruptError, match="begins at entry 4, and no valid snapshot covers"):
        load(tmp_path)


def test_a_log_that_begins_at_its_first_entry_needs_no_snapshot(tmp_path: Path) -> None:
    two_snapshots(tmp_path, compact=1)
    for last_index in (3, 6):
        damage(tmp_path / "snapshots" / name(last_index))
    loaded = load(tmp_path)
    assert (loaded.snapshot, loaded.entries) == (None, entries(1, 9))
    assert names(tmp_path) == [name(3, "damaged")], "one damaged file is left for whoever wants to know why"


def test_a_snapshot_under_a_wrong_name_is_not_used(tmp_path: Path) -> None:
    two_snapshots(tmp_path, compact=4)
    (tmp_path / "snapshots" / name(6)).rename(tmp_path / "snapshots" / name(8))
    assert load(tmp_path).snapshot == snapshot(3)


def test_an_own_snapshot_that_is_done_late_does_not_take_the_place_of_a_newer_one(tmp_path: Path) -> None:
    """A snapshot was adopted while ours, of an older state, was being written."""
    snapshots, theirs = opened(tmp_path), MemorySnapshots()
    writing = snapshots.create(snapshot(5))
    take_snapshot(theirs, 9)
    send(theirs, snapshots, snapshot(9))
    snapshots.begin_adoption(9)
    snapshots.adopt_index(9)
    writing.commit()
    assert [info.snapshot.last_index for info in snapshots.kept()] == [9, 5]


def test_what_a_save_is_about_to_adopt_stays_whatever_arrives_meanwhile(tmp_path: Path) -> None:
    snapshots, theirs = opened(tmp_path), MemorySnapshots()
    for last_index in (10, 20, 30, 40):
        take_snapshot(theirs, last_index)
        send(theirs, snapshots, snapshot(last_index))
        if last_index == 10:
            snapshots.begin_adoption(10)
        if last_index == 20:
            snapshots.expect(20)
    assert names(tmp_path) == [name(10), name(20), name(40)], "in the save in flight, in the next one, the newest"
    snapshots.adopt_index(10)
    assert [info.snapshot.last_index for info in snapshots.kept()] == [10]


def test_a_length_that_makes_no_sense_is_not_read() -> None:
    class Stream(io.BytesIO):
        largest = 0

        def read(self, size: int | None = -1, /) -> bytes:
            self.largest = max(self.largest, size or 0)
            return super().read(size)

    stream = Stream(MAGIC + b"\xff\xff\xff\xff" + bytes(100))
    with pytest.raises(StorageCorruptError):
        read_header(stream)
    assert stream.largest < 100


def test_a_snapshot_of_another_format_is_refused() -> None:
    header = bytearray(encode_header(snapshot(7)))
    assert header[len(MAGIC) + 5] == FORMAT
    header[len(MAGIC) + 5] = FORMAT + 1
    with pytest.raises(StorageCorruptError, match=f"of format {FORMAT + 1}; this version supports {FORMAT}"):
        read_header(io.BytesIO(bytes(header)))


def test_a_stale_backup_says_so_under_a_hash_of_its_own_and_a_node_skips_the_mark(tmp_path: Path) -> None:
    snapshots = opened(tmp_path)
    take_snapshot(snapshots, 5, b"state")
    with snapshots.stream(5) as stream:
        size_bytes = os.fstat(stream.fileno()).st_size
        expected_bytes = snapshot_format.stale_size_bytes(stream, size_bytes)
        marked = b"".join(snapshot_format.marked_stale(stream, size_bytes))
        stream.seek(0)
        original = stream.read()
    assert len(marked) == expected_bytes
    found, sha256 = snapshot_format.verify(io.BytesIO(marked), len(marked))
    assert (found, sha256) == (snapshot(5), marked[-32:].hex())
    for data, is_stale in ((marked, True), (original, False)):
        _, header = snapshot_format.read_header(io.BytesIO(data))
        assert snapshot_format.is_stale(header) is is_stale


def test_a_damaged_snapshot_does_not_become_a_stale_backup(tmp_path: Path) -> None:
    snapshots = opened(tmp_path)
    take_snapshot(snapshots, 5, b"state")
    data = bytearray(Path(snapshots.path(5)).read_bytes())
    data[-35] ^= 1
    with pytest.raises(StorageCorruptError, match="hash does not match"):
        list(snapshot_format.marked_stale(io.BytesIO(bytes(data)), len(data)))


@pytest.mark.parametrize("stale", [False, True])
def test_programs_that_read_three_fields_of_a_snapshot_read_the_files_of_this_version(stale: bool) -> None:
    """``kv`` of every version checks the backup that it saved."""
    whole = Snapshot(7, 3, Configuration((Member("n1@00", True),)), ((1, 2), (5, 3)))
    header = encode_header(whole, is_stale=stale)
    description = msgspec.msgpack.decode(header[len(MAGIC) + 4 :])
    assert description[:2] == [FORMAT, msgspec.msgpack.decode(msgspec.msgpack.encode(whole))[:3]]
    assert read_header(io.BytesIO(header)) == (whole, header)
    assert snapshot_format.is_stale(header) is stale
