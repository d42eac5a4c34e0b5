"""The room that a data folder has left, and a file that keeps a little of it in reserve.

The members of a cluster store the same data, so equal disks fill at the same time. Therefore the log asks for room
before it writes anything. A save that would not fit waits, as on a disk that does not answer; it does not fail. The
reserve is a file of real bytes. It is given up when the log has no other room left, also at the start, so that a node
on a full disk can start and delete; it is made again when there is enough room.
"""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

from kvorum.storage.files import FILE_MODE

log = logging.getLogger("kvorum.storage")

RESERVE = "reserve"
RESERVE_SHARE = 8
"""The reserve takes at most one part in so many of the file system."""
LOG_BYTES = 1024 * 1024
"""Snapshot files never take the last bytes of a disk: so many are left to the log."""
SLACK_BYTES = 256 * 1024
"""What a write may need besides its own pages: the trees above them, the index of the write-ahead log, names."""

_PIECE_BYTES = 256 * 1024


class Room:
    """What is left on the file system of one data folder. May be used from several threads.

    Args:
        folder: the data folder.
        reserve_bytes: the size of the reserve; 0: there is none.

    Attributes:
        free_bytes: what was left when it was measured last, less what was taken since. None: not known, which counts
            as enough.
        is_reserved: the reserve is there.
    """

    def __init__(self, folder: Path, reserve_bytes: int) -> None:
        self.free_bytes: int | None = None
        self.is_reserved = False
        self._path = folder / RESERVE
        self._folder = folder
        self._reserve_bytes_max = reserve_bytes
        self._capacity_bytes = 0
        self._lock = threading.Lock()

    @property
    def reserve_bytes(self) -> int:
        """The size of the reserve, as far as the file system is large enough for it."""
        return min(self._reserve_bytes_max, self._capacity_bytes // RESERVE_SHARE)

    @property
    def unreserved_bytes(self) -> int | None:
        """What is left once the reserve is there; None: not known."""
        free_bytes = self.free_bytes
        if free_bytes is None:
            return None
        return max(free_bytes - (0 if self.is_reserved else self.reserve_bytes), 0)

    def measure(self) -> None:
        """Look how much is left. Blocks."""
        try:
            status = os.statvfs(self._folder)
        except OSError as error:
            log.debug("cannot measure the free space of %s: %s", self._folder, error)
            return
        with self._lock:
            self._capacity_bytes = status.f_blocks * status.f_frsize
            self.free_bytes = status.f_bavail * status.f_frsize
            self.is_reserved = self.reserve_bytes > 0 and self._is_whole()

    def holds(self, size_bytes: int) -> bool:
        """Tell whether so many bytes can be written."""
        return self.free_bytes is None or self.free_bytes >= size_bytes + SLACK_BYTES

    def take(self, size_bytes: int) -> None:
        """Count bytes that are about to be written."""
        with self._lock:
            if self.free_bytes is not None:
                self.free_bytes = max(self.free_bytes - size_bytes, 0)

    def make(self, size_bytes: int) -> bool:
        """Give up the reserve if so many bytes do not fit otherwise; return whether they fit. Blocks."""
        self.measure()
        if self.holds(size_bytes):
            return True
        try:
            given_up_bytes = self._path.stat().st_size
            self._path.unlink()
        except OSError:
            return False
        log.warning("The disk is full: gave up the reserve of %d bytes (%s)", given_up_bytes, self._path)
        self.measure()
        return self.holds(size_bytes)

    def keep(self, wanted_bytes: int) -> None:
        """Make the reserve if it is missing and ``wanted_bytes`` remain beside it. Blocks."""
        reserve_bytes = self.reserve_bytes
        if self.free_bytes is None or self.is_reserved or not reserve_bytes:
            return
        if self.free_bytes < reserve_bytes + wanted_bytes + SLACK_BYTES:
            return
        try:
            self._write(reserve_bytes)
        except OSError as error:
            log.debug("cannot make the reserve %s: %s", self._path, error)
            self._path.unlink(missing_ok=True)
        self.measure()

    def _is_whole(self) -> bool:
        try:
            status = self._path.stat()
        except OSError:
            return False
        return min(status.st_size, status.st_blocks * 512) >= self.reserve_bytes

    def _write(self, size_bytes: int) -> None:
        """Write bytes that no file system can store as a hole or compress away."""
        descriptor = os.open(self._path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, FILE_MODE)
        try:
            for offset in range(0, size_bytes, _PIECE_BYTES):
                os.write(descriptor, os.urandom(min(_PIECE_BYTES, size_bytes - offset)))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
