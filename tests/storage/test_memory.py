"""The twin in memory: what the simulator relies on."""

from __future__ import annotations

import pytest

from kvorum.errors import (
    InvariantViolatedError,
    SnapshotFailedError,
    StorageCorruptError,
    StorageError,
    StorageForeignError,
)
from kvorum.raft.messages import Configuration, Entry, EntryKind, HardState, Save, Snapshot
from kvorum.storage.interface import Identity, Storage
from kvorum.storage.memory import Compaction, MemoryStorage


def entries(first_index: int, last_index: int, term: int = 1) -> tuple[Entry, ...]:
    return tuple(Entry(i, term, EntryKind.COMMAND, b"%d/%d" % (i, term)) for i in range(first_index, last_index + 1))


def snapshot(last_index: int, last_term: int = 1) -> Snapshot:
    return Snapshot(last_index, last_term, Configuration())


def take_snapshot(storage: MemoryStorage, last_index: int, payload: bytes = b"state", last_term: int = 1) -> None:
    writer = storage.snapshots.create(snapshot(last_index, last_term))
    writer.write(payload)
    writer.commit()


def never() -> None:
    raise AssertionError("answered")


def test_memory_implements_the_interface() -> None:
    storage: Storage = MemoryStorage()
    assert storage.load().entries == ()


def test_a_save_is_durable_only_when_completed() -> None:
    storage = MemoryStorage()
    done: list[int] = []
    save = Save(1, HardState(1, "a"), entries(1, 3))
    storage.save(save, lambda: done.append(1))
    assert [list(storage.pending), done] == [[save], []]
    storage.complete()
    assert [list(storage.pending), done] == [[], [1]]
    loaded = storage.load()
    assert (loaded.hard_state, loaded.entries) == (HardState(1, "a"), entries(1, 3))


def test_a_crash_loses_what_is_pending_or_keeps_it_unanswered() -> None:
    storage = MemoryStorage()
    storage.save(Save(1, HardState(1, "a")), never)
    storage.crash()
    assert storage.load().hard_state == HardState()
    storage.save(Save(1, HardState(2, "b")), never)
    storage.crash(durable=1)
    assert storage.load().hard_state == HardState(2, "b")


def test_only_one_save_is_in_flight() -> None:
    storage = MemoryStorage()
    storage.save(Save(1, HardState(1)), never)
    with pytest.raises(InvariantViolatedError):
        storage.save(Save(2, HardState(1)), never)


def test_entries_replace_what_conflicts() -> None:
    storage = MemoryStorage(automatic=True)
    storage.save(Save(1, HardState(1), entries(1, 5)), lambda: None)
    storage.save(Save(2, HardState(2), entries(3, 4, term=2)), lambda: None)
    assert storage.load().entries == entries(1, 2) + entries(3, 4, term=2)


def test_a_hole_in_the_log_is_refused() -> None:
    storage = MemoryStorage(automatic=True)
    storage.save(Save(1, HardState(1), entries(1, 5)), lambda: None)
    with pytest.raises(StorageCorruptError):
        storage.save(Save(2, HardState(1), entries(7, 8)), lambda: None)


def test_an_adopted_snapshot_replaces_the_whole_log() -> None:
    storage = MemoryStorage(automatic=True)
    storage.save(Save(1, HardState(1), entries(1, 5)), lambda: None)
    sender = MemoryStorage(automatic=True)
    take_snapshot(sender, 3, b"theirs", 2)
    info = sender.snapshots.latest()
    assert info is not None
    receiver = storage.snapshots.receive(snapshot(3, 2), info.sha256)
    receiver.write(sender.snapshots.chunk(3, 0, 10))
    receiver = storage.snapshots.receive(snapshot(3, 2), info.sha256)
    assert receiver.offset_bytes == 10
    receiver.write(sender.snapshots.chunk(3, 10, info.size_bytes))
    assert receiver.commit(info.sha256) == info
    assert storage.snapshots.latest() is None, "received, but no save has adopted it"
    storage.save(Save(2, HardState(4), snapshot=snapshot(3, 2), entries=entries(4, 4, term=4)), lambda: None)
    loaded = storage.load()
    assert (loaded.snapshot, loaded.entries) == (snapshot(3, 2), entries(4, 4, term=4))
    assert b"".join(storage.snapshots.read(3)) == b"theirs"


def test_a_restart_forgets_a_snapshot_that_no_save_adopted() -> None:
    storage, sender = MemoryStorage(automatic=True), MemoryStorage(automatic=True)
    storage.save(Save(1, HardState(1), entries(1, 5)), lambda: None)
    take_snapshot(sender, 3, b"theirs", 2)
    info = sender.snapshots.kept()[0]
    receiver = storage.snapshots.receive(snapshot(3, 2), info.sha256)
    receiver.write(sender.snapshots.chunk(3, 0, info.size_bytes))
    receiver.commit(info.sha256)
    assert (storage.load().snapshot, storage.snapshots.files) == (None, {})


def test_a_snapshot_that_is_not_the_announced_one_is_refused() -> None:
    storage = MemoryStorage()
    sender = MemoryStorage()
    take_snapshot(sender, 3)
    receiver = storage.snapshots.receive(snapshot(3))
    receiver.write(sender.snapshots.chunk(3, 0, 10_000))
    with pytest.raises(SnapshotFailedError):
        receiver.commit("0" * 64)
    assert storage.snapshots.receive(snapshot(3)).offset_bytes == 0


def test_compaction_forgets_what_a_snapshot_covers_and_nothing_else() -> None:
    storage = MemoryStorage()
    storage.save(Save(1, HardState(1), entries(1, 9)), lambda: None)
    storage.complete()
    with pytest.raises(InvariantViolatedError):
        storage.compact(2, never)
    take_snapshot(storage, 5)
    storage.compact(4, lambda: None)
    assert storage.pending == (Compaction(4),)
    storage.complete()
    loaded = storage.load()
    assert (loaded.snapshot, loaded.entries) == (snapshot(5), entries(6, 9))


def test_a_damaged_snapshot_gives_way_to_the_older_if_the_log_reaches_back() -> None:
    storage = MemoryStorage(automatic=True)
    storage.save(Save(1, HardState(1), entries(1, 9)), lambda: None)
    take_snapshot(storage, 3)
    take_snapshot(storage, 6)
    storage.compact(4, lambda: None)
    storage.snapshots.files[6] = storage.snapshots.files[6][:-1] + b"?"
    loaded = storage.load()
    assert (loaded.snapshot, loaded.entries) == (snapshot(3), entries(4, 9))
    storage.snapshots.files[3] = b"?"
    with pytest.raises(StorageCorruptError, match="begins at entry 4, and no valid snapshot covers"):
        storage.load()


def test_two_snapshots_are_kept() -> None:
    storage = MemoryStorage(automatic=True)
    storage.save(Save(1, HardState(1), entries(1, 9)), lambda: None)
    for last_index in (2, 4, 6):
        take_snapshot(storage, last_index)
    assert [info.snapshot.last_index for info in storage.snapshots.kept()] == [6, 4]
    assert sorted(storage.snapshots.files) == [4, 6]


def test_the_identity_of_another_node_is_not_overwritten() -> None:
    storage = MemoryStorage()
    storage.write_identity(Identity("n1", "0" * 16))
    for other in (Identity("n1", "1" * 16), Identity("n1", "1" * 16, "c" * 32), Identity("n2", "0" * 16)):
        with pytest.raises(StorageForeignError):
            storage.write_identity(other)
    storage.write_identity(Identity("n1", "0" * 16, "c" * 32))
    for other in (Identity("n2", "0" * 16, "c" * 32), Identity("n1", "1" * 16), Identity("n1", "0" * 16, "d" * 32)):
        with pytest.raises(StorageForeignError):
            storage.write_identity(other)
    assert storage.load().identity == Identity("n1", "0" * 16, "c" * 32)


def test_after_a_failure_nothing_is_answered() -> None:
    failures: list[StorageError] = []
    storage = MemoryStorage(failures.append)
    storage.save(Save(1, HardState(1)), never)
    storage.fail(StorageError("disk on fire"))
    storage.save(Save(2, HardState(1)), never)
    assert storage.pending == ()
    assert [str(failure) for failure in failures] == ["disk on fire"]
