"""The rules of leases, one by one. The machine of tests/kv/test_lease_machine.py has them together."""

from __future__ import annotations

import subprocess
import sys
from unittest.mock import patch

import msgspec
import pytest
from kv.kv_support import (
    apply,
    frames_of,
    restore,
    snapshot_of,
    store_at_level_4,
    store_at_level_5,
)
from kv.test_restored_history import LEVEL_4

from kvorum.errors import FeatureUnavailableError, NoSpaceError
from kvorum.kv.commands import (
    BatchCommand,
    Delete,
    DeleteResult,
    LeaseGrant,
    LeaseGranted,
    LeaseRefused,
    LeaseRenew,
    LeaseRenewed,
    LeaseRevoke,
    LeaseRevoked,
    NoSpace,
    Put,
    PutResult,
    SessionRefused,
    SetQuota,
    Txn,
    TxnRefused,
    TxnResult,
    decode_batch,
)
from kvorum.kv.features import check_command_level
from kvorum.kv.limits import (
    LEASE_EXPIRY_MAX,
    LEASE_KEY_OVERHEAD_BYTES,
    LEASE_KEYS_MAX,
    LEASE_OVERHEAD_BYTES,
    LEASE_TTL_S_MAX,
    QUOTA_BYTES_MIN,
)
from kvorum.kv.operations import Compare, DeleteRangeOp, LeasedPutOp, PutOp, RangeOp, RangeOpResult, TxnOp
from kvorum.kv.quota import OPERATOR
from kvorum.kv.records import Record
from kvorum.kv.store import Store

NOW = 1_000_000


def leased(lease: int, *keys: bytes) -> Txn:
    """Return a transaction that puts these keys with a lease."""
    return Txn(then=tuple(LeasedPutOp(key, b"v", lease=lease) for key in keys))


def granted(*grants: LeaseGrant) -> Store:
    """Return a store at :data:`NOW` with these leases."""
    store = store_at_level_5()
    apply(store, time_ms=NOW)
    results = apply(store, *grants, time_ms=NOW)
    assert all(isinstance(result, LeaseGranted) for result in results)
    return store


def lease_of(store: Store, key: bytes) -> int:
    """Return the lease of a key that exists."""
    record = store.get(key)
    assert record is not None
    return record.lease


# --- The level ----------------------------------------------------------------------------------------------------

_NEW: dict[str, BatchCommand] = {
    "grant": LeaseGrant(1, 10),
    "renew": LeaseRenew(1),
    "revoke": LeaseRevoke(1),
    "put": leased(1, b"k"),
    "put without a lease": leased(0, b"k"),
    "put in a nested transaction": Txn(otherwise=(TxnOp(then=(LeasedPutOp(b"k", b""),)),)),
    "compare": Txn(compares=(Compare(b"k", "lease", "=", 0),)),
    "compare in a nested transaction": Txn(then=(TxnOp(compares=(Compare(b"k", "lease", "=", 0),)),)),
}


@pytest.mark.parametrize("name", _NEW)
def test_below_the_level_nothing_about_leases_is_proposed_or_done(name: str) -> None:
    command = _NEW[name]
    store = store_at_level_4()
    before = snapshot_of(store)

    assert apply(store, command) == [SessionRefused(1, "invalid")]
    with pytest.raises(FeatureUnavailableError, match=r"needs feature level 5.*version 0\.5\.0"):
        check_command_level(command, 4)

    check_command_level(command, 5)
    assert (store.get(b"k"), len(store.leases)) == (None, 0)
    assert frames_of(snapshot_of(store))[1:] == frames_of(before)[1:]


def test_other_transactions_need_no_higher_level_than_before() -> None:
    check_command_level(Txn((Compare(b"k", "version", "=", 0),), (PutOp(b"k", b""), RangeOp(b"k"))), 4)


# --- Grants -------------------------------------------------------------------------------------------------------


def test_a_grant_makes_no_revision_and_a_short_time_to_live_becomes_2_s() -> None:
    store = store_at_level_5()

    results = apply(store, LeaseGrant(7, -1), LeaseGrant(8, 1), LeaseGrant(9, 3), time_ms=NOW)

    assert results == [LeaseGranted(1, 2), LeaseGranted(1, 2), LeaseGranted(1, 3)]
    assert [(each.id, each.ttl_s, each.deadline_ms - NOW) for each in store.leases] == [
        (7, 2, 2000),
        (8, 2, 2000),
        (9, 3, 3000),
    ]


def test_the_id_of_a_lease_is_taken_until_the_lease_is_gone() -> None:
    store = granted(LeaseGrant(7, 10, 5))

    assert apply(store, LeaseGrant(7, 10), time_ms=NOW) == [LeaseRefused(1, "exists")]
    apply(store, time_ms=NOW + 10_000)
    assert apply(store, LeaseGrant(7, 10), time_ms=NOW + 14_999) == [LeaseRefused(1, "exists")], "the lock-delay"
    apply(store, time_ms=NOW + 15_000)
    assert apply(store, LeaseGrant(7, 10), time_ms=NOW + 15_000) == [LeaseGranted(1, 10)]


_IMPOSSIBLE = {
    "no id": LeaseGrant(0, 10),
    "an id above 64 bits": LeaseGrant(2**63, 10),
    "a time to live too long": LeaseGrant(1, LEASE_TTL_S_MAX + 1),
    "a delay too long": LeaseGrant(1, 10, 61),
    "a negative delay": LeaseGrant(1, 10, -1),
}


@pytest.mark.parametrize("name", _IMPOSSIBLE)
def test_an_impossible_grant_is_refused(name: str) -> None:
    store = store_at_level_5()
    assert apply(store, _IMPOSSIBLE[name]) == [SessionRefused(1, "invalid")]
    assert len(store.leases) == 0


@pytest.mark.parametrize("id", [1, -1, 2**63 - 1, -(2**63)])
@pytest.mark.parametrize("ttl_s", [-(2**63), 2, LEASE_TTL_S_MAX])
def test_every_number_at_its_limits_is_granted_renewed_kept_and_restored(id: int, ttl_s: int) -> None:
    store = store_at_level_5()
    assert apply(store, LeaseGrant(id, ttl_s, 60)) == [LeaseGranted(1, max(ttl_s, 2))]
    apply(store, LeaseRenew(id), leased(id, b"k"))

    restored = restore(snapshot_of(store))

    assert (lease_of(restored, b"k"), snapshot_of(restored)) == (id, snapshot_of(store))
    assert apply(restored, LeaseRevoke(id)) == apply(store, LeaseRevoke(id)) == [LeaseRevoked(3, 1)]
    assert restored.state_hash == store.state_hash


@pytest.mark.parametrize("time_ms", [2**63 - 1, 2**64 - 1])
def test_a_time_of_the_log_at_its_limits_ends_no_process(time_ms: int) -> None:
    store = store_at_level_5()
    apply(store, LeaseGrant(1, LEASE_TTL_S_MAX, 60), LeaseRenew(1), leased(1, b"k"), time_ms=time_ms)

    assert snapshot_of(restore(snapshot_of(store))) == snapshot_of(store)
    apply(store, LeaseRenew(1), LeaseGrant(2, LEASE_TTL_S_MAX), LeaseRevoke(1), time_ms=time_ms)
    assert len(store.leases) <= 1


def test_there_is_a_bound_on_leases() -> None:
    with patch("kvorum.kv.leases.LEASES_MAX", 2):
        store = granted(LeaseGrant(1, 10), LeaseGrant(2, 10))
        assert apply(store, LeaseGrant(3, 10), LeaseGrant(2, 10)) == [
            LeaseRefused(1, "too_many"),
            LeaseRefused(1, "exists"),
        ]
        assert apply(store, LeaseRevoke(1), LeaseGrant(3, 10)) == [LeaseRevoked(1, 0), LeaseGranted(1, 10)]


# --- Time ---------------------------------------------------------------------------------------------------------


def test_a_grant_after_an_idle_hour_is_not_born_expired() -> None:
    """Its deadline counts from its entry's own time, not from the log time before."""
    store = store_at_level_5()
    apply(store, time_ms=NOW)

    apply(store, LeaseGrant(1, 10), leased(1, b"k"), time_ms=NOW + 3_600_000)

    assert (lease_of(store, b"k"), store.leases.next_due_ms()) == (1, NOW + 3_610_000)


def test_a_renewal_tests_the_time_before_its_entry_and_counts_from_the_entrys_own() -> None:
    store = granted(LeaseGrant(1, 10))
    apply(store, time_ms=NOW + 9_999)

    assert apply(store, LeaseRenew(1), time_ms=NOW + 60_000) == [LeaseRenewed(1, 10)]

    assert store.leases.next_due_ms() == NOW + 70_000


def test_a_lease_is_gone_at_its_deadline_and_not_before() -> None:
    store = granted(LeaseGrant(1, 10), LeaseGrant(2, 10, 60))
    apply(store, leased(1, b"a"), leased(2, b"b"), time_ms=NOW + 9_999)
    assert (store.revision, len(store.leases), store.leases.living(2) is not None) == (3, 2, True)

    apply(store, time_ms=NOW + 10_000)

    assert (store.revision, len(store.leases), store.leases.living(2)) == (4, 1, None)
    assert (store.get(b"a"), store.leases.get(1)) == (None, None)


def test_what_lives_is_not_renewed_by_an_earlier_time() -> None:
    store = granted(LeaseGrant(1, 10))

    apply(store, LeaseRenew(1), time_ms=NOW - 5_000)

    assert store.leases.next_due_ms() == NOW + 10_000


def test_over_is_over_before_the_keys_are_deleted() -> None:
    """The lock-delay: renew and attach find nothing at once, the keys stay for the delay."""
    store = granted(LeaseGrant(1, 10, 5))
    apply(store, leased(1, b"k"), time_ms=NOW)
    apply(store, time_ms=NOW + 10_000)

    assert apply(store, LeaseRenew(1), leased(1, b"x"), time_ms=NOW + 14_999) == [
        LeaseRefused(2, "not_found"),
        TxnRefused(2, "lease_not_found", b"x", 1),
    ]
    keeping = Txn(then=(LeasedPutOp(b"k", b"w", ignore_lease=True),))
    assert apply(store, keeping) == [TxnRefused(2, "lease_not_found", b"k", 1)]
    assert (lease_of(store, b"k"), store.leases.next_due_ms()) == (1, NOW + 15_000)

    apply(store, time_ms=NOW + 15_000)
    assert (store.get(b"k"), store.revision, store.leases.next_due_ms()) == (None, 3, None)


def test_a_revoke_waits_for_no_delay_and_works_during_one() -> None:
    store = granted(LeaseGrant(1, 10, 60), LeaseGrant(2, 10, 60))
    apply(store, leased(1, b"b", b"a"), leased(2, b"c"), time_ms=NOW)

    assert apply(store, LeaseRevoke(1), time_ms=NOW) == [LeaseRevoked(4, 2)]
    assert [(each.key, each.mod_revision) for each in store.versions.events(3, 9)] == [(b"a", 4), (b"b", 4)]
    apply(store, time_ms=NOW + 10_000)
    assert apply(store, LeaseRevoke(2)) == [LeaseRevoked(5, 1)]
    assert apply(store, LeaseRevoke(2)) == [LeaseRefused(5, "not_found")]
    assert len(store) == 0


def test_a_revoke_in_an_entry_ends_the_lease_for_the_commands_after_it() -> None:
    store = granted(LeaseGrant(1, 10))
    assert apply(store, LeaseRevoke(1), leased(1, b"k"), LeaseRenew(1))[1:] == [
        TxnRefused(1, "lease_not_found", b"k", 1),
        LeaseRefused(1, "not_found"),
    ]


def test_leases_expire_by_due_time_then_id_each_in_one_revision_with_its_keys_in_order() -> None:
    store = granted(LeaseGrant(5, 3), LeaseGrant(-2, 3), LeaseGrant(9, 2), LeaseGrant(1, 2, 2), LeaseGrant(4, 3))
    apply(store, leased(5, b"d", b"a"), leased(-2, b"c"), leased(9, b"z", b"y"), leased(1, b"b"), time_ms=NOW)
    first = store.versions.end

    apply(store, time_ms=NOW + 60_000)

    events = [(each.key, each.mod_revision, each.version) for each in store.versions.events(first, 99)]
    assert events == [
        (b"y", 6, 0),
        (b"z", 6, 0),
        (b"c", 7, 0),
        (b"a", 8, 0),
        (b"d", 8, 0),
        (b"b", 9, 0),
    ], "the lease 4 has no keys, and makes no revision"
    assert (store.revision, len(store.leases)) == (9, 0)


def test_one_entry_expires_so_many_leases_and_keys_and_the_next_entries_go_on() -> None:
    store = store_at_level_5()
    apply(store, *(LeaseGrant(id, 10) for id in range(1, LEASE_EXPIRY_MAX + 2)), time_ms=NOW)
    apply(store, leased(1, b"a", b"b"), time_ms=NOW)

    apply(store, time_ms=NOW + 10_000)
    assert [each.id for each in store.leases] == [LEASE_EXPIRY_MAX - 1, LEASE_EXPIRY_MAX, LEASE_EXPIRY_MAX + 1]
    assert store.leases.next_due_ms() == NOW + 10_000
    assert store.leases.living(LEASE_EXPIRY_MAX) is None
    assert apply(store, LeaseRenew(LEASE_EXPIRY_MAX)) == [LeaseRefused(3, "not_found")]
    assert len(store.leases) == 0


def test_a_lease_with_more_keys_than_an_entry_expires_goes_alone() -> None:
    with patch("kvorum.kv.leases.LEASE_EXPIRY_MAX", 3):
        store = granted(LeaseGrant(1, 2), LeaseGrant(2, 3), LeaseGrant(3, 4))
        apply(store, leased(2, b"a", b"b", b"c"), time_ms=NOW)
        left = []
        for _ in range(3):
            apply(store, time_ms=NOW + 60_000)
            left.append([each.id for each in store.leases])
        assert left == [[2, 3], [3], []]


def test_an_entry_of_too_many_commands_still_carries_the_time() -> None:
    store = granted(LeaseGrant(1, 10))
    with patch("kvorum.kv.store.BATCH_COMMANDS_MAX", 1):
        apply(store, Put(b"k", b""), Put(b"k", b""), time_ms=NOW + 10_000)
    assert len(store.leases) == 0


def test_leases_that_come_and_go_leave_nothing_behind() -> None:
    """Their places in the heap would stay until the leases would have been due."""
    store = granted(LeaseGrant(1, 2))
    for number in range(40):
        apply(store, *(LeaseGrant(id, LEASE_TTL_S_MAX) for id in range(2, 52)), time_ms=NOW + number)
        apply(store, *(LeaseRevoke(id) for id in range(2, 52)), time_ms=NOW + number)
    assert (len(store.leases), store.leases.next_due_ms()) == (1, NOW + 2000)
    assert len(store.leases._heap) < 1200


# --- Keys ---------------------------------------------------------------------------------------------------------


def test_a_put_attaches_moves_and_detaches() -> None:
    store = granted(LeaseGrant(1, 10), LeaseGrant(2, 10))
    apply(store, leased(1, b"a", b"b", b"c"))
    assert store.leases.keys(1) == [b"a", b"b", b"c"]

    apply(store, Put(b"a", b""), leased(2, b"b"), leased(1, b"c"), Txn(then=(PutOp(b"x", b""),)))
    assert (store.leases.keys(1), store.leases.keys(2)) == ([b"c"], [b"b"])
    apply(store, leased(0, b"b"), Delete(b"c"))
    assert (store.leases.keys(1), store.leases.keys(2), store.leases.keys(3)) == ([], [], [])
    apply(store, LeaseRevoke(1), LeaseRevoke(2))
    assert sorted(store.versions.records) == [b"a", b"b", b"x"]


def test_a_key_that_is_deleted_and_put_again_has_no_lease() -> None:
    store = granted(LeaseGrant(1, 10))
    apply(store, leased(1, b"a"), Txn(then=(DeleteRangeOp(b"a", b"b"),)), Put(b"a", b""))
    assert (lease_of(store, b"a"), store.leases.keys(1)) == (0, [])


def test_ignore_lease_keeps_the_lease_of_a_key_that_exists() -> None:
    store = granted(LeaseGrant(1, 10))
    apply(store, leased(1, b"a"), Put(b"b", b""))
    both = Txn(
        then=(LeasedPutOp(b"a", b"", ignore_value=True, ignore_lease=True), LeasedPutOp(b"b", b"w", ignore_lease=True))
    )
    assert isinstance(apply(store, both)[0], TxnResult)
    assert (lease_of(store, b"a"), lease_of(store, b"b"), store.leases.keys(1)) == (1, 0, [b"a"])

    none = Txn(then=(PutOp(b"a", b"lost"), LeasedPutOp(b"c", b"", ignore_lease=True)))
    assert apply(store, none) == [TxnRefused(4, "key_not_found", b"c", 0)]
    assert lease_of(store, b"a") == 1, "nothing was done"


def test_an_unknown_lease_is_refused_before_anything_is_done() -> None:
    store = granted(LeaseGrant(1, 10))
    txn = Txn(then=(PutOp(b"a", b""), LeasedPutOp(b"b", b"", lease=1), LeasedPutOp(b"c", b"", lease=-9)))
    assert apply(store, txn) == [TxnRefused(1, "lease_not_found", b"c", -9)]
    assert (len(store), store.leases.keys(1), store.revision) == (0, [], 1)


def test_a_lease_has_a_bounded_number_of_keys() -> None:
    store = granted(LeaseGrant(1, 10), LeaseGrant(2, 10))
    keys = [b"%05d" % number for number in range(LEASE_KEYS_MAX)]
    for start in range(0, LEASE_KEYS_MAX, 125):
        apply(store, leased(1, *keys[start : start + 125]))
    assert len(store.leases.keys(1)) == LEASE_KEYS_MAX

    assert apply(store, leased(1, b"x"))[0] == TxnRefused(store.revision, "lease_full", b"x", 1)
    assert isinstance(apply(store, leased(1, keys[0], keys[1]))[0], TxnResult), "they have it already"
    assert isinstance(apply(store, leased(2, b"x"))[0], TxnResult)
    apply(store, Delete(keys[0]), Delete(keys[1]))
    assert apply(store, leased(1, b"x", b"y", b"z"))[0] == TxnRefused(store.revision, "lease_full", b"z", 1)
    assert lease_of(store, b"x") == 2
    assert isinstance(apply(store, leased(1, b"x", b"y"))[0], TxnResult)
    assert apply(store, LeaseRevoke(1))[0] == LeaseRevoked(store.revision, LEASE_KEYS_MAX)


def test_the_keys_of_a_nested_transaction_count_as_well() -> None:
    with patch("kvorum.kv.leases.LEASE_KEYS_MAX", 1):
        store = granted(LeaseGrant(1, 10))
        inner = TxnOp(then=(LeasedPutOp(b"b", b"", lease=1),))
        txn = Txn(then=(LeasedPutOp(b"a", b"", lease=1), inner))
        assert apply(store, txn) == [TxnRefused(1, "lease_full", b"b", 1)]
        assert isinstance(apply(store, msgspec.structs.replace(txn, then=(inner,)))[0], TxnResult)


@pytest.mark.parametrize(("operand", "holds"), [(1, True), (0, False), (2, False)])
def test_a_compare_sees_the_lease(operand: int, holds: bool) -> None:
    store = granted(LeaseGrant(1, 10))
    apply(store, leased(1, b"a"))
    [result] = apply(store, Txn((Compare(b"a", "lease", "=", operand),)))
    assert isinstance(result, TxnResult) and result.succeeded == holds
    [result] = apply(store, Txn((Compare(b"none", "lease", "=", 0),)))
    assert isinstance(result, TxnResult) and result.succeeded


def test_reads_show_the_lease_of_their_version() -> None:
    store = granted(LeaseGrant(1, 10))
    apply(store, leased(1, b"a"), Put(b"a", b"w"), LeaseRevoke(1))
    then, now = store.get(b"a", 2), store.get(b"a")
    assert then is not None and now is not None
    assert (then.lease, now.lease) == (1, 0)

    answer = store.read_transaction(Txn(then=(RangeOp(b"a", revision=2, keys_only=True),)))
    assert isinstance(answer, TxnResult)
    assert answer.results == (RangeOpResult(3, 1, (Record(b"a", b"", 2, 2, 1, lease=1),)),)


def test_a_put_with_a_lease_is_remembered_by_its_session() -> None:
    store = granted(LeaseGrant(1, 10))
    txn = msgspec.structs.replace(leased(1, b"a"), client_id="c", sequence=1)
    other = msgspec.structs.replace(leased(0, b"a"), client_id="c", sequence=1)
    [first] = apply(store, txn)
    apply(store, LeaseRevoke(1))
    [again, mismatch] = apply(store, txn, other)
    assert isinstance(first, TxnResult) and isinstance(again, TxnResult)
    assert (again.replayed, again.results, store.get(b"a")) == (True, first.results, None)
    assert mismatch == SessionRefused(3, "mismatch")


# --- Quota --------------------------------------------------------------------------------------------------------


def test_leases_and_their_keys_count_towards_the_quota() -> None:
    store = store_at_level_5()
    before = store.kept_bytes
    apply(store, LeaseGrant(1, 10), leased(1, b"a"), time_ms=NOW)
    record_bytes = store.versions.record_bytes
    assert store.kept_bytes - before - record_bytes == LEASE_OVERHEAD_BYTES + LEASE_KEY_OVERHEAD_BYTES
    assert restore(snapshot_of(store)).used_bytes == store.used_bytes
    apply(store, time_ms=NOW + 10_000)
    assert store.kept_bytes == before


def test_a_full_state_refuses_grants_and_puts_and_nothing_else_about_leases() -> None:
    store = granted(LeaseGrant(1, 10), LeaseGrant(2, 10), LeaseGrant(3, 20))
    apply(store, leased(1, b"a"), leased(2, b"b"), leased(3, b"c"))
    apply(store, Put(b"x", bytes(QUOTA_BYTES_MIN)), SetQuota(QUOTA_BYTES_MIN, OPERATOR))
    assert store.quota.is_full

    results = apply(store, LeaseGrant(4, 10), leased(1, b"d"), LeaseRenew(2), LeaseRevoke(1), time_ms=NOW + 5_000)
    assert [type(result) for result in results] == [NoSpace, NoSpace, LeaseRenewed, LeaseRevoked]
    with pytest.raises(NoSpaceError):
        store.check_room(LeaseGrant(4, 10))
    apply(store, time_ms=NOW + 20_000)
    assert store.quota.is_full and sorted(store.versions.records) == [b"x"]


# --- State hash ---------------------------------------------------------------------------------------------------


def test_the_hash_of_a_record_without_a_lease_is_what_it_was() -> None:
    store = restore(LEVEL_4)
    assert store.mismatch is None and store.record_sum is not None
    plain, *others = (Record(b"a", b"v", 2, 2, 1, lease=lease) for lease in (0, 1, -1, 2**63 - 1, -(2**63)))
    hashes = [store.record_sum.hash_of(b"a", each) for each in (plain, *others)]
    assert len(set(hashes)) == 5


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (LeaseGrant(1, 10), LeaseGrant(2, 10)),
        (LeaseGrant(1, 10), LeaseGrant(1, 11)),
        (LeaseGrant(1, 10), LeaseGrant(1, 10, 1)),
        (LeaseRenew(7), LeaseRenew(8)),
        (LeaseRevoke(7), LeaseRevoke(8)),
        (LeaseRevoke(7), LeaseRenew(7)),
        (leased(7, b"k"), leased(8, b"k")),
    ],
)
def test_the_state_hash_covers_what_was_done_about_leases(one: BatchCommand, other: BatchCommand) -> None:
    hashes = []
    for command in (one, other):
        store = granted(LeaseGrant(7, 10), LeaseGrant(8, 10))
        apply(store, command, time_ms=NOW + 1)
        hashes.append(store.state_hash)
    assert hashes[0] != hashes[1]


def test_the_state_hash_covers_an_expiry_that_another_store_missed() -> None:
    one, other = granted(LeaseGrant(1, 10)), granted(LeaseGrant(1, 10))
    with patch("kvorum.kv.leases.Leases.advance", lambda self, time_ms: iter(())):
        apply(other, time_ms=NOW + 10_000)
    apply(one, time_ms=NOW + 10_000)
    assert one.state_hash != other.state_hash


_SCRIPT = """
from kv.kv_support import apply, snapshot_of, store_at_level_5
from kv.test_leases import leased
from kvorum.kv.commands import LeaseGrant, LeaseRenew
store = store_at_level_5()
apply(store, *(LeaseGrant(id * 7 % 31 - 9, id % 5, id % 3) for id in range(1, 31) if id * 7 % 31 != 9), time_ms=1000)
for id in range(1, 20):
    apply(store, leased(id, *(b"%d/%d" % (id, n * 5 % 11) for n in range(11))), time_ms=1000)
for ms in range(1000, 9000, 500):
    apply(store, LeaseRenew(3), LeaseRenew(11), time_ms=ms)
    print(store.state_hash, store.revision, [each.id for each in store.leases])
print(snapshot_of(store).hex())
"""


def test_the_same_under_any_hash_seed() -> None:
    outputs = {
        subprocess.run(
            [sys.executable, "-c", _SCRIPT],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "77")
    }
    assert len(outputs) == 1 and len(outputs.pop()) > 1000


# --- Decoding -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        ["lg", "1", 10, 0],
        ["lg", 1, 1.5, 0],
        ["lg", 1, None, 0],
        ["lg", 1, 10, 0, 0],
        ["lg", 1],
        ["lr", b"1"],
        ["lr", 1, 2],
        ["lv"],
        ["lv", [1]],
        ["t", [], [["lp", b"k", b"v", False, False, "1", False]]],
        ["t", [], [["lp", b"k", b"v", False, False, 1, 1]]],
        ["t", [], [["lp", b"k", b"v", False, False, 1, False, 0]]],
        ["t", [], [["p", b"k", b"v", False, False, 1]]],
    ],
)
def test_commands_of_wrong_types_do_not_decode(command: list[object]) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_batch(msgspec.msgpack.encode([0, [command]]))


def test_a_lease_out_of_range_in_a_put_is_refused() -> None:
    store = store_at_level_5()
    for put in (LeasedPutOp(b"k", b"", lease=2**63), LeasedPutOp(b"k", b"", lease=1, ignore_lease=True)):
        assert apply(store, Txn(then=(put,))) == [SessionRefused(1, "invalid")]


def test_a_store_without_leases_goes_on_as_before() -> None:
    store = store_at_level_5()
    assert apply(store, Put(b"a", b""), Delete(b"a")) == [PutResult(2, 2, 2, 1), DeleteResult(3, 1)]
    assert store.leases.next_due_ms() is None
