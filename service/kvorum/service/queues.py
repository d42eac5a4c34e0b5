"""The places of locks and elections, as this node has applied them (:mod:`kvorum.service.locks`).

A place is a key, ``PREFIX NAME/LEASE`` with the id of its lease in hex, which has this lease. Other keys below the
prefix are none; those of locks whose names begin with NAME and a slash are between the places of NAME.

Places are read without their values, and those of one queue once for all who look at it at one revision. How many keys
one read looks at is bounded: those of one queue are looked at in one turn, those of all queues in slices at one
revision. How many places a queue may have is bounded when one is taken.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from weakref import ref

import msgspec

from kvorum.errors import InvalidRequestError, OverloadedError, ReadTimeoutError, TooLargeError
from kvorum.kv.limits import KEY_BYTES_MAX
from kvorum.service.limits import (
    LOCK_LIST_BYTES_MAX,
    LOCK_WAITERS_LISTED_MAX,
    LOCKS_LISTED_MAX,
    bounded_timeout_ms,
)
from kvorum.service.node_port import NodePort, RecordView, StoreView
from kvorum.service.requests import ListLocks, LockKind, prefix_end
from kvorum.service.results import LockHolder, LockList, LockState

PREFIXES: dict[LockKind, bytes] = {"lock": b"_locks/", "election": b"_elections/"}
"""Where the keys of each kind are."""
SLICE_KEYS = 1000
"""Keys that are looked at before the event loop has a turn: less than a millisecond."""
QUEUE_KEYS_MAX = 100_000
"""Keys that a read of one queue looks at: its own, and those of longer names (``a/b`` for ``a``); about 10 ms."""
LIST_KEYS_MAX = 200_000
"""Keys that a list of all queues looks at."""
HISTORY_BYTES_MAX = 16 * 1024 * 1024
"""Of history below the floor that a list holds back."""


class Place(msgspec.Struct, frozen=True):
    """The place of a lease in a queue."""

    key: bytes
    lease: int
    create_revision: int
    """The fencing token."""


class Queues:
    """The queues of locks and elections, to read from.

    Args:
        node: the node.
    """

    def __init__(self, node: NodePort) -> None:
        self._node = node
        self._last_read: tuple[ref[StoreView], bytes, int, list[Place]] | None = None
        """The queue that was read last: where, its prefix, at which revision, and its places.

        A state that was replaced is not kept for it.
        """
        self._lists = asyncio.Lock()
        """Whose turn it is: each list holds a few hundred bytes for each queue."""

    def is_empty(self, prefix: bytes) -> bool:
        """Tell whether there is no key at all."""
        return not self._node.store.versions.keys_from(prefix, prefix_end(prefix), 1, has_dead=False)

    def read(self, kind: LockKind, name: bytes) -> list[Place]:
        """Return the places of a queue by their :func:`rank`, the holder's first. Do not change the list.

        Raises:
            TooLargeError: there are too many keys between them.
        """
        store, prefix = self._node.store, queue_prefix(kind, name)
        if self._last_read is not None:
            last_store, last_prefix, revision, places = self._last_read
            if last_store() is store and prefix == last_prefix and revision == store.revision:
                return places
        places = self._places(prefix)
        self._last_read = ref(store), prefix, store.revision, places
        return places

    def _places(self, prefix: bytes) -> list[Place]:
        found = map(place_of, map(self._node.store.versions.records.get, self._keys(prefix)))
        return sorted(filter(None, found), key=rank)

    def _keys(self, prefix: bytes) -> Iterator[bytes]:
        """Yield the keys of one queue. A long row of those of another one between them is skipped."""
        start, end, left = prefix, prefix_end(prefix), QUEUE_KEYS_MAX
        while True:
            keys = self._node.store.versions.keys_from(start, end, SLICE_KEYS, has_dead=False)
            for key in keys:
                if key.find(b"/", len(prefix)) < 0:
                    yield key
            if len(keys) < SLICE_KEYS:
                return
            left -= len(keys)
            if left <= 0:
                raise TooLargeError(f"there are too many keys below {shown(prefix)} to read a queue", QUEUE_KEYS_MAX)
            nested, slash, _ = keys[-1][len(prefix) :].partition(b"/")
            start = prefix + nested + (b"0" if slash else b"\0")  # After a slash comes a zero.

    def state(self, kind: LockKind, name: bytes) -> LockState:
        """Return who holds a lock, and who waits: the first ones, and as many as their values leave room for."""
        queue = self.read(kind, name)
        holders: list[LockHolder] = []
        size_bytes = 0
        for place in queue[: 1 + LOCK_WAITERS_LISTED_MAX]:
            holder = self.holder(place)
            size_bytes += len(holder.value)
            if holders and size_bytes > LOCK_LIST_BYTES_MAX:
                break
            holders.append(holder)
        first = holders[0] if holders else None
        return LockState(name, first, tuple(holders[1:]), max(len(queue) - 1, 0), self._node.store.revision)

    def holder(self, place: Place) -> LockHolder:
        """Return a place with its value, and for how long its lease lives."""
        record = self._node.store.get(place.key)
        return self._holder(place, b"" if record is None else record.value)

    def _holder(self, place: Place, value: bytes) -> LockHolder:
        lease = self._node.store.leases.get(place.lease)
        remaining_ms = 0 if lease is None else lease.remaining_ms(self._node.now_ms())
        return LockHolder(place.lease, place.create_revision, remaining_ms, value)

    async def list_all(self, request: ListLocks) -> LockList:
        """Return a page of all that somebody holds, by name. Call it behind a barrier.

        Raises:
            InvalidRequestError: the limit is out of range.
            TooLargeError: there are too many keys.
            ReadTimeoutError: other lists take too long.
            OverloadedError: the history that the list holds back takes too much.
        """
        if not 1 <= request.limit <= LOCKS_LISTED_MAX:
            raise InvalidRequestError(f"limit must be a whole number from 1 to {LOCKS_LISTED_MAX:,}")
        timeout_ms = bounded_timeout_ms(request.timeout_ms, self._node.config.request_timeout_ms)
        try:
            async with asyncio.timeout(timeout_ms / 1000), self._lists:
                return await self._list(request)
        except TimeoutError:
            raise ReadTimeoutError("the locks could not be listed in time: there are many, or many lists") from None

    async def _list(self, request: ListLocks) -> LockList:
        store, prefix = self._node.store, PREFIXES[request.kind]
        start, end, left = prefix, prefix_end(prefix), LIST_KEYS_MAX
        firsts: dict[bytes, tuple[Place, int]] = {}
        """Of each queue the holder, and how many places it has."""
        pin = store.pin(bytes_max=HISTORY_BYTES_MAX)
        try:
            while True:
                keys = store.versions.keys_from(start, end, SLICE_KEYS)
                for key in keys:
                    place, name = place_of(store.versions.at(key, pin.revision)), key[len(prefix) : key.rindex(b"/")]
                    if place is not None and name:
                        first, count = firsts.get(name, (place, 0))
                        firsts[name] = min(first, place, key=rank), count + 1
                if len(keys) < SLICE_KEYS:
                    break
                left -= len(keys)
                if left <= 0:
                    raise TooLargeError(f"there are too many keys below {shown(prefix)} to list them", LIST_KEYS_MAX)
                start = keys[-1] + b"\0"
                await asyncio.sleep(0)
                if pin.is_lost:
                    raise OverloadedError("the history was compacted faster than the locks could be listed: try again")
            names = sorted(name for name in firsts if request.after is None or name > request.after)
            states: list[LockState] = []
            size_bytes = 0
            for name in names[: request.limit]:
                first, count = firsts[name]
                record = store.versions.at(first.key, pin.revision)
                holder = self._holder(first, b"" if record is None else record.value)
                size_bytes += len(name) + len(holder.value)
                if states and size_bytes > LOCK_LIST_BYTES_MAX:
                    break
                states.append(LockState(name, holder, (), count - 1, pin.revision))
            return LockList(tuple(states), pin.revision, len(states) < len(names))
        finally:
            pin.release()


def place_of(record: RecordView | None) -> Place | None:
    """Return the place that a record is; None: it is none."""
    if record is None or not record.lease or not record.key.endswith(b"/%x" % record.lease):
        return None
    return Place(record.key, record.lease, record.create_revision)


def queue_prefix(kind: LockKind, name: bytes) -> bytes:
    """Return what the keys of a queue begin with.

    Raises:
        InvalidRequestError: there is no name.
        TooLargeError: the name is too long.
    """
    if not name:
        raise InvalidRequestError("the name is empty")
    longest = KEY_BYTES_MAX - len(PREFIXES["election"]) - 1 - 17
    if len(name) > longest:
        raise TooLargeError(f"the name has {len(name)} bytes", longest)
    return PREFIXES[kind] + name + b"/"


def shown(name: bytes) -> str:
    """Return a name, or a key, for a message."""
    return repr(name[:64].decode("utf-8", "backslashreplace"))


def rank(place: Place) -> tuple[int, bytes]:
    """Return what places are ordered by. No two are equal, also if somebody else has put both in one transaction."""
    return place.create_revision, place.key
