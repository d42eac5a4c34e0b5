"""What a transaction does to the state. Every node decides and does the same.

All compares are evaluated first, those of nested transactions too, on the state before the transaction. Then the
operations of the branches that run are checked against that state; if one of them cannot be done, nothing is. Then they
are done in order, all changes at one revision, and a range sees what came before it. A transaction that changed nothing
makes no revision.

One transaction visits a bounded number of keys, and answers with a bounded number of bytes; what would pass a bound is
refused before anything is done. Both are counted on the live keys and the events since a revision, never on what memory
still holds of deleted keys, which differs from node to node. From feature level 5 on what the transaction's own earlier
operations do counts too (:mod:`kvorum.kv.txn_own`).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol, assert_never

import msgspec

from kvorum.kv.commands import Txn, TxnRefused, TxnResult
from kvorum.kv.features import LEASE_LEVEL
from kvorum.kv.leases import Leases
from kvorum.kv.limits import TXN_ANSWER_BYTES_MAX, TXN_KEYS_MAX
from kvorum.kv.operations import (
    ONE_KEY,
    Compare,
    DeleteRangeOp,
    DeleteRangeOpResult,
    LeasedPutOp,
    Operation,
    OperationResult,
    PutOp,
    PutOpResult,
    RangeOp,
    RangeOpResult,
    TxnOp,
    TxnOpResult,
    bound,
)
from kvorum.kv.records import Record
from kvorum.kv.txn_own import Own, has_range, own_keys
from kvorum.kv.versions import Versions

COMPACTED = "compacted"
FUTURE = "future"
KEY_NOT_FOUND = "key_not_found"
TOO_MANY_KEYS = "too_many_keys"
ANSWER_TOO_LARGE = "answer_too_large"
LEASE_NOT_FOUND = "lease_not_found"
LEASE_FULL = "lease_full"

_RESULTS: Mapping[str, Callable[[Any, Any], bool]] = MappingProxyType(
    {"=": operator.eq, "!=": operator.ne, "<": operator.lt, ">": operator.gt}
)


class State(Protocol):
    """What a transaction reads and changes: the store."""

    revision: int
    versions: Versions
    leases: Leases
    feature_level: int

    def set_record(self, key: bytes, value: bytes, revision: int, old: Record | None, lease: int = 0) -> Record:
        """Set a key whose record is ``old``, and its lease; the store's revision is ``revision`` afterwards.

        Returns:
            The new record.
        """

    def remove_record(self, old: Record, revision: int) -> None:
        """Remove a key whose record is ``old``; the store's revision is ``revision`` afterwards."""


class Plan(msgspec.Struct, frozen=True):
    """Which branches of a transaction run: one truth value for it and for each nested one that runs, in order."""

    branches: tuple[bool, ...]


PLAN_OF_PUTS = Plan((True,))
"""The plan of every transaction that only puts keys (:func:`~kvorum.kv.txn_check.only_puts`), on any state."""


def plan_transaction(txn: Txn, state: State) -> Plan | TxnRefused:
    """Evaluate the compares, and check what depends on the state. Nothing is changed.

    The transaction passes :func:`~kvorum.kv.txn_check.check_transaction`.
    """
    planner = _Planner(state, has_range=has_range(txn))
    try:
        planner.choose(txn)
        planner.check(txn, iter(planner.branches).__next__)
    except _RefusedError as refused:
        return TxnRefused(state.revision, refused.reason, refused.key, refused.number)
    return Plan(tuple(planner.branches))


def run_transaction(txn: Txn, plan: Plan, state: State) -> TxnResult:
    """Do what was planned on the same state."""
    run = _Run(state)
    succeeded, results = run.branch(txn, iter(plan.branches).__next__)
    return TxnResult(state.revision, succeeded, run.deleted, results)


def visited_keys(txn: Txn | TxnOp, versions: Versions) -> int:
    """Return about how many keys a transaction would visit now, whichever of its branches run."""
    return own_keys(txn) + _visited_before(txn, versions)


def _visited_before(txn: Txn | TxnOp, versions: Versions) -> int:
    keys = sum(_count(versions, compare.key, compare.end) for compare in txn.compares)
    return keys + max(_visited_keys(txn.then, versions), _visited_keys(txn.otherwise, versions))


def _visited_keys(operations: Sequence[Operation], versions: Versions) -> int:
    keys = 0
    for each in operations:
        if isinstance(each, TxnOp):
            keys += _visited_before(each, versions)
        elif isinstance(each, PutOp) or (isinstance(each, RangeOp) and each.count_only):
            keys += 1
        else:
            count = _count(versions, each.key, each.end)
            keys += max(min(count, each.limit) if isinstance(each, RangeOp) and each.limit else count, 1)
    return keys


class _RefusedError(Exception):
    """Nothing is done."""

    def __init__(self, reason: str, key: bytes, number: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.key = key
        self.number = number


class _Planner:
    """Looks at the state before the transaction.

    Args:
        state: the state.
        has_range: the transaction reads, so what its own operations do matters.

    Attributes:
        branches: as :class:`Plan` has them.
    """

    def __init__(self, state: State, *, has_range: bool) -> None:
        self.branches: list[bool] = []
        self._revision = state.revision
        self._versions = state.versions
        self._leases = state.leases
        self._attached: dict[int, int] = {}
        """Lease -> how many keys the transaction gives it that it does not have."""
        self._keys = 0
        self._answer_bytes = 0
        self._own = Own() if has_range and state.feature_level >= LEASE_LEVEL else None

    def choose(self, txn: Txn | TxnOp) -> None:
        """Evaluate all compares of the branches that run."""
        succeeded = all(self._holds(compare) for compare in txn.compares)
        self.branches.append(succeeded)
        for each in txn.then if succeeded else txn.otherwise:
            if isinstance(each, TxnOp):
                self.choose(each)

    def check(self, txn: Txn | TxnOp, next_branch: Callable[[], bool]) -> None:
        """Check the operations of the branches that run."""
        for each in txn.then if next_branch() else txn.otherwise:
            match each:
                case PutOp():
                    self._check_put(each)
                case DeleteRangeOp():
                    self._check_delete(each)
                case RangeOp():
                    self._check_range(each)
                case TxnOp():
                    self.check(each, next_branch)
                case _:
                    assert_never(each)

    def _holds(self, compare: Compare) -> bool:
        key, end = compare.key, compare.end
        self._visit(key, _count(self._versions, key, end))
        records = _latest(self._versions, key, end, TXN_KEYS_MAX)
        if not records:
            # As of a key that does not exist.
            return compare.target != "value" and _RESULTS[compare.result](0, compare.operand)
        return all(_RESULTS[compare.result](getattr(each, compare.target), compare.operand) for each in records)

    def _check_put(self, put: PutOp) -> None:
        self._visit(put.key, 1)
        old = self._versions.records.get(put.key)
        if put.ignore_value and old is None:
            raise _RefusedError(KEY_NOT_FOUND, put.key, 0)
        if isinstance(put, LeasedPutOp):
            self._check_lease(put, old)
        if put.prev_value and old is not None:
            self._answer(put.key, _bytes_of((old,)))
        if self._own is not None:
            kept = old if put.ignore_value else None
            self._own.put(put.key, len(put.value if kept is None else kept.value), is_new=old is None)

    def _check_delete(self, each: DeleteRangeOp) -> None:
        key, end = each.key, each.end
        count = _count(self._versions, key, end)
        self._visit(key, count)
        if each.prev_values:
            self._answer(key, _bytes_of(_latest(self._versions, key, end, TXN_KEYS_MAX)))
        if self._own is not None:
            self._own.removed += count

    def _check_lease(self, put: LeasedPutOp, old: Record | None) -> None:
        if put.ignore_lease and old is None:
            raise _RefusedError(KEY_NOT_FOUND, put.key, 0)
        lease = _lease_of(put, old)
        if not lease:
            return
        if self._leases.living(lease) is None:
            raise _RefusedError(LEASE_NOT_FOUND, put.key, lease)
        if old is None or old.lease != lease:
            # Keys that the same transaction takes from the lease still count.
            self._attached[lease] = self._attached.get(lease, 0) + 1
            if not self._leases.has_room(lease, self._attached[lease]):
                raise _RefusedError(LEASE_FULL, put.key, lease)

    def _check_range(self, each: RangeOp) -> None:
        key, end, limit, revision = each.key, each.end, each.limit, each.revision
        if revision > self._revision:
            raise _RefusedError(FUTURE, key, revision)
        if 0 < revision < self._versions.floor:
            raise _RefusedError(COMPACTED, key, revision)
        own = self._own
        count = _count(self._versions, key, end)
        if own is not None and end != ONE_KEY:
            count += own.made(key, end)
            limit += own.removed if limit else 0
        if revision and end != ONE_KEY:
            # It looks at the live keys, and at those that were changed since.
            count += self._versions.end - self._versions.position(revision + 1)
            count += 0 if own is None else own.changes
        elif each.count_only:
            count = 1
        elif limit:
            count = min(count, limit)
        self._visit(key, count)
        if each.count_only:
            return
        if own is None or revision:
            self._answer(key, _bytes_of(_read(self._versions, each, self._revision).records, each.keys_only))
        else:
            self._answer(key, own.answer_bytes(each, _latest(self._versions, key, end, count, each.descending), count))

    def _visit(self, key: bytes, keys: int) -> None:
        self._keys += max(keys, 1)
        if self._keys > TXN_KEYS_MAX:
            raise _RefusedError(TOO_MANY_KEYS, key, TXN_KEYS_MAX)

    def _answer(self, key: bytes, size_bytes: int) -> None:
        self._answer_bytes += size_bytes
        if self._answer_bytes > TXN_ANSWER_BYTES_MAX:
            raise _RefusedError(ANSWER_TOO_LARGE, key, TXN_ANSWER_BYTES_MAX)


class _Run:
    """Does the operations in order.

    Attributes:
        deleted: how many keys were removed so far.
    """

    def __init__(self, state: State) -> None:
        self.deleted = 0
        self._state = state
        self._versions = state.versions
        self._revision = state.revision + 1
        """Of every change."""

    def branch(self, txn: Txn | TxnOp, next_branch: Callable[[], bool]) -> tuple[bool, tuple[OperationResult, ...]]:
        """Run the branch that was planned; return which one it was, and what came of it."""
        succeeded = next_branch()
        chosen = txn.then if succeeded else txn.otherwise
        return succeeded, tuple([self._operation(each, next_branch) for each in chosen])

    def _operation(self, each: Operation, next_branch: Callable[[], bool]) -> OperationResult:
        match each:
            case PutOp():
                return self._put(each)
            case DeleteRangeOp():
                return self._delete_range(each)
            case RangeOp():
                return _read(self._versions, each, self._state.revision)
            case TxnOp():
                return TxnOpResult(*self.branch(each, next_branch))
            case _:
                assert_never(each)

    def _put(self, put: PutOp) -> PutOpResult:
        old = self._versions.records.get(put.key)
        value = old.value if put.ignore_value and old is not None else put.value
        lease = _lease_of(put, old) if isinstance(put, LeasedPutOp) else 0
        new = self._state.set_record(put.key, value, self._revision, old, lease)
        return PutOpResult(self._revision, new.create_revision, new.version, old if put.prev_value else None)

    def _delete_range(self, delete: DeleteRangeOp) -> DeleteRangeOpResult:
        records = _latest(self._versions, delete.key, delete.end, TXN_KEYS_MAX)
        for old in records:
            self._state.remove_record(old, self._revision)
        self.deleted += len(records)
        previous = tuple(records) if delete.prev_values else ()
        return DeleteRangeOpResult(self._state.revision, len(records), previous)


def _bytes_of(records: Sequence[Record], keys_only: bool = False) -> int:
    return sum(len(each.key) + (0 if keys_only else len(each.value)) for each in records)


def _lease_of(put: LeasedPutOp, old: Record | None) -> int:
    """Return the lease that a key is to have whose record is ``old``."""
    if put.ignore_lease and old is not None:
        return old.lease
    return put.lease


def answer_bytes(results: Sequence[OperationResult] | None) -> int:
    """Return how many bytes the keys and values of the records in these results have."""
    size = 0
    for result in results or ():
        records: Sequence[Record] = ()
        match result:
            case PutOpResult(previous=previous):
                records = () if previous is None else (previous,)
            case DeleteRangeOpResult(previous=gone):
                records = gone
            case RangeOpResult(records=found):
                records = found
            case TxnOpResult(results=inner):
                size += answer_bytes(inner)
            case _:
                assert_never(result)
        size += sum(len(each.key) + len(each.value) for each in records)
    return size


def _count(versions: Versions, key: bytes, end: bytes) -> int:
    return 1 if end == ONE_KEY else versions.live.count(key, bound(key, end))


def _latest(versions: Versions, key: bytes, end: bytes, limit: int, descending: bool = False) -> Sequence[Record]:
    """Return the first (or last) records of a range as they are now, at most ``limit``."""
    records = versions.records
    if end == ONE_KEY:
        record = records.get(key)
        return () if record is None else (record,)
    keys = versions.live.descending if descending else versions.live.ascending
    return [records[each] for each in keys(key, bound(key, end), limit)]


def _read(versions: Versions, each: RangeOp, revision: int) -> RangeOpResult:
    """Return what a range has; ``revision`` is the store's now."""
    key, end, limit = each.key, each.end, each.limit
    if each.revision and each.revision < revision:
        found = _past(versions, key, end, each.revision)
        count = len(found)
        if each.descending:
            found = found[::-1]
        if limit:
            found = found[:limit]
    else:
        count = versions.live.count(key, bound(key, end))
        found = () if each.count_only else _latest(versions, key, end, limit or count, each.descending)
    if each.count_only:
        return RangeOpResult(revision, count)
    if each.keys_only:
        found = [_without_value(record) for record in found]
    return RangeOpResult(revision, count, tuple(found), count > len(found))


def _past(versions: Versions, key: bytes, end: bytes, revision: int) -> Sequence[Record]:
    """Return the records of a range at a revision before the store's, in the order of their keys."""
    if end == ONE_KEY:
        record = versions.at(key, revision)
        return () if record is None else (record,)
    last = bound(key, end)
    keys = dict.fromkeys(versions.live.ascending(key, last, len(versions.live)))
    first_event = versions.position(revision + 1)
    for event in versions.events(first_event, versions.end - first_event):
        if key <= event.key and (last is None or event.key < last):
            keys[event.key] = None
    records = (versions.at(each, revision) for each in sorted(keys))
    return [record for record in records if record is not None]


def _without_value(record: Record) -> Record:
    return Record(record.key, b"", record.create_revision, record.mod_revision, record.version, lease=record.lease)
