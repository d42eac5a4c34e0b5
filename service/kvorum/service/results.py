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
from kvorum.kv.watch import Event, EventBatch, Sink
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
    "FeatureLevel",
    "GetResult",
    "History",
    "Leader",
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
)
