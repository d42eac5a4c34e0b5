"""Which transactions may be proposed at all: the rules that do not depend on the state, and look at every branch.

They are etcd's (an operation counts in the branch that is not taken as well), with bounds of our own on the depth, on
the sum of all operations and on the bytes. In one respect they are stricter: of two nested transactions in one list,
neither may put a key that the other one deletes. etcd refuses that in one order only.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import assert_never

from kvorum.errors import InvalidRequestError, TooLargeError
from kvorum.kv.commands import Txn
from kvorum.kv.limits import (
    INTEGER_MAX,
    INTEGER_MIN,
    KEY_BYTES_MAX,
    TXN_BYTES_MAX,
    TXN_DEPTH_MAX,
    TXN_LIST_MAX,
    TXN_OPERATIONS_MAX,
    VALUE_BYTES_MAX,
    check_session,
)
from kvorum.kv.operations import (
    ONE_KEY,
    Compare,
    DeleteRangeOp,
    LeasedPutOp,
    Operation,
    PutOp,
    RangeOp,
    TxnOp,
    bound,
)

_Range = tuple[bytes, bytes | None, int]
"""Start, end, and the number of the operation that deletes it."""


def check_transaction(txn: Txn) -> None:
    """Refuse what the state machine would refuse whatever its state. The errors name the place, as ``then[0]``.

    Raises:
        TooLargeError: a key, a value, a list, the depth, the number of operations or the bytes.
        InvalidRequestError: an empty key, an impossible number, two operations that would change one key, or a session
            that is not one.
    """
    check_session(txn.client_id, txn.sequence)
    if only_puts(txn):
        return
    _Check().branches(txn, "", TXN_LIST_MAX, 1)
    _writes(txn.then, "then")
    _writes(txn.otherwise, "else")


def only_puts(txn: Txn) -> bool:
    """Tell whether a transaction only puts keys, each of them once, and passes every limit but those of its session.

    It may be done whatever the state is. Most large transactions are of this kind, and every node asks this of each, so
    it is a shorter way than the checks of the rest.
    """
    then = txn.then
    if txn.compares or txn.otherwise or not 0 < len(then) <= TXN_LIST_MAX:
        return False
    keys = set()
    size = 0
    for put in then:
        # A put with a lease is of a class of its own.
        if type(put) is not PutOp or put.ignore_value or put.prev_value:
            return False
        key, value_bytes = put.key, len(put.value)
        if not 0 < len(key) <= KEY_BYTES_MAX or value_bytes > VALUE_BYTES_MAX:
            return False
        size += len(key) + value_bytes
        keys.add(key)
    return size <= TXN_BYTES_MAX and len(keys) == len(then)


def is_valid(txn: Txn) -> bool:
    """Tell whether :func:`check_transaction` accepts it."""
    try:
        check_transaction(txn)
    except (InvalidRequestError, TooLargeError):
        return False
    return True


def has_valid_session(txn: Txn) -> bool:
    """Tell whether :func:`check_transaction` accepts its session."""
    try:
        check_session(txn.client_id, txn.sequence)
    except InvalidRequestError:
        return False
    return True


def is_read_only(txn: Txn | TxnOp) -> bool:
    """Tell whether no branch changes anything."""
    return not any(_changes(operation) for operation in (*txn.then, *txn.otherwise))


def has_put(txn: Txn | TxnOp) -> bool:
    """Tell whether any branch puts a key."""
    return any(
        isinstance(operation, PutOp) or (isinstance(operation, TxnOp) and has_put(operation))
        for operation in (*txn.then, *txn.otherwise)
    )


def has_lease(txn: Txn | TxnOp) -> bool:
    """Tell whether any part of it is about leases, so that it needs feature level 5."""
    return any(compare.target == "lease" for compare in txn.compares) or any(
        isinstance(operation, LeasedPutOp) or (isinstance(operation, TxnOp) and has_lease(operation))
        for operation in (*txn.then, *txn.otherwise)
    )


def transaction_bytes(txn: Txn | TxnOp, overhead_bytes: int) -> int:
    """Return about what a transaction takes in the log; ``overhead_bytes`` for each compare and operation."""
    size = sum(_compare_bytes(compare) + overhead_bytes for compare in txn.compares)
    for operation in (*txn.then, *txn.otherwise):
        size += overhead_bytes
        size += (
            transaction_bytes(operation, overhead_bytes)
            if isinstance(operation, TxnOp)
            else _operation_bytes(operation)
        )
    return size


def _changes(operation: Operation) -> bool:
    match operation:
        case PutOp() | DeleteRangeOp():
            return True
        case RangeOp():
            return False
        case TxnOp():
            return not is_read_only(operation)
        case _:
            assert_never(operation)


def _compare_bytes(compare: Compare) -> int:
    operand = compare.operand
    return len(compare.key) + len(compare.end) + (len(operand) if isinstance(operand, bytes) else 0)


def _operation_bytes(operation: PutOp | DeleteRangeOp | RangeOp) -> int:
    return len(operation.key) + len(operation.value if isinstance(operation, PutOp) else operation.end)


class _Check:
    """Looks at each part by itself, and counts."""

    def __init__(self) -> None:
        self._operations = 0
        self._bytes = 0

    def branches(self, txn: Txn | TxnOp, where: str, room: int, depth: int) -> None:
        """Check a transaction at ``where``; its lists may be ``room`` long."""
        what = where or "the transaction"
        if depth > TXN_DEPTH_MAX:
            raise TooLargeError(f"{what} is nested {depth} deep", TXN_DEPTH_MAX)
        longest = max(len(txn.compares), len(txn.then), len(txn.otherwise))
        if longest > room:
            around = f", beside the {TXN_LIST_MAX - room} around it" if room < TXN_LIST_MAX else ""
            raise TooLargeError(f"{what} has {longest} compares or operations in one list{around}", room)
        self._operations += len(txn.compares) + len(txn.then) + len(txn.otherwise)
        if self._operations > TXN_OPERATIONS_MAX:
            raise TooLargeError("the transaction has too many compares and operations in all", TXN_OPERATIONS_MAX)
        prefix = f"{where}." if where else ""
        for number, compare in enumerate(txn.compares):
            self._compare(compare, f"{prefix}compare[{number}]")
        for name, operations in (("then", txn.then), ("else", txn.otherwise)):
            for number, operation in enumerate(operations):
                self._operation(operation, f"{prefix}{name}[{number}]", room - longest, depth)

    def _compare(self, compare: Compare, where: str) -> None:
        _check_range(compare.key, compare.end, where)
        operand = compare.operand
        if isinstance(operand, bytes) != (compare.target == "value"):
            raise InvalidRequestError(f"{where}: a value is compared with bytes, everything else with a number")
        if isinstance(operand, bytes):
            if len(operand) > VALUE_BYTES_MAX:
                raise TooLargeError(f"{where}: the value has {len(operand)} bytes", VALUE_BYTES_MAX)
        elif not INTEGER_MIN <= operand <= INTEGER_MAX:
            raise InvalidRequestError(f"{where}: {operand} is not from {INTEGER_MIN:,} to {INTEGER_MAX:,}")
        self._count(_compare_bytes(compare))

    def _operation(self, operation: Operation, where: str, room: int, depth: int) -> None:
        match operation:
            case PutOp(key, value, ignore_value):
                _check_key(key, where, KEY_BYTES_MAX)
                if len(value) > VALUE_BYTES_MAX:
                    raise TooLargeError(f"{where}: the value has {len(value)} bytes", VALUE_BYTES_MAX)
                if ignore_value and value:
                    raise InvalidRequestError(f"{where}: a value is given, and ignore_value keeps the present one")
                if isinstance(operation, LeasedPutOp):
                    _check_lease(operation, where)
            case DeleteRangeOp(key, end):
                _check_range(key, end, where)
            case RangeOp(key, end, limit, revision):
                _check_range(key, end, where)
                if not (0 <= limit <= INTEGER_MAX and 0 <= revision <= INTEGER_MAX):
                    raise InvalidRequestError(f"{where}: limit and revision must be from 0 to {INTEGER_MAX:,}")
            case TxnOp():
                self.branches(operation, where, room, depth + 1)
                return
            case _:
                assert_never(operation)
        self._count(_operation_bytes(operation))

    def _count(self, size_bytes: int) -> None:
        self._bytes += size_bytes
        if self._bytes > TXN_BYTES_MAX:
            raise TooLargeError("the keys and values of the transaction take too many bytes", TXN_BYTES_MAX)


def _check_lease(put: LeasedPutOp, where: str) -> None:
    if not INTEGER_MIN <= put.lease <= INTEGER_MAX:
        raise InvalidRequestError(f"{where}: the lease {put.lease} is not from {INTEGER_MIN:,} to {INTEGER_MAX:,}")
    if put.ignore_lease and put.lease:
        raise InvalidRequestError(f"{where}: a lease is given, and ignore_lease keeps the present one")


def _check_key(key: bytes, where: str, bytes_max: int) -> None:
    if not key:
        raise InvalidRequestError(f"{where}: the key is empty")
    if len(key) > bytes_max:
        raise TooLargeError(f"{where}: the key has {len(key)} bytes", bytes_max)


def _check_range(key: bytes, end: bytes, where: str) -> None:
    # A range may begin or end right behind the longest key.
    _check_key(key, where, KEY_BYTES_MAX if end == ONE_KEY else KEY_BYTES_MAX + 1)
    if len(end) > KEY_BYTES_MAX + 1:
        raise TooLargeError(f"{where}: the end of the range has {len(end)} bytes", KEY_BYTES_MAX + 1)


def _writes(operations: Sequence[Operation], where: str) -> tuple[dict[bytes, int], list[_Range]]:
    """Return the keys that these operations put, and the ranges that they delete.

    Raises:
        InvalidRequestError: two of them would change one key. Then and else of one transaction may do that.
    """
    puts: dict[bytes, int] = {}
    deletes: list[_Range] = []
    for number, operation in enumerate(operations):
        keys: Sequence[bytes] = ()
        match operation:
            case PutOp(key):
                keys = (key,)
            case DeleteRangeOp(key, end):
                deletes.append((key, bound(key, end), number))
            case TxnOp(_, then, otherwise):
                then_puts, then_deletes = _writes(then, f"{where}[{number}].then")
                else_puts, else_deletes = _writes(otherwise, f"{where}[{number}].else")
                keys = tuple(then_puts | else_puts)
                deletes += ((start, stop, number) for start, stop, _ in (*then_deletes, *else_deletes))
            case RangeOp():
                pass
            case _:
                assert_never(operation)
        for key in keys:
            if (other := puts.setdefault(key, number)) != number:
                raise _duplicate(where, other, number)
    _check_deletes(puts, deletes, where)
    return puts, deletes


def _check_deletes(puts: dict[bytes, int], deletes: list[_Range], where: str) -> None:
    """Refuse a put under a delete of another operation of the list."""
    if not puts or not deletes:
        return
    keys = sorted(puts)
    # For each key the next one that another operation puts.
    following = [len(keys)] * len(keys)
    for index in range(len(keys) - 2, -1, -1):
        same = puts[keys[index]] == puts[keys[index + 1]]
        following[index] = following[index + 1] if same else index + 1
    for start, end, number in deletes:
        first = bisect_left(keys, start)
        stop = len(keys) if end is None else bisect_left(keys, end)
        if first < stop and puts[keys[first]] == number:
            first = following[first]
        if first < stop:
            raise _duplicate(where, puts[keys[first]], number)


def _duplicate(where: str, one: int, other: int) -> InvalidRequestError:
    first, second = sorted((one, other))
    return InvalidRequestError(
        f"{where}[{first}] and {where}[{second}] would change the same key; a transaction changes a key at most once"
    )
