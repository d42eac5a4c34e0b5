"""Leases: keys that are deleted together when nobody renews their lease any more.

Theory of operation. A lease has a deadline in the *log's* time, which every node reads from the same entries: so all of
them end it with the same entry, and a clock that jumps on one node ends nothing.

:attr:`Leases.time_ms` is the log time *before* the entry that is applied. Commands test with it which leases live. The
deadlines that they set count from the entry's own time: the first entry after an idle hour would otherwise grant a
lease that is over. After the commands of an entry the time advances to the entry's own (:meth:`Leases.advance`), and
what is due then is expired.

A lease is *over* once its deadline has passed: it cannot be renewed, nor be given to a key. It is *due* when its
lock-delay has passed as well: then its keys are deleted. Between the two it still exists, and can be revoked.

A heap finds what is due. It holds one place for each lease, which a renewal leaves behind: it is moved when it is
reached. Nothing depends on the order within the heap.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush, heapreplace
from typing import Annotated

import msgspec

from kvorum.kv.limits import (
    INTEGER_MAX,
    INTEGER_MIN,
    LEASE_DELAY_S_MAX,
    LEASE_EXPIRY_MAX,
    LEASE_KEY_OVERHEAD_BYTES,
    LEASE_KEYS_MAX,
    LEASE_OVERHEAD_BYTES,
    LEASE_TTL_S_MAX,
    LEASE_TTL_S_MIN,
    LEASES_MAX,
)

EXISTS = "exists"
NOT_FOUND = "not_found"
TOO_MANY = "too_many"

GRANTED, RENEWED, REVOKED, EXPIRED = "granted", "renewed", "revoked", "expired"
CHANGES = (GRANTED, RENEWED, REVOKED, EXPIRED)
"""What can become of a lease."""

_MS_PER_S = 1000
_STALE_PLACES_MIN = 1024
"""So many places in the heap, and more than there are leases, are stale before they are removed."""


def is_possible(id: int, ttl_s: int, delay_s: int) -> bool:
    """Tell whether a lease may have these numbers; a time to live that is too short is taken as the shortest."""
    return (
        INTEGER_MIN <= id <= INTEGER_MAX
        and id != 0
        and INTEGER_MIN <= ttl_s <= LEASE_TTL_S_MAX
        and 0 <= delay_s <= LEASE_DELAY_S_MAX
    )


def deadline_after(time_ms: int, ttl_s: int) -> int:
    """Return when a lease is over that was granted or renewed at a time of the log (ms)."""
    return min(time_ms + ttl_s * _MS_PER_S, INTEGER_MAX)


class LeaseRow(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """A lease as a snapshot holds it; the keys that it has are in their records."""

    id: Annotated[int, msgspec.Meta(ge=INTEGER_MIN, le=INTEGER_MAX)]
    ttl_s: Annotated[int, msgspec.Meta(ge=LEASE_TTL_S_MIN, le=LEASE_TTL_S_MAX)]
    delay_s: Annotated[int, msgspec.Meta(ge=0, le=LEASE_DELAY_S_MAX)]
    deadline_ms: Annotated[int, msgspec.Meta(ge=0, le=INTEGER_MAX)]


class Lease:
    """One lease.

    Attributes:
        id: any signed 64-bit integer but 0.
        ttl_s: how long it lives after the grant and after each renewal.
        delay_s: how much later than its deadline its keys are deleted.
        deadline_ms: the log time (Unix, ms) from which on it is over.
        keys: the keys that it has, in no order that counts.
    """

    __slots__ = ("_iterator_number", "_place_ms", "deadline_ms", "delay_s", "id", "keys", "ttl_s")

    def __init__(self, row: LeaseRow, iterator_number: int) -> None:
        self.id = row.id
        self.ttl_s = row.ttl_s
        self.delay_s = row.delay_s
        self.deadline_ms = row.deadline_ms
        self.keys: dict[bytes, None] = {}
        self._place_ms = self.due_ms
        """Where it is in the heap: not after ``due_ms``."""
        self._iterator_number = iterator_number
        """The last iterator for which it was preserved, or that it is younger than."""

    @property
    def due_ms(self) -> int:
        """The log time from which on its keys are deleted."""
        return self.deadline_ms + self.delay_s * _MS_PER_S

    def remaining_ms(self, time_ms: int) -> int:
        """Return for how long it still lives at a time of the log; 0: it is over."""
        return max(self.deadline_ms - time_ms, 0)

    def row(self) -> LeaseRow:
        """Return the lease as a snapshot holds it."""
        return LeaseRow(self.id, self.ttl_s, self.delay_s, self.deadline_ms)


class Leases:
    """All leases, in the order of their grants.

    Attributes:
        time_ms: the log time with which commands test what lives; outside of :meth:`Store.apply` the store's.
        used_bytes: what all of them take, as the quota counts it; their records are not in it.
        counts: how often each of :data:`CHANGES` has happened since this object was made; no part of the state.
    """

    __slots__ = ("_heap", "_iterator_number", "_leases", "_preserved", "counts", "time_ms", "used_bytes")

    def __init__(self) -> None:
        self.time_ms = 0
        self.used_bytes = 0
        self.counts = dict.fromkeys(CHANGES, 0)
        self._leases: dict[int, Lease] = {}
        self._heap: list[tuple[int, int]] = []
        """Places: a time (ms) and the id of a lease. Stale, if the lease is gone or has another place."""
        self._iterator_number = 0
        self._preserved: dict[int, LeaseRow] | None = None

    # --- Reading ------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """How many exist, those that are over included as long as they have not expired."""
        return len(self._leases)

    def __iter__(self) -> Iterator[Lease]:
        """Yield all that exist, in the order of their grants. Nothing may be applied meanwhile."""
        return iter(self._leases.values())

    def get(self, id: int) -> Lease | None:
        """Return a lease that exists; it may be over."""
        return self._leases.get(id)

    def living(self, id: int) -> Lease | None:
        """Return a lease that is not over."""
        lease = self._leases.get(id)
        return lease if lease is not None and self.time_ms < lease.deadline_ms else None

    def keys(self, id: int) -> list[bytes]:
        """Return the keys of a lease in order; none if it does not exist."""
        lease = self._leases.get(id)
        return [] if lease is None else sorted(lease.keys)

    def next_due_ms(self) -> int | None:
        """Return the log time at which the next lease is due; None: there is no lease."""
        self._settle()
        return self._heap[0][0] if self._heap else None

    # --- Changes, for the store only ----------------------------------------------------------------------------

    def grant(self, row: LeaseRow) -> str | None:
        """Add a lease, and return None; or the reason why that is refused."""
        if row.id in self._leases:
            return EXISTS
        if len(self._leases) >= LEASES_MAX:
            return TOO_MANY
        self.restore(row)
        self.counts[GRANTED] += 1
        return None

    def renew(self, lease: Lease, time_ms: int) -> None:
        """Let a lease, which is not over, live from ``time_ms`` on, which is not before :attr:`time_ms`."""
        self._preserve(lease)
        lease.deadline_ms = deadline_after(time_ms, lease.ttl_s)
        self.counts[RENEWED] += 1

    def revoke(self, lease: Lease) -> list[bytes]:
        """Remove a lease; return the keys that it had, in order, which are to be deleted now."""
        self.counts[REVOKED] += 1
        return self._remove(lease)

    def _remove(self, lease: Lease) -> list[bytes]:
        self._preserve(lease)
        del self._leases[lease.id]
        self.used_bytes -= LEASE_OVERHEAD_BYTES + LEASE_KEY_OVERHEAD_BYTES * len(lease.keys)
        if len(self._heap) > 2 * len(self._leases) + _STALE_PLACES_MIN:
            self._heap = [(each._place_ms, each.id) for each in self._leases.values()]
            heapify(self._heap)
        return sorted(lease.keys)

    def attach(self, key: bytes, id: int) -> None:
        """Give a key to a lease that exists and has room."""
        keys = self._leases[id].keys
        if key not in keys:
            keys[key] = None
            self.used_bytes += LEASE_KEY_OVERHEAD_BYTES

    def detach(self, key: bytes, id: int) -> None:
        """Take a key from its lease; nothing happens if that is gone, as while it is expired."""
        lease = self._leases.get(id)
        if lease is not None:
            del lease.keys[key]
            self.used_bytes -= LEASE_KEY_OVERHEAD_BYTES

    def advance(self, time_ms: int) -> Iterator[tuple[Lease, list[bytes]]]:
        """Advance the time; remove and yield what one entry expires, in the order of (due, id), each with its keys.

        Whole leases, up to 1,024 leases and keys together, and at least one. The rest follows with the next entries.
        """
        self.time_ms = time_ms
        left = LEASE_EXPIRY_MAX
        while self._heap:
            self._settle()
            if not self._heap or self._heap[0][0] > time_ms:
                return
            lease = self._leases[self._heap[0][1]]
            size = 1 + len(lease.keys)
            if size > left and left < LEASE_EXPIRY_MAX:
                return
            left -= size
            self.counts[EXPIRED] += 1
            yield lease, self._remove(lease)

    # --- Snapshots ----------------------------------------------------------------------------------------------

    def restore(self, row: LeaseRow) -> None:
        """Add a lease that does not exist, as the last one so far."""
        lease = Lease(row, self._iterator_number)
        self._leases[row.id] = lease
        heappush(self._heap, (lease._place_ms, row.id))
        self.used_bytes += LEASE_OVERHEAD_BYTES

    def row(self, id: int) -> LeaseRow:
        """Return a lease that exists as it is now."""
        return self._leases[id].row()

    def has_room(self, id: int, attached: int) -> bool:
        """Tell whether a lease that exists may have so many keys more."""
        return len(self._leases[id].keys) + attached <= LEASE_KEYS_MAX

    def begin_iteration(self) -> tuple[list[int], dict[int, LeaseRow]]:
        """Return all ids in order, and a dict that gets each lease's row just before its first change or its end."""
        self._iterator_number += 1
        self._preserved = {}
        return list(self._leases), self._preserved

    def end_iteration(self) -> None:
        """Stop preserving."""
        self._preserved = None

    def _preserve(self, lease: Lease) -> None:
        """Note a lease for the iterator that is open, once per iterator."""
        if lease._iterator_number != self._iterator_number:
            lease._iterator_number = self._iterator_number
            if self._preserved is not None:
                self._preserved[lease.id] = lease.row()

    def _settle(self) -> None:
        """Make the first place of the heap that of the lease which is due first."""
        heap = self._heap
        while heap:
            place_ms, id = heap[0]
            lease = self._leases.get(id)
            if lease is None or lease._place_ms != place_ms:
                heappop(heap)
            elif place_ms < (due_ms := lease.due_ms):
                lease._place_ms = due_ms
                heapreplace(heap, (due_ms, id))
            else:
                return
