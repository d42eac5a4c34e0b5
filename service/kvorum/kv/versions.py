"""The versions of all keys: the latest ones, and the history that is kept of them.

Theory of operation. ``records`` has the latest version of each key, and ``live`` its keys in order. A version that is
replaced is put into ``Record.older`` of its successor, so only the newest version of a key holds its history, and a
change costs one append. A deleted key has a *tombstone* in place of a record, and its keys in order are ``dead``. The
event log has every put and delete in order.

The *floor* is the lowest revision that can be read. It is replicated; it moves at once, and :meth:`Versions.reclaim`
follows in slices, on each node in its own time. What can be read, what is counted and what is refused depend on the
floor and never on how far that has come. The events *at* the floor are part of the history (a watch may begin there),
and so is what they replaced: memory keeps all that is visible from ``floor - 1`` on.

A *pin* makes :meth:`Versions.reclaim` keep what a reader in slices still needs. It does not hold the floor. A pin that
holds back more than it may is lost, and its reader is told.

Below feature level 4 the floor is 0: there is no history, and nothing is kept of replaced versions but for pins.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter

from kvorum.kv.event_log import EventLog
from kvorum.kv.keys import Keys
from kvorum.kv.limits import INTEGER_MAX, RECORD_OVERHEAD_BYTES, TOMBSTONE_OVERHEAD_BYTES, VERSION_OVERHEAD_BYTES
from kvorum.kv.records import Record

TUPLE_VERSIONS_MAX = 64
"""Older versions of one key that are kept as a tuple: the garbage collector looks at a tuple of records once, and at a
list in each of its full collections. More are kept as a list, to which an append takes no longer the more there are."""

_revision_of = attrgetter("mod_revision")


class Pin:
    """A revision that a reader in slices still needs, until :meth:`release`.

    Attributes:
        revision: everything that is visible at it, and every event from it on, is kept.
        until: what comes after this revision is not needed; None: all of it is.
        bytes_max: how much history it may hold back; None: any amount.
        is_lost: it held back more, and was released: what was visible at the revision may be gone.
    """

    __slots__ = ("_on_release", "bytes_max", "is_lost", "revision", "until")

    def __init__(
        self, revision: int, until: int | None, bytes_max: int | None, on_release: Callable[[Pin], None]
    ) -> None:
        self.revision = revision
        self.until = until
        self.bytes_max = bytes_max
        self.is_lost = False
        self._on_release: Callable[[Pin], None] | None = on_release

    def release(self) -> None:
        """Let go. Idempotent."""
        on_release, self._on_release = self._on_release, None
        if on_release is not None:
            on_release(self)


class Versions:
    """All versions that are kept, of all keys.

    Attributes:
        records: key -> its latest version; only keys that exist.
        live: these keys in order.
        dead: the keys in order that are deleted, and have a tombstone.
        floor: the lowest revision that can be read; 0: there is no history.
        record_bytes: what the latest versions take, as the quota counts it.
    """

    __slots__ = (
        "_floor_bytes",
        "_gap_end",
        "_is_kept",
        "_log",
        "_pins",
        "_tombstones",
        "dead",
        "floor",
        "live",
        "record_bytes",
        "records",
    )

    def __init__(self) -> None:
        self.records: dict[bytes, Record] = {}
        self.live = Keys()
        self.dead = Keys()
        self.floor = 0
        self.record_bytes = 0
        self._tombstones: dict[bytes, Record] = {}
        self._log = EventLog()
        self._floor_bytes = 0
        """What the events below the floor have made history of."""
        self._pins: list[Pin] = []
        self._gap_end = 0
        """The position up to which nothing is left to free that came after a snapshot under way."""
        self._is_kept = False
        """Whether a version that is replaced is kept."""

    # --- Changes ------------------------------------------------------------------------------------------------

    def put(self, key: bytes, value: bytes, revision: int, old: Record | None) -> Record:
        """Set a key; return its new version.

        Args:
            key: the key.
            value: its value.
            revision: of the change, at least the last one's; one key changes at most once a revision.
            old: the record of the key, as ``records`` has it.
        """
        if old is None:
            older = None
            if self._tombstones:
                tombstone = self._tombstones.pop(key, None)
                if tombstone is not None:
                    key = tombstone.key
                    self.dead.remove(key)
                    older = _with_older(tombstone) if self._is_kept else None
            new = Record(key, value, revision, revision, 1, older)
            self.live.add(key)
            self.record_bytes += len(key) + len(value) + RECORD_OVERHEAD_BYTES
            self.records[key] = new
            if self._is_kept:
                self._log.append(new, 0)
            return new
        old_value = old.value
        self.record_bytes += len(value) - len(old_value)
        if not self._is_kept:
            new = Record(old.key, value, old.create_revision, revision, old.version + 1)
            self.records[key] = new
            return new
        new = Record(old.key, value, old.create_revision, revision, old.version + 1, _with_older(old))
        self.records[key] = new
        self._log.append(new, len(new.key) + len(old_value) + VERSION_OVERHEAD_BYTES)
        return new

    def delete(self, old: Record, revision: int) -> None:
        """Delete a key; ``old`` is its record, and otherwise as :meth:`put`."""
        key = old.key
        del self.records[key]
        self.live.remove(key)
        self.record_bytes -= len(key) + len(old.value) + RECORD_OVERHEAD_BYTES
        if self._is_kept:
            history_bytes = 2 * len(key) + len(old.value) + VERSION_OVERHEAD_BYTES + TOMBSTONE_OVERHEAD_BYTES
            tombstone = Record(key, b"", 0, revision, 0, _with_older(old))
            self._tombstones[key] = tombstone
            self.dead.add(key)
            self._log.append(tombstone, history_bytes)

    def restore(self, records: Sequence[Record], *, are_sorted: bool) -> None:
        """Add the latest versions of keys that are not there yet, from a snapshot; they are no events.

        Args:
            records: the versions.
            are_sorted: their keys are ascending, and above all that are there.
        """
        keys = [record.key for record in records]
        self.records.update(zip(keys, records, strict=True))
        if are_sorted:
            self.live.extend(keys)
        else:
            for key in keys:
                self.live.add(key)
        self.record_bytes += sum(map(len, keys)) + sum([len(record.value) for record in records])
        self.record_bytes += RECORD_OVERHEAD_BYTES * len(records)

    def set_floor(self, revision: int) -> None:
        """Forget the history below a revision, which is above the floor; at first, begin to keep one."""
        self.floor = revision
        self._is_kept = True
        self._floor_bytes = self._log.bytes_before(self._log.position(revision))

    # --- What history takes -------------------------------------------------------------------------------------

    @property
    def history_bytes(self) -> int:
        """What the history takes, as the quota counts it: the same on every node."""
        return self._log.total_bytes - self._floor_bytes if self.floor else 0

    @property
    def history_events(self) -> int:
        """How many events the history has: the same on every node."""
        return self._log.end - self._log.position(self.floor) if self.floor else 0

    def revision_to_free(self, bytes_to_free: int, revision: int) -> int:
        """Return the lowest floor that frees so much history, or the highest one if none does.

        Args:
            bytes_to_free: as :attr:`history_bytes` counts.
            revision: the store's, which is the highest floor.
        """
        if bytes_to_free <= 0 or not self.floor:
            return self.floor
        last = self._log.revision_reaching(self._floor_bytes + bytes_to_free)
        return revision if last is None else min(last + 1, revision)

    # --- Reading ------------------------------------------------------------------------------------------------

    def at(self, key: bytes, revision: int) -> Record | None:
        """Return the version of a key at a revision, which is not below the floor or is pinned; None: no such key."""
        record = self.newest_at(key, revision)
        return record if record is not None and record.version else None

    def newest_at(self, key: bytes, revision: int) -> Record | None:
        """As :meth:`at`, but the tombstone of a key that is deleted, if there is one."""
        record = self.records.get(key) or self._tombstones.get(key)
        if record is None or record.mod_revision <= revision:
            return record
        return _newest(record.older, revision)

    def each_at(self, keys: Sequence[bytes], revision: int, latest: int) -> Iterator[Record | None]:
        """As :meth:`at`, for each of some keys; ``latest`` is the revision of the store."""
        if revision == latest:
            return map(self.records.get, keys)
        return (self.at(key, revision) for key in keys)

    def keys_from(self, start: bytes, end: bytes | None, limit: int, *, has_dead: bool = True) -> list[bytes]:
        """Return the next keys, ascending: all that may exist at some revision that is kept.

        Args:
            start: the first key that may be returned.
            end: the first key that may not; None: no end.
            limit: return so many keys at most, so the caller examines no more.
            has_dead: False: only those that exist at the latest revision.
        """
        keys = self.live.ascending(start, end, limit)
        if has_dead and self.dead:
            keys += self.dead.ascending(start, end, limit)
            keys.sort()
            del keys[limit:]
        return keys

    def keys_before(self, start: bytes, end: bytes | None, limit: int, *, has_dead: bool = True) -> list[bytes]:
        """Return the last keys of a range, descending; otherwise as :meth:`keys_from`."""
        keys = self.live.descending(start, end, limit)
        if has_dead and self.dead:
            keys += self.dead.descending(start, end, limit)
            keys.sort(reverse=True)
            del keys[limit:]
        return keys

    def history(self, key: bytes, limit: int, revision: int = INTEGER_MAX) -> list[Record]:
        """Return the versions of a key that can be read, the newest first, and its tombstones since the floor.

        The last one is what is visible at the floor, if the history reaches back so far.

        Args:
            key: the key.
            limit: return so many at most.
            revision: leave out what is newer; not below the floor.
        """
        newest = self.records.get(key)
        if newest is None and self.floor:
            newest = self._tombstones.get(key)
        if newest is None:
            return []
        found: list[Record] = []
        record: Record | None = newest if newest.mod_revision <= revision else _newest(newest.older, revision)
        while record is not None and len(found) < limit:
            if record.version or record.mod_revision >= self.floor:
                found.append(record)
            if record.mod_revision <= self.floor or not self.floor:
                break
            record = _newest(newest.older, record.mod_revision - 1)
        return found

    def position(self, revision: int) -> int:
        """Return the position in the event log of the first event at a revision or later."""
        return self._log.position(revision)

    @property
    def end(self) -> int:
        """The position of the next event."""
        return self._log.end

    def events(self, position: int, limit: int) -> list[Record]:
        """Return the events from a position on, at most ``limit``: the records that were put, and tombstones."""
        return self._log.events(position, limit)

    def previous(self, event: Record) -> Record | None:
        """Return the version that an event replaced; None: there was no such key. The event is not below the floor."""
        return self.at(event.key, event.mod_revision - 1)

    # --- Forgetting ---------------------------------------------------------------------------------------------

    def pin(self, revision: int, until: int | None = None, bytes_max: int | None = None) -> Pin:
        """Keep what is visible at a revision, which can be read, and all events from it on.

        Args:
            revision: the revision.
            until: the last revision that is needed, so that the memory of what comes later is freed all the same; only
                the snapshot under way says so. None: there is none.
            bytes_max: when it holds back more history than that, as the quota counts it, the pin is lost. All pins of
                one bound together hold back no more: what the oldest holds back includes that of the others.
        """
        pin = Pin(revision, until, bytes_max, self._release)
        self._pins.append(pin)
        self._is_kept = True
        return pin

    def _release(self, pin: Pin) -> None:
        self._pins = [each for each in self._pins if each is not pin]
        self._is_kept = bool(self.floor or self._pins)

    def held_bytes(self, revision: int) -> int:
        """Return how much history below the floor a pin at a revision, which nobody has reclaimed, holds back."""
        log = self._log
        end_bytes = self._floor_bytes if self.floor else log.total_bytes
        return max(end_bytes - log.bytes_before(log.position(revision + 1)), 0)

    def _lose_pins(self) -> None:
        for pin in self._pins:
            if pin.bytes_max is not None and self.held_bytes(pin.revision) > pin.bytes_max:
                pin.is_lost = True
                pin.release()

    def reclaim(self, budget: int) -> int:
        """Free memory of what is below the floor and not pinned.

        Args:
            budget: visit so many events, or versions of one key, at most; about half a microsecond each. Each event
                is visited once, and each version at most once, so twice the events applied keeps pace.

        Returns:
            How many were visited; less than ``budget``: nothing is left to do.
        """
        log = self._log
        if self._pins:
            self._lose_pins()
        elif log.first_revision >= (self.floor or INTEGER_MAX):
            return 0
        kept = min([pin.revision for pin in self._pins], default=INTEGER_MAX)
        last = min(self.floor or INTEGER_MAX, kept) - 1
        """What is visible at this revision stays, and every event after it."""
        visited = 0
        position = log.begin
        for event in log.events(position, budget):
            if visited >= budget or event.mod_revision > last:
                break
            newest = self.records.get(event.key) or self._tombstones.get(event.key)
            dropped = _drop(newest, last, budget - visited) if newest is not None and newest.older is not None else 0
            visited += max(dropped, 1)
            if dropped and visited >= budget:
                break  # there may be more to drop of this key
            if newest is event and not event.version:
                del self._tombstones[event.key]
                self.dead.remove(event.key)
            position += 1
        log.forget(position)
        return visited + self._reclaim_gap(budget - visited)

    def _reclaim_gap(self, budget: int) -> int:
        """Free what was written after a snapshot under way began, and can be read no more; return how much was visited.

        A snapshot may take minutes. Without this, memory would hold every version that is written meanwhile.
        """
        cut = max([pin.until for pin in self._pins if pin.until is not None], default=None)
        if cut is None:
            return 0
        needed = [pin.revision for pin in self._pins if pin.until is None]
        last = min([self.floor or INTEGER_MAX, *needed]) - 1
        log = self._log
        position = max(log.position(cut + 1), self._gap_end)
        visited = 0
        for event in log.events(position, budget):
            if visited >= budget or event.mod_revision > last:
                break
            newest = self.newest_at(event.key, INTEGER_MAX)
            dropped = [] if newest is None else _drop_after(newest, cut, last, budget - visited)
            visited += max(len(dropped), 1)
            for version in dropped:
                # This pass has gone by the event, and will not come back.
                if (place := log.find(version)) is not None and place < position:
                    log.blank(place)
            if dropped and visited >= budget:
                break
            if newest is event and not event.version and event.older is None:
                del self._tombstones[event.key]
                self.dead.remove(event.key)
                newest = None
            if newest is None or self.newest_at(event.key, event.mod_revision) is not event:
                log.blank(position)
            position += 1
        self._gap_end = position
        return visited


def _with_older(old: Record) -> Record | Sequence[Record]:
    """Return what is kept of a key once its newest version is replaced."""
    older = old.older
    if older is None:
        return old
    old.older = None
    if isinstance(older, Record):
        return older, old
    if isinstance(older, list):
        older.append(old)
        return older
    return (*older, old) if len(older) < TUPLE_VERSIONS_MAX else [*older, old]


def _newest(older: Record | Sequence[Record] | None, revision: int) -> Record | None:
    """Return the newest of the older versions that is not above a revision."""
    if older is None:
        return None
    if isinstance(older, Record):
        return older if older.mod_revision <= revision else None
    number = bisect_right(older, revision, key=_revision_of)
    return older[number - 1] if number else None


def _drop(newest: Record, last: int, limit: int) -> int:
    """Drop at most ``limit`` versions of a key that cannot be seen at revision ``last`` or later; return how many."""
    older = newest.older
    if older is None:
        return 0
    if isinstance(older, Record):
        is_seen = newest.mod_revision > last and (older.version or older.mod_revision > last)
        if is_seen:
            return 0
        newest.older = None
        return 1
    if newest.mod_revision <= last:
        count = len(older)
    else:
        count = bisect_right(older, last, key=_revision_of)
        if count and older[count - 1].version:
            count -= 1  # the one that is visible at `last`
    count = min(count, limit)
    if count:
        newest.older = _without(older, 0, count)
    return count


def _drop_after(newest: Record, first: int, last: int, limit: int) -> Sequence[Record]:
    """Drop at most ``limit`` versions of a key that came after ``first`` and are replaced at ``last``; return them.

    What is visible at ``last`` stays, also if it is a tombstone: below it there may be a version that is not.
    """
    older = newest.older
    if older is None:
        return ()
    if isinstance(older, Record):
        if first < older.mod_revision and newest.mod_revision <= last:
            newest.older = None
            return (older,)
        return ()
    begin = bisect_right(older, first, key=_revision_of)
    end = len(older) if newest.mod_revision <= last else bisect_right(older, last, key=_revision_of) - 1
    end = begin + min(max(end - begin, 0), limit)
    dropped = older[begin:end]
    if dropped:
        newest.older = _without(older, begin, end)
    return dropped


def _without(older: Sequence[Record], begin: int, end: int) -> Record | Sequence[Record] | None:
    """Return what is left of the older versions of a key without some of them."""
    rest: Sequence[Record]
    if isinstance(older, list):
        del older[begin:end]
        rest = older if len(older) > TUPLE_VERSIONS_MAX else tuple(older)
    else:
        rest = (*older[:begin], *older[end:])
    if len(rest) > 1:
        return rest
    return rest[0] if rest else None
