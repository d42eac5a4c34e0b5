"""The log in memory: an exact model of what it must do, and hypothesis to compare them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raft.harness import command, commands

from kvorum.errors import CommitsLostError, InvariantViolatedError
from kvorum.raft.log import ENTRY_OVERHEAD_BYTES, OnDisk, RaftLog, entry_bytes
from kvorum.raft.messages import Configuration, Entry, EntryKind, HardState, Save, Snapshot
from kvorum.storage.records import LogState, make_record


def sized(index: int, size: int) -> Entry:
    return Entry(index, 1, EntryKind.COMMAND, b"x" * size)


def test_a_loaded_log_is_saved_and_not_applied() -> None:
    log = RaftLog(5, 2, commands(6, "223"))
    assert (log.first_index, log.last_index, log.last_term, log.saved_index) == (6, 8, 3, 8)
    assert (log.commit_index, log.applied_index) == (5, 5)
    assert not log.has_unsaved() and log.take_applicable(1 << 20) == ()


def test_an_empty_log_ends_at_its_snapshot() -> None:
    log = RaftLog(5, 2, ())
    assert (log.first_index, log.last_index, log.last_term) == (6, 5, 2)
    assert (RaftLog(0, 0, ()).last_index, RaftLog(0, 0, ()).last_term) == (0, 0)


def test_terms_are_known_from_the_entry_before_the_first() -> None:
    log = RaftLog(5, 2, commands(6, "223"))
    assert [log.term(index) for index in range(3, 10)] == [None, None, 2, 2, 2, 3, None]
    assert log.matches(5, 2) and log.matches(8, 3)
    assert not log.matches(4, 2) and not log.matches(9, 3) and not log.matches(8, 2)


@pytest.mark.parametrize(
    ("terms", "last", "expected"),
    [("112", (3, 2), True), ("112", (2, 3), True), ("112", (2, 2), False), ("112", (9, 1), False), ("", (0, 0), True)],
)
def test_up_to_date_compares_terms_first(terms: str, last: tuple[int, int], expected: bool) -> None:
    """5.4.1."""
    assert RaftLog(0, 0, commands(1, terms)).is_up_to_date(*last) is expected


def test_a_slice_is_bounded_in_bytes_but_never_empty() -> None:
    """One entry is always sent, whatever its size."""
    log = RaftLog(0, 0, [sized(1, 10), sized(2, 10), sized(3, 1000), sized(4, 10)])
    one = 10 + ENTRY_OVERHEAD_BYTES
    assert entry_bytes(sized(1, 10)) == one
    assert [len(log.slice(1, limit)) for limit in (0, one, 2 * one - 1, 2 * one, 1 << 20)] == [1, 1, 1, 2, 4]
    assert [entry.index for entry in log.slice(3, 0)] == [3]
    assert log.slice(1, 1 << 20, 2) == tuple(sized(index, 10) for index in (1, 2))
    assert log.slice(5, 1 << 20) == () and log.slice(3, 1 << 20, 2) == ()


def test_a_committed_entry_is_never_truncated() -> None:
    """5.4.3: B14."""
    log = RaftLog(0, 0, commands(1, "111"))
    log.commit_to(2)
    for index in (1, 2):
        with pytest.raises(CommitsLostError):
            log.truncate(index)
    log.truncate(3)
    assert log.last_index == 2


def test_commit_never_goes_back_nor_beyond_the_log() -> None:
    """B11, B12."""
    log = RaftLog(0, 0, commands(1, "111"))
    for index in (2, 1, 2):
        log.commit_to(index)
        assert log.commit_index == 2
    with pytest.raises(InvariantViolatedError):
        log.commit_to(4)


def test_the_last_entry_of_no_later_term() -> None:
    log = RaftLog(2, 1, commands(3, "1144777"))
    asked = [(9, 7), (9, 6), (9, 3), (5, 4), (9, 0), (99, 7), (1, 9)]
    assert [log.find_conflict_by_term(*ask) for ask in asked] == [
        (9, 7),
        (6, 4),
        (4, 1),
        (5, 4),
        (2, 1),
        (9, 7),
        (2, 1),
    ]


def test_a_save_counts_only_what_was_not_replaced_meanwhile() -> None:
    """B13, B16."""
    log = RaftLog(0, 0, commands(1, "1"))
    log.append(commands(2, "111"))
    assert log.take_unsaved(1 << 30) == commands(2, "111") and not log.has_unsaved()
    log.truncate(3)
    log.append(commands(3, "2"))
    log.saved()
    assert log.saved_index == 2
    assert log.take_unsaved(1 << 30) == commands(3, "2")
    log.saved()
    assert log.saved_index == 3


def test_a_truncation_takes_back_what_was_saved() -> None:
    log = RaftLog(0, 0, commands(1, "111"))
    log.truncate(2)
    log.append(commands(2, "2"))
    assert (log.saved_index, log.has_unsaved()) == (1, True)
    log.commit_to(2)
    assert [entry.index for entry in log.take_applicable(1 << 20)] == [1]


def test_a_compacted_log_knows_its_base() -> None:
    log = RaftLog(0, 0, commands(1, "1122"))
    log.commit_to(3)
    log.take_applicable(1 << 20)
    log.compact(3)
    log.compact(2)
    assert (log.base_index, log.base_term, log.first_index, log.last_index) == (3, 2, 4, 4)
    with pytest.raises(InvariantViolatedError):
        log.compact(4)


class LogModel:
    """A log as plain lists: what is on disk, what a save in flight carries, what is in memory."""

    def __init__(self) -> None:
        self.memory: list[Entry] = []
        self.disk: list[Entry] = []
        self.flight: list[Entry] | None = None
        self.committed = 0
        self.applied: list[Entry] = []

    def saved_index(self) -> int:
        matching = 0
        for ours, durable in zip(self.memory, self.disk, strict=False):
            if ours != durable:
                break
            matching += 1
        return matching


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["append", "truncate", "save", "saved", "commit", "apply"]), st.integers(0, 9)),
    max_size=60,
)


@settings(max_examples=100, deadline=None)
@given(OPERATIONS)
def test_the_log_keeps_account_of_what_is_durable(operations: list[tuple[str, int]]) -> None:
    """``saved_index`` never claims an entry that the disk does not hold, and every entry gets there in the end."""
    log, model, term = RaftLog(0, 0, ()), LogModel(), 1
    for operation, number in operations:
        match operation:
            case "append":
                entries = [command(log.last_index + 1 + offset, term) for offset in range(number % 4)]
                log.append(entries)
                model.memory += entries
            case "truncate":
                index = model.committed + 1 + number
                if index <= log.last_index:
                    log.truncate(index)
                    del model.memory[index - 1 :]
                    term += 1  # What replaces them is of a later term.
                    entry = command(index, term)
                    log.append([entry])
                    model.memory.append(entry)
            case "save" if model.flight is None:
                taken = log.take_unsaved(1 << 30)
                first = taken[0].index if taken else log.last_index + 1
                model.flight = [*model.disk[: first - 1], *taken]
                assert model.flight == model.memory
            case "saved" if model.flight is not None:
                model.disk, model.flight = model.flight, None
                log.saved()
            case "commit":
                index = min(model.committed + number, log.last_index)
                log.commit_to(index)
                model.committed = max(model.committed, index)
            case "apply":
                model.applied += log.take_applicable(1 + number * 10)
        assert log.saved_index <= model.saved_index()
        assert model.applied == model.disk[: len(model.applied)] == model.memory[: len(model.applied)]
        assert len(model.applied) <= model.committed
    for _ in range(2):
        if model.flight is None:
            taken = log.take_unsaved(1 << 30)
            first = taken[0].index if taken else log.last_index + 1
            model.flight = [*model.disk[: first - 1], *taken]
        model.disk, model.flight = model.flight, None
        log.saved()
    assert model.disk == model.memory and log.saved_index == log.last_index


# --- What is only on the disk -------------------------------------------------------------------------------------


class Twins:
    """A log that keeps little in memory, and one that keeps everything: they must answer alike."""

    def __init__(self, memory_bytes_max: int) -> None:
        self.little = RaftLog(0, 0, (), memory_bytes_max=memory_bytes_max)
        self.whole = RaftLog(0, 0, ())
        self.memory_bytes_max = memory_bytes_max
        self.term = 1

    def both(self, name: str, *arguments: Any) -> Any:
        """Do the same to both, and return what both return."""
        expected = getattr(self.whole, name)(*arguments)
        found = getattr(self.little, name)(*arguments)
        assert found == expected, f"{name}{arguments}"
        return found

    def save(self) -> None:
        """Save everything in pieces."""
        while self.little.has_unsaved():
            self.little.take_unsaved(1)
            self.little.saved()
        self.whole.take_unsaved(1 << 30)
        self.whole.saved()

    def load(self, count: int) -> None:
        """Read back what is wanted, as a disk does that holds what the whole log holds."""
        wanted = self.little.take_wanted()
        if wanted is not None:
            first, last = wanted
            self.little.loaded(self.whole.slice(first, 1 << 30, min(first + count, last)))

    def apply(self, bytes_max: int) -> None:
        """Apply what there is, reading it back where it must be."""
        expected = self.whole.take_applicable(bytes_max)
        found: tuple[Entry, ...] = ()
        while len(found) < len(expected):
            some = self.little.take_applicable(bytes_max)
            if not some:
                self.load(1)
            found += some
        assert found[: len(expected)] == expected
        while self.whole.applied_index < self.little.applied_index:
            self.whole.take_applicable(1)

    def restart(self) -> None:
        """Start again from what is durable."""
        log, state = self.whole, LogState(self.memory_bytes_max)
        entries = log.slice(log.first_index, 1 << 30, log.saved_index)
        save = Save(1, HardState(self.term, None), entries, None)
        base = Snapshot(log.base_index, log.base_term, Configuration())
        state.apply(make_record(1, 0, 0, msgspec.structs.replace(save, snapshot=base)))
        in_memory, on_disk = state.after(log.base_index)
        self.whole = RaftLog(log.base_index, log.base_term, entries)
        self.little = RaftLog(log.base_index, log.base_term, in_memory, on_disk, self.memory_bytes_max)

    def compare(self) -> None:
        """Ask both everything."""
        for name in ("base_index", "base_term", "first_index", "last_index", "last_term", "commit_index",
                     "applied_index", "saved_index"):  # fmt: skip
            assert getattr(self.little, name) == getattr(self.whole, name), name
        for index in range(self.whole.base_index - 1, self.whole.last_index + 2):
            self.both("term", index)
            self.both("find_conflict_by_term", index, 1 + index % (self.term + 1))
            if self.whole.base_index < index <= self.whole.last_index and not self.little.is_only_on_disk(index):
                assert self.little.slice(index, 1) == self.whole.slice(index, 1)


MEMORY_OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(
            ["append", "append", "truncate", "save", "commit", "apply", "compact", "want", "load", "start"]
        ),
        st.integers(0, 9),
    ),
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(MEMORY_OPERATIONS, st.sampled_from([0, 60, 200]))
def test_a_log_that_keeps_little_in_memory_answers_as_one_that_keeps_everything(
    operations: list[tuple[str, int]], memory_bytes_max: int
) -> None:
    twins = Twins(memory_bytes_max)
    for operation, number in operations:
        log = twins.whole
        match operation:
            case "append":
                twins.term += number % 2
                twins.both("append", [command(log.last_index + 1 + at, twins.term) for at in range(number % 5)])
            case "truncate" if log.commit_index + 1 + number <= log.last_index:
                twins.both("truncate", log.commit_index + 1 + number)
                twins.term += 1
            case "save":
                twins.save()
            case "commit":
                twins.both("commit_to", min(log.commit_index + number, log.last_index))
            case "apply":
                twins.apply(1 + number * 10)
            case "compact":
                twins.both("compact", max(log.applied_index - number, 0))
            case "want" if twins.little.is_only_on_disk(log.base_index + 1 + number):
                twins.little.wanted_index = log.base_index + 1 + number
            case "load":
                twins.load(number)
            case "start":
                twins.save()
                twins.restart()
        twins.compare()


def test_entries_that_are_applied_leave_memory_and_are_read_back() -> None:
    log = RaftLog(0, 0, (), memory_bytes_max=3 * entry_bytes(sized(1, 100)))
    log.append([sized(index, 100) for index in range(1, 11)])
    log.take_unsaved(1 << 30)
    log.saved()
    assert not log.is_only_on_disk(1)
    log.commit_to(2)
    log.take_applicable(1 << 30)
    assert log.is_only_on_disk(2) and not log.is_only_on_disk(3), "an entry that is not applied stays"
    log.commit_to(10)
    log.take_applicable(1 << 30)
    assert log.is_only_on_disk(8) and not log.is_only_on_disk(9)
    log.wanted_index = 2
    assert log.take_wanted() == (2, 8) and not log.wanted_index
    log.loaded([sized(2, 100), sized(3, 100)])
    assert [entry.index for entry in log.slice(2, 1 << 30)] == [2, 3]
    assert log.is_only_on_disk(1) and log.is_only_on_disk(4)
    with pytest.raises(InvariantViolatedError, match="term 7"):
        log.loaded([Entry(4, 7, EntryKind.COMMAND, b"")])


def test_a_start_refuses_a_gap_before_what_is_only_on_the_disk() -> None:
    with pytest.raises(InvariantViolatedError):
        RaftLog(5, 1, (), OnDisk(((7, 1),), 8))
    with pytest.raises(InvariantViolatedError):
        RaftLog(5, 1, commands(8, "1"), OnDisk(((6, 1),), 8))
    with pytest.raises(InvariantViolatedError):
        RaftLog(5, 1, commands(9, "1"), OnDisk(((6, 2),), 8))
