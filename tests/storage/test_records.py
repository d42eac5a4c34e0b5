"""How records fold into a log, and which snapshots that log goes on from."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import pytest
from storage.support import IDENTITY, entries, snapshot

from kvorum.errors import StorageCorruptError
from kvorum.raft.log import OnDisk, entry_bytes
from kvorum.raft.messages import Entry, EntryKind, HardState, PeerMark, Save, Snapshot
from kvorum.storage.interface import Identity, Loaded
from kvorum.storage.records import (
    LogState,
    Record,
    decode_identity,
    decode_record,
    encode_identity,
    encode_record,
    make_record,
    recover,
)


def log_of(*saves: Save, first_seq: int = 1, bytes_max: int | None = None) -> LogState:
    """Fold the saves as records that begin at ``first_seq``: those before it were compacted."""
    state, last_index = LogState(bytes_max), 0
    for seq, save in enumerate(saves, 1):
        record = make_record(seq, 0, last_index, save)
        last_index = record.last_index
        if seq >= first_seq:
            state.apply(record)
    return state


def save(term: int, *parts: Entry, base: Snapshot | None = None) -> Save:
    return Save(1, HardState(term, "n1@00"), parts, base)


@dataclass(frozen=True)
class Case:
    state: LogState
    fits: tuple[Snapshot, ...]
    refused: tuple[Snapshot, ...]


CASES = {
    "a whole log": Case(
        log_of(save(1, *entries(1, 9))),
        (snapshot(1), snapshot(5), snapshot(9)),
        (snapshot(10), snapshot(5, 2), snapshot(9, 2)),
    ),
    "a log whose first part is compacted": Case(
        log_of(save(1, *entries(1, 4)), save(1, *entries(5, 9)), first_seq=2),
        (snapshot(4), snapshot(5), snapshot(9)),
        (snapshot(3), snapshot(10), snapshot(7, 2)),
    ),
    "a log of nothing but a vote": Case(
        log_of(save(1, *entries(1, 9)), save(2), first_seq=2),
        (snapshot(9),),
        (snapshot(8), snapshot(10)),
    ),
    "an adopted snapshot": Case(
        log_of(save(1, *entries(1, 9)), save(3, base=snapshot(5, 3))),
        (snapshot(5, 3),),
        (snapshot(5), snapshot(4), snapshot(9), snapshot(6, 3)),
    ),
    "an adopted snapshot and entries behind it": Case(
        log_of(save(1, *entries(1, 9)), save(3, *entries(6, 8, 3), base=snapshot(5, 3))),
        (snapshot(5, 3), snapshot(6, 3), snapshot(8, 3)),
        (snapshot(5), snapshot(4), snapshot(9), snapshot(6, 2)),
    ),
    "an empty log": Case(LogState(), (), (snapshot(1),)),
}


@pytest.mark.parametrize("bytes_max", [None, 0, 100], ids=["whole", "nothing in memory", "little in memory"])
@pytest.mark.parametrize("case", CASES)
def test_a_log_goes_on_from_what_it_adopted_or_from_what_was_taken_of_it(case: str, bytes_max: int | None) -> None:
    state = CASES[case].state.bounded(bytes_max)
    assert [found for found in CASES[case].fits if not state.holds(found)] == []
    assert [found for found in CASES[case].refused if state.holds(found)] == []


def test_the_newest_snapshot_that_fits_is_used() -> None:
    state = log_of(save(1, *entries(1, 9)))
    loaded = recover(IDENTITY, state, iter((snapshot(12), snapshot(7, 5), snapshot(6), snapshot(2))))
    assert loaded == Loaded(IDENTITY, HardState(1, "n1@00"), snapshot(6), entries(7, 9))


def test_a_start_holds_the_end_of_the_log_and_knows_the_terms_and_configurations_before_it() -> None:
    first = Entry(1, 1, EntryKind.CONFIGURATION, b"members")
    later = [Entry(index, 2, EntryKind.COMMAND, b"x" * 100) for index in range(5, 9)]
    state = log_of(save(1, first, *entries(2, 4)), save(2, *later), bytes_max=2 * entry_bytes(later[0]))
    loaded = recover(IDENTITY, state, iter(()))
    assert loaded.entries == tuple(later[2:])
    assert loaded.on_disk == OnDisk(((1, 1), (5, 2)), 6, (first,))

    state = log_of(save(1, first, *entries(2, 4)), save(2, *later), bytes_max=2 * entry_bytes(later[0]))
    loaded = recover(IDENTITY, state, iter((snapshot(3),)))
    assert loaded.on_disk == OnDisk(((4, 1), (5, 2)), 6)


def test_a_later_leaders_entries_replace_some_that_are_not_in_memory() -> None:
    state = log_of(save(1, *entries(1, 8)), save(3, *entries(4, 5, 3)), bytes_max=0)
    assert [state.term(index) for index in range(7)] == [None, 1, 1, 1, 3, 3, None]
    assert state.after(0) == ((), OnDisk(((1, 1), (4, 3)), 5))


def test_entries_that_no_snapshot_covers_are_not_made_up() -> None:
    state = log_of(save(1, *entries(1, 9)), save(2), first_seq=2)
    with pytest.raises(
        StorageCorruptError, match="holds no entries, and no valid snapshot covers what came before; damaged: 9"
    ):
        recover(IDENTITY, state, iter((snapshot(8),)), [9])


@pytest.mark.parametrize(
    "saves",
    [
        (save(1, *entries(2, 3)),),
        (save(1, *entries(1, 3)), save(1, *entries(5, 6))),
        (save(1, base=snapshot(5)), save(1, *entries(7, 8))),
        (save(1, base=snapshot(5)), save(1, *entries(5, 8))),
    ],
    ids=["not from 1", "a hole", "a hole behind a snapshot", "into a snapshot"],
)
def test_records_that_do_not_fit_are_refused(saves: tuple[Save, ...]) -> None:
    with pytest.raises(StorageCorruptError):
        log_of(*saves)


@pytest.mark.parametrize("last_index", [0, 4, 6, 9])
@pytest.mark.parametrize("before", [(), (save(1, *entries(1, 5)),)], ids=["the first row", "a later row"])
def test_a_vote_that_was_written_for_a_log_of_another_length_is_refused(
    before: tuple[Save, ...], last_index: int
) -> None:
    """A row between them is missing: what it held would be lost without notice."""
    state = log_of(*before)
    if last_index == state.last_index:
        last_index += 1
    with pytest.raises(StorageCorruptError, match=f"was written for a log that ends at {last_index}"):
        state.apply(make_record(len(before) + 1, 0, last_index, save(2)))


def test_a_record_and_an_identity_come_back_as_they_were() -> None:
    record = make_record(7, 1234, 5, save(3, *entries(6, 8), base=snapshot(5)))
    assert decode_record(encode_record(record)[0]) == (record, encode_record(record)[1])
    identity = Identity("nö", "0" * 16)
    assert decode_identity(encode_identity(identity)).identity == identity


@pytest.mark.parametrize("data", [b"", b"\0\0\0\0", b"short", bytes(100)])
def test_bytes_that_are_no_record_are_refused(data: bytes) -> None:
    with pytest.raises(StorageCorruptError):
        decode_record(data)
    with pytest.raises(StorageCorruptError):
        decode_identity(data)


MARKS = (PeerMark("n2@1", "5", 1, "n1@00", 3, 1), PeerMark("n3@1", "", 2))


def test_the_last_record_says_what_is_known_of_other_disks_and_committed() -> None:
    """Each record says all of it, so no compaction loses any."""
    saves = [Save(1, HardState(1), tuple(entries(1, 4)), marks=MARKS, commit_index=3)]
    saves.append(Save(2, HardState(2), marks=MARKS[1:], commit_index=4))
    for first_seq, bytes_max in ((1, None), (2, None), (1, 0)):
        state = log_of(*saves, first_seq=first_seq, bytes_max=bytes_max).bounded(bytes_max)
        loaded = recover(IDENTITY, state, [snapshot(4)])
        assert (loaded.marks, loaded.commit_index) == (MARKS[1:], 4)
    loaded = recover(IDENTITY, log_of(saves[0]), [])
    assert (loaded.marks, loaded.commit_index) == (MARKS, 3)


class RecordOfVersion010(msgspec.Struct, frozen=True, array_like=True):
    """What version 0.1.0 reads of a record."""

    seq: int
    prev_crc: int
    term: int
    vote: str | None
    last_index: int
    first_index: int = 0
    entries: tuple[Entry, ...] = ()
    base: tuple[int, int] | None = None


def test_version_0_1_0_reads_a_record_and_is_read_and_what_it_does_not_write_accuses_nobody() -> None:
    record = make_record(1, 0, 0, Save(1, HardState(1, "n1@00"), tuple(entries(1, 4)), marks=MARKS, commit_index=3))
    body = encode_record(record)[0][4:]
    old = msgspec.msgpack.decode(body, type=RecordOfVersion010)
    assert (old.seq, old.term, old.vote, old.last_index, old.entries) == (1, 1, "n1@00", 4, record.entries)
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(old), type=Record)
    assert again == msgspec.structs.replace(record, marks=(), commit_index=0)
