"""The simulated disk: what is loaded went through bytes, and a loss of power may tear the last of them."""

from __future__ import annotations

from random import Random

import pytest
from sim.disk import SimDisk

from kvorum.errors import SnapshotFailedError, StorageCorruptError
from kvorum.raft.messages import Configuration, Entry, EntryKind, HardState, Member, Save, Snapshot


def entries(first: int, last: int) -> tuple[Entry, ...]:
    return tuple(Entry(index, 1, EntryKind.COMMAND, b"%d" % index) for index in range(first, last + 1))


def saved(*ranges: tuple[int, int]) -> SimDisk:
    disk = SimDisk()
    for number, (first, last) in enumerate(ranges, start=1):
        disk.save(Save(number, HardState(1, "n1"), entries(first, last)), lambda: None)
        disk.complete()
    return disk


def test_what_was_saved_is_loaded() -> None:
    loaded = saved((1, 3), (4, 5), (4, 7)).load()

    assert loaded.hard_state == HardState(1, "n1")
    assert loaded.entries == entries(1, 7)


@pytest.mark.parametrize("bytes_written", range(0, 60, 3))
def test_a_torn_save_is_lost_and_nothing_else_is(bytes_written: int) -> None:
    disk = saved((1, 3))
    disk.save(Save(2, HardState(2, "n2"), entries(4, 5)), lambda: None)

    assert disk.tear(bytes_written)
    disk.crash()

    assert disk.load().entries == entries(1, 3)
    disk.save(Save(3, HardState(2, "n3"), entries(4, 4)), lambda: None)
    disk.complete()
    assert disk.load().hard_state == HardState(2, "n3")


def test_damage_that_is_not_at_the_end_is_not_taken_for_a_torn_tail() -> None:
    """Bug B33."""
    disk = saved((1, 3), (4, 5))
    disk._values[0] = disk._values[0][:-1] + bytes([disk._values[0][-1] ^ 1])

    with pytest.raises(StorageCorruptError):
        disk.load()


def test_a_row_that_is_missing_breaks_the_chain() -> None:
    disk = saved((1, 3), (4, 5), (6, 6))
    del disk._values[1]

    with pytest.raises(StorageCorruptError):
        disk.load()


def test_compaction_leaves_what_follows_the_snapshot() -> None:
    disk = saved((1, 3), (4, 5), (6, 8))
    snapshot = Snapshot(5, 1, Configuration((Member("n1", True),)))
    disk.snapshots.create(snapshot).commit()
    disk.compact(6, lambda: None)
    disk.complete()

    loaded = disk.load()

    assert len(disk._values) == 1
    assert (loaded.snapshot, loaded.entries) == (snapshot, entries(6, 8))


def test_the_unsynced_end_of_an_arriving_file_may_be_lost_or_zeros_and_is_then_found() -> None:
    source = SimDisk()
    snapshot = Snapshot(5, 1, Configuration((Member("n1", True),)))
    writer = source.snapshots.create(snapshot)
    writer.write(b"state" * 20)
    info = writer.commit()
    data = source.snapshots.chunk(5, 0, info.size_bytes)
    outcomes = set()
    for seed in range(40):
        disk = SimDisk()
        disk.snapshots.receive(snapshot, info.sha256).write(data[:90])
        disk.lose_unsynced_parts(Random(seed))
        receiver = disk.snapshots.receive(snapshot, info.sha256)
        receiver.write(data[receiver.offset_bytes :])
        try:
            receiver.commit(info.sha256)
            assert not disk.has_damaged_part
            outcomes.add("whole")
        except SnapshotFailedError:
            assert disk.has_damaged_part
            outcomes.add("damaged")
    assert outcomes == {"whole", "damaged"}
