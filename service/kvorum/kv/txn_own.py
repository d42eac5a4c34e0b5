"""What the ranges of a transaction see of its own earlier operations, for its two bounds.

A range sees the keys that were put before it in the same transaction, and with a limit it reaches keys that would have
been behind the limit had nothing been deleted. From feature level 5 on every node counts both when it plans
(:class:`Own`). Below, no node does, so such a transaction is not proposed: :func:`check_own` needs no state, and looks
at every branch.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from itertools import islice
from typing import assert_never

from kvorum.errors import TooLargeError
from kvorum.kv.commands import Txn
from kvorum.kv.limits import TXN_ANSWER_BYTES_MAX, TXN_KEYS_MAX, VALUE_BYTES_MAX
from kvorum.kv.operations import ONE_KEY, DeleteRangeOp, Operation, PutOp, RangeOp, TxnOp, bound
from kvorum.kv.records import Record


class Own:
    """What the operations of a transaction so far will have done, when those after them run.

    A transaction puts a key at most once, and deletes no key that it puts
    (:func:`~kvorum.kv.txn_check.check_transaction`), so nothing that is noted here is taken back.

    Attributes:
        removed: how many keys its deletes remove.
    """

    __slots__ = ("_made", "_values", "removed")

    def __init__(self) -> None:
        self.removed = 0
        self._made: list[bytes] = []
        self._values: dict[bytes, int] = {}

    @property
    def changes(self) -> int:
        """How many events it makes."""
        return self.removed + len(self._values)

    def put(self, key: bytes, value_bytes: int, *, is_new: bool) -> None:
        """Note a put. ``is_new``: the key does not exist before the transaction."""
        self._values[key] = value_bytes
        if is_new:
            insort(self._made, key)

    def made(self, key: bytes, end: bytes) -> int:
        """Return how many keys of a range exist through its puts alone."""
        first, stop = _slice(self._made, key, end)
        return stop - first

    def answer_bytes(self, each: RangeOp, records: Sequence[Record], limit: int) -> int:
        """Return how many bytes the keys and values have that a range finds, at most.

        Args:
            each: the range, which is read as it is now.
            records: its first ``limit`` records before the transaction, in its direction.
            limit: how many records may be found.
        """
        first, stop = _slice(self._made, each.key, each.end)
        if each.descending:
            first = max(first, stop - limit)
        else:
            stop = min(stop, first + limit)
        values = self._values
        sizes = [(key, values[key]) for key in self._made[first:stop]]
        sizes += [(record.key, values.get(record.key, len(record.value))) for record in records]
        sizes.sort(reverse=each.descending)
        return sum(len(key) + (0 if each.keys_only else size) for key, size in islice(sizes, limit))


def has_range(txn: Txn | TxnOp) -> bool:
    """Tell whether one of its branches, or of those of nested transactions, has a range."""
    return any(
        isinstance(each, RangeOp) or (isinstance(each, TxnOp) and has_range(each))
        for each in (*txn.then, *txn.otherwise)
    )


def own_keys(txn: Txn | TxnOp) -> int:
    """Return how many of the keys that a transaction puts its later ranges visit again, at most.

    It stops counting above :data:`~kvorum.kv.limits.TXN_KEYS_MAX`.
    """
    if not has_range(txn):
        return 0
    reads = _OwnReads()
    reads.transaction(txn)
    return reads.keys


def check_own(txn: Txn) -> None:
    """Refuse a transaction whose ranges see too much of its own puts and deletes, whatever the state is.

    Raises:
        TooLargeError: the keys that they visit, or the bytes that they answer with, might pass a bound.
    """
    reads = _OwnReads()
    reads.transaction(txn)
    how = "read them in a transaction of their own, or raise the feature level to 5"
    if reads.keys > TXN_KEYS_MAX:
        raise TooLargeError(f"the ranges visit too many keys that the transaction itself puts; {how}", TXN_KEYS_MAX)
    if reads.answer_bytes > TXN_ANSWER_BYTES_MAX:
        raise TooLargeError(
            f"the ranges may answer with too many bytes because of what the transaction itself puts or deletes; {how}",
            TXN_ANSWER_BYTES_MAX,
        )


class _OwnReads:
    """Counts without a state, as if all branches ran, one after the other.

    Attributes:
        keys: that were put, and are visited again.
        answer_bytes: what is answered with because of puts and deletes.
    """

    def __init__(self) -> None:
        self.keys = 0
        self.answer_bytes = 0
        self._puts: list[bytes] = []
        self._values: dict[bytes, int] = {}
        self._removed = 0
        """How many keys its deletes may remove."""

    def transaction(self, txn: Txn | TxnOp) -> None:
        """Count all of its operations."""
        for each in (*txn.then, *txn.otherwise):
            self._operation(each)

    def _operation(self, each: Operation) -> None:
        match each:
            case PutOp(key, value):
                if key not in self._values:
                    insort(self._puts, key)
                # A value that is kept counts already: as it was before the transaction.
                self._values[key] = max(len(value), self._values.get(key, 0))
            case DeleteRangeOp(end=end):
                self._removed += 1 if end == ONE_KEY else TXN_KEYS_MAX
            case RangeOp():
                self._range(each)
            case TxnOp():
                self.transaction(each)
            case _:
                assert_never(each)

    def _range(self, each: RangeOp) -> None:
        if (each.count_only and not each.revision) or self.keys > TXN_KEYS_MAX:
            return
        first, stop = _slice(self._puts, each.key, each.end)
        self.keys += stop - first
        if each.revision or each.keys_only or self.keys > TXN_KEYS_MAX:
            return  # At a revision it sees the state before the transaction.
        self.answer_bytes += sum(map(self._size, self._puts[first:stop]))
        self.answer_bytes += min(each.limit, self._removed) * VALUE_BYTES_MAX

    def _size(self, key: bytes) -> int:
        return len(key) + self._values[key]


def _slice(keys: Sequence[bytes], key: bytes, end: bytes) -> tuple[int, int]:
    """Return the first and the last index, exclusive, of a range in sorted keys."""
    last = bound(key, end)
    first = bisect_left(keys, key)
    return first, len(keys) if last is None else max(first, bisect_left(keys, last))
