"""The data folder: its creation, its lock, its mark, and what it takes to make a name in it durable.

::

    kvorum.db, -wal, -shm    the log
    mark                     a lower bound of the log's end
    lock                     held while a node runs
    snapshots/               see :mod:`kvorum.storage.snapshots`
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kvorum.errors import StorageAmnesia, StorageCorrupt, StorageError, StorageLocked

FOLDER_MODE = 0o700
FILE_MODE = 0o600

DATABASE = "kvorum.db"
MARK = "mark"
LOCK = "lock"
SNAPSHOTS = "snapshots"


BUILDING = "restored.tmp"
STAGED = "restored"
MOVING = "restoring"
REPLACED = "replaced"
RESTORE_NAMES = frozenset({BUILDING, STAGED, MOVING, REPLACED})
"""Names in a data folder that other movers of its content leave alone."""

_MARK = struct.Struct("<QI")


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn an ``OSError`` into a :class:`StorageError` that says what was being done.

    Raises:
        StorageError: the body raised an ``OSError``.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(f"{what}: {error.strerror or error}") from error


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def create_folder(path: Path) -> None:
    """Create a folder and its parents, durably; only its owner may read it."""
    missing = [level for level in (path, *path.parents) if not level.exists()]
    for level in reversed(missing):
        level.mkdir(FOLDER_MODE, exist_ok=True)
        sync_folder(level.parent)
    if not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))


def create_file(path: Path) -> None:
    """Create an empty file that only its owner may read, unless it is there. SQLite gives ``-wal`` the same mode."""
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, FILE_MODE))


class Lock:
    """One process a folder: an flock that ends with the process, however it ends.

    Raises:
        StorageLocked: another process holds it.
    """

    def __init__(self, folder: Path) -> None:
        self._descriptor = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR, FILE_MODE)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._descriptor)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise StorageLocked(f"another process holds the data folder {folder}: is a node already running?") from None

    def release(self) -> None:
        """Let another process have the folder."""
        os.close(self._descriptor)


class Mark:
    """The sequence number and the CRC of a record that is durable: the log never ends before it.

    The mark is overwritten after each record and never synced. It may therefore lag behind after a loss of power, but
    it never runs ahead; and since the file was made durable before the first record, it is never missing.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / MARK
        self._descriptor = -1

    def read(self) -> tuple[int, int] | None:
        """Return (seq, crc), or None if there is no mark.

        Raises:
            StorageCorrupt: it is not 12 bytes long.
        """
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return None
        if len(data) != _MARK.size:
            raise StorageCorrupt(f"the mark {self._path} is {len(data)} bytes long, not {_MARK.size}")
        seq, crc = _MARK.unpack(data)
        return seq, crc

    def create(self) -> None:
        """Make the mark of an empty log, durably."""
        temporary = self._path.with_suffix(".tmp")
        descriptor = os.open(temporary, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, FILE_MODE)
        try:
            os.write(descriptor, _MARK.pack(0, 0))
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
        os.pwrite(self._descriptor, _MARK.pack(seq, crc), 0)

    def close(self) -> None:
        """Stop writing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def check_mark(mark: tuple[int, int], last_seq: int, crcs: dict[int, int]) -> None:
    """Compare the mark with the log.

    Args:
        mark: (seq, crc) of a record that was durable.
        last_seq: where the log ends; 0: it is empty.
        crcs: the CRC of each record that compaction has not removed.

    Raises:
        StorageAmnesia: the log ends before the mark.
        StorageCorrupt: the log is another than the one that the mark was made for.
    """
    seq, crc = mark
    if seq > last_seq:
        raise StorageAmnesia(
            f"the log ends at record {last_seq}, but record {seq} was once durable: this disk has lost data. "
            "The node must not vote"
        )
    if crcs.get(seq, crc) != crc:
        raise StorageCorrupt(f"record {seq} of the log is not the one that the mark was written for")
