"""Writing a snapshot in slices, while the store goes on applying (section 7)."""

from __future__ import annotations

from collections.abc import Callable

from kvorum.errors import InvariantViolatedError
from kvorum.kv.cut import HistoryCut, LatestCut
from kvorum.kv.features import END_SESSION_LEVEL, HISTORY_LEVEL
from kvorum.kv.frames import (
    CHUNK_BYTES_MAX,
    CHUNK_KEYS_MAX,
    EndedSessionsFrame,
    Features,
    Frame,
    FrameWriter,
    Header,
    LeasesFrame,
    OriginsFrame,
    QuotaFrame,
    SessionsFrame,
    Trailer,
)
from kvorum.kv.leases import LeaseRow, Leases
from kvorum.kv.sessions import SessionRow, Sessions
from kvorum.kv.state_hash import Mismatch, RecordSum
from kvorum.kv.versions import Versions

CHUNK_KEYS = 256
"""Keys in a chunk unless asked otherwise: less than a millisecond of work."""
CHUNK_BYTES = 256 * 1024
"""Bytes in a chunk unless asked otherwise."""


class SnapshotIterator:
    """The state at the moment of :meth:`Store.begin_snapshot`, to be written chunk by chunk.

    Keys and records are read when their turn comes, as they were at the snapshot's revision (:mod:`kvorum.kv.cut`). A
    session or a lease is copied before it changes. So the iterator costs memory for what changes, not for the state.
    The bytes depend on the state, on the sizes asked for, and from the raise of level 2 to the end of a node's first
    sweep on whether its sum counts yet. So two nodes may write one state as different bytes: a file is named by its
    hash, and only that very file is resumed.

    The sum of the records is computed while they are written: memory may have changed since the last sweep.

    Attributes:
        header: the numbers of the store at that moment.
        mismatch: the records that were written do not have the sum that the snapshot carries. Known at its end.
    """

    __slots__ = (
        "_closed",
        "_cut",
        "_done",
        "_ended",
        "_ended_written",
        "_features",
        "_lease_ids",
        "_leases",
        "_leases_written",
        "_on_close",
        "_origins",
        "_preserved_leases",
        "_preserved_sessions",
        "_quota",
        "_record_sum",
        "_session_ids",
        "_sessions",
        "_sessions_written",
        "_started",
        "_sum_expected",
        "_writer",
        "header",
        "mismatch",
    )

    def __init__(
        self,
        header: Header,
        features: Features | None,
        quota: QuotaFrame | None,
        origins: OriginsFrame | None,
        versions: Versions,
        leases: Leases | None,
        sessions: Sessions,
        on_close: Callable[[], None],
    ) -> None:
        self.header = header
        self.mismatch: Mismatch | None = None
        self._record_sum: RecordSum | None = None
        if features is not None and features.state_sum:
            self._record_sum = RecordSum(features.cluster_id, is_counted=True)
            self._sum_expected = int.from_bytes(features.state_sum)
        self._features = features
        self._quota = quota
        self._cut: HistoryCut | LatestCut
        if features is not None and features.level >= HISTORY_LEVEL:
            self._cut = HistoryCut(versions, header.revision, self._record_sum, has_leases=leases is not None)
        else:
            self._cut = LatestCut(versions, header.revision, self._record_sum)
        self._leases = leases
        self._lease_ids: list[int] = []
        self._preserved_leases: dict[int, LeaseRow] = {}
        if leases is not None:
            self._lease_ids, self._preserved_leases = leases.begin_iteration()
        self._leases_written: int | None = 0
        """How many leases were written; None: all."""
        self._origins = origins
        self._sessions = sessions
        self._session_ids, self._preserved_sessions = sessions.begin_iteration()
        self._sessions_written = 0
        self._ended_written = 0
        self._ended = sessions.ended() if features is not None and features.level >= END_SESSION_LEVEL else None
        self._on_close = on_close
        self._writer = FrameWriter()
        self._started = False
        self._done = False
        self._closed = False

    def next_chunk(self, max_keys: int = CHUNK_KEYS, max_bytes: int = CHUNK_BYTES) -> bytes | None:
        """Return the next bytes of the snapshot, none if there is more to do first, or None when it is complete.

        Args:
            max_keys: at most so many keys or leases, or remembered answers of sessions (one session may exceed it).
            max_bytes: about so many bytes: the chunk ends with the record that reaches this.

        Raises:
            InvariantViolatedError: the iterator was closed before it was complete.
        """
        if self._done:
            return None
        if self._closed:
            raise InvariantViolatedError("a snapshot is continued after it was closed")
        max_keys = min(max(max_keys, 1), CHUNK_KEYS_MAX)
        max_bytes = min(max(max_bytes, 1), CHUNK_BYTES_MAX)
        frame = self._next_frame(max_keys, max_bytes)
        return b"" if frame is None else self._writer.encode(frame)

    def close(self) -> None:
        """Let the store forget the iterator. May be called at any time, and again."""
        if self._closed:
            return
        self._closed = True
        self._session_ids = []
        self._ended = None
        self._cut.close()
        self._preserved_sessions = {}
        self._sessions.end_iteration()
        self._lease_ids = []
        self._preserved_leases = {}
        if self._leases is not None:
            self._leases.end_iteration()
        self._on_close()

    def _next_frame(self, max_keys: int, max_bytes: int) -> Frame | None:
        if not self._started:
            self._started = True
            return self.header
        if self._features is not None:
            features, self._features = self._features, None
            return features
        if self._quota is not None:
            quota, self._quota = self._quota, None
            return quota
        if self._leases is not None and self._leases_written is not None:
            return self._take_leases(self._leases, self._leases_written, max_keys)
        if self._origins is not None:
            origins, self._origins = self._origins, None
            return origins
        if not self._cut.is_done:
            return self._cut.next_frame(max_keys, max_bytes)
        if self._sessions_written < len(self._session_ids):
            return self._take_sessions(max_keys)
        if self._ended is not None:
            ended = tuple(self._ended[self._ended_written : self._ended_written + max_keys])
            self._ended_written += len(ended)
            remaining = len(self._ended) - self._ended_written
            if not remaining:
                self._ended = None
            return EndedSessionsFrame(ended, remaining)
        self._done = True
        if self._record_sum is not None and self._record_sum.total != self._sum_expected:
            self.mismatch = Mismatch(self.header.applied_index, self._sum_expected, self._record_sum.total)
        return Trailer(self._cut.keys, self._sessions_written)

    def _take_leases(self, leases: Leases, written: int, limit: int) -> LeasesFrame:
        ids = self._lease_ids[written : written + limit]
        preserved = self._preserved_leases
        rows = tuple([preserved.pop(id) if id in preserved else leases.row(id) for id in ids])
        written += len(rows)
        remaining = len(self._lease_ids) - written
        self._leases_written = written if remaining else None
        return LeasesFrame(rows, remaining)

    def _take_sessions(self, max_answers: int) -> SessionsFrame:
        rows: list[SessionRow] = []
        answers = 0
        for client_id in self._session_ids[self._sessions_written :]:
            row = self._preserved_sessions.pop(client_id, None) or self._sessions.row(client_id)
            rows.append(row)
            answers += row.answer_count + 1
            if answers >= max_answers:
                break
        self._sessions_written += len(rows)
        return SessionsFrame(tuple(rows))
