"""What is refused of a transaction whatever the state: etcd's rules on all branches, and the bounds of our own."""

from __future__ import annotations

import pytest
from kv.kv_support import apply, store_at_level_3, store_at_level_4
from kv.txn_support import DELETE, NEVER, PUT, done, then

from kvorum.errors import InvalidRequestError, TooLargeError
from kvorum.kv.commands import SessionRefused, Txn
from kvorum.kv.limits import TXN_BYTES_MAX
from kvorum.kv.operations import (
    NO_END,
    Compare,
    DeleteRangeOp,
    LeasedPutOp,
    Operation,
    PutOp,
    RangeOp,
    TxnOp,
    prefix_end,
)
from kvorum.kv.txn import PLAN_OF_PUTS, plan_transaction
from kvorum.kv.txn_check import check_transaction, has_put, is_read_only, only_puts, transaction_bytes

DUPLICATES: list[tuple[Operation, ...]] = [
    (PUT, PUT),
    (PUT, DELETE),
    (DELETE, PUT),
    (PutOp(b"x1", b""), DeleteRangeOp(b"x", b"y")),
    (DeleteRangeOp(b"a", NO_END), PUT),
    (PUT, TxnOp((), (PUT,))),
    (TxnOp((), (PUT,)), TxnOp((), (), (PUT,))),
    (TxnOp((), (PUT,)), DELETE),
    (TxnOp((), (PUT,)), TxnOp((), (DELETE,))),
    (TxnOp((), (DELETE,)), TxnOp((), (PUT,))),
    (TxnOp((), (PUT,), (DELETE,)), TxnOp((), (RangeOp(b"x"),), (DELETE,))),
    (TxnOp((), (TxnOp((), (DELETE,)), PutOp(b"a", b"")), (PUT,)), PutOp(b"a", b"")),
]
NO_DUPLICATES: list[tuple[Operation, ...]] = [
    (DELETE, DELETE),
    (DeleteRangeOp(b"a", b"x"), PUT),
    (TxnOp((), (PUT,), (PUT,)),),
    (TxnOp((), (PUT,), (DELETE,)),),
    (TxnOp((), (DELETE,), (PUT,)), PutOp(b"y", b"")),
    (TxnOp((), (PUT, PutOp(b"z", b"")), (DeleteRangeOp(b"x", b"zz"),)), PutOp(b"a", b"")),
]


@pytest.mark.parametrize("operations", DUPLICATES)
def test_a_key_is_changed_once_at_most_in_any_branch(operations: tuple[Operation, ...]) -> None:
    for txn in (Txn((), operations), Txn((NEVER,), (), operations), Txn((NEVER,), operations)):
        with pytest.raises(InvalidRequestError, match="would change the same key"):
            check_transaction(txn)
        store = store_at_level_4()
        assert apply(store, txn) == [SessionRefused(1, "invalid")]


@pytest.mark.parametrize("operations", NO_DUPLICATES)
def test_two_deletes_may_meet_and_so_may_then_and_else_of_one_transaction(operations: tuple[Operation, ...]) -> None:
    check_transaction(Txn((), operations, operations))
    assert done(store_at_level_4(), Txn((), operations, operations)).succeeded


def puts(count: int, prefix: bytes = b"m") -> tuple[Operation, ...]:
    """Return puts of so many keys."""
    return tuple(PutOp(prefix + b"%d" % number, b"") for number in range(count))


def nested(depth: int) -> Operation:
    """Return a transaction so deep."""
    return TxnOp((), (nested(depth - 1),)) if depth > 1 else TxnOp()


ACCEPTED = {
    "128 operations": Txn((), puts(128), puts(128)),
    "100 and nested 27": Txn((), (*puts(100), TxnOp((), puts(27, b"n")))),
    "two nested of 100": Txn((), (TxnOp((), puts(100)), TxnOp((), puts(100, b"n")))),
    "1998 in all": then(*(TxnOp((), puts(110, b"%d-" % number)) for number in range(18))),
    "16 deep": then(nested(15)),
    "the longest key": then(PutOp(b"k" * 1024, b""), RangeOp(b"k" * 1024 + b"\0", b"l" * 1025)),
    "the largest values": then(PutOp(b"a", b"v" * (1024 * 1024)), PutOp(b"b", b"v" * (512 * 1024 - 2))),
}
TOO_LARGE = {
    "129 operations": then(*puts(129)),
    "129 in the branch that is not taken": Txn((), (), puts(129)),
    "129 compares": Txn((NEVER,) * 129),
    "100 and nested 28": Txn((), (*puts(100), TxnOp((), puts(28, b"n")))),
    "28 nested compares": Txn((), (*puts(100), TxnOp((NEVER,) * 28))),
    "2090 in all": then(*(TxnOp((), puts(109, b"%d-" % number)) for number in range(19))),
    "17 deep": then(nested(16)),
    "a long key": then(PutOp(b"k" * 1025, b"")),
    "a long key that is deleted": then(DeleteRangeOp(b"k" * 1025)),
    "a long start": then(RangeOp(b"k" * 1026, NO_END)),
    "a long end": then(RangeOp(b"k", b"k" * 1026)),
    "a large value": then(PutOp(b"a", b"v" * (1024 * 1024 + 1))),
    "a large operand": Txn((Compare(b"a", "value", "=", b"v" * (1024 * 1024 + 1)),)),
    "many bytes": then(PutOp(b"a", b"v" * (1024 * 1024)), PutOp(b"b", b"v" * (TXN_BYTES_MAX - 1024 * 1024 - 1))),
}
INVALID = {
    "an empty key": then(PutOp(b"", b"")),
    "an empty key of a range": then(RangeOp(b"", NO_END)),
    "an empty key of a delete": Txn((NEVER,), (DeleteRangeOp(b""),)),
    "an empty key of a compare": Txn((Compare(b"", "version", "=", 0),)),
    "a value that is to be kept": then(PutOp(b"a", b"v", True)),
    "a negative limit": then(RangeOp(b"a", NO_END, -1)),
    "a negative revision": then(RangeOp(b"a", NO_END, revision=-1)),
    "a number for a value": Txn((Compare(b"a", "value", "=", 0),)),
    "bytes for a version": Txn((Compare(b"a", "version", "=", b"0"),)),
    "a number that is too large": Txn((Compare(b"a", "version", "=", 2**63),)),
    "a sequence without a client": Txn((), (), (), "", 1),
    "a client without a sequence": Txn((), (), (), "ann", 0),
    "a client id with a space": Txn((), (), (), "a b", 1),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_is_within_the_limits_is_done(name: str) -> None:
    check_transaction(ACCEPTED[name])
    assert done(store_at_level_4(), ACCEPTED[name]).succeeded


@pytest.mark.parametrize("name", TOO_LARGE)
def test_what_is_too_large_is_refused_before_and_when_it_is_applied(name: str) -> None:
    with pytest.raises(TooLargeError):
        check_transaction(TOO_LARGE[name])
    assert apply(store_at_level_4(), TOO_LARGE[name]) == [SessionRefused(1, "invalid")]


@pytest.mark.parametrize("name", INVALID)
def test_what_is_invalid_is_refused_before_and_when_it_is_applied(name: str) -> None:
    with pytest.raises(InvalidRequestError):
        check_transaction(INVALID[name])
    assert apply(store_at_level_4(), INVALID[name]) == [SessionRefused(1, "invalid")]


def test_an_error_names_the_place() -> None:
    with pytest.raises(InvalidRequestError, match=r"^then\[1\]\.else\[0\]: the key is empty"):
        check_transaction(then(PUT, TxnOp((), (), (RangeOp(b""),))))
    with pytest.raises(InvalidRequestError, match=r"^else\[0\]\.then\[0\] and else\[0\]\.then\[1\] would"):
        check_transaction(Txn((), (), (TxnOp((), (PUT, PUT)),)))


def test_below_level_4_nothing_is_done() -> None:
    store = store_at_level_3()

    assert apply(store, Txn((), (PUT,), (), "ann", 1)) == [SessionRefused(0, "invalid")]
    assert (store.revision, store.session_count) == (0, 0)


def test_what_a_transaction_is_made_of_is_found_at_any_depth() -> None:
    assert is_read_only(Txn((NEVER,), (RangeOp(b"a"), TxnOp()), (TxnOp((), (RangeOp(b"a"),)),)))
    for operation in (PUT, DELETE):
        assert not is_read_only(Txn((), (), (TxnOp((), (), (operation,)),)))
    assert has_put(Txn((), (), (TxnOp((), (), (PUT,)),)))
    assert not has_put(then(DELETE, TxnOp((), (RangeOp(b"x"),))))
    txn = Txn((Compare(b"a", "value", "=", b"12"),), (PutOp(b"b", b"345"),), (TxnOp((), (RangeOp(b"c", b"d"),)),))
    assert transaction_bytes(txn, 100) == 3 + 4 + 2 + 4 * 100


def test_the_end_of_a_prefix() -> None:
    assert [prefix_end(each) for each in (b"a", b"a\xff", b"\xff\xff", b"")] == [b"b", b"b", NO_END, NO_END]


ONLY_PUTS = {
    "one": then(PUT),
    "128": then(*puts(128)),
    "the longest key": then(PutOp(b"k" * 1024, b"")),
    "the largest values": then(PutOp(b"a", b"v" * (1024 * 1024)), PutOp(b"b", b"v" * (512 * 1024 - 2))),
    "in a session": Txn((), (PUT,), (), "client", 1),
}
MORE_THAN_PUTS = {
    "nothing": Txn(),
    "a compare": Txn((NEVER,), (PUT,)),
    "another branch": Txn((), (PUT,), (PUT,)),
    "a delete": then(PUT, DeleteRangeOp(b"a")),
    "a range": then(PUT, RangeOp(b"a")),
    "nested": then(TxnOp((), (PUT,))),
    "a value that is kept": then(PutOp(b"a", b"", ignore_value=True)),
    "a record before": then(PutOp(b"a", b"", prev_value=True)),
    "a lease": then(LeasedPutOp(b"a", b"", lease=7)),
    "129": then(*puts(129)),
    "a key twice": then(*puts(2), *puts(1)),
    "no key": then(PutOp(b"", b"")),
    "a key too long": then(PutOp(b"k" * 1025, b"")),
    "a value too large": then(PutOp(b"a", b"v" * (1024 * 1024 + 1))),
    "too many bytes": then(PutOp(b"a", b"v" * (1024 * 1024)), PutOp(b"b", b"v" * (512 * 1024 - 1))),
}


@pytest.mark.parametrize("txn", ONLY_PUTS.values(), ids=ONLY_PUTS)
def test_what_only_puts_keys_is_valid_and_planned_alike_on_every_state(txn: Txn) -> None:
    assert only_puts(txn)
    check_transaction(txn)
    store = store_at_level_4()
    assert plan_transaction(txn, store) == PLAN_OF_PUTS
    apply(store, txn)
    assert plan_transaction(txn, store) == PLAN_OF_PUTS


@pytest.mark.parametrize("txn", MORE_THAN_PUTS.values(), ids=MORE_THAN_PUTS)
def test_what_does_more_than_put_keys_or_passes_a_limit_is_checked_in_full(txn: Txn) -> None:
    assert not only_puts(txn)


def test_a_session_that_is_none_is_refused_of_puts_as_well() -> None:
    assert apply(store_at_level_4(), Txn((), (PUT,), (), "", 1)) == [SessionRefused(1, "invalid")]
