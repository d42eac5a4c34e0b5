"""The JSON bodies of ``/v1/leases``, ``/v1/locks`` and ``/v1/elections``.

The id of a lease is text: a signed 64-bit number in lower-case hex, without leading zeros. ``revision`` is the store's.
Fields that end in ``_base64`` take the place of the others if the bytes are not UTF-8.
"""

from __future__ import annotations

from msgspec import Struct


class GrantLease(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The body of ``POST /v1/leases``."""

    ttl_s: int
    """How long the lease lives after the grant and after each renewal, in seconds; at least 2."""
    id: str | None = None
    """By default the node draws one. Whoever gives one may repeat the request."""
    lock_delay_s: int = 0
    """How much longer the keys of the lease stay once it was not renewed in time: 0 to 60."""


class LeaseGranted(Struct, frozen=True):
    """The answer to a grant."""

    id: str
    ttl_s: int
    revision: int
    lock_delay_s: int = 0


class LeaseRenewed(Struct, frozen=True):
    """The answer to a renewal: the lease lives for ``ttl_s`` from now on."""

    id: str
    ttl_s: int
    revision: int


class LeaseRevoked(Struct, frozen=True):
    """The answer to the end of a lease: ``deleted`` keys went with it."""

    id: str
    deleted: int
    revision: int


class LeaseKey(Struct, frozen=True, omit_defaults=True):
    """A key of a lease."""

    key: str | None = None
    key_base64: str | None = None


class LeaseState(Struct, frozen=True, omit_defaults=True):
    """A lease. With ``remaining_ms`` 0 it is over, and its keys are deleted ``lock_delay_s`` later."""

    id: str
    ttl_s: int
    remaining_ms: int
    key_count: int
    lock_delay_s: int = 0
    keys: tuple[LeaseKey, ...] | None = None
    """In order, if they were asked for."""


class LeaseList(Struct, frozen=True):
    """Leases, ascending by id. ``more``: the limit left some out; ask again with ``after`` the last id."""

    leases: tuple[LeaseState, ...]
    more: bool
    revision: int


class LockGranted(Struct, frozen=True, omit_defaults=True):
    """The lease holds the lock, or is elected."""

    lease: str
    fencing_token: int
    """Higher than that of every holder before."""
    revision: int
    name: str | None = None
    name_base64: str | None = None
    key: str | None = None
    key_base64: str | None = None


class LockHolder(Struct, frozen=True, omit_defaults=True):
    """A lease that holds a lock or waits for it, and for how long it lives unless it is renewed."""

    lease: str
    fencing_token: int
    remaining_ms: int
    value: str | None = None
    """Of an election: who is elected."""
    value_base64: str | None = None


class LockState(Struct, frozen=True, omit_defaults=True):
    """A lock or an election."""

    holder: LockHolder | None
    """null: it is free."""
    waiter_count: int
    waiters: tuple[LockHolder, ...] = ()
    """The first ones, in the order in which they will get it; not in a list."""
    name: str | None = None
    name_base64: str | None = None
    revision: int = 0


class LockList(Struct, frozen=True):
    """The locks that somebody holds, by name."""

    locks: tuple[LockState, ...]
    revision: int


class ElectionList(Struct, frozen=True):
    """The elections that somebody has won, by name."""

    elections: tuple[LockState, ...]
    revision: int


class LockReleased(Struct, frozen=True):
    """The lock is released, or the place in its queue is given up."""

    revision: int


class LeaderLine(Struct, frozen=True, omit_defaults=True):
    """A line of ``GET /v1/elections/NAME?watch=true``: who is elected now, ``leader`` null: nobody."""

    revision: int
    leader: LockHolder | None
