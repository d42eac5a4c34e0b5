"""Transactions do what a naive model of etcd's does, whatever they are made of."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given
from kv.kv_support import apply, examples, restore, snapshot_of, store_at_level_4
from kv.txn_model import Answer, RefusedError, TxnModel, Version

from kvorum.errors import InvalidRequestError
from kvorum.kv.commands import Compact, Result, SessionRefused, Txn, TxnRefused, TxnResult
from kvorum.kv.operations import (
    Compare,
    DeleteRangeOp,
    DeleteRangeOpResult,
    Operation,
    OperationResult,
    PutOp,
    PutOpResult,
    RangeOp,
    RangeOpResult,
    TxnOp,
    TxnOpResult,
)
from kvorum.kv.records import Record
from kvorum.kv.store import Store
from kvorum.kv.txn_check import check_transaction

_keys = st.sampled_from([b"a", b"b", b"c", b"d", b"d\0"])
_values = st.sampled_from([b"", b"1", b"2"])
_ends = st.sampled_from([b"", b"", b"b", b"d", b"e", b"\0", b"A"])
_results = st.sampled_from(["=", "=", "!=", "<", ">"])
_compares = st.one_of(
    st.builds(Compare, _keys, st.just("value"), _results, _values, _ends),
    st.builds(
        Compare,
        _keys,
        st.sampled_from(["version", "create_revision", "mod_revision"]),
        _results,
        st.integers(-1, 6),
        _ends,
    ),
)
_puts = st.builds(PutOp, _keys, _values, prev_value=st.booleans())
_keeps = st.builds(PutOp, _keys, st.just(b""), st.just(True), st.booleans())
_deletes = st.builds(DeleteRangeOp, _keys, _ends, st.booleans())
_reads = st.builds(
    RangeOp, _keys, _ends, st.integers(0, 3), st.sampled_from([0, 0, 1, 2, 3, 5, 8]), *[st.booleans()] * 3
)
_leaves: st.SearchStrategy[Operation] = st.one_of(_puts, _puts, _keeps, _deletes, _reads)


def _txn_of(operations: st.SearchStrategy[Operation]) -> st.SearchStrategy[TxnOp]:
    lists = st.lists(operations, max_size=3).map(tuple)
    return st.builds(TxnOp, st.lists(_compares, max_size=2).map(tuple), lists, lists)


_operations = st.recursive(_leaves, _txn_of, max_leaves=6)
_transactions = _txn_of(_operations)
_steps = st.lists(st.one_of(_transactions, _transactions, st.integers(1, 4)), max_size=8)


@examples
@given(_steps)
def test_transactions_do_what_the_model_does(steps: list[TxnOp | int]) -> None:
    store, model = store_at_level_4(), TxnModel()
    for step in steps:
        if isinstance(step, int):
            _compact(store, model, step)
        else:
            _compare(store, model, step)
    assert _all(store) == model.read(b"\0", b"\0", model.revision)
    assert store.revision == model.revision
    for revision in range(model.floor, model.revision + 1):
        for key in (b"a", b"b", b"c", b"d", b"d\0"):
            record = store.get(key, revision)
            assert ([] if record is None else [_version(record)]) == model.read(key, b"", revision)
    assert restore(snapshot_of(store)).state_sum == store.state_sum


def _compact(store: Store, model: TxnModel, back: int) -> None:
    revision = store.revision - back
    if revision > store.floor:
        apply(store, Compact(revision))
        model.floor = revision
    # Results never depend on what memory still holds.
    store.reclaim(back)


def _compare(store: Store, model: TxnModel, transaction: TxnOp) -> None:
    txn = Txn(transaction.compares, transaction.then, transaction.otherwise)
    [result] = apply(store, txn)
    try:
        expected = model.apply(transaction)
    except RefusedError as refused:
        assert _reason(result) == str(refused)
        if str(refused) == "duplicate":
            assert _is_refused_by_the_api(txn)
    else:
        assert isinstance(result, TxnResult)
        assert result.results is not None
        assert (result.succeeded, [_answer(each) for each in result.results]) == expected
        assert result.revision == model.revision


def _is_refused_by_the_api(txn: Txn) -> bool:
    try:
        check_transaction(txn)
    except InvalidRequestError as error:
        return "would change the same key" in str(error)
    return False


def _reason(result: Result) -> str:
    if isinstance(result, SessionRefused):
        return "duplicate" if result.reason == "invalid" else result.reason
    return result.reason if isinstance(result, TxnRefused) else ""


def _all(store: Store) -> list[Version]:
    return [_version(store.versions.records[key]) for key in store.versions.keys_from(b"", None, 100, has_dead=False)]


def _version(record: Record | None) -> Version:
    assert record is not None
    return Version(record.key, record.value, record.create_revision, record.mod_revision, record.version)


def _answer(result: OperationResult) -> Answer:
    match result:
        case PutOpResult(revision, create_revision, version, previous):
            return "put", revision, create_revision, version, [] if previous is None else [_version(previous)]
        case DeleteRangeOpResult(revision, deleted, gone):
            return "delete", revision, deleted, [_version(each) for each in gone]
        case RangeOpResult(revision, count, records, more):
            return "range", revision, count, [_version(each) for each in records], more
        case TxnOpResult(succeeded, results):
            return "txn", succeeded, [_answer(each) for each in results]
