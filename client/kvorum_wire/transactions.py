"""The JSON bodies of ``POST /v1/txn`` and ``POST /v1/batch``.

Bytes are text where they are UTF-8, and otherwise in the field of the same name that ends in ``_base64``. A range is
one key (``key``), or all keys that begin with ``prefix``, or those from ``start`` on and before ``end``, either of
which may be left out.

What a large body has many of is not tracked by the garbage collector (``gc=False``): none of it can be in a cycle.
"""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from kvorum_wire import Problem

Text = str | UnsetType


class Range(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """The keys that a compare or an operation is about."""

    key: Text = UNSET
    key_base64: Text = UNSET
    prefix: Text = UNSET
    prefix_base64: Text = UNSET
    start: Text = UNSET
    start_base64: Text = UNSET
    end: Text = UNSET
    end_base64: Text = UNSET


class Compare(Range, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """A condition. ``value`` goes with the target ``value``, and ``number`` with the others."""

    target: Literal["value", "version", "create_revision", "mod_revision", "lease"]
    result: Literal["=", "!=", "<", ">"] = "="
    value: Text = UNSET
    value_base64: Text = UNSET
    number: int | UnsetType = UNSET
    lease: Text = UNSET
    """The id of a lease in hex, with the target ``lease``; ``0``: none."""


class Put(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True, gc=False):
    """Set a key."""

    key: Text = UNSET
    key_base64: Text = UNSET
    value: Text = UNSET
    value_base64: Text = UNSET
    ignore_value: bool = False
    """Keep the value that the key has, instead of ``value``."""
    prev_value: bool = False
    """Answer with the record before."""
    lease: Text = UNSET
    """The id of the lease that the key gets, in hex; without it, the key has none afterwards."""
    ignore_lease: bool = False
    """Keep the lease that the key has."""


class Delete(Range, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Remove keys."""

    prev_values: bool = False
    """Answer with the records before."""


class Read(Range, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Read keys."""

    limit: int = 0
    """0: all."""
    revision: int = 0
    """0: the latest one."""
    keys_only: bool = False
    count_only: bool = False
    sort: Literal["ascending", "descending"] = "ascending"


class Operation(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True, gc=False):
    """One operation: exactly one of the fields."""

    put: Put | UnsetType = UNSET
    delete: Delete | UnsetType = UNSET
    range: Read | UnsetType = UNSET
    txn: Txn | UnsetType = UNSET


class Txn(
    Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True, rename={"otherwise": "else"}
):
    """The body of ``POST /v1/txn``: do ``then`` if all compares hold, otherwise ``else``."""

    compare: tuple[Compare, ...] = ()
    then: tuple[Operation, ...] = ()
    otherwise: tuple[Operation, ...] = ()


class BatchItem(Operation, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """One operation of a batch."""

    idempotency_key: Text = UNSET
    """``CLIENT-ID/SEQUENCE``, as the header of the same name."""


class Batch(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """The body of ``POST /v1/batch``."""

    operations: tuple[BatchItem, ...]


class Record(Struct, frozen=True, omit_defaults=True, kw_only=True, gc=False):
    """A key as it was read. Neither ``value`` nor ``value_base64``: the value was not asked for."""

    key: str | None = None
    key_base64: str | None = None
    value: str | None = None
    value_base64: str | None = None
    create_revision: int
    mod_revision: int
    version: int
    lease: str | None = None
    """The id of its lease, in hex."""


class PutDone(Struct, frozen=True, omit_defaults=True, kw_only=True, gc=False):
    """What came of a put."""

    create_revision: int
    mod_revision: int
    version: int
    previous: Record | None = None


class DeleteDone(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What came of a delete: how many keys it removed, and which, if that was asked for."""

    deleted: int
    previous: tuple[Record, ...] | None = None


class ReadDone(Struct, frozen=True, kw_only=True):
    """What was read. ``count`` is the number of keys in the range; ``more``: the limit left some of them out."""

    count: int
    more: bool
    records: tuple[Record, ...]


class TxnDone(Struct, frozen=True, kw_only=True):
    """What came of a nested transaction."""

    succeeded: bool
    results: tuple[OperationDone, ...]


class OperationDone(Struct, frozen=True, omit_defaults=True, kw_only=True, gc=False):
    """What came of one operation: the field that the operation had."""

    put: PutDone | UnsetType = UNSET
    delete: DeleteDone | UnsetType = UNSET
    range: ReadDone | UnsetType = UNSET
    txn: TxnDone | UnsetType = UNSET


class TxnAnswer(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The answer to ``POST /v1/txn``.

    ``replayed``: an earlier attempt with this idempotency key did it, at ``revision``. Which branch was taken and
    ``deleted`` are known then, and ``results`` are not.
    """

    revision: int
    succeeded: bool
    deleted: int
    results: tuple[OperationDone, ...] | None = None
    replayed: bool = False


class BatchDone(OperationDone, frozen=True, omit_defaults=True, kw_only=True):
    """What came of one operation of a batch: its field if ``status`` is 200, otherwise ``problem``."""

    status: int
    revision: int = 0
    replayed: bool = False
    deleted: int | UnsetType = UNSET
    """Of a replayed one, instead of its field."""
    problem: Problem | UnsetType = UNSET


class BatchAnswer(Struct, frozen=True, kw_only=True):
    """The answer to ``POST /v1/batch``: a result for each operation, in their order."""

    results: tuple[BatchDone, ...]
