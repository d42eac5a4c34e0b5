"""What :meth:`~kvorum.service.service.Service.execute` returns. A result means that the request is done."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from kvorum.errors import CallerError
from kvorum.kv.commands import Compacted, DeleteResult, PutResult, SessionEnded, TxnResult
from kvorum.kv.operations import (
    DeleteRangeOpResult,
    OperationResult,
    PutOpResult,
    RangeOpResult,
    TxnOpResult,
)
from kvorum.kv.watch import Event, EventBatch, Sink, event_bytes
from kvorum.service.node_port import Backup, RecordView, Watch
from kvorum.service.scans import RangeItem, RangeScan
from kvorum.status import Check, MemberStatus, NodeStatus

__all__ = [
    "Backup",
    "EventBatch",
    "BatchResult",
    "Check",
    "Checks",
    "Compacted",
    "DeleteRangeOpResult",
    "DeleteResult",
    "Event",
    "event_bytes",
    "FeatureLevel",
    "GetResult",
    "History",
    "Leader",
    "LeaseGrant",
    "LeaseList",
    "LeaseRenewal",
    "LeaseRevocation",
    "LeaseState",
    "LockGrant",
    "LockHolder",
    "LockList",
    "LockRelease",
    "LockState",
    "MemberStatus",
    "Members",
    "Metrics",
    "NewLeader",
    "NodeStatus",
    "OperationResult",
    "PutOpResult",
    "PutResult",
    "PutWithPrevious",
    "Quota",
    "RangeItem",
    "RangeOpResult",
    "RangeScan",
    "RecordView",
    "Result",
    "SessionEnded",
    "StateHash",
    "TxnOpResult",
    "TxnResult",
    "Version",
    "Watch",
    "WatchStart",
]


class PutWithPrevious(msgspec.Struct, frozen=True):
    """A put, and the record before it: None if there was none, or if this answers a retry (``replayed``)."""

    put: PutResult
    previous: RecordView | None
    replayed: bool = False


class BatchResult(msgspec.Struct, frozen=True):
    """What came of each operation of a batch, in their order: done, or why not."""

    results: tuple[TxnResult | CallerError, ...]


class GetResult(msgspec.Struct, frozen=True):
    """What a read saw. No ``record``: the key does not exist at ``revision``, the store's at the time of the read."""

    record: RecordView | None
    revision: int
    staleness_ms: int | None = None
    """Of a stale read: everything that was committed so many milliseconds ago is in it. None: no bound is known."""


class History(msgspec.Struct, frozen=True):
    """The versions of a key that could be read, newest first; that of a delete has the ``version`` 0."""

    versions: tuple[RecordView, ...]
    revision: int
    """The store's at the time of the read."""
    floor: int
    """The lowest revision that can be read."""
    is_truncated: bool
    """There are older ones."""
    staleness_ms: int | None = None
    """As of a :class:`GetResult`."""


class WatchStart(msgspec.Struct, frozen=True):
    """A watch that can begin."""

    revision: int
    """The store's."""
    first: int
    """The first revision that the watch will see."""
    open: Callable[[Sink], Watch]
    """Begins it. Raises a CallerError if the node cannot (any more)."""


class LeaseGrant(msgspec.Struct, frozen=True):
    """A lease that lives now. ``revision`` is the store's, here and in the next ones."""

    id: int
    ttl_s: int
    delay_s: int
    revision: int


class LeaseRenewal(msgspec.Struct, frozen=True):
    """A lease that lives for ``ttl_s`` from now on."""

    id: int
    ttl_s: int
    revision: int


class LeaseRevocation(msgspec.Struct, frozen=True):
    """A lease that is gone, and how many keys with it."""

    id: int
    deleted: int
    revision: int


class LeaseState(msgspec.Struct, frozen=True):
    """A lease. It is over when ``remaining_ms`` is 0; its keys are deleted ``delay_s`` later."""

    id: int
    ttl_s: int
    delay_s: int
    remaining_ms: int
    key_count: int
    keys: tuple[bytes, ...] | None = None
    """In order; None: they were not asked for."""


class LeaseList(msgspec.Struct, frozen=True):
    """Leases, ascending by id; ``more``: the limit left some out."""

    leases: tuple[LeaseState, ...]
    more: bool
    revision: int


class LockGrant(msgspec.Struct, frozen=True):
    """A lock that the lease holds, or an election that it won, as long as it lives."""

    name: bytes
    key: bytes
    lease: int
    fencing_token: int
    """Higher than that of every holder before: the revision that created the key."""
    revision: int
    mod_revision: int
    """Of the key, as this request has put it. If it is the token, no other attempt of the lease was ever granted."""


class LockHolder(msgspec.Struct, frozen=True):
    """A lease that holds a lock, or waits for it."""

    lease: int
    fencing_token: int
    remaining_ms: int
    """For how long the lease still lives."""
    value: bytes


class LockState(msgspec.Struct, frozen=True):
    """A lock or an election."""

    name: bytes
    holder: LockHolder | None
    """None: it is free."""
    waiters: tuple[LockHolder, ...]
    """In the order in which they will get it: the first ones."""
    waiter_count: int
    """How many there are in all."""
    revision: int


class LockList(msgspec.Struct, frozen=True):
    """Locks or elections, in the order of their names; without their waiters, but how many these are."""

    locks: tuple[LockState, ...]
    revision: int
    more: bool
    """The page ends before the last name."""


class LockRelease(msgspec.Struct, frozen=True):
    """The lock, or the place in its queue, is given up."""

    revision: int


class StateHash(msgspec.Struct, frozen=True):
    """One node's state after ``applied_index``."""

    name: str
    applied_index: int
    revision: int
    state_hash: str
    """16 hex digits."""


class Leader(msgspec.Struct, frozen=True):
    """The leader, as far as it is known."""

    name: str | None
    client_url: str | None


class Members(msgspec.Struct, frozen=True):
    """All members as this node sees them, after the change if the request was one."""

    members: tuple[MemberStatus, ...]


class NewLeader(msgspec.Struct, frozen=True):
    """The leader after a transfer."""

    name: str


class FeatureLevel(msgspec.Struct, frozen=True):
    """The feature level of the cluster."""

    level: int


class Quota(msgspec.Struct, frozen=True):
    """The quota on data; 0: there is none yet."""

    limit_bytes: int
    used_bytes: int
    is_full: bool
    """Whether puts are refused."""


class Checks(msgspec.Struct, frozen=True):
    """The checks of a probe."""

    checks: tuple[Check, ...]


class Metrics(msgspec.Struct, frozen=True):
    """The metrics of a node, as its telemetry renders them."""

    body: bytes
    content_type: str


class Version(msgspec.Struct, frozen=True):
    """What a node runs."""

    version: str
    python: str


Result = (
    PutResult
    | PutWithPrevious
    | GetResult
    | History
    | RangeScan
    | DeleteResult
    | Compacted
    | TxnResult
    | BatchResult
    | NodeStatus
    | StateHash
    | Leader
    | Members
    | SessionEnded
    | NewLeader
    | FeatureLevel
    | Quota
    | Backup
    | Checks
    | Metrics
    | Version
    | WatchStart
    | LeaseGrant
    | LeaseRenewal
    | LeaseRevocation
    | LeaseState
    | LeaseList
    | LockGrant
    | LockState
    | LockList
    | LockRelease
)
