"""The bytes of a snapshot of the state: self-delimiting frames of msgpack.

::

    snapshot = Header frame, Features frame (format 2), QuotaFrame (feature level 3), LeasesFrame+ (feature level 5),
               OriginsFrame (feature level 6),
               records, SessionsFrame*, EndedSessionsFrame+ (feature level 3), Trailer frame
    records  = RecordsFrame* (below feature level 4)
             | HistoryFrame, BaseFrame*, EventsFrame* (at it)
             | HistoryFrame, LeasedBaseFrame*, LeasedEventsFrame* (above it)
    frame    = length (4 bytes, big-endian), crc (4 bytes, big-endian), payload (length bytes)

``crc`` is the CRC-32 of the payload, begun with the ``crc`` of the frame before: a frame that is changed, missing,
repeated or out of place breaks the chain. The members of the cluster are not in here; the file's own header, which
belongs to the storage, has them.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import Annotated
from zlib import crc32

import msgspec

from kvorum.errors import StorageCorruptError
from kvorum.kv.leases import LeaseRow
from kvorum.kv.limits import INTEGER_MAX, INTEGER_MIN
from kvorum.kv.origins import OriginRow
from kvorum.kv.records import Key, Value
from kvorum.kv.sessions import SessionRow

FORMAT_OF_LEVEL_1 = 1
"""What version 0.1.0 reads and writes. It is written at feature level 1."""
FORMAT_WITH_FEATURES = 2
"""The header is followed by a :class:`Features` frame. It is written at every level above 1; the level in that frame
says what else there may be, so the format need not change again."""
CHUNK_KEYS_MAX = 65_536
"""The most keys (or remembered answers) that one frame may be asked to hold."""
CHUNK_BYTES_MAX = 4 * 1024 * 1024
"""The most bytes that one frame may be asked to hold; it may exceed this by its last record."""
FRAME_BYTES_MAX = 16 * 1024 * 1024
"""More than any frame that we write; what claims to be larger is not a frame."""

_Count = Annotated[int, msgspec.Meta(ge=0)]
_Positive = Annotated[int, msgspec.Meta(ge=1)]
LeaseId = Annotated[int, msgspec.Meta(ge=INTEGER_MIN, le=INTEGER_MAX)]
_frame_header = Struct(">II")
FRAME_HEADER_BYTES = _frame_header.size


class Header(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="h", kw_only=True):
    """The first frame: the store's own numbers, and how much follows."""

    format: int
    revision: _Count
    applied_index: _Count
    applied_term: _Count
    state_hash: _Count
    time_ms: _Count
    keys: _Count
    sessions: _Count


class Features(msgspec.Struct, frozen=True, array_like=True, tag="f"):
    """The frame after the header in format 2.

    Fields of later versions are skipped: a version that does not support the level must be able to read which it is.
    """

    level: int
    cluster_id: str
    """The key of the sum."""
    state_sum: bytes
    """The sum over all records, 16 bytes, big-endian; empty if it did not count yet."""


class QuotaFrame(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="q"):
    """The quota on data (:class:`kvorum.kv.quota.Quota`)."""

    limit_bytes: _Count
    configured_bytes: _Count
    is_full: bool


class LeasesFrame(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="l"):
    """Leases, in the order of their grants. The last frame has 0 to come."""

    leases: tuple[LeaseRow, ...]
    remaining: _Count
    """How many come in frames after this one."""


class RecordRow(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """The latest version of a key (:class:`kvorum.kv.records.Record`)."""

    value: Value
    create_revision: _Positive
    mod_revision: _Positive
    version: _Positive


class RecordsFrame(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="r"):
    """Keys and, as many, their latest versions, in the order of their creation. Below feature level 4."""

    keys: tuple[Key, ...]
    records: tuple[RecordRow, ...]


class HistoryFrame(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="v"):
    """What history follows."""

    floor: _Positive
    """The lowest revision that can be read."""
    events: _Count
    """How many events there are from the floor on."""


class VersionRow(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """A version of a key, or the tombstone of one (:class:`kvorum.kv.records.Record`)."""

    key: Key
    value: Value
    create_revision: _Count
    mod_revision: _Positive
    version: _Count
    is_latest: bool
    """Whether it is the key's newest one in the snapshot: the sum covers those, without tombstones. So the sum can be
    verified by a reader that does not keep the records."""


class LeasedVersionRow(VersionRow, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """The same from feature level 5 on."""

    lease: LeaseId
    """The id of its lease; 0: none. Of the latest version of a key the lease is in the snapshot."""


class BaseFrame(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="b"):
    """The versions that were visible just below the floor, in the order of their keys."""

    versions: tuple[VersionRow, ...]


class EventsFrame(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="w"):
    """Every put and delete from the floor on, in order."""

    events: tuple[VersionRow, ...]


class LeasedBaseFrame(BaseFrame, frozen=True, array_like=True, forbid_unknown_fields=True, tag="lb"):
    """The same as :class:`BaseFrame` from feature level 5 on."""

    versions: tuple[LeasedVersionRow, ...]


class LeasedEventsFrame(EventsFrame, frozen=True, array_like=True, forbid_unknown_fields=True, tag="lw"):
    """The same as :class:`EventsFrame` from feature level 5 on."""

    events: tuple[LeasedVersionRow, ...]


class OriginsFrame(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="o"):
    """The origins of what members hand over, in the order in which they were opened."""

    origins: tuple[OriginRow, ...]


class SessionsFrame(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="s"):
    """Sessions, from the least recently used on."""

    sessions: tuple[SessionRow, ...]


class EndedSessionsFrame(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="e"):
    """Client ids of sessions that were ended, and when (log time, ms), in that order. The last one has 0 to come."""

    ended: tuple[tuple[str, _Count], ...]
    remaining: _Count
    """How many come in frames after this one."""


class Trailer(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="t"):
    """The last frame: how much was written."""

    keys: _Count
    sessions: _Count


Frame = (
    Header
    | Features
    | QuotaFrame
    | LeasesFrame
    | RecordsFrame
    | HistoryFrame
    | BaseFrame
    | EventsFrame
    | LeasedBaseFrame
    | LeasedEventsFrame
    | OriginsFrame
    | SessionsFrame
    | EndedSessionsFrame
    | Trailer
)

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Frame] = msgspec.msgpack.Decoder(Frame)


class FrameWriter:
    """Turns frames into bytes, one after the other."""

    __slots__ = ("_crc",)

    def __init__(self) -> None:
        self._crc = 0

    def encode(self, frame: Frame) -> bytes:
        """Return the next frame's bytes."""
        payload = _encoder.encode(frame)
        self._crc = crc32(payload, self._crc)
        return _frame_header.pack(len(payload), self._crc) + payload


class FrameReader:
    """Turns bytes, however they were cut, back into frames."""

    __slots__ = ("_buffer", "_crc")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._crc = 0

    @property
    def buffered_bytes(self) -> int:
        """Bytes of a frame that is not complete yet."""
        return len(self._buffer)

    def feed(self, chunk: bytes) -> Iterator[Frame]:
        """Yield the frames that ``chunk`` completes; exhaust the iterator before the next call.

        Raises:
            StorageCorruptError: these bytes were not written by a :class:`FrameWriter`.
        """
        buffer = self._buffer
        buffer += chunk
        start = 0
        with memoryview(buffer) as view:
            while len(buffer) - start >= FRAME_HEADER_BYTES:
                length, crc = _frame_header.unpack_from(view, start)
                if length > FRAME_BYTES_MAX:
                    raise StorageCorruptError(f"a snapshot frame claims {length} bytes (limit {FRAME_BYTES_MAX})")
                end = start + FRAME_HEADER_BYTES + length
                if end > len(buffer):
                    break
                with view[start + FRAME_HEADER_BYTES : end] as payload:
                    yield self._decode(payload, crc)
                start = end
        del buffer[:start]

    def _decode(self, payload: memoryview, crc: int) -> Frame:
        self._crc = crc32(payload, self._crc)
        if self._crc != crc:
            raise StorageCorruptError("a snapshot frame does not match its checksum")
        try:
            return _decoder.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise StorageCorruptError(f"a snapshot frame is malformed: {error}") from error
