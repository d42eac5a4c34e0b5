"""What a call raises.

::

    ClientError
    +-- InvalidArgumentError    the caller's mistake, found before anything was sent
    +-- RefusedError            the cluster said no; certainly not done
    |   +-- CompareFailedError  the key is at another revision than ``prev_revision``
    |   +-- CompactedError      the revision is no longer in the history
    |   +-- FutureRevisionError the cluster has not reached the revision
    |   +-- NoSpaceError        the cluster has no room for more data; deletes and reads go on
    |   +-- LeaseNotFoundError  the lease does not exist, or its time is over
    |   +-- LeaseExistsError    there is a lease with the id already
    |   +-- LockHeldError       another one holds the lock, or is elected
    |   +-- WrongClusterError   the nodes belong to another cluster than the client's
    +-- UnavailableError        nobody answered, or nobody leads, until the deadline, or the client is closed; certainly
    |                           not done
    +-- OutcomeUnknownError     it may be done, now or later
    +-- LeaseLostError          the lease of a block has ended before the block did, and its keys with it
    |   +-- LockLostError       likewise the lock or the election; what was done last may overlap with the next holder
    +-- BackupDamagedError      a backup that is none, or not all of one

Until version 0.1.0 these names did not end in ``Error``. The old ones can still be imported, with a warning.
"""

from __future__ import annotations

import warnings
from types import MappingProxyType


class ClientError(Exception):
    """The root of the tree. Every one can be pickled and copied, and keeps its attributes."""

    def __reduce__(self) -> tuple[object, ...]:
        # An exception's own way calls its class with args, which are the text alone: too few for most of ours.
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(kind: type[ClientError], args: tuple[object, ...], attributes: dict[str, object]) -> ClientError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error


class InvalidArgumentError(ClientError, ValueError):
    """The caller's mistake: nothing was sent."""


class RefusedError(ClientError):
    """The cluster refused the request; nothing was done.

    Args:
        status: the HTTP status.
        code: the stable, machine-readable reason.
        detail: one readable sentence.
    """

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code


class CompareFailedError(RefusedError):
    """The key is at another revision than ``prev_revision``; nothing was done.

    Args:
        detail: one readable sentence.
        mod_revision: where the key is; 0: it does not exist.
        revision: the cluster's revision then.
    """

    def __init__(self, detail: str, mod_revision: int, revision: int) -> None:
        super().__init__(409, "compare_failed", detail)
        self.mod_revision = mod_revision
        self.revision = revision


class CompactedError(RefusedError):
    """The revision is no longer in the history, which was compacted; nothing was done.

    Args:
        detail: one readable sentence.
        floor: the lowest revision that can be read.
        revision: the cluster's revision then.
    """

    def __init__(self, detail: str, floor: int, revision: int) -> None:
        super().__init__(410, "compacted", detail)
        self.floor = floor
        self.revision = revision


class FutureRevisionError(RefusedError):
    """The cluster has not reached the revision; nothing was done.

    Args:
        detail: one readable sentence.
        revision: the cluster's revision then.
    """

    def __init__(self, detail: str, revision: int) -> None:
        super().__init__(400, "future_revision", detail)
        self.revision = revision


class NoSpaceError(RefusedError):
    """The cluster has no room for more data; nothing was done. Deletes and reads go on.

    Args:
        detail: one readable sentence.
        reason: what is full, ``quota`` or ``disk``.
        limit: how many bytes there may be.
        used: how many bytes there are.
    """

    def __init__(self, detail: str, reason: str, limit: int, used: int) -> None:
        super().__init__(507, "no_space", detail)
        self.reason = reason
        self.limit = limit
        self.used = used


class LeaseNotFoundError(RefusedError):
    """The lease does not exist, or its time is over; nothing was done."""

    def __init__(self, detail: str) -> None:
        super().__init__(404, "lease_not_found", detail)


class LeaseExistsError(RefusedError):
    """There is a lease with the id already; nothing was done.

    Args:
        detail: one readable sentence.
        ttl_s: its time to live; 0: not known.
        perhaps_ours: an earlier attempt of the same call may have granted it.
    """

    def __init__(self, detail: str, ttl_s: int, perhaps_ours: bool) -> None:
        super().__init__(409, "lease_exists", detail)
        self.ttl_s = ttl_s
        self.perhaps_ours = perhaps_ours


class LockHeldError(RefusedError):
    """Another lease holds the lock, or is elected, and the wait is over; the place in the queue is given up.

    Args:
        detail: one readable sentence.
        lease: the id of the holder's lease; 0: not known.
        fencing_token: the holder's.
        remaining_ms: for how long the holder's lease lives unless it is renewed.
    """

    def __init__(self, detail: str, lease: int, fencing_token: int, remaining_ms: int) -> None:
        super().__init__(409, "lock_held", detail)
        self.lease = lease
        self.fencing_token = fencing_token
        self.remaining_ms = remaining_ms


class WrongClusterError(RefusedError):
    """The nodes that were asked belong to another cluster than this client's; nothing was done.

    Args:
        detail: one readable sentence.
        cluster_id: theirs, or of the last of them.
        expected: the client's.
    """

    def __init__(self, detail: str, cluster_id: str, expected: str) -> None:
        super().__init__(421, "wrong_cluster", detail)
        self.cluster_id = cluster_id
        self.expected = expected


class UnavailableError(ClientError):
    """No node answered, or none leads, until the deadline, or the client is closed; nothing was done."""


class OutcomeUnknownError(ClientError):
    """The request may be done, or may still be done later. Read before you write again."""


class LeaseLostError(ClientError):
    """The lease was not renewed in time, or somebody revoked it: its keys are gone, now or soon."""


class LockLostError(LeaseLostError):
    """The lock, or the election, was lost before its block ended. Somebody else may have it already.

    What was done last in the block may overlap with what the next holder does, where the fencing token was not checked.
    """


class BackupDamagedError(ClientError):
    """A file is no backup, or not all of one."""


RENAMED = MappingProxyType(
    {
        "CompareFailed": CompareFailedError,
        "Damaged": BackupDamagedError,
        "InvalidArgument": InvalidArgumentError,
        "OutcomeUnknown": OutcomeUnknownError,
        "Refused": RefusedError,
        "Unavailable": UnavailableError,
    }
)
"""Old name -> class."""


def __getattr__(name: str) -> type[ClientError]:
    """Return the class of an old name; ``kvorum_client`` uses this function as well."""
    if (kind := RENAMED.get(name)) is None:
        raise AttributeError(f"module 'kvorum_client' has no attribute {name!r}")
    warnings.warn(f"kvorum_client.{name} is now {kind.__name__}", DeprecationWarning, stacklevel=2)
    return kind
