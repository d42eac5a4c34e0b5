"""Exactly-once sessions, rule by rule, with the real limits."""

from __future__ import annotations

import pytest
from hypothesis import given
from kv.kv_support import apply, commands, examples, restore, small_sessions, snapshot_of

from kvorum.kv.commands import Command, CompareFailed, Delete, DeleteResult, Put, PutResult, Result, SessionRefused
from kvorum.kv.limits import BATCH_COMMANDS_MAX, SESSION_IDLE_MS, SESSION_WINDOW, SESSIONS_MAX
from kvorum.kv.records import Record
from kvorum.kv.sessions import fingerprint
from kvorum.kv.store import Store


def put(sequence: int, client_id: str = "ann", value: bytes = b"v", key: bytes = b"a") -> Put:
    return Put(key, value, -1, client_id, sequence)


def with_full_sessions(first_ms: int = 0, others_ms: int = 0) -> Store:
    """Return a store with as many sessions as there may be; ``client-0`` is the least recently used one."""
    store = Store()
    apply(store, put(1, "client-0"), time_ms=first_ms)
    for first in range(1, SESSIONS_MAX, BATCH_COMMANDS_MAX):
        numbers = range(first, min(first + BATCH_COMMANDS_MAX, SESSIONS_MAX))
        apply(store, *(put(1, f"client-{number}") for number in numbers), time_ms=others_ms)
    assert store.session_count == SESSIONS_MAX
    return store


def test_a_retry_is_applied_once_and_answered_as_the_first_time() -> None:
    store = Store()
    [first] = apply(store, put(1))
    apply(store, Put(b"a", b"later"))

    [again] = apply(store, put(1))

    assert again == first == PutResult(1, 1, 1, 1)
    assert store.get(b"a") == Record(b"a", b"later", 1, 2, 2)


def test_a_retry_in_the_same_batch_is_applied_once() -> None:
    store = Store()

    assert apply(store, put(1), put(1)) == [PutResult(1, 1, 1, 1)] * 2
    assert store.revision == 1


@pytest.mark.parametrize(
    ("command", "result"),
    [
        (Put(b"a", b"2", 7, "ann", 2), CompareFailed(1, 1)),
        (Delete(b"a", 7, "ann", 2), CompareFailed(1, 1)),
        (Delete(b"none", -1, "ann", 2), DeleteResult(1, 0)),
        (Delete(b"a", -1, "ann", 2), DeleteResult(2, 1)),
    ],
)
def test_every_kind_of_answer_is_remembered(command: Command, result: Result) -> None:
    store = Store()
    apply(store, put(1))
    assert apply(store, command) == [result]
    # What would be answered otherwise if it were applied now:
    apply(store, *(Put(key, b"x") for key in (b"a", b"none") for _ in range(7)))

    assert apply(store, command) == [result]


def test_sequences_of_one_client_may_arrive_in_any_order_within_the_window() -> None:
    store = Store()
    apply(store, put(1))
    order = [SESSION_WINDOW + 1, *range(SESSION_WINDOW, 1, -1)]

    results = apply(store, *(put(sequence) for sequence in order))

    assert [result.revision for result in results] == list(range(2, SESSION_WINDOW + 2))
    assert apply(store, *(put(sequence) for sequence in order)) == results
    assert store.revision == SESSION_WINDOW + 1


def test_an_unknown_client_is_refused_unless_it_begins_at_one() -> None:
    store = Store()

    assert apply(store, put(2)) == [SessionRefused(0, "unknown")]
    assert store.session_count == 0
    assert apply(store, put(1), put(2)) == [PutResult(1, 1, 1, 1), PutResult(2, 1, 2, 2)]


def test_below_the_window_is_stale_and_its_lowest_sequence_is_still_answered() -> None:
    store = Store()
    results = apply(store, *(put(sequence) for sequence in range(1, SESSION_WINDOW + 2)))

    assert apply(store, put(1), put(2)) == [SessionRefused(SESSION_WINDOW + 1, "stale"), results[1]]


def test_a_skipped_sequence_below_the_window_is_stale_and_never_applied() -> None:
    store = Store()
    apply(store, put(1), put(3), put(SESSION_WINDOW + 2))

    assert apply(store, put(2)) == [SessionRefused(3, "stale")]


def test_more_than_a_window_ahead_is_refused_and_moves_nothing() -> None:
    store = Store()
    apply(store, put(1))

    assert apply(store, put(SESSION_WINDOW + 2)) == [SessionRefused(1, "ahead")]
    assert apply(store, put(1)) == [PutResult(1, 1, 1, 1)]
    assert apply(store, put(SESSION_WINDOW + 1)) == [PutResult(2, 1, 2, 2)]


def test_a_refusal_is_not_remembered() -> None:
    store = Store()
    apply(store, put(1))
    assert apply(store, put(SESSION_WINDOW + 2)) == [SessionRefused(1, "ahead")]
    apply(store, *(put(sequence) for sequence in range(2, 4)))

    assert apply(store, put(SESSION_WINDOW + 2)) == [PutResult(4, 1, 4, 4)]


@pytest.mark.parametrize(
    "other",
    [
        Put(b"a", b"other", -1, "ann", 1),
        Put(b"b", b"v", -1, "ann", 1),
        Put(b"a", b"v", 0, "ann", 1),
        Put(b"a", b"v", 1, "ann", 1),
        Put(b"av", b"", -1, "ann", 1),
        Delete(b"a", -1, "ann", 1),
    ],
)
def test_a_sequence_used_by_another_request_is_a_mismatch(other: Command) -> None:
    store = Store()
    apply(store, put(1))

    assert apply(store, other) == [SessionRefused(1, "mismatch")]
    assert apply(store, put(1)) == [PutResult(1, 1, 1, 1)]
    assert store.revision == 1


@examples
@given(commands(), commands())
def test_fingerprints_are_equal_for_the_same_request_only(first: Command, second: Command) -> None:
    def request(command: Command) -> tuple[object, ...]:
        return type(command), command.key, getattr(command, "value", None), command.prev_revision

    assert (fingerprint(first) == fingerprint(second)) == (request(first) == request(second))


def test_clients_do_not_share_sequences() -> None:
    store = Store()

    assert apply(store, put(1, "ann"), put(1, "bob")) == [PutResult(1, 1, 1, 1), PutResult(2, 1, 2, 2)]


def test_a_full_state_refuses_a_new_session_while_none_is_idle_for_more_than_an_hour() -> None:
    store = with_full_sessions()

    assert apply(store, put(1, "new"), time_ms=SESSION_IDLE_MS) == [SessionRefused(SESSIONS_MAX, "full")]
    assert store.session_count == SESSIONS_MAX
    [result] = apply(store, put(2, "client-0"), time_ms=SESSION_IDLE_MS)
    assert result.revision == SESSIONS_MAX + 1


def test_a_new_session_evicts_only_the_least_recently_used_after_more_than_an_hour() -> None:
    store = with_full_sessions()

    [result] = apply(store, put(1, "new"), time_ms=SESSION_IDLE_MS + 1)

    assert isinstance(result, PutResult)
    assert store.session_count == SESSIONS_MAX
    assert apply(store, put(2, "client-0")) == [SessionRefused(SESSIONS_MAX + 1, "unknown")]
    [result] = apply(store, put(2, "client-1"))
    assert isinstance(result, PutResult)


@pytest.mark.parametrize("sequence", [1, 2, SESSION_WINDOW + 2])
def test_any_use_of_a_session_keeps_it_alive(sequence: int) -> None:
    store = with_full_sessions(others_ms=5)
    apply(store, put(sequence, "client-0"), time_ms=5)  # a retry, a new command, a refused one

    apply(store, put(1, "new"), time_ms=5 + SESSION_IDLE_MS + 1)

    assert apply(store, put(2, "client-1")) == [SessionRefused(store.revision, "unknown")]
    [result] = apply(store, put(3, "client-0"))
    assert isinstance(result, PutResult)


def test_a_use_after_another_session_was_opened_counts_as_the_later_one() -> None:
    with small_sessions():
        store = Store()
        apply(store, put(1, "ann"), put(1, "bob"), put(2, "ann"), put(1, "cid"))

        apply(store, put(1, "new"), time_ms=SESSION_IDLE_MS + 1)

        assert apply(store, put(2, "bob")) == [SessionRefused(store.revision, "unknown")]
        assert apply(store, put(2, "ann")) == [PutResult(3, 1, 3, 3)]


def test_idleness_is_counted_from_the_last_use_and_not_from_the_first() -> None:
    with small_sessions():
        store = Store()
        apply(store, put(1, "ann"), put(1, "bob"), put(1, "cid"))
        apply(store, put(1, "ann"), put(1, "bob"), put(1, "cid"), time_ms=5)

        assert apply(store, put(1, "new"), time_ms=5 + SESSION_IDLE_MS) == [SessionRefused(3, "full")]


def test_a_clock_that_goes_back_neither_evicts_nor_rejuvenates() -> None:
    store = with_full_sessions(first_ms=SESSION_IDLE_MS, others_ms=0)
    assert store.time_ms == SESSION_IDLE_MS

    assert apply(store, put(1, "new"), time_ms=0) == [SessionRefused(SESSIONS_MAX, "full")]
    apply(store, put(1, "new"), time_ms=2 * SESSION_IDLE_MS + 1)
    assert apply(store, put(2, "client-0")) == [SessionRefused(SESSIONS_MAX + 1, "unknown")]


def test_sessions_live_on_in_a_snapshot() -> None:
    store = Store()
    results = apply(store, *(put(sequence) for sequence in range(1, SESSION_WINDOW + 2)))

    restored = restore(snapshot_of(store))

    assert apply(restored, put(1)) == [SessionRefused(SESSION_WINDOW + 1, "stale")]
    assert apply(restored, *(put(sequence) for sequence in range(2, SESSION_WINDOW + 2))) == results[1:]
    assert apply(restored, put(2, value=b"other")) == [SessionRefused(SESSION_WINDOW + 1, "mismatch")]
    assert apply(restored, put(2 * SESSION_WINDOW + 2)) == [SessionRefused(SESSION_WINDOW + 1, "ahead")]


def test_the_order_of_use_lives_on_in_a_snapshot() -> None:
    store = with_full_sessions()
    apply(store, put(1, "client-0"))

    restored = restore(snapshot_of(store))

    apply(restored, put(1, "new"), time_ms=SESSION_IDLE_MS + 1)
    assert apply(restored, put(2, "client-1")) == [SessionRefused(SESSIONS_MAX + 1, "unknown")]
    [result] = apply(restored, put(2, "client-0"))
    assert isinstance(result, PutResult)
