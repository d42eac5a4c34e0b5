"""Every exception that Kvorum raises on purpose.

::

    KvorumError
    +-- CallerError                  the caller's: typed; what each code means is in one table (kvorum.service.outcomes)
    |   +-- InvalidRequestError      malformed: certainly not done
    |   +-- TooLargeError            a limit was passed: certainly not done
    |   +-- NotLeaderError           this node does not lead; says who does
    |   +-- NoLeaderError            nobody leads that we know of: certainly not done
    |   +-- WrongClusterError        the request is for another cluster: certainly not done
    |   +-- NotServingError          this node serves nobody now: certainly not done
    |   +-- OverloadedError          a bounded queue is full: certainly not done
    |   +-- OutcomeUnknownError      it may have been applied, or may still be
    |   +-- ReadTimeoutError         a linearizable read found no quorum in time
    |   +-- MembershipRefusedError   a membership change that would not be safe now
    |   +-- UnknownMemberError       no member has this name or id: certainly not done
    |   +-- TransferFailedError      no voter can take the leadership: certainly not begun
    |   +-- CompareFailedError       the key is at another revision than the write expects: certainly not done
    |   +-- KeyNotFoundError         the write needs the value of a key that does not exist: certainly not done
    |   +-- LeaseError               the lease does not exist, or already does; certainly not done
    |   +-- LockError                another one holds the lock, or nobody does; certainly not done
    |   +-- SessionError             the write's session cannot take it; the code says whether it may be done
    |   +-- NoSpaceError             no room for more data: certainly not done; deletes and reads go on
    |   +-- RevisionCompactedError   the revision is below the floor of the history: certainly not done
    |   +-- RevisionInFutureError    the revision does not exist yet: certainly not done
    |   +-- TooStaleError            this node's data may be older than the read accepts
    |   +-- FeatureUnavailableError  the cluster's feature level is too low: certainly not done
    |   +-- FeatureLevelBlockedError a member does not support the next feature level: certainly not raised
    +-- PeerError                    a peer's: refuse, count, go on
    |   +-- MalformedMessageError    bytes that do not decode to a message
    |   +-- IdentityRejectedError    another cluster, another incarnation, another name
    +-- KubernetesError              the API server did not do what we asked; a cluster that is there serves on
    +-- ContradictionError           this disk and the other members contradict each other: the node takes no part
    |   +-- DiskSetBackError         this disk lacks what it acknowledged
    |   +-- CommitsLostError         the other members lack what is committed here
    +-- ConfigError                  invalid configuration: exit 2
    |   +-- BetterLogError           another member, which answers, has a more up-to-date log than the one to recover
    |   +-- NothingToRecoverError    the node needs no other: it is the only member of its cluster
    +-- FatalError                   ours: the process ends and its supervisor restarts it
        +-- InvariantViolatedError   a bug in consensus or in the state machine
        +-- MemoryChangedError       memory does not hold what was applied; the disk does
        +-- VersionTooOldError       a newer version wrote the data: start that version again
        +-- StorageError             the disk failed, or cannot be trusted
            +-- StorageLockedError   another process holds the data folder
            +-- StorageCorruptError  bytes that are not what was written
            +-- StorageForeignError  the folder belongs to another node
            +-- StorageAmnesiaError  the log ends before what was once durable
            +-- SnapshotFailedError  no room for a snapshot, or not the one expected; the log is unharmed
"""

from __future__ import annotations

from typing import Any


class KvorumError(Exception):
    """The root of the tree."""


class CallerError(KvorumError):
    """The caller's mistake or misfortune; ``code`` is stable and machine-readable.

    Args:
        detail: one readable sentence.
        facts: the same for programs: what a front may add to its answer.
    """

    code = "caller_error"

    def __init__(self, detail: str = "", **facts: Any) -> None:
        super().__init__(detail)
        self.facts = facts


class InvalidRequestError(CallerError):
    """A malformed request; nothing was done."""

    code = "invalid_request"


class TooLargeError(CallerError):
    """A limit was passed; nothing was done.

    Args:
        what: what is too large, in words.
        limit: the limit, in the unit that ``what`` names.
    """

    code = "too_large"

    def __init__(self, what: str, limit: int) -> None:
        super().__init__(f"{what} (limit {limit})", limit=limit)
        self.limit = limit


class NotLeaderError(CallerError):
    """This node does not lead; nothing was done.

    Args:
        leader: the member id of the leader if it is known.
        leader_name: its name; always there when :mod:`kvorum.service` raises this.
        leader_client_url: where clients reach it; always there when :mod:`kvorum.service` raises this.
        cluster_id: what a request to the leader may name as its cluster; empty: its version may not understand that.
    """

    code = "not_leader"

    def __init__(
        self, leader: str | None, *, leader_name: str = "", leader_client_url: str = "", cluster_id: str = ""
    ) -> None:
        super().__init__(f"not the leader; the leader is {leader or 'unknown'}")
        self.cluster_id = cluster_id
        self.leader = leader
        self.leader_name = leader_name
        self.leader_client_url = leader_client_url


class NoLeaderError(CallerError):
    """No leader is known, or it has no quorum; nothing was done."""

    code = "no_leader"


class WrongClusterError(CallerError):
    """The request names another cluster than this node's; nothing was done.

    Args:
        node: this node's name.
        cluster_id: this node's cluster.
        wanted: the one that the request names.
    """

    code = "wrong_cluster"

    def __init__(self, node: str, cluster_id: str, wanted: str) -> None:
        super().__init__(
            f"{node} belongs to cluster {cluster_id}, and the request is for cluster {wanted:.64}",
            cluster_id=cluster_id,
        )


class NotServingError(CallerError):
    """This node's state is wrong, or it is about to end: it serves nobody, and nothing was done. Ask another node."""

    code = "not_serving"


class OverloadedError(CallerError):
    """A bounded queue is full; nothing was done."""

    code = "overloaded"


class TooManyWatchersError(CallerError):
    """This node has as many watchers as it may have; nothing was begun."""

    code = "too_many_watchers"


class OutcomeUnknownError(CallerError):
    """The request may have been done, or may still be done later. Never reported as a failure."""

    code = "outcome_unknown"


class ReadTimeoutError(CallerError):
    """A linearizable read could not confirm a quorum in time."""

    code = "read_timeout"


class MembershipRefusedError(CallerError):
    """A membership change that would not be safe now, with the reason."""

    code = "membership_refused"


class UnknownMemberError(CallerError):
    """No member has this name or id; nothing was done."""

    code = "unknown_member"


class TransferFailedError(CallerError):
    """Nobody can take the leadership, or the target cannot; nothing was begun, and the leader goes on."""

    code = "transfer_failed"


class CompareFailedError(CallerError):
    """The key is not at the revision that the write expects; nothing was done.

    Args:
        revision: the store's revision.
        mod_revision: the key's revision; 0: the key does not exist.
        prev_revision: the revision that the write expects; 0: that the key does not exist.
    """

    code = "compare_failed"

    def __init__(self, revision: int, mod_revision: int, prev_revision: int) -> None:
        actual = f"at revision {mod_revision}" if mod_revision else "absent"
        expected = f"at revision {prev_revision}" if prev_revision else "absent"
        super().__init__(
            f"the key is {actual}; the write expects it to be {expected}",
            mod_revision=mod_revision,
            prev_revision=prev_revision,
            revision=revision,
        )
        self.revision = revision


class KeyNotFoundError(CallerError):
    """The key does not exist, and the write needs what it has; nothing was done.

    Args:
        detail: one readable sentence.
        revision: the store's revision.
    """

    code = "key_not_found"

    def __init__(self, detail: str, revision: int) -> None:
        super().__init__(detail, revision=revision)


class LeaseError(CallerError):
    """Nothing was done; the code says why.

    ``lease_not_found``: there is no such lease, or its time is over. ``lease_exists``: there is one, whose time to live
    is the fact ``ttl_s``. ``too_many_leases``: there are as many as there may be.
    """

    CODES = ("lease_not_found", "lease_exists", "too_many_leases")

    def __init__(self, code: str, detail: str, **facts: Any) -> None:
        super().__init__(detail, **facts)
        self.code = code


class LockError(CallerError):
    """Nothing was done, or it was undone; the code says why.

    ``lock_held``: another lease holds the lock. ``lock_not_held``: this lease does not. ``not_elected``: nobody is.
    """

    CODES = ("lock_held", "lock_not_held", "not_elected")

    def __init__(self, code: str, detail: str, **facts: Any) -> None:
        super().__init__(detail, **facts)
        self.code = code


class SessionError(CallerError):
    """The write's session cannot take it; nothing was done now.

    Args:
        code: the reason as a code; whether an earlier attempt may be done is in :mod:`kvorum.service.outcomes`.
        detail: one readable sentence.
        reason: the state machine's word for it.
        revision: the store's revision.
    """

    def __init__(self, code: str, detail: str, reason: str, revision: int) -> None:
        super().__init__(detail, reason=reason, revision=revision)
        self.code = code


class NoSpaceError(CallerError):
    """There is no room for more data; nothing was done. Deletes and reads go on.

    Args:
        detail: one readable sentence.
        reason: what is full, ``quota`` or ``disk``.
        limit: how many bytes there may be.
        used: how many bytes there are.
    """

    code = "no_space"

    def __init__(self, detail: str, *, reason: str, limit: int, used: int) -> None:
        super().__init__(detail, reason=reason, limit=limit, used=used)
        self.reason = reason


class RevisionCompactedError(CallerError):
    """The history at this revision is no longer kept; nothing was done.

    Args:
        revision: the revision that was asked for.
        floor: the lowest revision that can be read.
        latest: the store's revision.
        is_compaction: it was to be compacted, and not to be read.
    """

    code = "compacted"

    def __init__(self, revision: int, floor: int, latest: int, *, is_compaction: bool = False) -> None:
        super().__init__(
            f"there is nothing to compact at revision {revision}: the history begins at revision {floor} already"
            if is_compaction
            else f"revision {revision} has been compacted: the history begins at revision {floor}; "
            "read the latest revision, and go on from there",
            revision=latest,
            floor=floor,
        )
        self.revision = revision
        self.floor = floor
        self.latest = latest


class RevisionInFutureError(CallerError):
    """The revision does not exist yet; nothing was done.

    Args:
        revision: the revision that was asked for.
        latest: the store's revision.
    """

    code = "future_revision"

    def __init__(self, revision: int, latest: int) -> None:
        super().__init__(
            f"revision {revision} does not exist yet: the latest is {latest}; "
            "ask for a revision that the cluster has answered with, and check that it is the same cluster",
            revision=latest,
        )
        self.revision = revision
        self.latest = latest


class TooStaleError(CallerError):
    """This node's data may be older than the read accepts; another node may do.

    Args:
        node: this node's name.
        staleness_ms: everything committed this many milliseconds ago is in its data; None: it cannot tell (yet).
        limit_ms: the most that the read accepts.
    """

    code = "too_stale"

    def __init__(self, node: str, staleness_ms: int | None, limit_ms: int) -> None:
        age = "of unknown age" if staleness_ms is None else f"up to {staleness_ms} ms old"
        detail = f"the data of {node} is {age}; the read accepts {limit_ms} ms"
        super().__init__(detail, staleness_ms=staleness_ms, limit=limit_ms)


class FeatureUnavailableError(CallerError):
    """The operation needs a higher feature level than the cluster's; nothing was done."""

    code = "feature_unavailable"


class FeatureLevelBlockedError(CallerError):
    """The feature level cannot be raised, and was not; the text names each member that blocks it and says why."""

    code = "feature_level_blocked"


class PeerError(KvorumError):
    """A peer's fault: it is refused and counted, and we go on."""


class MalformedMessageError(PeerError):
    """Bytes from a peer that are not a message."""


class IdentityRejectedError(PeerError):
    """A peer of another cluster, another name or another incarnation.

    Args:
        reason: one of ``cluster``, ``name``, ``incarnation``, ``version``, ``token``; a metric's label.
        detail: one readable sentence.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class KubernetesError(KvorumError):
    """The Kubernetes API server did not answer in time, refused, or answered nonsense.

    A cluster that is there serves on without it; none begins, and nothing is scaled.

    Args:
        detail: what was asked, and what it answered.
        status: of the answer; 0: there was none.
    """

    def __init__(self, detail: str, status: int = 0) -> None:
        super().__init__(detail)
        self.status = status


class ConfigError(KvorumError):
    """Contradictory or malformed configuration. The process exits with status 2."""


class BetterLogError(ConfigError):
    """Another member that answers has a more up-to-date log than the one that is to be recovered."""


class NothingToRecoverError(ConfigError):
    """The node is the only member of its cluster, so that it needs no other. Nothing was changed."""


class FatalError(KvorumError):
    """The process must end: going on could break a promise."""


class InvariantViolatedError(FatalError):
    """A bug: something that the protocol proves impossible has been seen."""


class ContradictionError(KvorumError):
    """This disk and the other members contradict each other. The node takes no part any more, but stays up."""


class DiskSetBackError(ContradictionError):
    """This disk lacks what it acknowledged: it was set back."""


class CommitsLostError(ContradictionError):
    """Other members contradict what is committed here: they lost it."""


class MemoryChangedError(FatalError):
    """Memory does not hold what was applied, and nobody else can be asked: the next start reads the disk."""


class VersionTooOldError(FatalError):
    """The data was written by a newer version of Kvorum, and this version does not know all of it."""


class StorageError(FatalError):
    """The disk failed, or it cannot be trusted."""


class StorageLockedError(StorageError):
    """Another process holds the data folder."""


class StorageCorruptError(StorageError):
    """The bytes on disk are not the bytes that were written."""


class StorageForeignError(StorageError):
    """The data folder belongs to another node or another format."""


class StorageAmnesiaError(StorageError):
    """The log ends before what was once durable: the node must not vote."""


class StorageReplacedError(StorageError):
    """The data folder was deleted or replaced while the node ran on it."""


class SnapshotFailedError(StorageError):
    """A snapshot could not be stored for lack of room, or is not what a peer announced. The caller may go on."""
