"""What the tests of transactions share."""

from __future__ import annotations

from kv.kv_support import apply, snapshot_of, store_at_level_4

from kvorum.kv.commands import Put, Txn, TxnRefused, TxnResult
from kvorum.kv.operations import Compare, DeleteRangeOp, Operation, PutOp
from kvorum.kv.store import Store

PUT, DELETE = PutOp(b"x", b"v"), DeleteRangeOp(b"x")
NEVER = Compare(b"nope", "version", "=", 5)


def then(*operations: Operation) -> Txn:
    """Return a transaction without compares."""
    return Txn((), operations)


def done(store: Store, txn: Txn) -> TxnResult:
    """Apply it, which must succeed."""
    [result] = apply(store, txn)
    assert isinstance(result, TxnResult)
    return result


def refused(store: Store, txn: Txn) -> TxnRefused:
    """Apply it, which must be refused and change nothing but the index."""
    before = snapshot_of(store)[64:]
    state = (store.revision, store.used_bytes, store.session_count, store.state_sum)
    [result] = apply(store, txn)
    assert isinstance(result, TxnRefused)
    assert (store.revision, store.used_bytes, store.session_count, store.state_sum) == state
    assert len(snapshot_of(store)[64:]) == len(before)
    return result


def with_keys(count: int, value: bytes = b"") -> Store:
    """Return a store with so many keys, k00000 and so on."""
    store = store_at_level_4()
    for first in range(0, count, 1000):
        numbers = range(first, min(first + 1000, count))
        apply(store, *(Put(b"k%05d" % number, value) for number in numbers))
    return store
