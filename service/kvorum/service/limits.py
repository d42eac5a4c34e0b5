"""How large and how long a request may be, and what a member may be called: for every front.

The limits of keys, values and sessions are part of the state machine and come from :mod:`kvorum.kv.limits`.
"""

from __future__ import annotations

from kvorum.config import is_base_url
from kvorum.errors import InvalidRequestError
from kvorum.identity import is_name
from kvorum.kv.limits import INTEGER_MAX, INTEGER_MIN, KEY_BYTES_MAX, QUOTA_BYTES_MIN, VALUE_BYTES_MAX
from kvorum.kv.watch import Interest
from kvorum.service.requests import Watch

__all__ = [
    "BATCH_OPERATIONS_MAX",
    "HISTORY_BYTES_MAX",
    "HISTORY_VERSIONS",
    "HISTORY_VERSIONS_MAX",
    "INTEGER_MAX",
    "INTEGER_MIN",
    "KEY_BYTES_MAX",
    "LEASES_LISTED_MAX",
    "LOCK_WAITERS_LISTED_MAX",
    "LOCK_WAIT_MS_MAX",
    "STALENESS_MS_MAX",
    "TIMEOUT_MS_MIN",
    "VALUE_BYTES_MAX",
    "bounded_timeout_ms",
    "check_member_name",
    "check_member_url",
    "check_quota",
    "check_revision",
    "check_staleness",
    "check_versions",
    "watch_interest",
]

BATCH_OPERATIONS_MAX = 128
"""Operations of one batch; half a session's window, so that a retry of a whole batch is answered."""
STALENESS_MS_MAX = 86_400_000
"""The most that a read may accept: a day."""
HISTORY_VERSIONS = 100
"""Of a key in one answer, unless the client wants more or fewer."""
HISTORY_VERSIONS_MAX = 1000
"""The most that it may want."""
HISTORY_BYTES_MAX = 1024 * 1024
"""Of the values in such an answer, but for the first."""
LEASES_LISTED_MAX = 10_000
"""Leases of one answer."""
LOCK_WAIT_MS_MAX = 600_000
"""How long one attempt may wait for a lock: 10 minutes. Whoever wants to wait for longer asks again."""
LOCK_WAITERS_LISTED_MAX = 100
"""Waiters of a lock in one answer."""
LOCK_PLACES_MAX = 10_000
"""Leases that hold one lock, or wait for it."""
LOCKS_LISTED_MAX = 10_000
"""Locks, or elections, of one answer."""
LOCK_LIST_BYTES_MAX = 1024 * 1024
"""Of names and values in one answer, but for the first of them."""
ELECTION_VALUE_BYTES_MAX = 64 * 1024
"""Of the value of an election: each candidate has one, and each observer is sent the leader's."""
TIMEOUT_MS_MIN = 1
"""A request that may not wait at all is a mistake."""


def bounded_timeout_ms(wanted_ms: int | None, limit_ms: int) -> int:
    """Return how long a request may take: as long as the client wants, up to the node's ``request_timeout_ms``.

    Raises:
        InvalidRequestError: the client does not want to wait at all.
    """
    if wanted_ms is None:
        return limit_ms
    if wanted_ms < TIMEOUT_MS_MIN:
        raise InvalidRequestError(f"timeout_ms must be a whole number from {TIMEOUT_MS_MIN} to {INTEGER_MAX:,}")
    return min(wanted_ms, limit_ms)


def check_staleness(consistency: str, max_staleness_ms: int | None) -> None:
    """Check that a read's bound makes sense.

    Raises:
        InvalidRequestError: it does not.
    """
    if max_staleness_ms is None:
        return
    if consistency != "stale":
        raise InvalidRequestError("max_staleness_ms needs consistency=stale: a linearizable read is never stale")
    if not 0 <= max_staleness_ms <= STALENESS_MS_MAX:
        raise InvalidRequestError(f"max_staleness_ms must be a whole number from 0 to {STALENESS_MS_MAX:,}")


def check_revision(revision: int, minimum: int = 0) -> None:
    """Check that this can be a revision of the past.

    Raises:
        InvalidRequestError: it cannot.
    """
    if not minimum <= revision <= INTEGER_MAX:
        raise InvalidRequestError(f"revision must be a whole number from {minimum} to {INTEGER_MAX:,}")


def check_versions(limit: int) -> None:
    """Check that one answer may have so many versions of a key.

    Raises:
        InvalidRequestError: it may not.
    """
    if not 1 <= limit <= HISTORY_VERSIONS_MAX:
        raise InvalidRequestError(f"limit must be a whole number from 1 to {HISTORY_VERSIONS_MAX:,}")


def watch_interest(request: Watch) -> Interest:
    """Return what a watch wants to see.

    Raises:
        InvalidRequestError: a bound is longer than any key, or nothing could be seen.
    """
    if len(request.start) > KEY_BYTES_MAX or len(request.end or b"") > KEY_BYTES_MAX + 1:
        raise InvalidRequestError(f"a bound of the watch's range is longer than a key may be ({KEY_BYTES_MAX} bytes)")
    interest = Interest(request.start, request.end, request.prev_value, request.puts, request.deletes)
    interest.check()
    return interest


def check_quota(limit_bytes: int) -> None:
    """Check that this can be the quota on data.

    Raises:
        InvalidRequestError: it cannot.
    """
    if not QUOTA_BYTES_MIN <= limit_bytes <= INTEGER_MAX:
        raise InvalidRequestError(f"the quota must be from {QUOTA_BYTES_MIN:,} (1 MiB) to {INTEGER_MAX:,} bytes")


def check_member_name(name: str) -> None:
    """Check that a member can have this name.

    Raises:
        InvalidRequestError: it cannot.
    """
    if not is_name(name):
        raise InvalidRequestError("the member's name is not 1 to 63 letters, digits, '-', '_' or '.'")


def check_member_url(url: str, what: str) -> None:
    """Check that a member can be reached at this base URL, ``http://HOST:PORT``.

    Raises:
        InvalidRequestError: it is something else; ``what`` names it.
    """
    if not is_base_url(url):
        raise InvalidRequestError(f"{what} is not http://HOST:PORT without path, query or user")
