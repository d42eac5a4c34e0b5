"""Watches: every event of a range of keys, from a revision on, once and in order, to any number of watchers.

Theory of operation. A watcher is a *cursor*, the next revision that it is to see; nothing is queued for it. A cursor is
looked up in the history of the store in each turn, so another store may take the place of the old one at any moment. A
watcher is in one of four places:

::

    in step   it has seen all that the hub has read: its cursor is the hub's. It belongs to a group of watchers that
              want the same, and what a group gets is made, and encoded, once
    behind    it has to catch up: it gets a slice of the history in some of the turns
    full      its sink takes no more. It costs nothing but its cursor, until the sink says that there is room
    future    it begins at a revision that does not exist yet

:meth:`Hub.turn` moves them on, with a bounded amount of work: one slice of new events for all that are in step, then
one slice of the history for the watcher that waited longest, which all others share that are behind and at or after its
cursor. A slice ends between two revisions: a receiver gets a revision whole.

The floor ends a watcher that is behind it. It does not end one that is in step: a pin keeps the events that a turn has
not reached yet, for the moment between apply and that turn. What it keeps is bounded; beyond that, the floor ends those
as well.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from typing import Protocol

import msgspec

from kvorum.errors import CallerError, InvalidRequestError, RevisionCompactedError
from kvorum.kv.matcher import Matcher
from kvorum.kv.records import Record
from kvorum.kv.store import Store
from kvorum.kv.versions import Pin, Versions

SLICE_EVENTS = 1000
"""A slice ends with the revision that makes it this long."""
SLICE_BYTES = 1024 * 1024
"""Or with the one that gives it so many bytes of keys, values and previous values."""
DELIVERED_BYTES = 4 * 1024 * 1024
"""Or with the one that makes so many bytes for all receivers together."""
DELIVERIES = 2000
"""A slice goes to so many watchers; the others are behind then, and get it in later turns."""
EVENT_BYTES = 64
"""An event takes so many bytes besides keys and values."""
PINNED_BYTES_MAX = 64 * 1024 * 1024
"""Those in step may hold back so much history below the floor; then they are behind it, and end."""
_CHUNK_EVENTS = 256

Event = tuple[Record, Record | None]
"""What was put, or the tombstone of what was deleted (its version is 0); and what it replaced, if that is wanted."""


class Interest(msgspec.Struct, frozen=True):
    """What a watcher wants to see."""

    start: bytes
    """The first key."""
    end: bytes | None
    """The first key behind the range; None: it has no end. Of one key: the key and a zero byte."""
    prev_value: bool = False
    """With the value that each event replaced."""
    puts: bool = True
    deletes: bool = True

    def check(self) -> None:
        """Check that there is something to see.

        Raises:
            InvalidRequestError: the range has no keys, or no kind of event is wanted.
        """
        if self.end is not None and self.end <= self.start:
            raise InvalidRequestError("the range of the watch has no keys: its end must be above its start")
        if not (self.puts or self.deletes):
            raise InvalidRequestError("the watch filters out puts and deletes: it would see nothing")


class EventBatch:
    """Events for all watchers of a group that are at the same revision: whole revisions, in order.

    Attributes:
        events: ascending by revision; in a revision in the order of its operations. At least one.
    """

    __slots__ = ("_encoded", "_size_bytes", "events")

    def __init__(self, events: list[Event]) -> None:
        self.events = events
        self._size_bytes = 0
        self._encoded: dict[Callable[[list[Event]], bytes], bytes] = {}

    @property
    def size_bytes(self) -> int:
        """How many bytes of keys and values it has, and :data:`EVENT_BYTES` for each event."""
        if not self._size_bytes:
            self._size_bytes = sum(map(event_bytes, self.events))
        return self._size_bytes

    def encoded(self, encode: Callable[[list[Event]], bytes]) -> bytes:
        """Return the events as ``encode`` writes them; it is called once, whoever asks."""
        encoded = self._encoded.get(encode)
        if encoded is None:
            encoded = self._encoded[encode] = encode(self.events)
        return encoded


class Sink(Protocol):
    """Where the events of a watcher go."""

    @property
    def is_full(self) -> bool:
        """Whether it takes no more now; :meth:`Hub.has_room` must be called when it does again."""

    def take(self, batch: EventBatch) -> None:
        """Take events, at once. Must not raise."""

    def end(self, error: CallerError) -> None:
        """There will be no more events, and why. Must not raise."""


class Watcher:
    """One watch, from :meth:`Hub.add` to :meth:`Hub.remove` or the end that its sink is told."""

    __slots__ = ("cursor", "group", "place", "sink")

    def __init__(self, group: Group, sink: Sink, cursor: int) -> None:
        self.group = group
        self.sink = sink
        self.cursor = cursor
        """The next revision to see; while the watcher is in step, the hub's counts. 0: it has ended."""
        self.place: dict[Watcher, None] | None = None
        """Which of the hub's places it is in; None: future, or ended."""


class Group:
    """The watchers that want the same."""

    __slots__ = ("behind", "end", "in_step", "interest", "matched", "size", "start")

    def __init__(self, interest: Interest) -> None:
        self.interest = interest
        self.start, self.end = interest.start, interest.end
        self.size = 0
        """How many there are, wherever they are."""
        self.in_step: dict[Watcher, None] = {}
        self.behind: dict[Watcher, None] = {}
        """Those that are behind; not those that are full."""
        self.matched: list[Event] = []
        """Within a turn: the events of its slice."""


class Hub:
    """All watchers of one node.

    Attributes:
        size: how many there are.
        delivered: how many events were delivered, each counted for each watcher.
    """

    def __init__(self) -> None:
        self.size = 0
        self.delivered = 0
        self._groups: dict[Interest, Group] = {}
        self._matcher: Matcher[Group] = Matcher()
        self._next = 0
        """The next revision for those in step."""
        self._in_step = 0
        self._is_late = False
        """The last turn had more for those in step than it delivered."""
        self._behind: dict[Watcher, None] = {}
        """The one that waited longest comes first."""
        self._full: dict[Watcher, None] = {}
        self._future: list[tuple[int, int, Watcher]] = []
        """A heap of (cursor, a number, watcher); those that have ended meanwhile are skipped."""
        self._futures = 0
        self._numbers = 0
        self._floor = 0
        """The floor that the watchers were last held against."""
        self._is_below_floor = False
        """Somebody fell behind who is below it."""
        self._store: Store | None = None
        self._pin: Pin | None = None

    @property
    def behind(self) -> int:
        """How many watchers have not seen all that there was in the last turn."""
        return len(self._behind) + len(self._full) + (self._in_step if self._is_late else 0)

    @property
    def has_work(self) -> bool:
        """Whether somebody is behind and could take events now."""
        return bool(self._behind)

    # --- Watchers come and go -----------------------------------------------------------------------------------

    def add(self, store: Store, interest: Interest, sink: Sink, first: int) -> Watcher:
        """Add a watcher that sees all events of a range from a revision on; call :meth:`turn` soon.

        Args:
            store: the state.
            interest: what it wants; checked.
            sink: where its events go.
            first: the first revision that it is to see; it may be in the future.

        Raises:
            RevisionCompactedError: the history begins above that revision.
        """
        if first < store.floor:
            raise RevisionCompactedError(first, store.floor, store.revision)
        if self.size:
            self._adopt(store)
        else:
            self._next = store.revision + 1
        group = self._groups.get(interest)
        if group is None:
            group = self._groups[interest] = Group(interest)
            self._matcher.add(group)
        group.size += 1
        self.size += 1
        watcher = Watcher(group, sink, first)
        self._place(watcher)
        self._hold(store)
        return watcher

    def remove(self, watcher: Watcher) -> None:
        """Remove a watcher, without telling its sink. Idempotent."""
        if not watcher.cursor:
            return
        group = watcher.group
        self._leave(watcher)
        watcher.cursor = 0
        self._drop_futures()
        self.size -= 1
        group.size -= 1
        if not group.size:
            del self._groups[group.interest]
            self._matcher.remove(group)

    def end(self, watcher: Watcher, error: CallerError) -> None:
        """Remove a watcher and tell its sink why."""
        self.remove(watcher)
        watcher.sink.end(error)

    def end_all(self, error: CallerError) -> int:
        """Remove all watchers, tell their sinks why, and return how many there were."""
        future = [watcher for _, _, watcher in self._future if watcher.cursor]
        watchers = [*self._behind, *self._full, *future, *(w for g in self._groups.values() for w in g.in_step)]
        for watcher in watchers:
            self.end(watcher, error)
        self._release()
        return len(watchers)

    def has_room(self, watcher: Watcher) -> None:
        """Take note that a sink that was full takes events again; call :meth:`turn` soon."""
        if watcher.place is self._full:
            self._leave(watcher)
            self._place(watcher)

    def progress(self, watcher: Watcher) -> int | None:
        """Return the revision up to which a watcher has seen all; None: it is not in step."""
        return self._next - 1 if watcher.place is watcher.group.in_step else None

    def _place(self, watcher: Watcher) -> None:
        """Put a watcher where its cursor belongs."""
        group = watcher.group
        if watcher.cursor == self._next:
            watcher.place = group.in_step
            self._in_step += 1
        elif watcher.cursor > self._next:
            self._numbers += 1
            self._futures += 1
            heappush(self._future, (watcher.cursor, self._numbers, watcher))
            return
        elif watcher.sink.is_full:
            watcher.place = self._full
        else:
            watcher.place = self._behind
            group.behind[watcher] = None
        watcher.place[watcher] = None
        if watcher.cursor < min(self._floor, self._next):
            self._is_below_floor = True

    def _leave(self, watcher: Watcher) -> None:
        """Take a watcher out of its place. If that is the future, its entry in the heap stays."""
        place = watcher.place
        if place is None:
            self._futures -= 1
            return
        del place[watcher]
        if place is watcher.group.in_step:
            self._in_step -= 1
        elif place is self._behind:
            del watcher.group.behind[watcher]
        watcher.place = None

    def _drop_futures(self) -> None:
        """Forget watchers that have ended before their revision came, once they are most of the heap."""
        if len(self._future) > 2 * self._futures + 16:
            self._future = sorted(each for each in self._future if each[2].cursor)

    # --- A turn -------------------------------------------------------------------------------------------------

    def turn(self, store: Store) -> bool:
        """Deliver a slice of what there is to deliver; return whether another turn is needed for the rest.

        Args:
            store: the state. It may be another one than in the turn before; then its revision may be lower.
        """
        if not self.size:
            self._release()
            return False
        self._adopt(store)
        if self._pin is not None and self._pin.is_lost:
            self._release()
            self._end_in_step(store)
        if self._in_step:
            if self._next <= store.revision:
                self._deliver_new(store)
        else:
            self._next = store.revision + 1
        while self._future and self._future[0][0] <= self._next:
            watcher = heappop(self._future)[2]
            if watcher.cursor:
                self._futures -= 1
                self._place(watcher)
        self._end_below_floor(store)
        if self._behind:
            self._deliver_old(store)
        self._hold(store)
        self._is_late = self._next <= store.revision
        return self._is_late or bool(self._behind)

    def _adopt(self, store: Store) -> None:
        """Take the state of this turn, which may be another one than before."""
        if store is not self._store and self._in_step and self._next < store.floor:
            # Nothing was pinned in it for those in step.
            self._end_in_step(store)
        if store.revision + 1 < self._next:
            self._go_back(store)

    def _end_in_step(self, store: Store) -> None:
        """Tell all in step that what they have not seen may be gone."""
        for watcher in [watcher for group in self._groups.values() for watcher in group.in_step]:
            self.end(watcher, RevisionCompactedError(self._next, store.floor, store.revision))

    def _go_back(self, store: Store) -> None:
        """Take a state that is not as far as the one before: who has seen more waits until it is."""
        watchers = [watcher for group in self._groups.values() for watcher in group.in_step]
        watchers += [watcher for watcher in (*self._behind, *self._full) if watcher.cursor > store.revision + 1]
        for watcher in watchers:
            cursor = self._next if watcher.place is watcher.group.in_step else watcher.cursor
            self._leave(watcher)
            watcher.cursor = cursor
        self._next = store.revision + 1
        for watcher in watchers:
            self._place(watcher)

    def _end_below_floor(self, store: Store) -> None:
        floor = store.floor
        if floor == self._floor and not self._is_below_floor:
            return
        self._floor, self._is_below_floor = floor, False
        for watcher in [watcher for watcher in (*self._behind, *self._full) if watcher.cursor < floor]:
            self.end(watcher, RevisionCompactedError(watcher.cursor, floor, store.revision))

    def _deliver_new(self, store: Store) -> None:
        """Deliver the next slice to all in step; who does not take it falls behind."""
        first = self._next
        touched, self._next = self._scan(store.versions, first, store.revision + 1, is_in_step=True)
        left = DELIVERIES
        for group in touched:
            batch, group.matched = EventBatch(group.matched), []
            for watcher in list(group.in_step):
                if left and not watcher.sink.is_full:
                    left -= 1
                    self._deliver(watcher, batch)
                else:
                    self._leave(watcher)
                    watcher.cursor = first
                    self._place(watcher)

    def _deliver_old(self, store: Store) -> None:
        """Deliver a slice of the history, from where the watcher stands that waited longest."""
        first = next(iter(self._behind)).cursor
        touched, end = self._scan(store.versions, first, self._next, is_in_step=False)
        left = DELIVERIES
        waiting: set[Watcher] = set()
        for group in touched:
            events, group.matched = group.matched, []
            batches: dict[int, EventBatch] = {}
            for watcher in list(group.behind):
                if not first <= watcher.cursor < end:
                    continue
                offset = bisect_left(events, watcher.cursor, key=_revision_of) if watcher.cursor > first else 0
                if offset == len(events):
                    continue
                if watcher.sink.is_full:
                    self._leave(watcher)
                    self._place(watcher)
                elif left:
                    left -= 1
                    if offset not in batches:
                        batches[offset] = EventBatch(events[offset:] if offset else events)
                    self._deliver(watcher, batches[offset])
                else:
                    waiting.add(watcher)
        for watcher in [each for each in self._behind if first <= each.cursor < end and each not in waiting]:
            # It comes last from now on, or is in step.
            self._leave(watcher)
            watcher.cursor = end
            self._place(watcher)

    def _deliver(self, watcher: Watcher, batch: EventBatch) -> None:
        self.delivered += len(batch.events)
        watcher.sink.take(batch)

    def _scan(self, versions: Versions, first: int, end: int, *, is_in_step: bool) -> tuple[list[Group], int]:
        """Match a slice of the events from revision ``first`` on and before ``end``.

        Returns:
            The groups that have something in ``matched``, and the revision at which the next slice begins.
        """
        find = self._matcher.find
        touched: list[Group] = []
        last, count, slice_bytes, delivered_bytes = 0, 0, 0, 0
        for event in _events(versions, first):
            revision = event.mod_revision
            if revision >= end:
                break
            if revision != last and (
                count >= SLICE_EVENTS or slice_bytes >= SLICE_BYTES or delivered_bytes >= DELIVERED_BYTES
            ):
                return touched, revision
            last = revision
            count += 1
            with_previous: Event | None = None
            size_bytes = 0
            for group in find(event.key):
                receivers, interest = group.in_step if is_in_step else group.behind, group.interest
                if not receivers or not (interest.puts if event.version else interest.deletes):
                    continue
                if interest.prev_value and with_previous is None:
                    with_previous = (event, versions.previous(event))
                matched = with_previous if interest.prev_value and with_previous is not None else (event, None)
                if not group.matched:
                    touched.append(group)
                group.matched.append(matched)
                size_bytes = event_bytes(matched)
                delivered_bytes += size_bytes * len(receivers)
            slice_bytes += size_bytes
        return touched, end

    # --- What must not be reclaimed -----------------------------------------------------------------------------

    def _hold(self, store: Store) -> None:
        """Keep what those in step have not seen yet, also below the floor."""
        if not self._in_step or not store.versions.floor:
            self._release()
        elif self._pin is None or self._store is not store:
            self._release()
            self._store, self._pin = store, store.versions.pin(self._next, bytes_max=PINNED_BYTES_MAX)
        else:
            self._pin.revision = self._next

    def _release(self) -> None:
        pin, self._pin, self._store = self._pin, None, None
        if pin is not None:
            pin.release()


def _events(versions: Versions, first: int) -> Iterator[Record]:
    position = versions.position(first)
    while chunk := versions.events(position, _CHUNK_EVENTS):
        yield from chunk
        position += len(chunk)


def _revision_of(event: Event) -> int:
    return event[0].mod_revision


def event_bytes(event: Event) -> int:
    """Return how many bytes an event takes: its key and values, and :data:`EVENT_BYTES`."""
    record, previous = event
    size = EVENT_BYTES + len(record.key) + len(record.value)
    return size if previous is None else size + len(previous.value)
