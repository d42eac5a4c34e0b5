"""The log in memory: an exact model of what it must do, and hypothesis to compare them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raft.harness import command, commands

from kvorum.errors import InvariantViolatedError
from kvorum.raft.log import ENTRY_OVERHEAD_BYTES, RaftLog, entry_bytes
from kvorum.raft.messages import Entry, EntryKind


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
        with pytest.raises(InvariantViolatedError):
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
    assert log.take_unsaved() == commands(2, "111") and not log.has_unsaved()
    log.truncate(3)
    log.append(commands(3, "2"))
    log.saved()
    assert log.saved_index == 2
    assert log.take_unsaved() == commands(3, "2")
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
                taken = log.take_unsaved()
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
            taken = log.take_unsaved()
            first = taken[0].index if taken else log.last_index + 1
            model.flight = [*model.disk[: first - 1], *taken]
        model.disk, model.flight = model.flight, None
        log.saved()
    assert model.disk == model.memory and log.saved_index == log.last_index
