"""Reads a range in slices: each examines a bounded number of keys, and the store goes on between them.

Theory of operation. The scan is at one revision, which its caller pins (:meth:`kvorum.kv.store.Store.pin`), so it does
not matter what is written meanwhile. It remembers the bounds of the keys that are left and nothing else of the store:
keys come and go between two slices, but those that exist at the pinned revision stay, live or dead.

The count of a range at the latest revision is that of the live keys, which their chunks know. At an older one it is
the same, less the keys that were created since, plus those that were deleted: the events since the revision say which.
If they are more than the keys of the range, the keys are visited instead. A common prefix is counted in the same way,
and then skipped by moving the bound behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from types import MappingProxyType
from typing import Any

from kvorum.errors import TooLargeError
from kvorum.kv.cursors import Cursor, digest
from kvorum.kv.keys import Keys
from kvorum.kv.limits import INTEGER_MAX
from kvorum.kv.operations import bound, prefix_end
from kvorum.kv.ranges import CommonPrefix, RangeQuery
from kvorum.kv.records import Record
from kvorum.kv.versions import Versions

PAGE_KEYS = 1000
"""In a page whose query has no limit."""
PAGE_BYTES_MAX = 1024 * 1024
"""In a page, keys and values together, and :data:`ITEM_BYTES` for each; but one record at least."""
ITEM_BYTES = 100
"""What a record takes in an answer beside key and value, about."""
SORTED_KEYS_MAX = 10_000
"""In a range that is sorted by something else than the keys: all of it is read before the first record is known."""
_EVENTS_PER_STEP = 4
"""So many events, at most, are looked at in place of one key: those that many writers add between two slices must not
outrun the scan."""
_BYTES_PER_STEP = 1024
"""So many bytes of an answer take as long as the examination of a key, about."""
_PREFIX_STEPS = 16
"""So many keys could be examined in the time that a common prefix takes, about."""

_SORT_KEYS: Mapping[str, Callable[[Record], Any]] = MappingProxyType(
    {
        "create": attrgetter("create_revision"),
        "mod": attrgetter("mod_revision"),
        "version": attrgetter("version"),
        "value": attrgetter("value"),
    }
)

Item = Record | CommonPrefix


class Scan:
    """A range that is read at one revision. Call :meth:`step` until ``is_done``.

    Args:
        query: a range that :func:`~kvorum.kv.ranges.check_range` accepts.
        revision: where it is read.
        cursor: of this query; None: from the beginning.
        is_whole: go on to the end of the range or the limit; otherwise to the end of a page.

    Attributes:
        count: how many keys the range has at the revision, whatever is left out; None: not known yet.
        more: the limit, or the end of the page, left something out. Known when it is done.
        is_done: nothing is left to find.
    """

    __slots__ = (
        "_begins_at",
        "_bytes",
        "_bytes_max",
        "_changes",
        "_collected",
        "_high",
        "_is_descending",
        "_is_plain",
        "_is_sorted",
        "_items",
        "_items_max",
        "_low",
        "_steps",
        "_versions",
        "_visited",
        "_visited_to",
        "count",
        "is_done",
        "more",
        "query",
        "revision",
    )

    def __init__(self, query: RangeQuery, revision: int, cursor: Cursor | None = None, *, is_whole: bool) -> None:
        self.query = query
        self.revision = revision
        self.count = None if cursor is None else cursor.count
        self.more = False
        self.is_done = False
        self._items_max = query.limit or (INTEGER_MAX if is_whole else PAGE_KEYS)
        self._bytes_max = INTEGER_MAX if is_whole else PAGE_BYTES_MAX
        self._items = 0
        self._bytes = 0
        self._steps = 0
        """How many more keys this slice may examine, or do what takes as long."""
        self._is_descending = query.reverse and query.sort == "key"
        self._is_plain = not (query.has_filter or query.keys_only)
        """Every record is wanted as it is."""
        self._low = query.start
        self._high = query.bound
        """The keys from ``_low`` on and before ``_high`` are left to examine."""
        self._collected: list[Record] = []
        """Of a sorted range: what was found, and in the end the same in order."""
        self._is_sorted = False
        self._versions: Versions | None = None
        self._changes: _Changes | None = None
        self._visited = 0
        self._visited_to = query.start
        if cursor is not None:
            self._go_to(cursor.position)
        self._begins_at = self._position

    def _go_to(self, position: bytes | int) -> None:
        if isinstance(position, int):
            self._items_max = min(self._items_max + position, INTEGER_MAX)
            self._items = position
        elif self._is_descending:
            self._high = position if self._high is None else min(position, self._high)
        else:
            self._low = max(position, self._low)

    def cursor(self) -> Cursor:
        """Return where to go on. The count must be known."""
        position = self._position
        return Cursor(self.revision, self.count or 0, b"" if position is None else position, digest(self.query))

    @property
    def may_stop(self) -> bool:
        """Whether what was found so far is a page, though a short one: the next one begins behind it."""
        # A page that ends where it began would be asked for again, for ever.
        has_passed = self._position != self._begins_at and (self.query.sort == "key" or self._is_sorted)
        return self.count is not None and has_passed and not self.query.count_only

    @property
    def _position(self) -> bytes | int | None:
        if self.query.sort != "key":
            return self._items
        return self._high if self._is_descending else self._low

    def stop(self) -> None:
        """End the page here; only if :attr:`may_stop`."""
        self.more = self.is_done = True

    def step(self, versions: Versions, latest: int, steps: int) -> list[Item]:
        """Examine at most so many keys or events; return what was found, in order.

        Args:
            versions: those of the store; after a snapshot was installed, the new ones. The revision is pinned.
            latest: the revision of the store.
            steps: the size of the slice.

        Raises:
            TooLargeError: the range has too many keys to be sorted.
        """
        self._steps = steps
        if versions is not self._versions:
            self._begin(versions, latest)
        found: list[Item] = []
        if self._changes is not None and not self._follow(versions):
            return found
        if self.count is None:
            self._count(versions)
        if self.count is None:
            return found
        if self.query.sort != "key" and self.count > SORTED_KEYS_MAX:
            # What is examined besides, keys of other revisions, differs from node to node: the deadline bounds it.
            raise TooLargeError(
                f"the range has {self.count:,} keys, and sort={self.query.sort} reads them all: ask for a smaller "
                "range, or for the order of the keys",
                SORTED_KEYS_MAX,
            )
        if self.query.count_only:
            self.is_done = True
        elif self.query.sort != "key":
            self._scan_sorted(versions, latest, found)
        elif self._is_plain and not self.query.delimiter:
            self._scan_plain(versions, latest, found)
        else:
            self._scan(versions, latest, found)
        return found

    # --- The count ----------------------------------------------------------------------------------------------

    def _begin(self, versions: Versions, latest: int) -> None:
        """Look at versions for the first time; what was counted of others is of no use."""
        self._versions = versions
        self._changes, self._visited, self._visited_to = None, 0, self.query.start
        start, end = self.query.start, self.query.bound
        keys = versions.live.count(start, end)
        if latest == self.revision:
            self.count = keys if self.count is None else self.count
        else:
            keys += versions.dead.count(start, end)
        if self.query.delimiter or (self.count is None and versions.end - versions.position(self.revision + 1) <= keys):
            self._changes = _Changes(versions, self.revision, start, end)

    def _follow(self, versions: Versions) -> bool:
        """Take note of the events since the last slice; False: not of all of them yet."""
        changes = self._changes
        if changes is not None:
            self._steps -= changes.follow(versions, self._steps * _EVENTS_PER_STEP) // _EVENTS_PER_STEP
            if changes.position != versions.end:
                return False
        return True

    def _count(self, versions: Versions) -> None:
        start, end = self.query.start, self.query.bound
        if self._changes is not None:
            self.count = self._changes.count(versions, start, end)
            if not self.query.delimiter:
                self._changes = None
            return
        wanted = self._steps
        keys = versions.keys_from(self._visited_to, end, wanted)
        revision, at = self.revision, versions.at
        self._visited += sum(at(key, revision) is not None for key in keys)
        self._steps -= len(keys)
        if len(keys) < wanted:
            self.count = self._visited
        else:
            self._visited_to = keys[-1] + b"\0"

    # --- The records --------------------------------------------------------------------------------------------

    def _scan(self, versions: Versions, latest: int, found: list[Item]) -> None:
        revision, at, has_levels = self.revision, versions.at, bool(self.query.delimiter)
        while self._steps > 0 and not self.is_done:
            wanted = min(self._steps, _PREFIX_STEPS) if self.query.delimiter else self._steps
            keys = self._next_keys(versions, latest, wanted)
            for key in keys:
                self._steps -= 1
                record = at(key, revision)
                if record is None:
                    continue
                prefix = self._common_prefix(key) if has_levels else b""
                item = self._below(versions, prefix) if prefix else record if self._is_plain else self._wanted(record)
                if item is not None and not self._take(item, found):
                    self._stop_before(key)
                    return
                if prefix:
                    self._pass_prefix(prefix)
                    break
                if self._steps <= 0:
                    self._pass(key)
                    return
            else:
                if len(keys) < wanted:
                    self.is_done = True
                else:
                    self._pass(keys[-1])

    def _scan_plain(self, versions: Versions, latest: int, found: list[Item]) -> None:
        """As :meth:`_scan`, for records that are wanted as they are: without a call for each of them."""
        items, bytes_left, steps = self._items, self._bytes_max - self._bytes, self._steps
        is_first = not self._bytes
        while steps > 0 and not self.is_done:
            # One more than is wanted shows whether there is more.
            wanted = min(steps, self._items_max - items + 1)
            keys = self._next_keys(versions, latest, wanted)
            for key, record in zip(keys, versions.each_at(keys, self.revision, latest), strict=True):
                steps -= 1
                if record is not None:
                    size_bytes = ITEM_BYTES + len(key) + len(record.value)
                    if items >= self._items_max or (size_bytes > bytes_left and not is_first):
                        self._stop_before(key)
                        break
                    is_first = False
                    items += 1
                    bytes_left -= size_bytes
                    steps -= size_bytes // _BYTES_PER_STEP
                    found.append(record)
                if steps <= 0:
                    self._pass(key)
                    break
            else:
                if len(keys) < wanted:
                    self.is_done = True
                else:
                    self._pass(keys[-1])
        self._items, self._bytes, self._steps = items, self._bytes_max - bytes_left, steps

    def _next_keys(self, versions: Versions, latest: int, wanted: int) -> list[bytes]:
        # A key that is deleted by now is of interest at an older revision only.
        has_dead = latest != self.revision
        if self._is_descending:
            return versions.keys_before(self._low, self._high, wanted, has_dead=has_dead)
        return versions.keys_from(self._low, self._high, wanted, has_dead=has_dead)

    def _common_prefix(self, key: bytes) -> bytes:
        delimiter = self.query.delimiter
        if not delimiter:
            return b""
        place = key.find(delimiter, len(self.query.start))
        return key[: place + len(delimiter)] if place >= 0 else b""

    def _below(self, versions: Versions, prefix: bytes) -> CommonPrefix:
        self._steps -= _PREFIX_STEPS
        assert self._changes is not None  # noqa: S101
        return CommonPrefix(prefix, self._changes.count(versions, prefix, bound(prefix, prefix_end(prefix))))

    def _wanted(self, record: Record) -> Record | None:
        """Return the record as it is wanted; None: it is not."""
        if not self.query.admits(record):
            return None
        if self.query.keys_only:
            return Record(record.key, b"", record.create_revision, record.mod_revision, record.version)
        return record

    def _take(self, item: Item, found: list[Item]) -> bool:
        """Add an item to what was found; False: the page is full without it."""
        size_bytes = ITEM_BYTES
        size_bytes += len(item.prefix) if isinstance(item, CommonPrefix) else len(item.key) + len(item.value)
        is_first = not self._bytes
        if self._items >= self._items_max or (self._bytes + size_bytes > self._bytes_max and not is_first):
            return False
        self._items += 1
        self._bytes += size_bytes
        self._steps -= size_bytes // _BYTES_PER_STEP
        found.append(item)
        return True

    def _pass(self, key: bytes) -> None:
        """The keys up to this one are examined."""
        if self._is_descending:
            self._high = key
        else:
            self._low = key + b"\0"

    def _pass_prefix(self, prefix: bytes) -> None:
        """The keys up to the last one with this prefix are examined."""
        if self._is_descending:
            self._high = prefix
            return
        end = bound(prefix, prefix_end(prefix))
        if end is None:
            self.is_done = True
        else:
            self._low = end

    def _stop_before(self, key: bytes) -> None:
        """The page ends, and the next one begins with this key."""
        if self._is_descending:
            self._high = key + b"\0"
        else:
            self._low = key
        self.stop()

    def _scan_sorted(self, versions: Versions, latest: int, found: list[Item]) -> None:
        if not self._is_sorted:
            wanted = self._steps
            if wanted <= 0:  # The count has taken them all.
                return
            keys = self._next_keys(versions, latest, wanted)
            records = (versions.at(key, self.revision) for key in keys)
            self._collected += [record for record in records if record is not None and self.query.admits(record)]
            self._steps -= len(keys)
            if len(keys) == wanted:
                self._pass(keys[-1])
                return
            # Sorting keeps the order of what is equal, also if it is in reverse.
            self._collected.sort(key=_SORT_KEYS[self.query.sort], reverse=self.query.reverse)
            self._is_sorted = True
        while self._items < len(self._collected):
            if self._steps <= 0:
                return
            self._steps -= 1
            item = self._wanted(self._collected[self._items])
            if item is not None and not self._take(item, found):
                self.stop()
                return
        self.is_done = True


class _Changes:
    """Which keys of a range came and went since a revision.

    Args:
        versions: those that are followed.
        revision: the revision.
        start: the first key of the range.
        end: the first key behind it; None: there is none.

    Attributes:
        position: of the next event in the log.
    """

    __slots__ = ("_born", "_end", "_gone", "_start", "position")

    def __init__(self, versions: Versions, revision: int, start: bytes, end: bytes | None) -> None:
        self.position = versions.position(revision + 1)
        self._start = start
        self._end = end
        self._born = Keys()
        """The keys that exist and did not at the revision."""
        self._gone = Keys()
        """The keys that do not exist and did at the revision."""

    def follow(self, versions: Versions, limit: int) -> int:
        """Take note of at most so many further events; return how many."""
        events = versions.events(self.position, limit)
        for event in events:
            key = event.key
            if event.version > 1 or key < self._start or (self._end is not None and key >= self._end):
                continue
            mine, others = (self._born, self._gone) if event.version else (self._gone, self._born)
            if key in others:
                others.remove(key)
            else:
                mine.add(key)
        self.position += len(events)
        return len(events)

    def count(self, versions: Versions, start: bytes, end: bytes | None) -> int:
        """Return how many keys a part of the range had at the revision. All events must be followed."""
        return versions.live.count(start, end) - self._born.count(start, end) + self._gone.count(start, end)
