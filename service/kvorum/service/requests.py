"""Every request that a client can make: a closed union of typed values.

``timeout_ms`` is how long the client is willing to wait; None, or more than the node's ``request_timeout_ms``, means
``request_timeout_ms``. Nothing here is checked when it is made: :mod:`kvorum.service.service` does that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from kvorum.kv.commands import ANY_REVISION, MUST_NOT_EXIST
from kvorum.kv.operations import (
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
from kvorum.kv.ranges import CommonPrefix, RangeQuery, SortBy

__all__ = [
    "ANY_REVISION",
    "AcquireLock",
    "AddMember",
    "Batch",
    "BatchItem",
    "CheckLiveness",
    "CheckReadiness",
    "CommonPrefix",
    "Compact",
    "Compare",
    "Delete",
    "DeleteRangeOp",
    "EndSession",
    "FinalizeUpgrade",
    "Get",
    "GetHistory",
    "GetLease",
    "GetLeader",
    "GetLock",
    "GetMetrics",
    "GetQuota",
    "GetStateHash",
    "GetStatus",
    "GetVersion",
    "GrantLease",
    "LeasedPutOp",
    "ListLeases",
    "ListLocks",
    "LockKind",
    "ListMembers",
    "MUST_NOT_EXIST",
    "NO_END",
    "ONE_KEY",
    "Operation",
    "ProclaimLeader",
    "PromoteMember",
    "Put",
    "PutOp",
    "PutWithOptions",
    "Range",
    "RangeOp",
    "RangeQuery",
    "ReleaseLock",
    "RemoveMember",
    "RenewLease",
    "Request",
    "RevokeLease",
    "SetQuota",
    "Snapshot",
    "SortBy",
    "TransferLeadership",
    "Txn",
    "TxnOp",
    "Watch",
    "prefix_end",
]

# Keys.


class Put(msgspec.Struct, frozen=True, gc=False):
    """Set a key. With ``prev_revision`` only if that is the key's mod_revision (0: only if it does not exist).

    A write with a ``client_id`` and a ``sequence`` (from 1) is applied once, however often it is sent.
    """

    key: bytes
    value: bytes
    prev_revision: int = ANY_REVISION
    client_id: str = ""
    sequence: int = 0
    timeout_ms: int | None = None


class PutWithOptions(msgspec.Struct, frozen=True):
    """A put that needs a transaction; otherwise as :class:`Put`."""

    key: bytes
    value: bytes
    prev_revision: int = ANY_REVISION
    client_id: str = ""
    sequence: int = 0
    timeout_ms: int | None = None
    ignore_value: bool = False
    """Keep the value that the key has, which must exist; ``value`` is empty."""
    prev_value: bool = False
    """Answer with the record before."""
    lease: int = 0
    """The id of the lease that the key gets; 0: none."""
    ignore_lease: bool = False
    """Keep the lease that the key has, which must exist; ``lease`` is 0."""


class Delete(msgspec.Struct, frozen=True, gc=False):
    """Remove a key; otherwise as :class:`Put`."""

    key: bytes
    prev_revision: int = ANY_REVISION
    client_id: str = ""
    sequence: int = 0
    timeout_ms: int | None = None


class Txn(msgspec.Struct, frozen=True):
    """Do ``then`` if all compares hold, otherwise ``otherwise``: all of it at one revision, or nothing.

    One that only reads is a linearizable read. The session is as in :class:`Put`.
    """

    compares: tuple[Compare, ...] = ()
    then: tuple[Operation, ...] = ()
    otherwise: tuple[Operation, ...] = ()
    client_id: str = ""
    sequence: int = 0
    timeout_ms: int | None = None


class BatchItem(msgspec.Struct, frozen=True):
    """One operation of a batch; the session is its own, as in :class:`Put`."""

    operation: Operation
    client_id: str = ""
    sequence: int = 0


class Batch(msgspec.Struct, frozen=True):
    """Do many operations, each by itself: each is done, refused or of unknown outcome, whatever the others are.

    The changes are made in their order, and the reads after all of them.
    """

    items: tuple[BatchItem, ...]
    timeout_ms: int | None = None


class EndSession(msgspec.Struct, frozen=True):
    """End a session whose client knows the outcome of all its writes. Its id can be used again after an hour."""

    client_id: str
    timeout_ms: int | None = None


class Get(msgspec.Struct, frozen=True, gc=False):
    """Read a key.

    A linearizable read sees everything that was acknowledged before it, whichever node is asked. A stale read takes
    what the node has applied, if that includes everything committed ``max_staleness_ms`` ago (None: whatever it is). If
    it does not, the read asks a quorum as a linearizable one does.
    """

    key: bytes
    consistency: Literal["linearizable", "stale"] = "linearizable"
    max_staleness_ms: int | None = None
    timeout_ms: int | None = None
    revision: int = 0
    """As the key was at this revision; 0: as it is. A node that has not reached it asks a quorum, also if stale."""


class GetHistory(msgspec.Struct, frozen=True):
    """The versions of a key that can still be read, newest first; otherwise as :class:`Get`."""

    key: bytes
    consistency: Literal["linearizable", "stale"] = "linearizable"
    max_staleness_ms: int | None = None
    timeout_ms: int | None = None
    revision: int = 0
    """Leave out what is newer than this revision; 0: nothing."""
    limit: int = 100
    """At most so many versions."""


class Range(msgspec.Struct, frozen=True):
    """Read a range of keys in slices; otherwise as :class:`Get`.

    Without ``is_whole`` it is one page of it: up to the limit of the query (by default 1,000 keys), or about 1 MiB. The
    next page begins with the cursor of this one, and with the same query but for its limit; all pages are at the
    revision of the first one.
    """

    query: RangeQuery
    cursor: str = ""
    """Where to go on; empty: from the beginning."""
    is_whole: bool = False
    """Read on to the end of the range, or to the limit, for up to 10 minutes."""
    consistency: Literal["linearizable", "stale"] = "linearizable"
    max_staleness_ms: int | None = None
    timeout_ms: int | None = None


class Compact(msgspec.Struct, frozen=True):
    """Give up the history below a revision, which becomes the lowest one that can be read."""

    revision: int
    timeout_ms: int | None = None


class Watch(msgspec.Struct, frozen=True):
    """Every later event of a range of keys, from whichever node is asked.

    Without ``from_revision`` it begins after what the node holds once it holds everything that was acknowledged before
    the request: a write that begins after the answer is seen.
    """

    start: bytes
    end: bytes | None
    """The first key behind the range; None: it has no end. Of one key: the key and a zero byte."""
    from_revision: int = 0
    """The first revision to see; it may be in the future. 0: the next one."""
    prev_value: bool = False
    """With the value that each event replaced."""
    puts: bool = True
    deletes: bool = True
    timeout_ms: int | None = None
    """Until the watch has begun."""


# Leases. Their ids are signed 64-bit integers, and not 0.


class GrantLease(msgspec.Struct, frozen=True):
    """Create a lease. Its keys are deleted ``delay_s`` after it was not renewed for ``ttl_s``."""

    ttl_s: int
    id: int = 0
    """0: the node draws one."""
    delay_s: int = 0
    """The lock-delay: how much longer its keys stay, for holders of its locks that do not know yet that it ended."""
    timeout_ms: int | None = None


class RenewLease(msgspec.Struct, frozen=True):
    """Let a lease live for its whole time from now on."""

    id: int
    timeout_ms: int | None = None


class RevokeLease(msgspec.Struct, frozen=True):
    """End a lease and delete its keys, at once."""

    id: int
    timeout_ms: int | None = None


class GetLease(msgspec.Struct, frozen=True):
    """How long a lease still lives."""

    id: int
    with_keys: bool = False
    """Also which keys it has."""
    timeout_ms: int | None = None


class ListLeases(msgspec.Struct, frozen=True):
    """The leases, ascending by id."""

    after: int | None = None
    """Those above this id; None: from the lowest one on."""
    limit: int = 1000
    timeout_ms: int | None = None


# Locks and elections: two kinds of queues (:mod:`kvorum.service.locks`).

LockKind = Literal["lock", "election"]


class AcquireLock(msgspec.Struct, frozen=True):
    """Wait until the lease holds the lock, or is elected. Asked again, it keeps its place in the queue."""

    kind: LockKind
    name: bytes
    lease: int
    value: bytes = b""
    """What the key of the lease holds: who is elected, or nothing."""
    wait_ms: int = 0
    """Give up after so long; 0: at once if another one holds it."""
    timeout_ms: int | None = None
    """For each write and each read on the way."""
    on_placed: Callable[[], object] | None = None
    """Called before the wait begins: the key is put, and the value is not kept any more."""


class ReleaseLock(msgspec.Struct, frozen=True):
    """Give up the lock, or the place in its queue."""

    kind: LockKind
    name: bytes
    lease: int
    timeout_ms: int | None = None
    mod_revision: int = 0
    """Only if the key of the place is at this revision; 0: whatever it is at."""


class ProclaimLeader(msgspec.Struct, frozen=True):
    """Change the value of an election, as the one who is elected."""

    name: bytes
    lease: int
    value: bytes
    timeout_ms: int | None = None


class GetLock(msgspec.Struct, frozen=True):
    """Who holds a lock or is elected, and who waits."""

    kind: LockKind
    name: bytes
    timeout_ms: int | None = None


class ListLocks(msgspec.Struct, frozen=True):
    """Locks, or elections, that somebody holds, by name."""

    kind: LockKind
    after: bytes | None = None
    """Only names above this one."""
    limit: int = 1000
    """The most of them; from 1 to :data:`kvorum.service.limits.LOCKS_LISTED_MAX`."""
    timeout_ms: int | None = None


# The cluster.


class GetStatus(msgspec.Struct, frozen=True):
    """What this node says of itself and of the cluster. It asks nobody else."""


class GetStateHash(msgspec.Struct, frozen=True):
    """The hash of this node's state. Nodes with the same ``applied_index`` have the same hash, or one is damaged."""


class GetLeader(msgspec.Struct, frozen=True):
    """The leader as far as this node knows."""


class ListMembers(msgspec.Struct, frozen=True):
    """The members as this node sees them."""


class AddMember(msgspec.Struct, frozen=True):
    """Add the node at ``peer_url`` as a learner."""

    name: str
    peer_url: str
    client_url: str = ""
    """Where the caller expects that clients reach it: refused unless the node announces this URL. Empty: no check."""
    timeout_ms: int | None = None


class PromoteMember(msgspec.Struct, frozen=True):
    """Make a learner a voter."""

    name: str
    timeout_ms: int | None = None


class RemoveMember(msgspec.Struct, frozen=True):
    """Remove a member."""

    name: str
    timeout_ms: int | None = None


class TransferLeadership(msgspec.Struct, frozen=True):
    """Hand the leadership to ``target``; None: to the most caught-up voter."""

    target: str | None = None
    timeout_ms: int | None = None


class FinalizeUpgrade(msgspec.Struct, frozen=True):
    """Raise the feature level as far as this version goes: from then on, no earlier version can be started again."""

    timeout_ms: int | None = None


class GetQuota(msgspec.Struct, frozen=True):
    """The quota on data and what is used of it, as this node has applied it."""


class SetQuota(msgspec.Struct, frozen=True):
    """Set the quota on data, until an operator or another configuration sets it again."""

    limit_bytes: int
    timeout_ms: int | None = None


class Snapshot(msgspec.Struct, frozen=True):
    """A backup of everything that was acknowledged before the request, from whichever node is asked.

    ``timeout_ms`` bounds the confirmation by a quorum; taking the snapshot may take longer. With ``stale`` nothing is
    confirmed: it holds what this node has applied, also without a quorum, and says so.
    """

    timeout_ms: int | None = None
    stale: bool = False


# Probes and scrapes.


class CheckLiveness(msgspec.Struct, frozen=True):
    """Whether the process works. Says nothing about quorum, peers or disk space."""


class CheckReadiness(msgspec.Struct, frozen=True):
    """Whether this node can serve clients."""


class GetMetrics(msgspec.Struct, frozen=True):
    """The metrics of this node, at most a second old."""


class GetVersion(msgspec.Struct, frozen=True):
    """The version of this node."""


Request = (
    Put
    | PutWithOptions
    | Get
    | GetHistory
    | Range
    | Delete
    | Txn
    | Batch
    | Compact
    | EndSession
    | Watch
    | GrantLease
    | RenewLease
    | RevokeLease
    | GetLease
    | ListLeases
    | AcquireLock
    | ReleaseLock
    | ProclaimLeader
    | GetLock
    | ListLocks
    | GetStatus
    | GetStateHash
    | GetLeader
    | GetQuota
    | SetQuota
    | ListMembers
    | AddMember
    | PromoteMember
    | RemoveMember
    | TransferLeadership
    | FinalizeUpgrade
    | Snapshot
    | CheckLiveness
    | CheckReadiness
    | GetMetrics
    | GetVersion
)
