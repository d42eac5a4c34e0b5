"""Reading the history of a snapshot back: the base and the events, replayed and verified."""

from __future__ import annotations

from kvorum.errors import StorageCorruptError
from kvorum.kv.frames import (
    BaseFrame,
    EventsFrame,
    HistoryFrame,
    LeasedBaseFrame,
    LeasedEventsFrame,
    LeasedVersionRow,
    VersionRow,
)
from kvorum.kv.leases import Leases
from kvorum.kv.limits import LEASE_KEYS_MAX
from kvorum.kv.records import Record
from kvorum.kv.state_hash import RecordSum
from kvorum.kv.versions import Versions


class VersionsRestorer:
    """Fills the versions of a store from the frames of feature level 4 and above.

    Args:
        frame: what the snapshot announces.
        revision: the snapshot's.
        versions: what is filled; empty.
        leases: the leases of the snapshot, which get their keys; None: it is of a level without leases.
        record_sum: adds up the latest versions.
        keeps_records: False: nothing is kept, and only what needs no memory of other rows is verified.

    Raises:
        StorageCorruptError: the floor is impossible.
    """

    __slots__ = (
        "_events",
        "_events_expected",
        "_floor",
        "_keeps_records",
        "_last_key",
        "_last_revision",
        "_latest",
        "_lease_keys",
        "_leases",
        "_record_sum",
        "_replaced",
        "_revision",
        "_versions",
    )

    def __init__(
        self,
        frame: HistoryFrame,
        revision: int,
        versions: Versions,
        leases: Leases | None,
        record_sum: RecordSum,
        *,
        keeps_records: bool,
    ) -> None:
        if frame.floor > revision:
            raise StorageCorruptError(
                f"the history of the snapshot begins at revision {frame.floor}, above its revision {revision}"
            )
        self._floor = self._last_revision = frame.floor
        self._revision = revision
        self._events = 0
        self._events_expected = frame.events
        self._versions = versions
        self._leases = leases
        self._lease_keys: dict[int, int] = {}
        """Lease -> how many keys it has so far."""
        self._record_sum = record_sum
        self._keeps_records = keeps_records
        self._last_key = b""
        self._latest = 0
        self._replaced: set[bytes] = set()
        """Keys whose last row so far is not the latest one. At the end there is none, and as many rows are the latest
        as there are keys: so each of them is the latest of its key."""
        versions.set_floor(frame.floor)

    def take_base(self, frame: BaseFrame) -> None:
        """Take in the next versions from below the floor.

        Raises:
            StorageCorruptError: they cannot be what was visible below the floor, or are out of order.
        """
        self._check_kind(is_leased=isinstance(frame, LeasedBaseFrame))
        if self._events:
            raise StorageCorruptError("the snapshot has versions from below the floor after its events")
        for row in frame.versions:
            if row.key <= self._last_key:
                raise StorageCorruptError("the keys of the snapshot are not in order")
            if row.mod_revision >= self._floor or not row.version or not _is_possible(row):
                raise StorageCorruptError("a version of the snapshot has an impossible revision")
            self._last_key = row.key
            self._take(row)
        if self._keeps_records:
            self._versions.restore([_record(row) for row in frame.versions], are_sorted=True)

    def take_events(self, frame: EventsFrame) -> None:
        """Take in the next events.

        Raises:
            StorageCorruptError: they are out of order, or do not follow from what was there before.
        """
        self._check_kind(is_leased=isinstance(frame, LeasedEventsFrame))
        for row in frame.events:
            if not self._last_revision <= row.mod_revision <= self._revision or not _is_possible(row):
                raise StorageCorruptError("an event of the snapshot has an impossible revision")
            self._last_revision = row.mod_revision
            if self._keeps_records:
                self._replay(row)
            self._take(row)
        self._events += len(frame.events)

    def check_complete(self, keys: int) -> None:
        """Check that everything was there; ``keys`` exist at the snapshot's revision.

        Raises:
            StorageCorruptError: something is missing, or more than was announced.
        """
        found = len(self._versions.records) if self._keeps_records else keys
        if self._events != self._events_expected or self._replaced or not keys == self._latest == found:
            raise StorageCorruptError("the snapshot does not hold the history that it announces")

    def _replay(self, row: VersionRow) -> None:
        versions, key, revision = self._versions, row.key, row.mod_revision
        newest = versions.newest_at(key, revision)
        if newest is not None and newest.mod_revision == revision:
            raise StorageCorruptError("a key of the snapshot changes twice at one revision")
        old = versions.records.get(key)
        if row.version:
            new = versions.put(key, row.value, revision, old)
            if (new.create_revision, new.version) != (row.create_revision, row.version):
                raise StorageCorruptError("an event of the snapshot does not follow from the version before it")
            new.lease = _lease_of(row)
        elif old is None:
            raise StorageCorruptError("an event of the snapshot deletes a key that does not exist")
        else:
            versions.delete(old, revision)

    def _take(self, row: VersionRow) -> None:
        if not row.is_latest:
            self._replaced.add(row.key)
            return
        self._replaced.discard(row.key)
        if row.version:
            self._latest += 1
            self._record_sum.add(row.key, _record(row))
            if lease := _lease_of(row):
                self._attach(row.key, lease)

    def _check_kind(self, *, is_leased: bool) -> None:
        if is_leased != (self._leases is not None):
            raise StorageCorruptError("the versions of the snapshot are of another feature level than it says")

    def _attach(self, key: bytes, lease: int) -> None:
        """Give a key to its lease, of which nobody knew it before."""
        leases = self._leases
        count = self._lease_keys.get(lease, 0) + 1
        if leases is None or leases.get(lease) is None or count > LEASE_KEYS_MAX:
            raise StorageCorruptError("a key of the snapshot has a lease that is not there, or that has too many keys")
        self._lease_keys[lease] = count
        if self._keeps_records:
            record = self._versions.records.get(key)
            leases.attach(key if record is None else record.key, lease)


def _record(row: VersionRow) -> Record:
    return Record(row.key, row.value, row.create_revision, row.mod_revision, row.version, lease=_lease_of(row))


def _lease_of(row: VersionRow) -> int:
    return row.lease if isinstance(row, LeasedVersionRow) else 0


def _is_possible(row: VersionRow) -> bool:
    """Tell whether the numbers of a row can belong together."""
    if not row.version:
        return not row.create_revision and not row.value and not _lease_of(row)
    # Each put takes a revision of its own.
    return 1 <= row.create_revision <= row.mod_revision - row.version + 1
