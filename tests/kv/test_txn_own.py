"""What a transaction's ranges see of its own puts and deletes counts towards its bounds."""

from __future__ import annotations

import pytest
from kv.kv_support import apply, raise_to, store_at_level_4, store_at_level_5
from kv.txn_support import done, refused, then, with_keys

from kvorum.errors import TooLargeError
from kvorum.kv.commands import Put, Txn
from kvorum.kv.limits import TXN_ANSWER_BYTES_MAX, TXN_KEYS_MAX, VALUE_BYTES_MAX
from kvorum.kv.operations import NO_END, DeleteRangeOp, Operation, PutOp, RangeOp, RangeOpResult, TxnOp
from kvorum.kv.store import Store
from kvorum.kv.txn import answer_bytes, visited_keys
from kvorum.kv.txn_check import check_transaction
from kvorum.kv.txn_own import check_own, own_keys

MIB = 1024 * 1024


def nested(operations: tuple[Operation, ...]) -> TxnOp:
    return TxnOp((), operations)


def puts(count: int, value: bytes = b"") -> tuple[TxnOp, ...]:
    """Return puts of p00-000 and so on, a hundred in each nested transaction."""
    return tuple(
        nested(tuple(PutOp(b"p%02d-%03d" % (first, number), value) for number in range(100)))
        for first in range(count // 100)
    )


def reads(count: int, each: RangeOp) -> tuple[TxnOp, ...]:
    """Return a range so many times, ninety in each nested transaction."""
    return tuple(nested((each,) * 90) for _ in range(count // 90))


WIDE = then(PutOp(b"x", b"v" * MIB), *reads(17 * 90, RangeOp(b"x")))
MANY = then(*puts(1000), *reads(990, RangeOp(b"p", b"q")))
PAST = then(*puts(1000), *reads(990, RangeOp(b"p", b"q", revision=1, count_only=True)))
LIMITED = then(*puts(100, b"v" * 10_000), *reads(990, RangeOp(b"p", b"q", limit=50)))


@pytest.mark.parametrize(
    ("txn", "reason"),
    [(WIDE, "answer_too_large"), (MANY, "too_many_keys"), (PAST, "too_many_keys"), (LIMITED, "answer_too_large")],
)
def test_what_the_transaction_itself_puts_counts_from_level_5_on_and_is_not_proposed_below(
    txn: Txn, reason: str
) -> None:
    check_transaction(txn)

    assert refused(store_at_level_5(), txn).reason == reason
    with pytest.raises(TooLargeError, match="raise the feature level"):
        check_own(txn)


def test_reads_of_the_past_look_at_what_the_transaction_changed() -> None:
    store = with_keys(1000)
    apply(store, raise_to(5))
    past = RangeOp(b"a", b"b", revision=store.revision)

    assert done(store, then(*reads(90, past))).succeeded
    assert refused(store, then(DeleteRangeOp(b"k", NO_END), *reads(90, past))).reason == "too_many_keys"


def test_an_old_log_means_what_it_meant() -> None:
    assert done(store_at_level_4(), then(*puts(1000), *reads(90, RangeOp(b"p", b"q")))).succeeded


@pytest.mark.parametrize("descending", [False, True])
def test_keys_that_a_delete_moves_up_to_the_limit_count(descending: bool) -> None:
    store = with_keys(10)
    last, first = (b"k00000", b"k00005") if descending else (b"k00005", b"k00000")
    for number in range(5):
        key = int(last[1:]) + number
        apply(store, Put(b"k%05d" % key, b"v" * VALUE_BYTES_MAX))
    apply(store, raise_to(5))
    txn = then(DeleteRangeOp(first, b"k%05d" % (int(first[1:]) + 5)), RangeOp(b"k", NO_END, 5, descending=descending))

    assert refused(store, txn).reason == "answer_too_large"
    with pytest.raises(TooLargeError, match="deletes"):
        check_own(txn)


def test_what_is_within_the_bounds_is_done_and_counted_exactly() -> None:
    store = with_keys(4, b"v" * MIB)
    apply(store, raise_to(5))
    # Without the replaced values two more MiB would not fit.
    txn = then(
        PutOp(b"k00000", b""),
        PutOp(b"k00001", b""),
        PutOp(b"a", b"w" * (MIB // 2)),
        RangeOp(b"a", NO_END),
        RangeOp(b"k", NO_END, limit=2),
        RangeOp(b"b", NO_END, keys_only=True),
        RangeOp(b"k00000"),
        RangeOp(b"a", NO_END, limit=1),
    )
    result = done(store, txn)
    check_own(txn)

    assert 3 * MIB <= answer_bytes(result.results) <= TXN_ANSWER_BYTES_MAX
    assert isinstance((result.results or ())[3], RangeOpResult)


def test_a_kept_value_counts_as_long_as_it_is() -> None:
    store: Store = with_keys(1, b"v" * MIB)
    apply(store, raise_to(5))
    kept = PutOp(b"k00000", b"", True)

    assert done(store, then(kept, *(RangeOp(b"k00000"),) * 3)).succeeded
    assert refused(store, then(kept, *(RangeOp(b"k00000"),) * 4)).reason == "answer_too_large"


def test_a_delete_of_one_key_before_a_limited_range_may_be_proposed_at_level_4() -> None:
    check_own(then(DeleteRangeOp(b"lock/1"), RangeOp(b"lock/", b"lock0", limit=100)))
    check_own(then(DeleteRangeOp(b"a", b"b"), RangeOp(b"a", b"c", limit=100, keys_only=True)))


def test_both_branches_of_a_nested_transaction_are_looked_at_before_it_is_proposed() -> None:
    txn = Txn((), (), (TxnOp((), (), (*puts(1000), *reads(990, RangeOp(b"p", b"q")))),))
    with pytest.raises(TooLargeError):
        check_own(txn)


def test_the_leader_holds_back_what_visits_its_own_keys() -> None:
    store = store_at_level_5()

    assert visited_keys(then(*puts(100), *reads(90, RangeOp(b"p", b"q"))), store.versions) >= 9000
    assert TXN_KEYS_MAX < own_keys(MANY) <= TXN_KEYS_MAX + 1000
