"""The bytes of a snapshot file, on any binary stream.

::

    magic (8)  |  length of the description (4, little-endian)  |  description, msgpack  |  payload  |  sha256 (32)

The hash is of everything before it, and stands at the end because the payload is written as it is read from the state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import BinaryIO

import msgspec

from kvorum.errors import SnapshotFailedError, StorageCorruptError
from kvorum.raft.messages import Number, Snapshot

MAGIC = b"KVORSNAP"
FORMAT = 1
HASH_BYTES = 32
CHUNK_BYTES = 256 * 1024
DESCRIPTION_BYTES_MAX = 1024 * 1024
"""Thousands of members; a length above it is damage, and is not allocated."""


class Description(msgspec.Struct, frozen=True, array_like=True):
    """What stands before the payload. Version 0.1.0 writes two fields, and skips what follows."""

    format: int
    snapshot: Snapshot
    """Without its terms: ``kv`` up to version 0.2.0 checks the backups that it saves, and reads three fields only."""
    is_stale: bool = False
    """A backup that no quorum confirmed: writes that were acknowledged before it may be missing."""
    terms: tuple[tuple[Number, Number], ...] = ()
    """Those of the snapshot."""


_decoder = msgspec.msgpack.Decoder(Description)


def encode_header(snapshot: Snapshot, *, is_stale: bool = False) -> bytes:
    """Return what stands before the payload."""
    fields = [FORMAT, (snapshot.last_index, snapshot.last_term, snapshot.configuration), is_stale, snapshot.terms]
    used = 4 if snapshot.terms else 3 if is_stale else 2
    description = msgspec.msgpack.encode(fields[:used])
    return MAGIC + len(description).to_bytes(4, "little") + description


def read_header(stream: BinaryIO) -> tuple[Snapshot, bytes]:
    """Return the description and the header's bytes; the stream stands at the payload.

    Raises:
        StorageCorruptError: this is not the beginning of a snapshot file, or of another format.
    """
    head = stream.read(len(MAGIC) + 4)
    if len(head) != len(MAGIC) + 4 or not head.startswith(MAGIC):
        raise StorageCorruptError("not a snapshot file")
    size = int.from_bytes(head[len(MAGIC) :], "little")
    body = stream.read(size) if size <= DESCRIPTION_BYTES_MAX else b""
    try:
        description = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StorageCorruptError(f"the header of a snapshot file is damaged: {error}") from error
    if description.format != FORMAT:
        raise StorageCorruptError(f"a snapshot file of format {description.format}; this version supports {FORMAT}")
    snapshot = description.snapshot
    return Snapshot(snapshot.last_index, snapshot.last_term, snapshot.configuration, description.terms), head + body


def is_stale(header: bytes) -> bool:
    """Tell whether a header that :func:`read_header` returned is that of a backup without a quorum."""
    return _decoder.decode(header[len(MAGIC) + 4 :]).is_stale


def stale_size_bytes(stream: BinaryIO, size_bytes: int) -> int:
    """Return the size of what :func:`marked_stale` yields; the stream stands at its beginning before and afterwards.

    Raises:
        StorageCorruptError: this is not the beginning of a snapshot file.
    """
    snapshot, header = read_header(stream)
    stream.seek(0)
    return size_bytes - len(header) + len(encode_header(snapshot, is_stale=True))


def marked_stale(stream: BinaryIO, size_bytes: int) -> Iterator[bytes]:
    """Yield a whole file of ``size_bytes``, with the mark of a backup without a quorum and a hash of its own.

    Raises:
        StorageCorruptError: before the new hash: the bytes are not those that were written.
    """
    snapshot, header = read_header(stream)
    marked = encode_header(snapshot, is_stale=True)
    digest = hashlib.sha256(marked)
    yield marked
    for chunk in read_payload(stream, header, size_bytes):
        digest.update(chunk)
        yield chunk
    yield digest.digest()


def read_payload(stream: BinaryIO, header: bytes, size_bytes: int) -> Iterator[bytes]:
    """Yield the payload of a file of ``size_bytes`` whose ``header`` has been read, and verify the hash at its end.

    Raises:
        StorageCorruptError: after the last chunk: the bytes are not those that were written.
    """
    digest = hashlib.sha256(header)
    remaining = size_bytes - len(header) - HASH_BYTES
    while remaining > 0:
        chunk = stream.read(min(CHUNK_BYTES, remaining))
        if not chunk:
            break
        remaining -= len(chunk)
        digest.update(chunk)
        yield chunk
    if remaining != 0 or stream.read(HASH_BYTES) != digest.digest():
        raise StorageCorruptError("a snapshot file is damaged: its hash does not match")


def verify(stream: BinaryIO, size_bytes: int) -> tuple[Snapshot, str]:
    """Read a whole file from the start and return its description and its hash.

    Raises:
        StorageCorruptError: the bytes are not those that were written.
    """
    snapshot, header = read_header(stream)
    for _ in read_payload(stream, header, size_bytes):
        pass
    stream.seek(size_bytes - HASH_BYTES)
    return snapshot, stream.read(HASH_BYTES).hex()


def check_received(expected: Snapshot, expected_sha256: str, found: Snapshot, found_sha256: str) -> None:
    """Compare a file that arrived, itself valid, with the one that was announced.

    Raises:
        SnapshotFailedError: it is another.
    """
    if (found.last_index, found.last_term) != (expected.last_index, expected.last_term):
        raise SnapshotFailedError(
            f"the snapshot that arrived is of entry {found.last_index} in term {found.last_term}, "
            f"not {expected.last_index} in {expected.last_term}"
        )
    if found_sha256 != expected_sha256:
        raise SnapshotFailedError(f"the snapshot that arrived has hash {found_sha256}, not {expected_sha256}")
