"""Every put and delete since the floor of the history, in order."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from operator import attrgetter

from kvorum.kv.limits import INTEGER_MAX
from kvorum.kv.records import Record

_DROPPED_MIN = 4096
"""So many events, and more than are left, are forgotten before the list is made shorter: that moves what is left."""

_NEAR = 16
"""So many events of a revision are looked at one by one to find one of them."""

_revision_of = attrgetter("mod_revision")
_FORGOTTEN = Record(b"-", b"", 0, 0, 0)


class EventLog:
    """The events, ascending by revision, and what each of them made history of.

    A *position* counts events from the beginning of this object on. It stays the same when earlier events are
    forgotten, and means nothing to another node.

    Attributes:
        total_bytes: what all events so far have made history of.
    """

    __slots__ = ("_dropped", "_events", "_forgotten", "_found", "_found_revision", "_totals", "total_bytes")

    def __init__(self) -> None:
        self._events: list[Record] = []
        self._totals = array("Q")
        """For each event ``total_bytes`` before it."""
        self._forgotten = 0
        """So many of the first events are replaced by a placeholder."""
        self._dropped = 0
        """So many events were removed from the list: the position of the first one in it."""
        self._found_revision = -1
        self._found: dict[int, int] = {}
        """The positions of the events of one revision that has many, by their identity."""
        self.total_bytes = 0

    def __len__(self) -> int:
        """How many events are not forgotten."""
        return len(self._events) - self._forgotten

    @property
    def begin(self) -> int:
        """The position of the first event that is not forgotten."""
        return self._dropped + self._forgotten

    @property
    def first_revision(self) -> int:
        """The revision of the first event that is not forgotten; above every revision if there is none."""
        offset = self._forgotten
        return self._events[offset].mod_revision if offset < len(self._events) else INTEGER_MAX

    @property
    def end(self) -> int:
        """The position of the next event."""
        return self._dropped + len(self._events)

    def append(self, event: Record, history_bytes: int) -> None:
        """Add the newest event, which makes so many bytes history."""
        self._events.append(event)
        self._totals.append(self.total_bytes)
        self.total_bytes += history_bytes

    def position(self, revision: int) -> int:
        """Return the position of the first event at this revision or later; those forgotten are not looked at."""
        return self._dropped + bisect_left(self._events, revision, lo=self._forgotten, key=_revision_of)

    def events(self, position: int, limit: int) -> list[Record]:
        """Return the events from a position on, at most ``limit``; those forgotten are left out."""
        first = max(position - self._dropped, self._forgotten)
        return self._events[first : max(position - self._dropped + limit, first)]

    def bytes_before(self, position: int) -> int:
        """Return what the events before a position have made history of. None at that position may be forgotten."""
        offset = position - self._dropped
        return self._totals[offset] if offset < len(self._totals) else self.total_bytes

    def revision_reaching(self, total_bytes: int) -> int | None:
        """Return the revision of the first event with which ``total_bytes`` is reached; None: none that is kept."""
        # The total after an event is the one before the next.
        offset = bisect_left(self._totals, total_bytes, lo=min(self._forgotten + 1, len(self._totals))) - 1
        if offset == len(self._totals) - 1 and total_bytes > self.total_bytes:
            return None
        return self._events[offset].mod_revision if offset >= self._forgotten else None

    def find(self, event: Record) -> int | None:
        """Return the position of this very event, which is not forgotten; None: another one has its place."""
        revision = event.mod_revision
        first = self.position(revision) - self._dropped
        for offset, each in enumerate(self._events[first : first + _NEAR], first):
            if each is event:
                return self._dropped + offset
            if each.mod_revision != revision:
                return None
        if revision != self._found_revision:
            last = bisect_right(self._events, revision, lo=first, key=_revision_of)
            self._found = {id(self._events[offset]): self._dropped + offset for offset in range(first, last)}
            self._found_revision = revision
        position = self._found.get(id(event))
        if position is None or position < self.begin:
            return None
        # An identity may be that of an event that is gone.
        return position if self._events[position - self._dropped] is event else None

    def blank(self, position: int) -> None:
        """Put a placeholder of the same revision, whose key is no user's, in the place of an event."""
        offset = position - self._dropped
        self._events[offset] = Record(b"-", b"", 0, self._events[offset].mod_revision, 0)

    def forget(self, position: int) -> None:
        """Forget the events before a position."""
        last = position - self._dropped
        self._events[self._forgotten : last] = [_FORGOTTEN] * (last - self._forgotten)
        self._forgotten = last
        if last >= _DROPPED_MIN and last > len(self._events) // 2:
            del self._events[:last]
            del self._totals[:last]
            self._dropped += last
            self._forgotten = 0
