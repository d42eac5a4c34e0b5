"""Transactions: etcd's rules one by one, and the bounds of our own."""

from __future__ import annotations

import os
import subprocess
import sys

import msgspec
import pytest
from kv.kv_support import apply, restore, snapshot_of, store_at_level_4
from kv.txn_support import DELETE, NEVER, PUT, done, refused, then, with_keys

from kvorum.errors import NoSpaceError, SessionError
from kvorum.kv.commands import (
    Batch,
    Compact,
    Delete,
    NoSpace,
    Put,
    SessionRefused,
    SetQuota,
    Txn,
    TxnResult,
    decode_batch,
    encode_batch,
    unknown_part,
)
from kvorum.kv.limits import TXN_ANSWER_BYTES_MAX, TXN_KEYS_MAX
from kvorum.kv.operations import (
    NO_END,
    Compare,
    DeleteRangeOp,
    DeleteRangeOpResult,
    PutOp,
    PutOpResult,
    RangeOp,
    RangeOpResult,
    TxnOp,
    TxnOpResult,
    prefix_end,
)
from kvorum.kv.records import Record

# --- What is done ----------------------------------------------------------------------------------------------------


def test_all_changes_have_one_revision_and_a_range_sees_what_came_before_it() -> None:
    store = store_at_level_4()
    result = done(store, then(RangeOp(b"a", NO_END), PutOp(b"a", b"1"), RangeOp(b"a"), PutOp(b"b", b"2")))

    assert result.revision == store.revision == 2
    assert result.results == (
        RangeOpResult(1, 0),
        PutOpResult(2, 2, 1),
        RangeOpResult(2, 1, (Record(b"a", b"1", 2, 2, 1),)),
        PutOpResult(2, 2, 1),
    )


def test_a_transaction_that_changes_nothing_makes_no_revision() -> None:
    store = store_at_level_4()

    assert done(store, then()) == TxnResult(1, True, 0, ())
    assert done(store, then(DeleteRangeOp(b"nope", NO_END))).results == (DeleteRangeOpResult(1, 0),)
    assert done(store, Txn((NEVER,), (PutOp(b"a", b""),))) == TxnResult(1, False, 0, ())
    assert store.revision == 1


def test_deletes_may_overlap_and_answer_with_what_they_removed() -> None:
    store = store_at_level_4()
    done(store, then(PutOp(b"a", b"1"), PutOp(b"b", b"2"), PutOp(b"c", b"3")))
    result = done(store, then(DeleteRangeOp(b"a", b"c", True), DeleteRangeOp(b"a", b"", True)))

    assert (result.revision, result.deleted) == (3, 2)
    gone = (Record(b"a", b"1", 2, 2, 1), Record(b"b", b"2", 2, 2, 1))
    assert result.results == (DeleteRangeOpResult(3, 2, gone), DeleteRangeOpResult(3, 0))
    assert [event.key for event in store.versions.events(store.versions.position(3), 9)] == [b"a", b"b"]


def test_events_come_in_the_order_of_the_operations() -> None:
    store = store_at_level_4()
    done(store, then(PutOp(b"z", b""), PutOp(b"m", b"")))
    done(store, then(PutOp(b"y", b""), TxnOp((), (PutOp(b"b", b""),)), DeleteRangeOp(b"m", b"y"), PutOp(b"z", b"")))

    events = store.versions.events(store.versions.position(3), 9)
    assert [(event.key, event.version) for event in events] == [(b"y", 1), (b"b", 1), (b"m", 0), (b"z", 2)]


def test_compares_of_nested_transactions_see_the_state_before_the_transaction() -> None:
    store = store_at_level_4()
    nested = TxnOp((Compare(b"a", "version", "=", 0),), (PutOp(b"b", b"then"),), (PutOp(b"b", b"else"),))
    result = done(store, then(PutOp(b"a", b"1"), nested))

    assert result.results is not None
    assert result.results[1] == TxnOpResult(True, (PutOpResult(2, 2, 1),))


def test_transactions_are_nested_in_the_branch_that_runs_whichever_it_is() -> None:
    store = store_at_level_4()
    inner = TxnOp((NEVER,), (), (PutOp(b"a", b"inner"),))
    result = done(store, Txn((NEVER,), (), (TxnOp((), (), ()), TxnOp((NEVER,), (), (inner, PutOp(b"b", b""))))))

    assert result.results == (
        TxnOpResult(True, ()),
        TxnOpResult(False, (TxnOpResult(False, (PutOpResult(2, 2, 1),)), PutOpResult(2, 2, 1))),
    )


@pytest.mark.parametrize(
    ("target", "result", "operand", "holds"),
    [
        ("version", "=", 0, True),
        ("version", ">", -1, True),
        ("create_revision", "!=", 0, False),
        ("mod_revision", "<", 1, True),
        ("value", "=", b"", False),
        ("value", "!=", b"x", False),
        ("value", "<", b"z", False),
    ],
)
@pytest.mark.parametrize("end", [b"", b"missinh"])
def test_a_missing_key_is_zero_and_has_no_value(
    target: str, result: str, operand: int | bytes, holds: bool, end: bytes
) -> None:
    store = store_at_level_4()
    compare = Compare(b"missing", target, result, operand, end)  # type: ignore[arg-type]

    assert done(store, Txn((compare,))).succeeded == holds


def test_a_compare_of_a_range_must_hold_for_every_key() -> None:
    store = store_at_level_4()
    done(store, then(PutOp(b"a", b"1"), PutOp(b"b", b"1")))
    assert done(store, Txn((Compare(b"a", "value", "=", b"1", NO_END),))).succeeded
    done(store, then(PutOp(b"b", b"2")))

    assert not done(store, Txn((Compare(b"a", "value", "=", b"1", NO_END),))).succeeded
    assert done(store, Txn((Compare(b"a", "create_revision", "=", 2, NO_END),))).succeeded
    assert not done(store, Txn((Compare(b"a", "mod_revision", "=", 2, NO_END),))).succeeded


def test_a_put_can_keep_the_value_and_answer_with_the_record_before() -> None:
    store = store_at_level_4()
    done(store, then(PutOp(b"a", b"1", prev_value=True)))
    result = done(store, then(PutOp(b"a", b"", True, True)))

    assert result.results == (PutOpResult(3, 2, 2, Record(b"a", b"1", 2, 2, 1)),)
    assert store.get(b"a") == Record(b"a", b"1", 2, 3, 2)


def test_a_range_is_limited_sorted_counted_and_read_in_the_past() -> None:
    store = store_at_level_4()
    done(store, then(*(PutOp(key, b"1") for key in (b"a", b"b", b"c"))))
    done(store, then(DeleteRangeOp(b"b"), PutOp(b"d", b"2")))

    def read(*reads: RangeOp) -> list[tuple[int, list[bytes], bool]]:
        results = done(store, then(*reads)).results or ()
        return [(r.count, [x.key for x in r.records], r.more) for r in results if isinstance(r, RangeOpResult)]

    assert read(
        RangeOp(b"a", NO_END, 2),
        RangeOp(b"a", NO_END, 2, descending=True),
        RangeOp(b"a", NO_END, revision=2),
        RangeOp(b"a", NO_END, 1, 2, descending=True),
        RangeOp(b"a", NO_END, count_only=True),
        RangeOp(b"a", NO_END, revision=2, count_only=True),
        RangeOp(b"c", b"a"),
        RangeOp(b"b", revision=2),
    ) == [
        (3, [b"a", b"c"], True),
        (3, [b"d", b"c"], True),
        (3, [b"a", b"b", b"c"], False),
        (3, [b"c"], True),
        (3, [], False),
        (3, [], False),
        (0, [], False),
        (1, [b"b"], False),
    ]


def test_a_read_at_the_revision_before_does_not_see_the_transaction_itself() -> None:
    store = store_at_level_4()
    done(store, then(PutOp(b"a", b"1")))
    result = done(store, then(PutOp(b"a", b"2"), DeleteRangeOp(b"b"), RangeOp(b"a", NO_END, revision=2)))

    assert result.results is not None
    assert result.results[2] == RangeOpResult(3, 1, (Record(b"a", b"1", 2, 2, 1),))


# --- What is refused by the state ------------------------------------------------------------------------------------


def test_nothing_is_done_if_one_operation_of_a_branch_that_runs_cannot_be_done() -> None:
    store = store_at_level_4()
    apply(store, Put(b"a", b"1"), Put(b"a", b"2"), Put(b"a", b"3"), Compact(3))
    revision = store.revision

    for last, reason, number in (
        (PutOp(b"gone", b"", True), "key_not_found", 0),
        (RangeOp(b"a", revision=revision + 1), "future", revision + 1),
        (RangeOp(b"a", revision=2), "compacted", 2),
    ):
        for operation in (last, TxnOp((), (last,))):
            result = refused(store, then(PutOp(b"x", b""), DeleteRangeOp(b"a"), operation))
            assert (result.reason, result.number, result.revision) == (reason, number, revision)
        assert done(store, Txn((NEVER,), (last,), (RangeOp(b"a", revision=3),))).succeeded is False
    assert store.get(b"x") is None


def test_one_transaction_visits_at_most_ten_thousand_keys() -> None:
    store = with_keys(TXN_KEYS_MAX + 1)
    many, most = prefix_end(b"k"), b"k%05d" % TXN_KEYS_MAX

    for txn in (
        then(DeleteRangeOp(b"k", many)),
        then(PutOp(b"x", b""), DeleteRangeOp(b"k", most)),
        then(RangeOp(b"k", many, keys_only=True)),
        then(RangeOp(b"k", most), RangeOp(b"k00000")),
        Txn((Compare(b"k", "version", "=", 1, many),)),
        Txn((Compare(b"k", "version", "=", 1, b"k06000"),), (RangeOp(b"k06000", many),)),
        then(RangeOp(b"k", b"k00001", revision=2)),  # The changes since then count, wherever they are.
    ):
        result = refused(store, txn)
        assert (result.reason, result.number) == ("too_many_keys", TXN_KEYS_MAX)
    assert done(store, then(RangeOp(b"k", many, count_only=True))).results == (
        RangeOpResult(store.revision, TXN_KEYS_MAX + 1),
    )
    assert done(store, then(RangeOp(b"k", many, 9), RangeOp(b"k", many, 9000))).succeeded
    assert done(store, then(DeleteRangeOp(b"k", most))).deleted == TXN_KEYS_MAX
    assert len(store) == 1


def test_the_bound_on_visits_does_not_depend_on_what_memory_still_holds() -> None:
    store = with_keys(9_000)
    apply(store, Txn((), (DeleteRangeOp(b"k", NO_END),)), Put(b"k", b""))
    apply(store, Compact(store.revision))
    other = with_keys(9_000)
    apply(other, Txn((), (DeleteRangeOp(b"k", NO_END),)), Put(b"k", b""))
    apply(other, Compact(other.revision))
    while other.reclaim(5_000) == 5_000:
        pass
    for txn in (
        then(RangeOp(b"k", NO_END, revision=store.revision)),
        then(RangeOp(b"k", NO_END), PutOp(b"z", b""), RangeOp(b"k", NO_END, revision=store.revision)),
    ):
        assert apply(store, txn) == apply(other, txn)
    assert store.state_hash == other.state_hash


def test_the_answer_is_bounded_in_bytes() -> None:
    value = b"v" * (TXN_ANSWER_BYTES_MAX // 8)
    store = with_keys(8, value)

    for operation in (RangeOp(b"k", NO_END), DeleteRangeOp(b"k", NO_END, True), RangeOp(b"k", NO_END, revision=9)):
        result = refused(store, then(PutOp(b"a", b""), operation))
        assert (result.reason, result.number) == ("answer_too_large", TXN_ANSWER_BYTES_MAX)
    puts = [PutOp(b"k%05d" % number, b"", prev_value=True) for number in range(8)]
    assert refused(store, then(*puts)).reason == "answer_too_large"
    assert done(store, then(*puts[:7])).succeeded
    assert done(store, then(RangeOp(b"k", NO_END, keys_only=True), DeleteRangeOp(b"k", NO_END))).deleted == 8


# --- Sessions --------------------------------------------------------------------------------------------------------


def test_a_retry_is_answered_with_branch_revision_and_count_and_does_nothing() -> None:
    store = store_at_level_4()
    apply(store, Put(b"a", b"1"), Put(b"b", b"2"))
    txn = Txn((Compare(b"a", "version", "=", 1),), (DeleteRangeOp(b"a", b"c", True), PUT, RangeOp(b"a")), (), "ann", 1)
    first = done(store, txn)
    failed = Txn((NEVER,), (PUT,), (DeleteRangeOp(b"x"),), "ann", 2)
    second = done(store, failed)
    revision = store.revision

    assert (first.succeeded, first.deleted, second.succeeded, second.deleted) == (True, 2, False, 1)
    for _ in range(2):
        assert done(store, txn) == TxnResult(first.revision, True, 2, None, True)
        assert done(store, failed) == TxnResult(second.revision, False, 1, None, True)
        store = restore(snapshot_of(store))
    assert store.revision == revision


def test_a_retry_of_a_single_put_is_answered_as_a_put_is() -> None:
    store = store_at_level_4()
    apply(store, Put(b"x", b"1"))
    txn = Txn((Compare(b"x", "version", "=", 1),), (PutOp(b"x", b"2", prev_value=True),), (), "ann", 1)

    assert done(store, txn).results == (PutOpResult(3, 2, 2, Record(b"x", b"1", 2, 2, 1)),)
    assert done(store, txn) == TxnResult(3, True, 0, (PutOpResult(3, 2, 2),), True)


@pytest.mark.parametrize(
    "other",
    [
        Txn((), (PutOp(b"x", b"w"),), (), "ann", 1),
        Txn((NEVER,), (PUT,), (), "ann", 1),
        Txn((), (), (PUT,), "ann", 1),
        Txn((), (PutOp(b"x", b"v", prev_value=True),), (), "ann", 1),
        Txn((), (PUT,), (RangeOp(b"x"),), "ann", 1),
        Put(b"x", b"v", -1, "ann", 1),
        Delete(b"x", -1, "ann", 1),
    ],
)
def test_a_sequence_is_for_one_transaction_with_all_of_its_parts(other: Txn | Put | Delete) -> None:
    store = store_at_level_4()
    done(store, Txn((), (PUT,), (), "ann", 1))

    assert apply(store, other) == [SessionRefused(2, "mismatch")]


def test_a_refusal_is_not_remembered() -> None:
    store = store_at_level_4()
    txn = Txn((), (PutOp(b"x", b"", True),), (), "ann", 1)
    assert refused(store, txn).reason == "key_not_found"
    apply(store, Put(b"x", b"1"))

    assert done(store, txn).revision == 3
    apply(store, Delete(b"x"))
    assert done(store, txn).replayed


def test_what_a_transaction_did_is_in_the_state_hash() -> None:
    hashes = set()
    for txn in (
        then(PUT),
        then(PUT, DeleteRangeOp(b"a")),
        then(PutOp(b"x", b"w")),
        then(PUT, PutOp(b"y", b"")),
        then(DeleteRangeOp(b"a")),
        Txn((), (PUT,), (), "ann", 1),
        Txn((NEVER,), (), (PUT,), "ann", 1),
        Txn((), (PUT,), (), "ann", 1),
    ):
        store = store_at_level_4()
        apply(store, Put(b"a", b"1"))
        done(store, txn)
        hashes.add(store.state_hash)
    assert len(hashes) == 7


# --- Room ------------------------------------------------------------------------------------------------------------


def test_when_the_state_is_full_a_transaction_with_a_put_in_any_branch_is_refused_and_others_go_on() -> None:
    store = store_at_level_4()
    keep = Txn((), (PutOp(b"kept", b""),), (), "ann", 1)
    done(store, keep)
    apply(store, SetQuota(1024 * 1024, "operator"), Put(b"a", b"v" * 1024 * 1024))
    apply(store, Delete(b"kept"))
    assert store.quota.is_full and store.history_bytes
    nested_put = Txn((), (DeleteRangeOp(b"a"), TxnOp((NEVER,), (PUT,))), ())

    for txn in (then(PUT), Txn((), (), (PUT,)), nested_put, Txn((), (PUT,), (), "ann", 2)):
        [result] = apply(store, txn)
        assert result == NoSpace(store.revision, store.quota.limit_bytes, store.kept_bytes), "without the history"
        with pytest.raises(NoSpaceError):
            store.check_room(txn)
    store.check_room(keep)
    assert done(store, keep).replayed
    with pytest.raises(SessionError):
        store.check_room(Txn((), (DeleteRangeOp(b"a"),), (), "new", 1))
    store.check_room(then(DeleteRangeOp(b"a"), RangeOp(b"a")))
    assert done(store, then(DeleteRangeOp(b"a"), RangeOp(b"a"))).deleted == 1


# --- Encoding --------------------------------------------------------------------------------------------------------


def test_a_transaction_is_encoded_with_all_of_its_parts() -> None:
    txn = Txn(
        (Compare(b"a", "value", "<", b"1", NO_END), Compare(b"a", "version", ">", -1)),
        (PutOp(b"a", b"1", False, True), DeleteRangeOp(b"b", b"c", True), TxnOp((NEVER,), (PUT,), (DELETE,))),
        (RangeOp(b"a", b"b", 3, 4, True, True, True),),
        "ann",
        7,
    )

    assert decode_batch(encode_batch(5, [txn])) == Batch(5, (txn,))


def test_what_a_newer_version_put_into_a_transaction_is_told_from_damage() -> None:
    def data(*branch: object) -> bytes:
        return msgspec.msgpack.encode([0, [["t", [], [], list(branch), "", 0]]])

    assert unknown_part(data(["p", b"a", b"", False, False])) is None
    assert unknown_part(data(["lease", b"a"])) == "an operation 'lease' of a transaction"
    assert unknown_part(data(["p", b"a", b"", False, False, 7])) == "a field of the operation 'p'"
    assert unknown_part(data(["t", [], [["new"]], []])) == "an operation 'new' of a transaction"
    assert unknown_part(data([1])) is None
    assert unknown_part(data("p")) is None


def test_a_transaction_nested_without_end_is_no_batch() -> None:
    data = b"\x92\x00\x91" + b"\x94\xa1t\x90\x91" * 100_000
    with pytest.raises(msgspec.DecodeError):
        decode_batch(data)
    assert unknown_part(data) is None


_SCRIPT = """
from kv.kv_support import apply, snapshot_of, store_at_level_4
from kvorum.kv.commands import Put, Txn
from kvorum.kv.operations import *
store = store_at_level_4()
apply(store, *(Put(b"%d" % i, b"") for i in range(40)))
print(apply(store, Txn((), tuple(PutOp(b"x%d" % i, b"") for i in range(40)) + (DeleteRangeOp(b"1", b"5", True),))))
print(apply(store, Txn((), (RangeOp(b"0", NO_END, revision=20), DeleteRangeOp(b"x", NO_END, True)), (), "ann", 1)))
print(store.state_hash, snapshot_of(store).hex())
"""


def test_the_order_of_sets_and_hashes_changes_nothing() -> None:
    said = []
    for seed in ("0", "1", "77"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", _SCRIPT]
        said.append(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)
    assert said[0] == said[1] == said[2]
