"""The records and the history of a snapshot: what was visible at one revision, read while the store goes on.

A cut pins its revision, so nothing is copied when a snapshot begins, and nothing but history is kept for it.
"""

from __future__ import annotations

from collections.abc import Iterable

from kvorum.errors import InvariantViolatedError
from kvorum.kv.frames import (
    BaseFrame,
    EventsFrame,
    HistoryFrame,
    LeasedBaseFrame,
    LeasedEventsFrame,
    LeasedVersionRow,
    RecordRow,
    RecordsFrame,
    VersionRow,
)
from kvorum.kv.records import Record
from kvorum.kv.state_hash import RecordSum
from kvorum.kv.versions import Versions


class LatestCut:
    """The latest versions in the order of their creation: what snapshots below feature level 4 hold.

    Costs a list of all keys.

    Args:
        versions: the store's.
        revision: the store's.
        record_sum: adds up the records that are written; None: nobody asks.

    Attributes:
        is_done: every frame was returned.
        keys: how many keys that exist at the revision were written.
    """

    __slots__ = ("_keys", "_pin", "_record_sum", "_revision", "_versions", "keys")

    def __init__(self, versions: Versions, revision: int, record_sum: RecordSum | None) -> None:
        self._versions = versions
        self._revision = revision
        self._record_sum = record_sum
        self._pin = versions.pin(revision, until=revision)
        self._keys = list(versions.records)
        self.keys = 0

    @property
    def is_done(self) -> bool:
        """Whether every frame was returned."""
        return self.keys == len(self._keys)

    def next_frame(self, max_keys: int, max_bytes: int) -> RecordsFrame:
        """Return the next frame, with at most so many keys; it ends with the record that reaches so many bytes."""
        candidates = self._keys[self.keys : self.keys + max_keys]
        rows: list[RecordRow] = []
        size = 0
        for key in candidates:
            record = self._versions.at(key, self._revision)
            if record is None:
                raise InvariantViolatedError("a record changed under a snapshot and was not kept")
            rows.append(RecordRow(record.value, record.create_revision, record.mod_revision, record.version))
            if self._record_sum is not None:
                self._record_sum.add(key, record)
            size += len(key) + len(record.value)
            if size >= max_bytes:
                break
        self.keys += len(rows)
        return RecordsFrame(tuple(candidates[: len(rows)]), tuple(rows))

    def close(self) -> None:
        """Let go of everything. Idempotent."""
        self._keys = self._keys[: self.keys]
        self._pin.release()


class HistoryCut:
    """The history of a snapshot from feature level 4 on, and otherwise as :class:`LatestCut`.

    First the *base*: what was visible just below the floor, in the order of the keys. Then all events from the floor to
    the revision, in order. The bytes depend on the state and on the sizes asked for, not on what is reclaimed yet.
    """

    __slots__ = (
        "_base_frame",
        "_begun",
        "_cursor",
        "_end",
        "_events_frame",
        "_floor",
        "_pin",
        "_position",
        "_record_sum",
        "_revision",
        "_row",
        "_rows",
        "_rows_bytes",
        "_versions",
        "keys",
    )

    def __init__(self, versions: Versions, revision: int, record_sum: RecordSum | None, *, has_leases: bool) -> None:
        self._versions = versions
        self._revision = revision
        self._record_sum = record_sum
        self._row = _leased_row if has_leases else _row
        self._base_frame: type[BaseFrame] = LeasedBaseFrame if has_leases else BaseFrame
        self._events_frame: type[EventsFrame] = LeasedEventsFrame if has_leases else EventsFrame
        self._floor = versions.floor
        self._pin = versions.pin(versions.floor, until=revision)
        self._position = versions.position(versions.floor)
        self._end = versions.end
        self._begun = False
        self._cursor: bytes | None = b""
        """The least key that was not visited; None: all were."""
        self._rows: list[VersionRow] = []
        """The base's next frame, while it is not full."""
        self._rows_bytes = 0
        self.keys = 0

    @property
    def is_done(self) -> bool:
        """Whether every frame was returned."""
        return self._begun and self._cursor is None and not self._rows and self._position >= self._end

    def next_frame(self, max_keys: int, max_bytes: int) -> HistoryFrame | BaseFrame | EventsFrame | None:
        """Return the next frame, or None if a step did not fill it: many keys were created or deleted later."""
        if not self._begun:
            self._begun = True
            return HistoryFrame(self._floor, self._end - self._position)
        if self._cursor is not None:
            self._visit(self._cursor, max_keys, max_bytes)
            is_full = len(self._rows) >= max_keys or self._rows_bytes >= max_bytes
            if not is_full and (self._cursor is not None or not self._rows):
                return None
        if self._rows:
            rows, self._rows, self._rows_bytes = self._rows, [], 0
            return self._base_frame(tuple(rows))
        return self._take_events(max_keys, max_bytes)

    def close(self) -> None:
        """Let go of everything. Idempotent."""
        self._rows = []
        self._pin.release()

    def _visit(self, start: bytes, max_keys: int, max_bytes: int) -> None:
        """Visit at most so many keys: add what was visible below the floor to the frame, until that is full."""
        versions, last, revision = self._versions, self._floor - 1, self._revision
        keys = versions.keys_from(start, None, max_keys)
        for key in keys:
            record = versions.at(key, revision)
            if record is not None:
                self.keys += 1
                if self._record_sum is not None:
                    self._record_sum.add(key, record)
            is_latest = record is not None and record.mod_revision <= last
            base = record if is_latest else versions.at(key, last)
            if base is None:
                continue
            self._rows.append(self._row(base, is_latest))
            self._rows_bytes += len(key) + len(base.value)
            if len(self._rows) >= max_keys or self._rows_bytes >= max_bytes:
                self._cursor = key + b"\0"
                return
        self._cursor = keys[-1] + b"\0" if len(keys) == max_keys else None

    def _take_events(self, max_keys: int, max_bytes: int) -> EventsFrame:
        rows: list[VersionRow] = []
        size = 0
        for event in self._events(max_keys):
            newest = self._versions.newest_at(event.key, self._revision)
            rows.append(self._row(event, newest is not None and newest.mod_revision == event.mod_revision))
            size += len(event.key) + len(event.value)
            if size >= max_bytes:
                break
        self._position += len(rows)
        return self._events_frame(tuple(rows))

    def _events(self, limit: int) -> Iterable[Record]:
        events = self._versions.events(self._position, min(limit, self._end - self._position))
        if not events:
            raise InvariantViolatedError("an event of the history was not kept for a snapshot")
        return events


def _row(record: Record, is_latest: bool) -> VersionRow:
    return VersionRow(record.key, record.value, record.create_revision, record.mod_revision, record.version, is_latest)


def _leased_row(record: Record, is_latest: bool) -> LeasedVersionRow:
    return LeasedVersionRow(
        record.key,
        record.value,
        record.create_revision,
        record.mod_revision,
        record.version,
        is_latest,
        record.lease,
    )
