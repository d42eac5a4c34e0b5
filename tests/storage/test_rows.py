"""What compaction may delete, in slices that are bounded in rows and in bytes."""

from __future__ import annotations

from storage.support import entries, snapshot

from kvorum.raft.messages import HardState, Save, Snapshot
from kvorum.storage.records import make_record
from kvorum.storage.verify import Rows


def rows(*saves: tuple[int, int, Snapshot | None]) -> Rows:
    """Return the rows of saves, given as (first, last entry, adopted snapshot), of 100 bytes each."""
    made, end = Rows(), 0
    for seq, (first, last, base) in enumerate(saves, 1):
        record = make_record(seq, 0, end, Save(seq, HardState(1), entries(first, last), base))
        made.add(record, 100)
        end = record.last_index
    return made


def taken(found: Rows, first_index: int, rows_max: int = 1000, bytes_max: int = 1 << 30) -> list[int]:
    return [row.seq for row in found.take(first_index, rows_max, bytes_max)]


def test_a_slice_is_bounded_in_rows() -> None:
    found = rows(*((index, index, None) for index in range(1, 10)))
    assert taken(found, 9, rows_max=3) == [1, 2, 3]
    assert taken(found, 9, rows_max=3) == [4, 5, 6]


def test_a_slice_is_bounded_in_bytes() -> None:
    found = rows(*((index, index, None) for index in range(1, 10)))
    assert taken(found, 9, bytes_max=200) == [1, 2]
    assert taken(found, 9, bytes_max=250) == [3, 4, 5]


def test_rows_are_taken_up_to_the_first_that_is_needed() -> None:
    found = rows(*((index, index, None) for index in range(1, 10)))
    assert taken(found, 4) == [1, 2, 3]
    assert taken(found, 4) == []


def test_the_last_row_stays() -> None:
    found = rows((1, 3, None), (4, 4, None))
    assert taken(found, 100) == [1]
    assert taken(found, 100) == []


def test_rows_that_an_adopted_snapshot_replaced_are_not_needed() -> None:
    found = rows((1, 9, None), (1, 0, snapshot(5)), (6, 6, None))
    assert taken(found, 6) == [1, 2]


def test_of_a_row_that_was_replaced_in_part_the_rest_counts() -> None:
    found = rows((1, 9, None), (5, 5, None), (6, 6, None))
    assert taken(found, 5) == [1]
