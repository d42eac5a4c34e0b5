"""A client ends its session: another takes its place at once, and nothing that is on its way is applied twice."""

from __future__ import annotations

from unittest.mock import patch

import msgspec
import pytest
from kv.kv_support import apply, frames_of, restore, small_sessions, snapshot_of, store_at_level_2, store_at_level_3

from kvorum.errors import FeatureUnavailableError
from kvorum.kv.commands import BatchCommand, EndSession, Put, PutResult, SessionEnded, SessionRefused
from kvorum.kv.features import check_command_level
from kvorum.kv.limits import SESSION_IDLE_MS


def put(client: str, sequence: int = 1) -> Put:
    return Put(b"a", b"1", client_id=client, sequence=sequence)


def test_below_level_3_nobody_proposes_it_and_it_would_be_refused() -> None:
    with pytest.raises(FeatureUnavailableError):
        check_command_level(EndSession("ann"), 2)
    store = store_at_level_2()
    apply(store, put("ann"))
    assert apply(store, EndSession("ann")) == [SessionRefused(1, "invalid")]
    assert store.session_count == 1


def test_an_ended_session_makes_room_at_once() -> None:
    with small_sessions():
        store = store_at_level_3()
        apply(store, put("a"), put("b"), put("c"))
        assert apply(store, put("d")) == [SessionRefused(3, "full")]
        assert apply(store, EndSession("b")) == [SessionEnded(3)]
        assert isinstance(apply(store, put("d"))[0], PutResult)


def test_an_ended_id_stays_refused_for_an_hour() -> None:
    store = store_at_level_3()
    apply(store, put("ann"), EndSession("ann"), time_ms=5)
    late = [put("ann"), put("ann", 2)]
    assert apply(store, *late, time_ms=5 + SESSION_IDLE_MS) == [SessionRefused(1, "unknown")] * 2
    assert isinstance(apply(store, put("ann"), time_ms=6 + SESSION_IDLE_MS)[0], PutResult)
    assert apply(store, EndSession("ann"), put("ann")) == [SessionEnded(2), SessionRefused(2, "unknown")]


def test_a_retry_ends_nothing_more_and_a_stranger_is_unknown() -> None:
    store = store_at_level_3()
    apply(store, put("ann"))
    assert apply(store, EndSession("ann"), EndSession("ann")) == [SessionEnded(1)] * 2
    assert apply(store, EndSession("bob"), EndSession("")) == [SessionRefused(1, "unknown")] * 2


def test_while_too_many_were_ended_within_the_hour_none_is_ended() -> None:
    with patch("kvorum.kv.sessions.SESSIONS_ENDED_MAX", 1):
        store = store_at_level_3()
        apply(store, put("ann"), put("bob"), EndSession("ann"), time_ms=5)
        assert apply(store, EndSession("bob"), time_ms=5 + SESSION_IDLE_MS) == [SessionRefused(2, "full")]
        assert store.has_session("bob")
        assert apply(store, EndSession("bob"), time_ms=6 + SESSION_IDLE_MS) == [SessionEnded(2)]


def test_ending_a_session_changes_the_state_hash() -> None:
    one, other = store_at_level_3(), store_at_level_3()
    apply(one, put("ann"), put("bob"), EndSession("ann"))
    apply(other, put("ann"), put("bob"), EndSession("bob"))
    assert one.state_hash != other.state_hash


@pytest.mark.parametrize("max_keys", [1, 2, 100])
def test_a_snapshot_keeps_what_was_ended(max_keys: int) -> None:
    store = store_at_level_3()
    names = [f"c{number}" for number in range(5)]
    apply(store, *(put(name) for name in [*names, "ann"]), *(EndSession(name) for name in names), time_ms=7)
    restored = restore(snapshot_of(store, max_keys=max_keys))
    late: list[BatchCommand] = [*(put(name) for name in names), put("ann", 2), EndSession("c0"), EndSession("ann")]
    assert apply(restored, *late, time_ms=9) == apply(store, *late, time_ms=9)
    assert restored.state_hash == store.state_hash
    assert snapshot_of(restored) == snapshot_of(store)


def test_a_session_that_is_ended_under_a_snapshot_is_in_it() -> None:
    store = store_at_level_3()
    apply(store, put("ann"), time_ms=7)
    cut = store.begin_snapshot()
    apply(store, EndSession("ann"), time_ms=8)
    chunks = []
    while (chunk := cut.next_chunk()) is not None:
        chunks.append(chunk)
    cut.close()
    assert restore(b"".join(chunks)).has_session("ann")


def test_a_snapshot_below_level_3_lists_no_ended_sessions() -> None:
    """Version 0.2.0 reads it."""
    store = store_at_level_2()
    apply(store, put("ann"))
    assert {msgspec.msgpack.decode(payload)[0] for payload in frames_of(snapshot_of(store))} == {
        "h",
        "f",
        "r",
        "s",
        "t",
    }
