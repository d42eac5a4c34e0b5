"""The high-water mark: a lower bound of the log's end, kept outside the database, which exposes a truncated log."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from kvorum.errors import StorageAmnesiaError, StorageCorruptError
from kvorum.storage.files import FILE_MODE, sync_folder

_RECORD = struct.Struct("<QI")


class HighWaterMark:
    """The sequence number and the CRC of a durable record: the log never ends before it.

    The mark is overwritten after each record and never synced. It may therefore lag behind after a loss of power, but
    it never runs ahead; and since the file was made durable before the first record, it is never missing.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    def read(self) -> tuple[int, int] | None:
        """Return (seq, crc), or None if there is no mark.

        Raises:
            StorageCorruptError: it is not 12 bytes long.
        """
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return None
        if len(data) != _RECORD.size:
            raise StorageCorruptError(f"the high-water mark {self._path} is {len(data)} bytes long, not {_RECORD.size}")
        seq, crc = _RECORD.unpack(data)
        return seq, crc

    def create(self) -> None:
        """Make the mark of an empty log, durably."""
        temporary = self._path.with_suffix(".tmp")
        descriptor = os.open(temporary, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, FILE_MODE)
        try:
            os.write(descriptor, _RECORD.pack(0, 0))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.rename(self._path)
        sync_folder(self._path.parent)

    def open(self) -> None:
        """Prepare to write."""
        self._descriptor = os.open(self._path, os.O_WRONLY)

    def write(self, seq: int, crc: int) -> None:
        """Say that record ``seq`` is durable. Not synced: 2 microseconds."""
        os.pwrite(self._descriptor, _RECORD.pack(seq, crc), 0)

    def close(self) -> None:
        """Stop writing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def check_high_water_mark(mark: tuple[int, int], last_seq: int, crcs: dict[int, int]) -> None:
    """Compare the mark with the log.

    Args:
        mark: (seq, crc) of a record that was durable.
        last_seq: where the log ends; 0: it is empty.
        crcs: the CRC of each record that compaction has not removed.

    Raises:
        StorageAmnesiaError: the log ends before the mark.
        StorageCorruptError: the log is another than the one that the mark was made for.
    """
    seq, crc = mark
    if seq > last_seq:
        raise StorageAmnesiaError(
            f"the log ends at record {last_seq}, but record {seq} was once durable: this disk has lost data. "
            "The node must not vote"
        )
    if crcs.get(seq, crc) != crc:
        raise StorageCorruptError(f"record {seq} of the log does not match the high-water mark")
