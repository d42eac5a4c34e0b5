"""Backups: fetching one, and reading what one says of itself.

A backup is one file, in the format of the node's own snapshots::

    "KVORSNAP" (8)  |  length (4, little-endian)  |  description, msgpack  |  frames of the state  |  sha256 (32)

The hash is of everything before it. The first frame of the state is its header: length and checksum (4 bytes each,
big-endian), then msgpack ``["h", format, revision, applied_index, applied_term, state_hash, time_ms, keys, sessions]``.
"""

from __future__ import annotations

import hashlib
from typing import BinaryIO

import msgspec

from kvorum_client.errors import BackupDamagedError

MAGIC = b"KVORSNAP"
HASH_BYTES = 32
CHUNK_BYTES = 256 * 1024
DESCRIPTION_BYTES_MAX = 1024 * 1024
FRAME_HEADER_BYTES = 8


class Backup(msgspec.Struct, frozen=True):
    """What a backup holds."""

    size_bytes: int
    sha256: str
    last_index: int
    """The log index whose state it is."""
    last_term: int
    revision: int
    keys: int
    sessions: int
    time_ms: int
    """The log time of its last write (Unix, ms). It may be behind the time of day: it stands still without a leader."""
    stale: bool = False
    """No quorum confirmed it: writes that were acknowledged before it was taken may be missing."""


class _Snapshot(msgspec.Struct, array_like=True):
    """The first fields of several; later versions may add some."""

    last_index: int
    last_term: int


class _Description(msgspec.Struct, array_like=True):
    format: int
    snapshot: _Snapshot
    stale: bool = False


class _Header(msgspec.Struct, array_like=True, tag="h", kw_only=True):
    format: int
    revision: int
    applied_index: int
    applied_term: int
    state_hash: int
    time_ms: int
    keys: int
    sessions: int


class Verifier:
    """Takes a backup's bytes as they come, and tells at the end what it is."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._tail = b""
        self._head = bytearray()
        self.size_bytes = 0

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes."""
        self.size_bytes += len(chunk)
        missing = len(MAGIC) + 4 + DESCRIPTION_BYTES_MAX + 1024 - len(self._head)
        if missing > 0:
            self._head += chunk[:missing]
        data = self._tail + chunk
        self._digest.update(data[:-HASH_BYTES])
        self._tail = data[-HASH_BYTES:]

    def finish(self) -> Backup:
        """Return what it was.

        Raises:
            BackupDamagedError: it was no backup, or not all of one.
        """
        if not self._head.startswith(MAGIC):
            raise BackupDamagedError("this is not a backup")
        if self._tail != self._digest.digest():
            raise BackupDamagedError(
                f"the backup is damaged or incomplete: the hash of its {self.size_bytes} bytes does not match"
            )
        size = int.from_bytes(self._head[len(MAGIC) : len(MAGIC) + 4], "little")
        start = len(MAGIC) + 4
        frame = start + size
        length = int.from_bytes(self._head[frame : frame + 4], "big")
        body = bytes(self._head[frame + FRAME_HEADER_BYTES : frame + FRAME_HEADER_BYTES + length])
        try:
            description = msgspec.msgpack.decode(self._head[start:frame], type=_Description)
            header = msgspec.msgpack.decode(body, type=_Header)
        except msgspec.MsgspecError as error:
            raise BackupDamagedError(f"this program does not support the version of the backup: {error}") from None
        return Backup(
            self.size_bytes,
            self._tail.hex(),
            description.snapshot.last_index,
            description.snapshot.last_term,
            header.revision,
            header.keys,
            header.sessions,
            header.time_ms,
            description.stale,
        )


def describe(stream: BinaryIO) -> Backup:
    """Read a whole backup and return what it holds. Blocking.

    Raises:
        BackupDamagedError: it is no backup, or not all of one.
        OSError: it cannot be read.
    """
    verifier = Verifier()
    while chunk := stream.read(CHUNK_BYTES):
        verifier.feed(chunk)
    return verifier.finish()
