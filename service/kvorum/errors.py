"""Every exception that Kvorum raises on purpose.

::

    KvorumError
    +-- CallerError              the caller's: typed, mapped to HTTP in one table (api)
    |   +-- InvalidRequest       malformed: certainly not done
    |   +-- TooLarge             a limit was passed: certainly not done
    |   +-- NotLeader            this node does not lead; says who does
    |   +-- NoLeader             nobody leads that we know of: certainly not done
    |   +-- Overloaded           a bounded queue is full: certainly not done
    |   +-- OutcomeUnknown       it may or may not be done, now or later
    |   +-- ReadTimeout          a linearizable read found no quorum in time
    |   +-- MembershipRefused    a membership change that would not be safe now
    |   +-- TransferFailed       the leadership did not move in time
    +-- PeerError                a peer's: refuse, count, go on
    |   +-- MalformedMessage     bytes that do not decode to a message
    |   +-- IdentityRejected     another cluster, another incarnation, another name
    +-- KubernetesError          the API server did not do what we asked; nothing depends on it
    +-- ConfigError              contradictory or malformed configuration: exit 2
    +-- FatalError               ours: the process ends and its supervisor restarts it
        +-- InvariantViolated    a bug in consensus or in the state machine
        +-- StorageError         the disk failed, or cannot be trusted
            +-- StorageLocked    another process holds the data folder
            +-- StorageCorrupt   bytes that are not what was written
            +-- StorageForeign   the folder belongs to another node
            +-- StorageAmnesia   the log ends before what was once durable
            +-- SnapshotFailed   no room for a snapshot, or not the one expected: try again later, the log is unharmed
"""


class KvorumError(Exception):
    """The root of the tree."""


class CallerError(KvorumError):
    """The caller's mistake or misfortune; ``code`` is stable and machine-readable."""

    code = "caller_error"


class InvalidRequest(CallerError):
    """A malformed request; nothing was done."""

    code = "invalid_request"


class TooLarge(CallerError):
    """A limit was passed; nothing was done.

    Args:
        what: what is too large, in words.
        limit: the limit, in the unit that ``what`` names.
    """

    code = "too_large"

    def __init__(self, what: str, limit: int) -> None:
        super().__init__(f"{what} (limit {limit})")
        self.limit = limit


class NotLeader(CallerError):
    """This node does not lead; nothing was done.

    Args:
        leader: the member id of the leader if it is known.
    """

    code = "not_leader"

    def __init__(self, leader: str | None) -> None:
        super().__init__(f"not the leader; the leader is {leader or 'unknown'}")
        self.leader = leader


class NoLeader(CallerError):
    """No leader is known, or it has no quorum; nothing was done."""

    code = "no_leader"


class Overloaded(CallerError):
    """A bounded queue is full; nothing was done."""

    code = "overloaded"


class OutcomeUnknown(CallerError):
    """The request may have been done, or may still be done later. Never reported as a failure."""

    code = "outcome_unknown"


class ReadTimeout(CallerError):
    """A linearizable read could not confirm a quorum in time."""

    code = "read_timeout"


class MembershipRefused(CallerError):
    """A membership change that would not be safe now, with the reason."""

    code = "membership_refused"


class TransferFailed(CallerError):
    """The leadership did not move in time; the old leader goes on."""

    code = "transfer_failed"


class PeerError(KvorumError):
    """A peer's fault: it is refused and counted, and we go on."""


class MalformedMessage(PeerError):
    """Bytes from a peer that are not a message."""


class IdentityRejected(PeerError):
    """A peer of another cluster, another name or another incarnation.

    Args:
        reason: one of ``cluster``, ``name``, ``incarnation``, ``version``, ``removed``; a metric's label.
        detail: one readable sentence.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class KubernetesError(KvorumError):
    """The Kubernetes API server did not answer in time, refused, or answered nonsense. No promise depends on it."""


class ConfigError(KvorumError):
    """Contradictory or malformed configuration. The process exits with status 2."""


class FatalError(KvorumError):
    """The process must end: going on could break a promise."""


class InvariantViolated(FatalError):
    """A bug: something that the protocol proves impossible has been seen."""


class StorageError(FatalError):
    """The disk failed, or it cannot be trusted."""


class StorageLocked(StorageError):
    """Another process holds the data folder."""


class StorageCorrupt(StorageError):
    """The bytes on disk are not the bytes that were written."""


class StorageForeign(StorageError):
    """The data folder belongs to another node or another format."""


class StorageAmnesia(StorageError):
    """The log ends before what was once durable: the node must not vote."""


class SnapshotFailed(StorageError):
    """A snapshot could not be stored for lack of room, or is not what a peer announced. The caller may go on."""
