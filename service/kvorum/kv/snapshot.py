"""Reading a snapshot back: all of it, or nothing."""

from __future__ import annotations

from typing import assert_never

from kvorum.errors import StorageCorruptError
from kvorum.kv.features import (
    END_SESSION_LEVEL,
    FIRST_LEVEL,
    HANDOVER_LEVEL,
    HISTORY_LEVEL,
    LEASE_LEVEL,
    QUOTA_LEVEL,
    STATE_HASH_LEVEL,
    check_supported,
)
from kvorum.kv.frames import (
    FORMAT_OF_LEVEL_1,
    FORMAT_WITH_FEATURES,
    BaseFrame,
    EndedSessionsFrame,
    EventsFrame,
    Features,
    Frame,
    FrameReader,
    Header,
    HistoryFrame,
    LeasesFrame,
    OriginsFrame,
    QuotaFrame,
    RecordsFrame,
    SessionsFrame,
    Trailer,
)
from kvorum.kv.leases import Leases, deadline_after
from kvorum.kv.limits import (
    CLIENT_ID_CHARS_MAX,
    CLUSTER_ID_BYTES_MAX,
    INTEGER_MAX,
    LEASES_MAX,
    SESSIONS_ENDED_MAX,
    SESSIONS_MAX,
)
from kvorum.kv.origins import Origins
from kvorum.kv.quota import Quota
from kvorum.kv.records import Record
from kvorum.kv.sessions import SessionRow, Sessions
from kvorum.kv.snapshot_iterator import SnapshotIterator
from kvorum.kv.snapshot_versions import VersionsRestorer
from kvorum.kv.state_hash import STATE_SUM_BYTES, Mismatch, RecordSum
from kvorum.kv.store import Store
from kvorum.kv.versions import Versions
from kvorum.raft.messages import Configuration

__all__ = ["Restorer", "SnapshotIterator"]


class Restorer:
    """Builds a store from the chunks of a snapshot, however they are divided.

    The store appears only at the end, complete and verified; after an error this restorer never yields one.

    Args:
        configuration: the members at the snapshot's index; they are in the file's description, not in the chunks.
        keeps_records: False: only verify; the store has no records, but says whether they contradict their sum.
    """

    __slots__ = (
        "_configuration",
        "_ended_expected",
        "_ended_ms",
        "_failed",
        "_features",
        "_header",
        "_keeps_records",
        "_key_count",
        "_leases",
        "_leases_expected",
        "_origins",
        "_quota",
        "_reader",
        "_record_sum",
        "_sessions",
        "_trailer",
        "_versions",
        "_versions_restorer",
    )

    def __init__(self, configuration: Configuration, *, keeps_records: bool = True) -> None:
        self._configuration = configuration
        self._keeps_records = keeps_records
        self._key_count = 0
        self._features: Features | None = None
        self._record_sum: RecordSum | None = None
        self._reader = FrameReader()
        self._header: Header | None = None
        self._versions = Versions()
        self._versions_restorer: VersionsRestorer | None = None
        """From feature level 4 on, once the snapshot has said what history follows."""
        self._leases = Leases()
        self._leases_expected: int | None = None
        """How many leases are still to come; None: none was announced yet."""
        self._quota: Quota | None = None
        self._origins: Origins | None = None
        self._sessions = Sessions()
        self._ended_expected: int | None = None
        """How many ended sessions are still to come; None: none was announced yet."""
        self._ended_ms = 0
        self._trailer: Trailer | None = None
        self._failed = False

    def feed(self, chunk: bytes) -> None:
        """Take in the next bytes.

        Raises:
            StorageCorruptError: they are not what a :class:`SnapshotIterator` wrote.
            VersionTooOldError: a newer version wrote them.
        """
        self._refuse_after_failure()
        self._failed = True  # until proven otherwise: whatever raises below leaves the restorer unusable
        for frame in self._reader.feed(chunk):
            self._take(frame)
        self._failed = False

    def finish(self) -> Store:
        """Return the store.

        Raises:
            StorageCorruptError: the snapshot is not complete.
        """
        self._refuse_after_failure()
        self._failed = True  # the parts are handed over once
        if self._header is None or self._trailer is None:
            raise StorageCorruptError("the snapshot is truncated")
        if self._reader.buffered_bytes:
            raise StorageCorruptError("the snapshot goes on after its end")
        store = Store.restored(
            self._header,
            self._features,
            self._record_sum,
            self._configuration,
            self._versions,
            self._leases,
            self._sessions,
            self._quota or Quota(),
            self._origins or Origins(),
        )
        if self._record_sum is not None and self._features is not None and self._features.state_sum:
            expected = int.from_bytes(self._features.state_sum)
            if expected != self._record_sum.total:
                store.mismatch = Mismatch(self._header.applied_index, expected, self._record_sum.total)
        return store

    def _refuse_after_failure(self) -> None:
        if self._failed:
            raise StorageCorruptError("this restore has failed or is finished")

    def _take(self, frame: Frame) -> None:
        if self._trailer is not None:
            raise StorageCorruptError("the snapshot goes on after its end")
        if isinstance(frame, Header):
            self._take_header(frame)
            return
        if self._header is None:
            raise StorageCorruptError("the snapshot does not begin with a header")
        if isinstance(frame, Features):
            self._take_features(frame, self._header)
            return
        if self._header.format == FORMAT_WITH_FEATURES and self._features is None:
            raise StorageCorruptError("the snapshot does not say its feature level")
        match frame:
            case QuotaFrame():
                self._take_quota(frame)
            case LeasesFrame():
                self._take_leases(frame, self._header)
            case OriginsFrame():
                self._take_origins(frame)
            case RecordsFrame():
                self._take_records(frame, self._header)
            case HistoryFrame():
                self._take_history(frame, self._header)
            case BaseFrame():
                self._history().take_base(frame)
            case EventsFrame():
                self._history().take_events(frame)
            case SessionsFrame():
                for row in frame.sessions:
                    self._take_session(row, self._header)
            case EndedSessionsFrame():
                self._take_ended(frame, self._header)
            case Trailer():
                self._take_trailer(frame, self._header)
            case _:
                assert_never(frame)

    def _take_header(self, header: Header) -> None:
        if self._header is not None:
            raise StorageCorruptError("the snapshot has two headers")
        if header.format not in (FORMAT_OF_LEVEL_1, FORMAT_WITH_FEATURES):
            raise StorageCorruptError(
                f"the snapshot's format is {header.format}; this version reads {FORMAT_OF_LEVEL_1} and "
                f"{FORMAT_WITH_FEATURES}"
            )
        self._header = header

    def _take_features(self, features: Features, header: Header) -> None:
        if header.format != FORMAT_WITH_FEATURES or self._features is not None:
            raise StorageCorruptError("the snapshot says its feature level twice, or should not say it")
        if features.level <= FIRST_LEVEL:
            raise StorageCorruptError(f"the snapshot says that its feature level is {features.level}")
        check_supported(features.level, "the snapshot")
        if not 0 < len(features.cluster_id.encode()) <= CLUSTER_ID_BYTES_MAX:
            raise StorageCorruptError("the cluster id of the snapshot is impossible")
        if len(features.state_sum) not in (0, STATE_SUM_BYTES):
            raise StorageCorruptError("the state sum of the snapshot is impossible")
        self._features = features
        if features.level >= STATE_HASH_LEVEL:
            self._record_sum = RecordSum(features.cluster_id, is_counted=True)

    def _take_quota(self, frame: QuotaFrame) -> None:
        if self._features is None or self._features.level < QUOTA_LEVEL or self._quota is not None:
            raise StorageCorruptError("the snapshot carries a quota twice, or should not carry it")
        limit_bytes, configured_bytes, is_full = frame.limit_bytes, frame.configured_bytes, frame.is_full
        if max(limit_bytes, configured_bytes) > INTEGER_MAX or (is_full and not limit_bytes):
            raise StorageCorruptError("the quota of the snapshot is impossible")
        self._quota = Quota(limit_bytes, configured_bytes, is_full)

    def _take_leases(self, frame: LeasesFrame, header: Header) -> None:
        expected, announced = self._leases_expected, len(frame.leases) + frame.remaining
        if not self._has_leases() or self._versions_restorer is not None:
            raise StorageCorruptError("the snapshot has leases at a level or in a place where there are none")
        if announced != (announced if expected is None else expected) or (frame.remaining and not frame.leases):
            raise StorageCorruptError("the snapshot does not hold the leases that it announces")
        if announced > LEASES_MAX:
            raise StorageCorruptError(f"the snapshot announces {announced} leases (limit {LEASES_MAX})")
        for row in frame.leases:
            if not row.id or row.deadline_ms > deadline_after(header.time_ms, row.ttl_s):
                raise StorageCorruptError("a lease of the snapshot is impossible")
            if self._leases.grant(row) is not None:
                raise StorageCorruptError("the snapshot has two leases of one id, or too many")
        self._leases_expected = frame.remaining

    def _has_leases(self) -> bool:
        return self._features is not None and self._features.level >= LEASE_LEVEL

    def _take_origins(self, frame: OriginsFrame) -> None:
        if self._features is None or self._features.level < HANDOVER_LEVEL or self._origins is not None:
            raise StorageCorruptError("the snapshot carries the origins twice, or should not carry them")
        self._origins = Origins()
        for row in frame.origins:
            if self._configuration.get(row.member) is None or not self._origins.restore(row):
                raise StorageCorruptError("an origin of the snapshot is impossible")

    def _take_records(self, frame: RecordsFrame, header: Header) -> None:
        if self._features is not None and self._features.level >= HISTORY_LEVEL:
            raise StorageCorruptError("the snapshot has records without history at the level that has one")
        if len(frame.keys) != len(frame.records):
            raise StorageCorruptError("a snapshot frame has more keys than records, or fewer")
        revision = header.revision
        for row in frame.records:
            # The store relies on it: what is newer than a snapshot does not belong to it.
            if not row.create_revision <= row.mod_revision <= revision:
                raise StorageCorruptError("a record of the snapshot has an impossible revision")
        records = [
            Record(key, row.value, row.create_revision, row.mod_revision, row.version)
            for key, row in zip(frame.keys, frame.records, strict=True)
        ]
        if self._keeps_records:
            self._versions.restore(records, are_sorted=False)
            self._key_count = len(self._versions.records)
        else:
            self._key_count += len(records)
        if self._record_sum is not None:
            for record in records:
                self._record_sum.add(record.key, record)

    def _take_history(self, frame: HistoryFrame, header: Header) -> None:
        if self._features is None or self._features.level < HISTORY_LEVEL or self._record_sum is None:
            raise StorageCorruptError("the snapshot has a history below the level that has one")
        if self._versions_restorer is not None:
            raise StorageCorruptError("the snapshot announces its history twice")
        if self._has_leases() and self._leases_expected != 0:
            raise StorageCorruptError("the snapshot does not hold the leases that it announces")
        self._versions_restorer = VersionsRestorer(
            frame,
            header.revision,
            self._versions,
            self._leases if self._has_leases() else None,
            self._record_sum,
            keeps_records=self._keeps_records,
        )

    def _history(self) -> VersionsRestorer:
        if self._versions_restorer is None:
            raise StorageCorruptError("the snapshot has history that it does not announce")
        return self._versions_restorer

    def _take_session(self, row: SessionRow, header: Header) -> None:
        if (
            not 0 < len(row.client_id) <= CLIENT_ID_CHARS_MAX
            or row.last_used_ms > header.time_ms
            or not row.is_possible()
            or len(self._sessions) >= SESSIONS_MAX
        ):
            raise StorageCorruptError("a session of the snapshot is impossible")
        self._sessions.restore(row)

    def _take_ended(self, frame: EndedSessionsFrame, header: Header) -> None:
        expected = self._ended_expected
        if self._features is None or self._features.level < END_SESSION_LEVEL:
            raise StorageCorruptError("the snapshot lists ended sessions below the level that has them")
        if expected is not None and len(frame.ended) + frame.remaining != expected:
            raise StorageCorruptError("the snapshot does not hold the ended sessions that it announces")
        if len(frame.ended) + frame.remaining > SESSIONS_ENDED_MAX or (frame.remaining and not frame.ended):
            raise StorageCorruptError("the snapshot announces impossible ended sessions")
        for client_id, ended_ms in frame.ended:
            is_possible = 0 < len(client_id) <= CLIENT_ID_CHARS_MAX and self._ended_ms <= ended_ms <= header.time_ms
            if not is_possible or client_id in self._sessions or self._sessions.has_ended(client_id):
                raise StorageCorruptError("an ended session of the snapshot is impossible")
            self._ended_ms = ended_ms
            self._sessions.restore_ended(client_id, ended_ms)
        self._ended_expected = frame.remaining

    def _take_trailer(self, trailer: Trailer, header: Header) -> None:
        written = (trailer.keys, trailer.sessions)
        if self._features is not None and self._features.level >= END_SESSION_LEVEL and self._ended_expected != 0:
            raise StorageCorruptError("the snapshot does not hold the ended sessions that it announces")
        if self._features is not None and self._features.level >= QUOTA_LEVEL and self._quota is None:
            raise StorageCorruptError("the snapshot does not carry its quota")
        if self._features is not None and self._features.level >= HANDOVER_LEVEL and self._origins is None:
            raise StorageCorruptError("the snapshot does not carry its origins")
        if self._features is not None and self._features.level >= HISTORY_LEVEL:
            self._history().check_complete(header.keys)
            self._key_count = header.keys
        # Sessions, and keys that are kept, are counted by what is there, so a repeated one is missed here.
        if written != (header.keys, header.sessions) or written != (self._key_count, len(self._sessions)):
            raise StorageCorruptError("the snapshot does not hold what its header and trailer announce")
        self._trailer = trailer
