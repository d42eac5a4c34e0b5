"""The JSON of transactions and batches <-> the operations of the service. Errors name the field as JSON paths do."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar, assert_never

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

T = TypeVar("T")
U = TypeVar("U")

FIRST_KEY = b"\0"
"""No key is below it."""
_RANGE = "key, prefix, or start and end"
_DEPTH_MAX = 64
"""No deeper nesting is looked at: the limit of what is executed is below that."""


class _WrongError(Exception):
    """A field is wrong. Paths are made only where one is, since a transaction may have thousands of fields.

    Attributes:
        text: where it is and what is wrong, from the object on that is being looked at.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


def transaction_of(txn: wire.Txn) -> TxnOp:
    """Return the transaction that a body is.

    Raises:
        InvalidRequestError: a field is missing, or contradicts another; the text names it.
    """
    try:
        return _transaction(txn, _DEPTH_MAX)
    except _WrongError as error:
        raise InvalidRequestError(f"${error.text}") from None


def operation_of(operation: wire.Operation, path: str) -> Operation:
    """Return the operation that an object at ``path`` is. Errors as :func:`transaction_of`."""
    try:
        return _operation(operation, _DEPTH_MAX)
    except _WrongError as error:
        raise InvalidRequestError(f"{path}{error.text}") from None


def _transaction(txn: wire.Txn, depth_left: int) -> TxnOp:
    if depth_left <= 0:
        raise _WrongError(": the transactions are nested too deep")
    return TxnOp(
        tuple(_each(_compare, txn.compare, ".compare")),
        tuple(_each(partial(_operation, depth_left=depth_left), txn.then, ".then")),
        tuple(_each(partial(_operation, depth_left=depth_left), txn.otherwise, ".else")),
    )


def _each(convert: Callable[[T], U], items: Sequence[T], path: str) -> list[U]:
    made: list[U] = []
    try:
        for item in items:
            made.append(convert(item))
    except _WrongError as error:
        raise _WrongError(f"{path}[{len(made)}]{error.text}") from None
    return made


def _operation(operation: wire.Operation, depth_left: int) -> Operation:
    put, delete, read, txn = operation.put, operation.delete, operation.range, operation.txn
    if (put is UNSET) + (delete is UNSET) + (read is UNSET) + (txn is UNSET) != 3:
        fields = {"put": put, "delete": delete, "range": read, "txn": txn}
        found = " and ".join(name for name, field in fields.items() if field is not UNSET) or "none of them"
        raise _WrongError(f": an operation is one of put, delete, range and txn; it has {found}")
    name = "put"
    try:
        if put is not UNSET:
            return _put(put)
        if delete is not UNSET:
            name = "delete"
            return DeleteRangeOp(*_range(delete), delete.prev_values)
        if read is not UNSET:
            name = "range"
            key, end = _range(read)
            descending = read.sort == "descending"
            return RangeOp(key, end, read.limit, read.revision, read.keys_only, read.count_only, descending)
        if txn is not UNSET:
            name = "txn"
            return _transaction(txn, depth_left - 1)
    except _WrongError as error:
        raise _WrongError(f".{name}{error.text}") from None
    raise AssertionError("an operation without a field")


def _put(put: wire.Put) -> PutOp:
    key = _bytes(put.key, put.key_base64, "key")
    value = _bytes(put.value, put.value_base64, "value")
    if key is None:
        raise _WrongError(": the key is missing (key, or key_base64)")
    if (value is None) != put.ignore_value:
        raise _WrongError(
            ": give a value (value, or value_base64), or keep the present one (ignore_value), and not both"
        )
    if put.lease is UNSET and not put.ignore_lease:
        return PutOp(key, value or b"", put.ignore_value, put.prev_value)
    if put.lease is not UNSET and put.ignore_lease:
        raise _WrongError(": lease and ignore_lease contradict each other: give one of them")
    lease = 0 if put.lease is UNSET else _lease(put.lease)
    return LeasedPutOp(key, value or b"", put.ignore_value, put.prev_value, lease, put.ignore_lease)


def _compare(compare: wire.Compare) -> Compare:
    key, end = _range(compare)
    value = _bytes(compare.value, compare.value_base64, "value")
    if compare.target == "value":
        if value is None or compare.number is not UNSET:
            raise _WrongError(": the target value is compared with value, or value_base64")
        return Compare(key, "value", compare.result, value, end)
    if compare.target == "lease":
        if compare.lease is UNSET or compare.number is not UNSET or value is not None:
            raise _WrongError(': the target lease is compared with lease, an id ("0": none)')
        return Compare(key, "lease", compare.result, 0 if compare.lease == "0" else _lease(compare.lease), end)
    if compare.number is UNSET or value is not None:
        raise _WrongError(f": the target {compare.target} is compared with number")
    return Compare(key, compare.target, compare.result, compare.number, end)


def _lease(text: str) -> int:
    try:
        return parse_id(text, ".lease")
    except InvalidRequestError as error:
        raise _WrongError(str(error)) from None


def _range(keys: wire.Range) -> tuple[bytes, bytes]:
    """Return the first key and the end of a range."""
    key = _bytes(keys.key, keys.key_base64, "key")
    prefix = _bytes(keys.prefix, keys.prefix_base64, "prefix")
    start = _bytes(keys.start, keys.start_base64, "start")
    end = _bytes(keys.end, keys.end_base64, "end")
    kinds = (key is not None) + (prefix is not None) + (start is not None or end is not None)
    if kinds != 1:
        raise _WrongError(f": say which keys by one of these: {_RANGE}")
    if key is not None:
        return key, ONE_KEY
    if prefix is not None:
        return prefix or FIRST_KEY, prefix_end(prefix)
    if end == NO_END:
        raise _WrongError(".end is a single zero byte: no key is below it; leave it out for no end")
    return start or FIRST_KEY, end or NO_END


def _bytes(text: str | UnsetType, encoded: str | UnsetType, name: str) -> bytes | None:
    """Return what a field holds, or the one for bytes; None: neither is there."""
    if text is not UNSET:
        if encoded is not UNSET:
            raise _WrongError(f": {name} and {name}_base64 contradict each other")
        try:
            return text.encode()
        except UnicodeEncodeError:
            raise _WrongError(f".{name} is not Unicode text; use {name}_base64 for bytes") from None
    if encoded is UNSET:
        return None
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise _WrongError(f".{name}_base64 is not base64") from None


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
