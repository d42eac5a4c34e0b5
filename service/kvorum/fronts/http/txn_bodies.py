"""The JSON of transactions and batches <-> the operations of the service. Errors name the field as JSON paths do."""

from __future__ import annotations

import base64
import binascii
from typing import assert_never

from msgspec import UNSET, UnsetType

from kvorum.errors import InvalidRequestError
from kvorum.fronts.http.history import shown_lease, text_or_base64
from kvorum.fronts.http.leases import parse_id
from kvorum.service.requests import (
    NO_END,
    ONE_KEY,
    Compare,
    DeleteRangeOp,
    LeasedPutOp,
    Operation,
    PutOp,
    RangeOp,
    TxnOp,
    prefix_end,
)
from kvorum.service.results import (
    DeleteRangeOpResult,
    OperationResult,
    PutOpResult,
    RangeOpResult,
    RecordView,
    TxnOpResult,
)
from kvorum_wire import transactions as wire

FIRST_KEY = b"\0"
"""No key is below it."""
_RANGE = "key, prefix, or start and end"


def transaction_of(txn: wire.Txn, path: str = "$", depth_left: int = 64) -> TxnOp:
    """Return the transaction that a body is.

    Raises:
        InvalidRequestError: a field is missing, or contradicts another; the text names it.
    """
    if depth_left <= 0:
        raise InvalidRequestError(f"{path}: the transactions are nested too deep")
    return TxnOp(
        tuple(_compare(each, f"{path}.compare[{number}]") for number, each in enumerate(txn.compare)),
        _operations(txn.then, f"{path}.then", depth_left),
        _operations(txn.otherwise, f"{path}.else", depth_left),
    )


def _operations(operations: tuple[wire.Operation, ...], path: str, depth_left: int) -> tuple[Operation, ...]:
    return tuple(operation_of(each, f"{path}[{number}]", depth_left) for number, each in enumerate(operations))


def operation_of(operation: wire.Operation, path: str, depth_left: int = 64) -> Operation:
    """Return the operation that an object is. Errors as :func:`transaction_of`."""
    given = [name for name in ("put", "delete", "range", "txn") if getattr(operation, name) is not UNSET]
    if len(given) != 1:
        found = " and ".join(given) or "none of them"
        raise InvalidRequestError(f"{path}: an operation is one of put, delete, range and txn; it has {found}")
    if (put := operation.put) is not UNSET:
        return _put(put, f"{path}.put")
    if (delete := operation.delete) is not UNSET:
        return DeleteRangeOp(*range_of(delete, f"{path}.delete"), delete.prev_values)
    if (read := operation.range) is not UNSET:
        key, end = range_of(read, f"{path}.range")
        descending = read.sort == "descending"
        return RangeOp(key, end, read.limit, read.revision, read.keys_only, read.count_only, descending)
    if (txn := operation.txn) is not UNSET:
        return transaction_of(txn, f"{path}.txn", depth_left - 1)
    raise AssertionError("an operation without a field")


def _put(put: wire.Put, path: str) -> PutOp:
    key = _bytes(put.key, put.key_base64, path, "key")
    value = _bytes(put.value, put.value_base64, path, "value")
    if key is None:
        raise InvalidRequestError(f"{path}: the key is missing (key, or key_base64)")
    if (value is None) != put.ignore_value:
        raise InvalidRequestError(
            f"{path}: give a value (value, or value_base64), or keep the present one (ignore_value), and not both"
        )
    options = (key, value or b"", put.ignore_value, put.prev_value)
    if put.lease is UNSET and not put.ignore_lease:
        return PutOp(*options)
    if put.lease is not UNSET and put.ignore_lease:
        raise InvalidRequestError(f"{path}: lease and ignore_lease contradict each other: give one of them")
    return LeasedPutOp(*options, 0 if put.lease is UNSET else parse_id(put.lease, f"{path}.lease"), put.ignore_lease)


def _compare(compare: wire.Compare, path: str) -> Compare:
    key, end = range_of(compare, path)
    value = _bytes(compare.value, compare.value_base64, path, "value")
    if compare.target == "value":
        if value is None or compare.number is not UNSET:
            raise InvalidRequestError(f"{path}: the target value is compared with value, or value_base64")
        return Compare(key, "value", compare.result, value, end)
    if compare.target == "lease":
        if compare.lease is UNSET or compare.number is not UNSET or value is not None:
            raise InvalidRequestError(f'{path}: the target lease is compared with lease, an id ("0": none)')
        lease = 0 if compare.lease == "0" else parse_id(compare.lease, f"{path}.lease")
        return Compare(key, "lease", compare.result, lease, end)
    if compare.number is UNSET or value is not None:
        raise InvalidRequestError(f"{path}: the target {compare.target} is compared with number")
    return Compare(key, compare.target, compare.result, compare.number, end)


def range_of(keys: wire.Range, path: str) -> tuple[bytes, bytes]:
    """Return the first key and the end of a range. Errors as :func:`transaction_of`."""
    key = _bytes(keys.key, keys.key_base64, path, "key")
    prefix = _bytes(keys.prefix, keys.prefix_base64, path, "prefix")
    start = _bytes(keys.start, keys.start_base64, path, "start")
    end = _bytes(keys.end, keys.end_base64, path, "end")
    kinds = (key is not None) + (prefix is not None) + (start is not None or end is not None)
    if kinds != 1:
        raise InvalidRequestError(f"{path}: say which keys by one of these: {_RANGE}")
    if key is not None:
        return key, ONE_KEY
    if prefix is not None:
        return prefix or FIRST_KEY, prefix_end(prefix)
    if end == NO_END:
        raise InvalidRequestError(f"{path}.end is a single zero byte: no key is below it; leave it out for no end")
    return start or FIRST_KEY, end or NO_END


def _bytes(text: str | UnsetType, encoded: str | UnsetType, path: str, name: str) -> bytes | None:
    """Return what a field holds, or the one for bytes; None: neither is there."""
    if text is not UNSET and encoded is not UNSET:
        raise InvalidRequestError(f"{path}: {name} and {name}_base64 contradict each other")
    if text is not UNSET:
        try:
            return text.encode()
        except UnicodeEncodeError:
            raise InvalidRequestError(f"{path}.{name} is not Unicode text; use {name}_base64 for bytes") from None
    if encoded is UNSET:
        return None
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequestError(f"{path}.{name}_base64 is not base64") from None


def results_of(
    operations: tuple[Operation, ...], results: tuple[OperationResult, ...] | None
) -> tuple[wire.OperationDone, ...]:
    """Return the JSON of the results of these operations; none if they are not known."""
    return tuple(result_of(*each) for each in zip(operations, results or (), strict=False))


def result_of(operation: Operation, result: OperationResult) -> wire.OperationDone:
    """Return the JSON of the result of an operation."""
    match result:
        case PutOpResult(revision, create_revision, version, previous):
            record = None if previous is None else _record(previous)
            put = wire.PutDone(create_revision=create_revision, mod_revision=revision, version=version, previous=record)
            return wire.OperationDone(put=put)
        case DeleteRangeOpResult(_, deleted, previous):
            is_asked = isinstance(operation, DeleteRangeOp) and operation.prev_values
            records = tuple(map(_record, previous)) if is_asked else None
            return wire.OperationDone(delete=wire.DeleteDone(deleted=deleted, previous=records))
        case RangeOpResult(_, count, found, more):
            has_values = not (isinstance(operation, RangeOp) and operation.keys_only)
            read = tuple(_record(each, has_value=has_values) for each in found)
            return wire.OperationDone(range=wire.ReadDone(count=count, more=more, records=read))
        case TxnOpResult(succeeded, inner):
            assert isinstance(operation, TxnOp)  # noqa: S101 - results come in the order of the operations
            branch = operation.then if succeeded else operation.otherwise
            return wire.OperationDone(txn=wire.TxnDone(succeeded=succeeded, results=results_of(branch, inner)))
        case _:
            assert_never(result)


def _record(record: RecordView, *, has_value: bool = True) -> wire.Record:
    key, key_base64 = text_or_base64(record.key)
    value, value_base64 = text_or_base64(record.value) if has_value else (None, None)
    return wire.Record(
        key=key,
        key_base64=key_base64,
        value=value,
        value_base64=value_base64,
        create_revision=record.create_revision,
        mod_revision=record.mod_revision,
        version=record.version,
        lease=shown_lease(record),
    )
