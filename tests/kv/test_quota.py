"""The quota on data: what counts, who sets it, and what is refused above it, the same on every node."""

from __future__ import annotations

from unittest.mock import patch

import msgspec
import pytest
from kv.kv_support import (
    apply,
    configured,
    frames_of,
    raise_to,
    restore,
    small_sessions,
    snapshot_of,
    store_at_level_2,
    store_at_level_3,
)

from kvorum.errors import FeatureUnavailableError, NoSpaceError, SessionError
from kvorum.kv.commands import (
    BatchCommand,
    Delete,
    DeleteResult,
    EndSession,
    NoSpace,
    Put,
    PutResult,
    QuotaSet,
    SessionEnded,
    SessionRefused,
    SetQuota,
)
from kvorum.kv.features import check_command_level
from kvorum.kv.limits import QUOTA_BYTES_MIN, RECORD_OVERHEAD_BYTES, SESSION_IDLE_MS
from kvorum.kv.quota import CONFIGURATION, FIRST, OPERATOR
from kvorum.kv.store import Store

MIB = 1024 * 1024


def full_store(limit_bytes: int = MIB) -> Store:
    """Return a store above its quota: sixteen values of 64 KiB, and the overhead."""
    store = store_at_level_3()
    apply(store, SetQuota(limit_bytes, OPERATOR))
    for number in range(limit_bytes // 65536):
        assert isinstance(apply(store, Put(b"k%d" % number, bytes(65536)))[0], PutResult)
    assert store.quota.is_full
    return store


# What counts.


def test_a_record_counts_with_its_key_its_value_and_a_fixed_overhead() -> None:
    store = Store()
    apply(store, Put(b"abc", b"12345"))
    assert store.used_bytes == 3 + 5 + RECORD_OVERHEAD_BYTES
    apply(store, Put(b"abc", b"1"), Put(b"d", b""))
    assert store.used_bytes == 3 + 1 + 1 + 2 * RECORD_OVERHEAD_BYTES
    apply(store, Delete(b"abc"), Delete(b"abc"), Put(b"x", b"y", 7))
    assert store.used_bytes == 1 + RECORD_OVERHEAD_BYTES


def test_sessions_count_by_what_they_remember_and_ended_ones_too() -> None:
    with small_sessions():  # A window of 4, 3 sessions, 2 ended ones.
        store = store_at_level_3()
        apply(store, *(Delete(b"a", -1, "ann", sequence) for sequence in range(1, 8)))
        assert store.used_bytes == 512 + 3 + 4 * 37
        apply(store, Delete(b"a", -1, "bo", 1))
        assert store.used_bytes == 512 + 3 + 4 * 37 + 512 + 2 + 37
        apply(store, EndSession("ann"))
        assert store.used_bytes == 256 + 3 + 512 + 2 + 37
        apply(store, Delete(b"a", -1, "ann", 1), time_ms=SESSION_IDLE_MS + 1)
        assert store.used_bytes == 512 + 3 + 37 + 512 + 2 + 37


def test_a_session_that_gave_way_counts_no_more() -> None:
    with small_sessions():
        store = Store()
        apply(store, *(Delete(b"a", -1, name, 1) for name in ("a", "b", "c")))
        before = store.used_bytes
        apply(store, Delete(b"a", -1, "d", 1), time_ms=SESSION_IDLE_MS + 1)
        assert store.used_bytes == before


def test_what_is_used_is_computed_anew_when_a_snapshot_is_restored() -> None:
    with small_sessions():
        store = store_at_level_3()
        apply(store, SetQuota(2000, OPERATOR), Put(b"a", b"1" * 99), Put(b"b", b"2", -1, "ann", 1))
        apply(store, *(Put(b"a", b"3", -1, "bob", sequence) for sequence in range(1, 9)), EndSession("ann"))
        restored = restore(snapshot_of(store, max_keys=1))
        assert (restored.used_bytes, restored.quota) == (store.used_bytes, store.quota)


# What is refused.


def test_above_the_quota_puts_are_refused_and_deletes_go_on() -> None:
    store = full_store()
    before, used = store.revision, store.used_bytes
    assert apply(store, Put(b"k0", b""), Put(b"new", b"")) == [NoSpace(before, MIB, used)] * 2
    assert store.revision == before
    assert apply(store, Delete(b"k0")) == [DeleteResult(before + 1, 1)]


def test_puts_resume_below_95_per_cent_and_not_before() -> None:
    store = full_store()
    apply(store, Delete(b"k0"))  # 15/16 are 93.75 % and some overhead.
    assert not store.quota.is_full
    store = store_at_level_3()
    apply(store, SetQuota(MIB, OPERATOR), *(Put(b"k%02d" % number, bytes(32768)) for number in range(32)))
    assert store.quota.is_full
    apply(store, Delete(b"k00"))
    assert 0.95 * MIB < store.used_bytes < MIB
    assert isinstance(apply(store, Put(b"k01", b""))[0], NoSpace)
    apply(store, Delete(b"k01"))
    assert isinstance(apply(store, Put(b"k01", b""))[0], PutResult)


def test_an_entry_that_passes_the_quota_is_applied_whole_and_the_next_put_is_refused() -> None:
    store = store_at_level_3()
    apply(store, SetQuota(MIB, OPERATOR))
    results = apply(store, Put(b"a", bytes(MIB)), Put(b"b", b""))
    assert [type(result) for result in results] == [PutResult, PutResult]
    assert isinstance(apply(store, Put(b"c", b""))[0], NoSpace)


def test_a_retry_gets_its_answer_and_what_may_have_been_applied_is_not_called_refused() -> None:
    store = store_at_level_3()
    apply(store, SetQuota(MIB, OPERATOR))
    put = Put(b"a", bytes(MIB), -1, "ann", 1)
    first = apply(store, put)
    assert store.quota.is_full
    assert apply(store, put) == first
    refused = [Put(b"a", b"", -1, "ann", 1), Put(b"a", b"", -1, "bob", 2)]
    assert apply(store, *refused) == [SessionRefused(1, "mismatch"), SessionRefused(1, "unknown")]
    store.check_room(put)  # It goes to the log, where its answer is.
    for other in (Put(b"a", b""), Put(b"a", b"", -1, "ann", 2), Put(b"a", b"", -1, "bob", 1)):
        assert isinstance(apply(store, other)[0], NoSpace)
        with pytest.raises(NoSpaceError):
            store.check_room(other)


def test_a_delete_without_room_opens_no_session_and_goes_on_in_one_or_without() -> None:
    """A session would take more than the delete of a small key frees, for an hour after its end."""
    store = store_at_level_3()
    apply(store, SetQuota(MIB, OPERATOR), Delete(b"none", -1, "bob", 1), EndSession("bob"))
    opening, put = Delete(b"a", -1, "cid", 1), Put(b"a", bytes(MIB), -1, "ann", 1)
    store.check_room(opening)
    apply(store, put)
    assert store.quota.is_full
    with pytest.raises(SessionError, match="without a session") as caught:
        store.check_room(opening)
    assert (caught.value.code, caught.value.facts["reason"]) == ("sessions_full", "full")
    # The last two go to the log, where their answers are: the write of an ended session, and that of no session.
    for other in (Delete(b"a"), Delete(b"a", -1, "ann", 2), Delete(b"a", -1, "bob", 1), Delete(b"a", -1, "cid", 2)):
        store.check_room(other)
    apply(store, Delete(b"a"))
    store.check_room(opening)


def test_a_put_that_is_refused_leaves_its_session_as_it_was() -> None:
    """The same request is done when there is room again."""
    store = full_store()
    apply(store, Delete(b"none", -1, "ann", 1))
    sessions = store.session_count
    refused = [Put(b"a", b"", -1, "ann", 2), Put(b"a", b"", -1, "bob", 1)]
    assert {type(result) for result in apply(store, *refused)} == {NoSpace}
    assert store.session_count == sessions
    apply(store, Delete(b"k0"), Delete(b"k1"))
    assert {type(result) for result in apply(store, *refused)} == {PutResult}


def test_sessions_are_ended_while_there_is_no_room() -> None:
    store = full_store()
    apply(store, Delete(b"none", -1, "ann", 1))
    assert isinstance(apply(store, EndSession("ann"))[0], SessionEnded)


def test_the_error_says_how_full_it_is() -> None:
    store = full_store()
    with pytest.raises(NoSpaceError, match=r"takes 10\d+ of 1048576 bytes .* less than 996147: delete keys") as caught:
        store.check_room(Put(b"a", b""))
    assert caught.value.facts == {"reason": "quota", "limit": MIB, "used": store.used_bytes}


# Who sets it.


def test_the_first_proposal_counts_only_while_there_is_no_quota() -> None:
    store = store_at_level_3()
    assert apply(store, SetQuota(5 * MIB, FIRST)) == [QuotaSet(0, 5 * MIB)]
    assert apply(store, SetQuota(9 * MIB, FIRST)) == [QuotaSet(0, 5 * MIB)]


def test_the_first_quota_of_an_upgraded_cluster_is_one_and_a_half_times_what_is_held_at_least() -> None:
    store = store_at_level_2()
    apply(store, Put(b"a", bytes(MIB)), Put(b"b", bytes(MIB)))
    apply(store, raise_to(3))
    [result] = apply(store, SetQuota(MIB, FIRST))
    assert result == QuotaSet(2, store.used_bytes * 3 // 2)
    assert not store.quota.is_full


def test_a_configured_quota_counts_when_the_configuration_said_something_else() -> None:
    store = store_at_level_3()
    apply(store, SetQuota(5 * MIB, FIRST))
    assert apply(store, SetQuota(2 * MIB, CONFIGURATION)) == [QuotaSet(0, 2 * MIB)]
    assert apply(store, SetQuota(3 * MIB, OPERATOR)) == [QuotaSet(0, 3 * MIB)]
    assert apply(store, SetQuota(2 * MIB, CONFIGURATION)) == [QuotaSet(0, 3 * MIB)]
    assert apply(store, SetQuota(4 * MIB, CONFIGURATION)) == [QuotaSet(0, 4 * MIB)]


def test_a_quota_below_what_is_held_refuses_puts_and_a_higher_one_lets_them_through() -> None:
    store = store_at_level_3()
    apply(store, Put(b"a", bytes(MIB)))
    apply(store, SetQuota(MIB, OPERATOR))
    assert isinstance(apply(store, Put(b"a", b""))[0], NoSpace)
    apply(store, SetQuota(2 * MIB, OPERATOR))
    assert isinstance(apply(store, Put(b"a", b""))[0], PutResult)


@pytest.mark.parametrize("command", [SetQuota(QUOTA_BYTES_MIN - 1, OPERATOR), SetQuota(2**63, OPERATOR),
                                     SetQuota(MIB, "nobody")])  # fmt: skip
def test_what_can_not_be_a_quota_is_refused(command: SetQuota) -> None:
    store = store_at_level_3()
    assert apply(store, command) == [SessionRefused(0, "invalid")]
    assert store.quota.limit_bytes == 0


def test_below_level_3_there_is_no_quota_and_no_snapshot_carries_one() -> None:
    with pytest.raises(FeatureUnavailableError):
        check_command_level(SetQuota(MIB, OPERATOR), 2)
    store = store_at_level_2()
    assert apply(store, SetQuota(MIB, OPERATOR)) == [SessionRefused(0, "invalid")]
    apply(store, Put(b"a", bytes(MIB)), Put(b"b", bytes(MIB)))
    assert isinstance(apply(store, Put(b"a", b""))[0], PutResult)
    kinds = {msgspec.msgpack.decode(payload)[0] for payload in frames_of(snapshot_of(store))}
    assert "q" not in kinds


# The same on every node.


def test_the_quota_and_whether_the_state_is_full_survive_a_snapshot() -> None:
    """Between 95 and 100 % only the past says whether puts are refused."""
    store = store_at_level_3()
    apply(store, SetQuota(MIB, CONFIGURATION), *(Put(b"k%02d" % number, bytes(32768)) for number in range(32)))
    apply(store, Delete(b"k00"))
    restored = restore(snapshot_of(store))
    commands: list[BatchCommand] = [
        Put(b"a", b""),
        SetQuota(MIB, CONFIGURATION),
        SetQuota(2 * MIB, OPERATOR),
        Put(b"a", b""),
    ]
    for command in commands:
        assert apply(restored, command) == apply(store, command)
    assert restored.state_hash == store.state_hash


def test_the_state_hash_covers_the_quota() -> None:
    hashes = set()
    for commands in ([], [SetQuota(MIB, OPERATOR)], [SetQuota(2 * MIB, OPERATOR)], [SetQuota(MIB, CONFIGURATION)]):
        store = store_at_level_3()
        for command in commands:
            apply(store, command)
        while store.applied_index < 9:
            apply(store)
        hashes.add(store.state_hash)
    assert len(hashes) == 4


def test_the_state_hash_tells_two_nodes_apart_that_count_differently() -> None:
    one, other = store_at_level_3(), store_at_level_3()
    put = Put(b"a", bytes(MIB - 200))
    apply(one, SetQuota(MIB, OPERATOR), put)
    with patch("kvorum.kv.versions.RECORD_OVERHEAD_BYTES", 0):
        apply(other, SetQuota(MIB, OPERATOR), put)
    assert (one.quota.is_full, other.quota.is_full) == (True, False)
    assert one.state_hash != other.state_hash


def test_an_entry_of_another_kind_changes_nothing_of_it() -> None:
    store = full_store()
    store.apply(configured(index=store.applied_index + 1))
    assert store.quota.is_full
