"""Snapshot files in a folder: written beside, made durable, then renamed into place.

::

    00000000000000001000.snapshot   complete; the number is its last index
    00000000000000001000.writing    our own, being written; removed at start
    00000000000000001000-copy.writing  another member's, of which only the state is used; removed at start
    00000000000000001000-HASH.part  arriving from a peer; resumed after a restart
    00000000000000001000.damaged    its hash did not match; the last one is left for whoever wants to know why

Which files are used is up to the log: a file that arrived from a peer but that no record of the log adopts is left
alone, and not announced, until a save adopts it. :mod:`kvorum.storage.retention` says how many are kept.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import threading
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import BinaryIO

from kvorum.errors import InvariantViolatedError, SnapshotFailedError, StorageCorruptError, StorageError
from kvorum.raft.messages import Snapshot
from kvorum.storage import retention
from kvorum.storage.files import FILE_MODE, create_folder, explained, opened_folder, sync_folder
from kvorum.storage.interface import SnapshotInfo
from kvorum.storage.room import LOG_BYTES, Room
from kvorum.storage.snapshot_format import (
    CHUNK_BYTES,
    HASH_BYTES,
    check_received,
    encode_header,
    read_header,
    read_payload,
    verify,
)

log = logging.getLogger(__name__)

COMPLETE = ".snapshot"
WRITING = ".writing"
COPY = "-copy" + WRITING
PART = ".part"
DAMAGED = ".damaged"

_HEXADECIMAL = frozenset("0123456789abcdef")
_FOR_NOW = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE)
"""A lack of room or of descriptors: a later snapshot may succeed."""

_WRITE_BACK_BYTES = 4 * 1024 * 1024
"""How much of a file may wait in the page cache: one large fsync at the end would hold up the saves of the log."""


class Snapshots:
    """The snapshot files of one node; implements :class:`~kvorum.storage.interface.SnapshotFile`.

    Its methods may be called from several threads. On the event loop only those that touch no file: :meth:`latest`,
    :meth:`kept`, :meth:`find`, :meth:`pin`, :meth:`path`, :meth:`expect` and
    :meth:`begin_adoption`.

    Args:
        folder: where they are.
        broken: called, on any thread, when the disk refuses a write for a reason that does not go away by itself, as a
            lack of room or of descriptors does.
        room: what is left on the disk; None: it is not asked.
    """

    def __init__(self, folder: Path, broken: Callable[[StorageError], None], room: Room | None = None) -> None:
        self.folder = folder
        self._room = room
        self._broken = broken
        self._files = threading.Lock()
        """Held while names in the folder change, and while that is synced; never taken on the event loop."""
        self._lock = threading.Lock()
        """Held for a moment, for the fields below."""
        self._infos: dict[int, SnapshotInfo] = {}
        self._adopted = 0
        """The last index of the newest snapshot that the log goes on from."""
        self._expected = 0
        """Consensus adopted this one, and a save will."""
        self._saving = 0
        """The save in flight adopts this one."""
        self._pinned: frozenset[int] = frozenset()

    # --- For the driver -----------------------------------------------------------------------------------------------

    def create(self, snapshot: Snapshot) -> Writer:
        """Begin to write a snapshot.

        Raises:
            SnapshotFailedError: there is no room.
            StorageError: the file cannot be created.
        """
        try:
            return Writer(self, snapshot)
        except OSError as error:
            raise self.failure("cannot create a snapshot", error) from error

    def latest(self) -> SnapshotInfo | None:
        """Return the newest snapshot that the log goes on from."""
        return next(iter(self.kept()), None)

    def kept(self) -> tuple[SnapshotInfo, ...]:
        """Return the snapshots that the log goes on from, newest first."""
        with self._lock:
            return tuple(self._infos[index] for index in retention.kept(self._infos, self._adopted))

    def find(self, last_index: int) -> SnapshotInfo | None:
        """Return the snapshot at ``last_index``, unless the log does not go on from it yet."""
        with self._lock:
            return self._infos.get(last_index) if last_index <= self._adopted else None

    def pin(self, last_indexes: Collection[int]) -> None:
        """Keep these, and none that was pinned before."""
        with self._lock:
            self._pinned = frozenset(last_indexes)

    def expect(self, last_index: int) -> None:
        """Keep the snapshot at ``last_index`` whatever arrives: a save will adopt it, or one that is expected later."""
        with self._lock:
            self._expected = last_index

    def read(self, last_index: int) -> Iterator[bytes]:
        """Yield the payload in chunks; its hash is verified at the end."""
        with explained(f"cannot read the snapshot at {last_index}"), self._open(last_index) as stream:
            _, header = read_header(stream)
            yield from read_payload(stream, header, os.fstat(stream.fileno()).st_size)

    def verify(self, last_index: int) -> None:
        """Read the whole file and compare its hash."""
        with explained(f"cannot read the snapshot at {last_index}"), self._open(last_index) as stream:
            verify(stream, os.fstat(stream.fileno()).st_size)

    def discard(self, last_index: int, why: str) -> None:
        """Set the snapshot at ``last_index`` aside, if there is one."""
        with self._files:
            with self._lock:
                info = self._infos.pop(last_index, None)
            if info is not None:
                with explained(f"cannot set the snapshot at {last_index} aside"):
                    self._set_aside(self._path(last_index), why)

    def stream(self, last_index: int) -> BinaryIO:
        """Open the file as it is."""
        return open(self._path(last_index), "rb")

    def path(self, last_index: int) -> str:
        """Return the file's path. A file that is open stays readable when it is removed."""
        return str(self._path(last_index))

    def chunk(self, last_index: int, offset_bytes: int, size_bytes: int) -> bytes:
        """Return bytes of the file."""
        with explained(f"cannot read the snapshot at {last_index}"), self._open(last_index) as stream:
            return os.pread(stream.fileno(), size_bytes, offset_bytes)

    def receive(self, snapshot: Snapshot, sha256: str = "") -> Receiver:
        """Begin or resume to receive a file; parts of any other are removed."""
        if not _HEXADECIMAL.issuperset(sha256):
            raise SnapshotFailedError("cannot receive a snapshot: the peer announced an invalid hash")
        path = self.folder / f"{snapshot.last_index:020d}-{sha256[:16] or 'unknown'}{PART}"
        try:
            for other in self.folder.glob(f"*{PART}"):
                if other != path:
                    other.unlink(missing_ok=True)
            return Receiver(self, snapshot, path)
        except OSError as error:
            raise self.failure("cannot receive a snapshot", error) from error

    def copy(self, last_index: int) -> Copy:
        """Begin to receive a file of which only the state is used; what is left of an earlier one is removed."""
        try:
            for other in self.folder.glob(f"*{COPY}"):
                other.unlink(missing_ok=True)
            return Copy(self, self.folder / f"{last_index:020d}{COPY}")
        except OSError as error:
            raise self.failure("cannot receive a snapshot", error) from error

    # --- For the log --------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Create the folder, remove what a crash left, and read the headers of what is complete."""
        create_folder(self.folder)
        # A crash may have come between a rename and its sync; what is found here counts as durable.
        sync_folder(self.folder)
        for leftover in self.folder.glob(f"*{WRITING}"):
            leftover.unlink()
        for path in sorted(self.folder.glob(f"*{COMPLETE}")):
            try:
                info = _describe(path)
                if info.snapshot.last_index != _last_index(path):
                    raise StorageCorruptError(f"it is of entry {info.snapshot.last_index}")
                self._infos[info.snapshot.last_index] = info
            except StorageCorruptError as error:
                self._set_aside(path, error)

    def exist(self) -> bool:
        """Tell whether there is any file of a snapshot, valid or not."""
        return any(self.folder.glob(f"*{COMPLETE}")) or any(self.folder.glob(f"*{DAMAGED}"))

    def verified(self, damaged: list[int]) -> Iterator[Snapshot]:
        """Yield the valid snapshots, newest first, each read as a whole; set the others aside, and list them."""
        damaged.extend(_last_index(path) for path in self.folder.glob(f"*{DAMAGED}"))
        for last_index in sorted(self._infos, reverse=True):
            path = self._path(last_index)
            try:
                with open(path, "rb") as stream:
                    snapshot, sha256 = verify(stream, os.fstat(stream.fileno()).st_size)
            except StorageCorruptError as error:
                del self._infos[last_index]
                self._set_aside(path, error)
                damaged.append(last_index)
                continue
            self._infos[last_index] = SnapshotInfo(snapshot, path.stat().st_size, sha256)
            yield snapshot

    def begin_adoption(self, last_index: int) -> None:
        """Keep the snapshot at ``last_index`` whatever arrives or is expected: the save in flight adopts it.

        Raises:
            InvariantViolatedError: there is none.
        """
        with self._lock:
            if last_index not in self._infos:
                raise InvariantViolatedError(f"a save adopts the snapshot at {last_index}, which is missing")
            self._saving = last_index

    def start_from(self, snapshot: Snapshot | None) -> None:
        """Note, at start, which snapshot the log goes on from, and remove what arrived and no record adopted.

        That is of no use any more; and should the log outgrow it as a new cluster's, it would contradict the log.
        """
        self._adopted = snapshot.last_index if snapshot is not None else 0
        for last_index in [index for index in self._infos if index > self._adopted]:
            del self._infos[last_index]
            self._path(last_index).unlink()

    def adopt_index(self, last_index: int) -> None:
        """Note that the log goes on from the snapshot at ``last_index``: a second older one is removed."""
        with self._files:
            with self._lock:
                self._adopted = last_index
                superfluous = self._forget_superfluous()
            self._remove(superfluous)

    def add(self, path: Path, info: SnapshotInfo, *, own: bool) -> None:
        """Rename a synced file into place; ``own``: it was taken from the log of this node, which goes on from it."""
        last_index = info.snapshot.last_index
        # Opened before the rename: a lack of descriptors must not show after it.
        with self._files, opened_folder(self.folder) as folder:
            path.rename(self._path(last_index))
            try:
                sync_folder(self.folder, folder)
            except OSError as error:
                # It may have taken the place of one that the log needs, and nobody knows which of them a crash leaves.
                raise self._refused("cannot make a snapshot durable", error) from error
            with self._lock:
                self._infos[last_index] = info
                if own:
                    self._adopted = max(self._adopted, last_index)
                superfluous = self._forget_superfluous()
            self._remove(superfluous)

    def take_room(self, size_bytes: int) -> None:
        """Check that so many bytes can be written without taking what the log needs. Blocks.

        Raises:
            OSError: they cannot.
        """
        if self._room is None:
            return
        self._room.measure()
        if not self._room.holds(size_bytes + LOG_BYTES):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._room.take(size_bytes)

    def failure(self, what: str, error: OSError) -> StorageError:
        """Return what to raise when a file could not be written: only what goes away by itself spares the node."""
        if error.errno in _FOR_NOW:
            return SnapshotFailedError(f"{what}: {error.strerror}")
        return self._refused(what, error)

    def _refused(self, what: str, error: OSError) -> StorageError:
        failure = StorageError(f"{what}: {error.strerror or error}")
        self._broken(failure)
        return failure

    def _forget_superfluous(self) -> list[int]:
        """Forget what is not needed, and return the last indexes of the files to remove."""
        superfluous = retention.superfluous(self._infos, self._adopted, (self._expected, self._saving), self._pinned)
        for last_index in superfluous:
            del self._infos[last_index]
        return superfluous

    def _remove(self, last_indexes: list[int]) -> None:
        """Remove files. One that comes back after a crash does no harm: the folder is not synced."""
        for last_index in last_indexes:
            self._path(last_index).unlink(missing_ok=True)

    def _set_aside(self, path: Path, why: object) -> None:
        log.warning("the snapshot %s is damaged and was moved aside: %s", path, why)
        for older in self.folder.glob(f"*{DAMAGED}"):
            older.unlink()
        path.rename(path.with_suffix(DAMAGED))

    def _path(self, last_index: int) -> Path:
        return self.folder / f"{last_index:020d}{COMPLETE}"

    def _open(self, last_index: int) -> BinaryIO:
        try:
            return open(self._path(last_index), "rb")
        except FileNotFoundError:
            raise StorageCorruptError(f"there is no snapshot at {last_index}") from None


class Writer:
    """A snapshot of our own being written. After a failure nothing of it is kept, which gives the log its room back."""

    def __init__(self, snapshots: Snapshots, snapshot: Snapshot) -> None:
        self._snapshots = snapshots
        self._snapshot = snapshot
        self._path = snapshots.folder / f"{snapshot.last_index:020d}{WRITING}"
        descriptor = os.open(self._path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, FILE_MODE)
        self._file = os.fdopen(descriptor, "wb", CHUNK_BYTES)
        self._digest = hashlib.sha256()
        self._size_bytes = 0
        self._written_back = 0
        self.write(encode_header(snapshot))

    def write(self, chunk: bytes) -> None:
        """Append to the payload.

        Raises:
            SnapshotFailedError: there is no room.
            StorageError: the disk refused.
        """
        try:
            self._append(chunk)
            self._digest.update(chunk)
        except OSError as error:
            raise self._failure(error) from error

    def commit(self) -> SnapshotInfo:
        """Make it durable."""
        sha256 = self._digest.digest()
        try:
            self._append(sha256)
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            info = SnapshotInfo(self._snapshot, self._size_bytes, sha256.hex())
            self._snapshots.add(self._path, info, own=True)
        except OSError as error:
            raise self._failure(error) from error
        return info

    def abort(self) -> None:
        """Throw it away."""
        _close(self._file)
        self._path.unlink(missing_ok=True)

    def _failure(self, error: OSError) -> StorageError:
        self.abort()
        return self._snapshots.failure("cannot write a snapshot", error)

    def _append(self, chunk: bytes) -> None:
        self._snapshots.take_room(len(chunk))
        self._file.write(chunk)
        self._size_bytes += len(chunk)
        if self._size_bytes - self._written_back >= _WRITE_BACK_BYTES:
            self._file.flush()
            _begin_write_back(self._file.fileno())
            self._written_back = self._size_bytes


class _Arriving:
    """A file arriving from a peer.

    After a failure the part is removed, which gives the log its room back. The file is open only during
    :meth:`write`, so this object may simply be dropped when the sender goes away.
    """

    def __init__(self, snapshots: Snapshots, path: Path) -> None:
        self._snapshots = snapshots
        self._path = path
        self._offset_bytes = path.stat().st_size if path.exists() else 0
        self._written_back = self._offset_bytes

    @property
    def offset_bytes(self) -> int:
        """Where to resume."""
        return self._offset_bytes

    def write(self, chunk: bytes) -> None:
        """Append bytes of the file."""
        try:
            self._snapshots.take_room(len(chunk))
            descriptor = os.open(self._path, os.O_CREAT | os.O_WRONLY, FILE_MODE)
            try:
                _write_all(descriptor, chunk, self._offset_bytes)
                self._offset_bytes += len(chunk)
                if self._offset_bytes - self._written_back >= _WRITE_BACK_BYTES:
                    _begin_write_back(descriptor)
                    self._written_back = self._offset_bytes
            finally:
                os.close(descriptor)
        except OSError as error:
            raise self._failure(error) from error

    def abort(self) -> None:
        """Throw away what has arrived."""
        self._path.unlink(missing_ok=True)
        self._offset_bytes = 0
        self._written_back = 0

    def _failure(self, error: OSError) -> StorageError:
        self.abort()
        return self._snapshots.failure("cannot store a snapshot from a peer", error)


class Receiver(_Arriving):
    """A snapshot file arriving from a peer, for the log to go on from."""

    def __init__(self, snapshots: Snapshots, snapshot: Snapshot, path: Path) -> None:
        super().__init__(snapshots, path)
        self._snapshot = snapshot

    def commit(self, sha256: str) -> SnapshotInfo:
        """Verify the whole file and make it durable."""
        try:
            with open(self._path, "rb") as stream:
                size_bytes = os.fstat(stream.fileno()).st_size
                snapshot, found = verify(stream, size_bytes)
                check_received(self._snapshot, sha256, snapshot, found)
                os.fsync(stream.fileno())
            info = SnapshotInfo(snapshot, size_bytes, found)
            self._snapshots.add(self._path, info, own=False)
        except StorageCorruptError as error:
            self.abort()
            raise SnapshotFailedError(f"the snapshot that arrived is damaged: {error}") from error
        except SnapshotFailedError:
            self.abort()
            raise
        except FileNotFoundError as error:
            if not self._snapshots.folder.exists():
                raise self._failure(error) from error
            raise SnapshotFailedError("the snapshot that arrived was removed meanwhile") from error
        except OSError as error:
            raise self._failure(error) from error
        return info


class Copy(_Arriving):
    """A snapshot file arriving from a peer, of which only the state is used."""

    def describe(self) -> Snapshot:
        """Return the description."""
        with explained(f"cannot read {self._path}"), open(self._path, "rb") as stream:
            return read_header(stream)[0]

    def read(self) -> Iterator[bytes]:
        """Yield the payload in chunks; its hash is verified at the end."""
        with explained(f"cannot read {self._path}"), open(self._path, "rb") as stream:
            _, header = read_header(stream)
            yield from read_payload(stream, header, os.fstat(stream.fileno()).st_size)


def _describe(path: Path) -> SnapshotInfo:
    """Read a file's header and trailer, not its payload."""
    with open(path, "rb") as stream:
        size_bytes = os.fstat(stream.fileno()).st_size
        snapshot, header = read_header(stream)
        if size_bytes < len(header) + HASH_BYTES:
            raise StorageCorruptError("the file is too short")
        return SnapshotInfo(snapshot, size_bytes, os.pread(stream.fileno(), HASH_BYTES, size_bytes - HASH_BYTES).hex())


def _last_index(path: Path) -> int:
    return int(path.stem) if path.stem.isdecimal() else 0


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _begin_write_back(descriptor: int) -> None:
    """Ask the kernel to start writing, and not to keep the pages: nobody reads them soon."""
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def _close(file: BinaryIO) -> None:
    """Close a file whose buffer may be impossible to write: what it still holds is thrown away with the file."""
    try:
        file.close()
    except OSError as error:
        log.debug("cannot close a discarded snapshot: %s", error)
