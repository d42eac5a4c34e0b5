"""Ranges that are being read: in slices, between which the event loop goes on, and within bounds.

A small range is read at once. A larger one gets a place among the scans of its kind, and pins its revision until it is
read. Of all scans together one slice runs at a time, and the loop has a turn before each.

What readers hold is bounded in bytes, however slow their clients are. A place is given back when the client has been
given the whole answer, and no place is given while the pages that wait for their clients are too large together. A
stream holds one slice. The history that a reader keeps from being freed is bounded by its pin: it ends when that holds
back too much.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from kvorum.errors import InvariantViolatedError, OverloadedError, ReadTimeoutError, RevisionCompactedError
from kvorum.kv.cursors import encode_cursor
from kvorum.kv.scan import Item as RangeItem
from kvorum.kv.scan import Scan
from kvorum.kv.versions import Pin
from kvorum.service.node_port import NodePort

__all__ = ["RangeItem", "RangeScan", "Scans"]

SLICE_KEYS = 512
"""Keys that a slice examines, at most: about a millisecond with the encoding of what is found."""
FIRST_SLICE_KEYS = 64
"""Of the slice that is not waited for; ranges of fewer keys need no other one."""
PAGES_MAX = 32
"""Pages that are being read at a time, each with up to a mebibyte of records."""
STREAMS_MAX = 8
"""Whole ranges that are being read at a time. Each may hold back what compactions would free."""
HISTORY_BYTES_MAX = 64 * 1024 * 1024
"""Of history below the floor that all ranges together hold back. A range that holds back more has to begin again."""
UNREAD_BYTES_MAX = 64 * 1024 * 1024
"""With so many bytes of pages that wait for their clients, no other page is begun."""
STREAM_S_MAX = 600.0
"""How long a whole range may take to be read, however fast its client is."""


class Scans:
    """The scans of one node.

    Args:
        node: the node.
        now: a monotonic clock, in seconds.
    """

    def __init__(self, node: NodePort, now: Callable[[], float]) -> None:
        self.node = node
        self.now = now
        self.turn = asyncio.Lock()
        """Whose slice is next."""
        self.unread_bytes = 0
        """Of the pages that wait for their clients."""
        self._running = {False: 0, True: 0}

    async def begin(self, scan: Scan, *, is_whole: bool, timeout_ms: int, staleness_ms: int | None) -> RangeScan:
        """Return a scan whose count is known; close it in any case.

        Args:
            scan: what is read. The state at hand is one that it may be read from.
            is_whole: it is not a page.
            timeout_ms: how long a page may take.
            staleness_ms: what is known of the age of the state.

        Raises:
            RevisionCompactedError, RevisionInFutureError: the history does not have the revision.
            OverloadedError: too many ranges are being read.
            TooLargeError: the range is too large to be sorted.
            ReadTimeoutError: it could not even be counted in time.
            NotServingError, NotLeaderError: the node serves nobody any more.
        """
        timeout_s = STREAM_S_MAX if is_whole else timeout_ms / 1000
        reading = RangeScan(self, scan, self.now() + timeout_s, is_whole=is_whole, staleness_ms=staleness_ms)
        try:
            await reading.begin()
        except BaseException:
            reading.close()
            raise
        return reading

    def enter(self, *, is_whole: bool) -> None:
        """Take a place.

        Raises:
            OverloadedError: there is none.
        """
        limit = STREAMS_MAX if is_whole else PAGES_MAX
        if self._running[is_whole] >= limit:
            what = "whole ranges" if is_whole else "pages of ranges"
            raise OverloadedError(f"this node is reading {limit} {what} already; try again, or ask another node")
        if self.unread_bytes >= UNREAD_BYTES_MAX:
            raise OverloadedError(
                f"{self.unread_bytes} bytes of pages wait for slow clients (limit {UNREAD_BYTES_MAX}); try again, or "
                "ask another node"
            )
        self._running[is_whole] += 1

    def leave(self, *, is_whole: bool) -> None:
        """Give a place back."""
        self._running[is_whole] -= 1


class RangeScan:
    """One range that is being read: take its :meth:`parts`, then see whether there is more. Close it in any case.

    Args:
        scans: among which it has its place.
        scan: what is read.
        deadline_s: when it must be done, by the clock of ``scans``.
        is_whole: it is not a page.
        staleness_ms: what is known of the age of the state.

    Attributes:
        query: what is read.
        revision: where it is read.
        staleness_ms: of a stale read: everything that was committed so many milliseconds ago is in it. None: no bound
            is known.
        has_place: it was too large for one slice.
    """

    def __init__(
        self, scans: Scans, scan: Scan, deadline_s: float, *, is_whole: bool, staleness_ms: int | None
    ) -> None:
        self._scans = scans
        self._scan = scan
        self._deadline_s = deadline_s
        self._is_whole = is_whole
        self.query = scan.query
        self.revision = scan.revision
        self.staleness_ms = staleness_ms
        self._first: list[RangeItem] = []
        self.has_place = False
        self._unread_bytes = 0
        self._pin: Pin | None = None
        self._store = scans.node.store

    @property
    def count(self) -> int:
        """How many keys the range has at the revision, whatever is left out."""
        return self._scan.count or 0

    @property
    def more(self) -> bool:
        """Whether something was left out because of the limit or the size of a page. Known after the last part."""
        return self._scan.more

    @property
    def cursor(self) -> str | None:
        """What the next page begins with; None: there is none."""
        return encode_cursor(self._scan.cursor()) if self._scan.more else None

    async def begin(self) -> None:
        """Read until the count is known."""
        store = self._store
        store.check_revision(self.revision)
        self._first = self._scan.step(store.versions, store.revision, FIRST_SLICE_KEYS)
        if self._scan.is_done:
            return
        self._scans.enter(is_whole=self._is_whole)
        self.has_place = True
        self._pin = store.pin(self.revision, HISTORY_BYTES_MAX)
        while self._scan.count is None:
            self._first += await self._next_slice()

    async def parts(self) -> AsyncIterator[Sequence[RangeItem]]:
        """Yield the records and common prefixes, in order, some at a time.

        Raises:
            RevisionCompactedError: the state was replaced by a snapshot that no longer has the revision, or this range
                held back too much history.
            ReadTimeoutError: the time is over. A page whose records are in the order of their keys ends early instead.
            NotServingError, NotLeaderError: the node serves nobody any more.
        """
        if self._first:
            yield self._first
        while not self._scan.is_done:
            if part := await self._next_slice():
                yield part

    def wait_for_client(self, size_bytes: int) -> None:
        """Let go of the revision, since all is read. So many bytes wait for the client until :meth:`close`."""
        self._unpin()
        self._unread_bytes += size_bytes
        self._scans.unread_bytes += size_bytes

    def close(self) -> None:
        """Let go of the revision and of the place. Idempotent."""
        self._unpin()
        self._scans.unread_bytes -= self._unread_bytes
        self._unread_bytes = 0
        if self.has_place:
            self.has_place = False
            self._scans.leave(is_whole=self._is_whole)

    def _unpin(self) -> None:
        pin, self._pin = self._pin, None
        if pin is not None:
            pin.release()

    async def _next_slice(self) -> list[RangeItem]:
        async with self._scans.turn:
            await asyncio.sleep(0)
            return self._slice()

    def _slice(self) -> list[RangeItem]:
        scans, scan = self._scans, self._scan
        if self._pin is None:
            raise InvariantViolatedError("a range is read on after it was closed")
        scans.node.check_serves()
        store = scans.node.store
        if store is not self._store:
            # A snapshot was installed: what was pinned is gone.
            pin = store.pin(self.revision, HISTORY_BYTES_MAX)
            self._pin.release()
            self._store, self._pin = store, pin
        if self._pin.is_lost:
            raise RevisionCompactedError(self.revision, store.floor, store.revision)
        if scans.now() < self._deadline_s:
            return scan.step(store.versions, store.revision, SLICE_KEYS)
        if self._is_whole:
            raise ReadTimeoutError(f"the range was not read within {STREAM_S_MAX:g} s; read it in pages")
        if not scan.may_stop:
            raise ReadTimeoutError("the range was not read in time; ask for a smaller one, or give it more time")
        scan.stop()
        return []
