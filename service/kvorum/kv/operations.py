"""What a transaction is made of: compares, operations and their results, each a closed family of types.

A range is ``key`` and ``end``, as in etcd: the keys from ``key`` on and before ``end``. An empty ``end`` stands for the
one key, and an ``end`` of one zero byte (:data:`NO_END`) for no bound.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    # The limits of a record depend on those of the commands, and commands carry operations.
    from kvorum.kv.records import Record

ONE_KEY = b""
"""The ``end`` of a range of one key."""
NO_END = b"\0"
"""The ``end`` of a range that goes on to the last key."""


class Compare(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A condition on a key, or on every key of a range.

    A key that does not exist has the version and the revisions 0, and no value: a compare of its value is false. The
    same holds of a range without keys.
    """

    key: bytes
    target: Literal["value", "version", "create_revision", "mod_revision", "lease"]
    """``lease``, the id of the key's lease (0: none), only from feature level 5 on."""
    result: Literal["=", "!=", "<", ">"]
    operand: int | bytes
    """Bytes for the target ``value``, otherwise a number."""
    end: bytes = ONE_KEY


class PutOp(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="p", gc=False):
    """Set a key."""

    key: bytes
    value: bytes
    ignore_value: bool = False
    """Keep the value that the key has, which must exist; ``value`` is empty."""
    prev_value: bool = False
    """Answer with the record before."""


class LeasedPutOp(PutOp, frozen=True, array_like=True, forbid_unknown_fields=True, tag="lp"):
    """Set a key, and say which lease it has; a :class:`PutOp` leaves it without one. From feature level 5 on."""

    lease: int = 0
    """The id of the lease, which must live; 0: none."""
    ignore_lease: bool = False
    """Keep the lease that the key has; the key must exist, and the lease, if it has one, live. ``lease`` is 0."""


class DeleteRangeOp(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="d"):
    """Remove every key of a range."""

    key: bytes
    end: bytes = ONE_KEY
    prev_values: bool = False
    """Answer with the records before."""


class RangeOp(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="r"):
    """Read every key of a range, in the order of the keys."""

    key: bytes
    end: bytes = ONE_KEY
    limit: int = 0
    """How many records to answer with, at most; 0: all."""
    revision: int = 0
    """Read at this revision; 0: now, with what came before in the same transaction."""
    keys_only: bool = False
    """Answer with records whose values are left out."""
    count_only: bool = False
    """Answer with the count alone."""
    descending: bool = False
    """From the last key on."""


class TxnOp(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="t"):
    """A transaction inside of another one. It makes no revision of its own."""

    compares: tuple[Compare, ...] = ()
    then: tuple[Operation, ...] = ()
    otherwise: tuple[Operation, ...] = ()


Operation = PutOp | LeasedPutOp | DeleteRangeOp | RangeOp | TxnOp
"""What a transaction does if its compares hold, or if they do not."""

OPERATION_FIELDS = {
    str(kind.__struct_config__.tag): len(kind.__struct_fields__) + 1
    for kind in (PutOp, LeasedPutOp, DeleteRangeOp, RangeOp, TxnOp)
}
"""Tag of an operation -> the length of its array."""


class PutOpResult(msgspec.Struct, frozen=True, array_like=True, tag="p", gc=False):
    """The key's record after the put; its ``mod_revision`` is ``revision``."""

    revision: int
    create_revision: int
    version: int
    previous: Record | None = None
    """The record before, if it was asked for and there was one."""


class DeleteRangeOpResult(msgspec.Struct, frozen=True, array_like=True, tag="d"):
    """How many keys were removed; ``revision`` is the store's afterwards."""

    revision: int
    deleted: int
    previous: tuple[Record, ...] = ()
    """The records before, in the order of their keys, if they were asked for."""


class RangeOpResult(msgspec.Struct, frozen=True, array_like=True, tag="r"):
    """What was read; ``revision`` is the store's at that moment of the transaction, also of a read in the past."""

    revision: int
    count: int
    """How many keys the range has, whatever the limit."""
    records: tuple[Record, ...] = ()
    more: bool = False
    """Whether the limit left some out."""


class TxnOpResult(msgspec.Struct, frozen=True, array_like=True, tag="t"):
    """Which branch was taken, and the result of each of its operations."""

    succeeded: bool
    results: tuple[OperationResult, ...]


OperationResult = PutOpResult | DeleteRangeOpResult | RangeOpResult | TxnOpResult


def prefix_end(prefix: bytes) -> bytes:
    """Return the ``end`` of the range of all keys that begin with ``prefix``, from ``prefix`` on."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes((stem[-1] + 1,)) if stem else NO_END


def bound(key: bytes, end: bytes) -> bytes | None:
    """Return the first key behind a range, None: there is none."""
    if end == ONE_KEY:
        return key + b"\0"
    return None if end == NO_END else end
