"""What the driver asks of a disk. Two implementations: SQLite through sqlitedict, and the simulator's memory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import BinaryIO, Protocol

import msgspec

from kvorum.identity import Identity
from kvorum.raft.log import OnDisk
from kvorum.raft.messages import Entry, HardState, Load, PeerMark, Save, Snapshot

__all__ = [
    "Identity",
    "Loaded",
    "SnapshotCopy",
    "SnapshotFile",
    "SnapshotInfo",
    "SnapshotReceiver",
    "SnapshotWriter",
    "Storage",
]


class SnapshotInfo(msgspec.Struct, frozen=True, array_like=True):
    """A complete, durable snapshot file."""

    snapshot: Snapshot
    size_bytes: int
    """Of the whole file, header and trailer included."""
    sha256: str
    """Of all bytes of the file but the last 32, which are this hash. 64 hex digits; it names the file's bytes."""


class Loaded(msgspec.Struct, frozen=True):
    """What was durable when the process started.

    Behind ``snapshot.last_index`` the log holds what ``on_disk`` tells of (:meth:`Storage.load_entries` reads it), and
    then ``entries``, which are contiguous.
    """

    identity: Identity | None = None
    hard_state: HardState = HardState()
    snapshot: Snapshot | None = None
    entries: tuple[Entry, ...] = ()
    on_disk: OnDisk = OnDisk()
    marks: tuple[PeerMark, ...] = ()
    """What was known of the other members' disks."""
    commit_index: int = 0
    """What was known to be committed; the log may not reach as far."""


class SnapshotWriter(Protocol):
    """A snapshot being written; it does not exist for :meth:`Storage.load` until :meth:`commit` has returned."""

    def write(self, chunk: bytes) -> None:
        """Append a chunk of the payload (buffered; call from a thread or in small slices)."""

    def commit(self) -> SnapshotInfo:
        """Make it durable: flush, fsync, rename, fsync of the folder. Blocking: run it in a thread.

        Raises:
            StorageError: nothing of it is kept.
        """

    def abort(self) -> None:
        """Throw it away."""


class SnapshotFile(Protocol):
    """The file side of snapshots.

    Each method blocks (run it in a thread), except ``latest``, ``kept``, ``find``, ``pin`` and ``expect``.

    Only a lack of room is survived (:class:`kvorum.errors.SnapshotFailedError`): the log is unharmed. Of
    whatever else the disk refuses the storage's ``failed`` hears as well, as of any other write that failed.
    """

    def create(self, snapshot: Snapshot) -> SnapshotWriter:
        """Begin to write a snapshot of the state after ``snapshot.last_index``.

        Raises:
            SnapshotFailedError: there is no room.
        """

    def latest(self) -> SnapshotInfo | None:
        """Return the newest complete snapshot that the log goes on from, without reading its payload."""

    def kept(self) -> tuple[SnapshotInfo, ...]:
        """Return what :meth:`latest` could fall back to, newest first; at most two.

        A log that still holds every entry behind the *last* of these survives damage to the first.
        """

    def find(self, last_index: int) -> SnapshotInfo | None:
        """Return the complete snapshot at ``last_index``, unless it is newer than what the log goes on from."""

    def pin(self, last_indexes: Collection[int]) -> None:
        """Keep these snapshots, and none that was pinned before, whatever newer ones are taken."""

    def expect(self, last_index: int) -> None:
        """Keep the snapshot at ``last_index``, which consensus adopted, until a save has adopted it or a newer one."""

    def read(self, last_index: int) -> Iterable[bytes]:
        """Yield the payload of the snapshot at ``last_index`` in chunks, verifying it on the way.

        Raises:
            StorageCorruptError: the bytes are not those that were written (at the latest after the last chunk).
        """

    def verify(self, last_index: int) -> None:
        """Read the whole file.

        Raises:
            StorageCorruptError: there is no such snapshot, or its bytes are not those that were written.
        """

    def discard(self, last_index: int, why: str) -> None:
        """Use the snapshot at ``last_index`` no more: it is damaged, or of a wrong state. Does nothing without one."""

    def stream(self, last_index: int) -> BinaryIO:
        """Open the file as it is, header included; once open, it stays readable when newer ones take its place.

        Raises:
            FileNotFoundError: there is no such snapshot.
        """

    def chunk(self, last_index: int, offset_bytes: int, size_bytes: int) -> bytes:
        """Return up to ``size_bytes`` of the file as it is, from ``offset_bytes`` on; empty behind its end.

        Raises:
            StorageCorruptError: there is no such snapshot.
        """

    def receive(self, snapshot: Snapshot, sha256: str = "") -> SnapshotReceiver:
        """Begin (or resume) to receive a snapshot file from a peer.

        With ``sha256`` (the sender's :attr:`SnapshotInfo.sha256`) only a part of that very file is resumed: two leaders
        may write the same state as different bytes.

        Raises:
            SnapshotFailedError: there is no room, or ``sha256`` is no hash.
        """

    def copy(self, last_index: int) -> SnapshotCopy:
        """Begin to receive a snapshot file of which only the state is used: the log never goes on from it.

        There is one at a time. What is left of an earlier one is removed, also at start.

        Raises:
            SnapshotFailedError: there is no room.
        """


class SnapshotReceiver(Protocol):
    """A snapshot file arriving from a peer; what has arrived survives a restart."""

    @property
    def offset_bytes(self) -> int:
        """How much is already here: where to resume."""

    def write(self, chunk: bytes) -> None:
        """Append bytes of the file.

        Raises:
            SnapshotFailedError: there is no room; what arrived is thrown away.
        """

    def commit(self, sha256: str) -> SnapshotInfo:
        """Verify the whole file against ``sha256`` and its own header, and make it durable.

        Raises:
            SnapshotFailedError: it does not match, or there is no room; what arrived is thrown away.
        """

    def abort(self) -> None:
        """Throw away what has arrived."""


class SnapshotCopy(Protocol):
    """A snapshot file arriving from a peer, to be read and removed."""

    def write(self, chunk: bytes) -> None:
        """Append bytes of the file.

        Raises:
            SnapshotFailedError: there is no room; what arrived is thrown away.
        """

    def describe(self) -> Snapshot:
        """Return what the file says that it is.

        Raises:
            StorageError: it cannot be read.
        """

    def read(self) -> Iterable[bytes]:
        """Yield the payload in chunks, verifying it on the way.

        Raises:
            StorageError: it cannot be read, or is damaged (at the latest after the last chunk).
        """

    def abort(self) -> None:
        """Throw away what has arrived."""


class Storage(Protocol):
    """The durable side of one node.

    Every failure to write is fatal and is never retried: :class:`kvorum.errors.StorageError` goes to ``failed``, given
    at construction, and the driver ends the process.
    """

    @property
    def snapshots(self) -> SnapshotFile:
        """The snapshot files beside the log."""

    def load(self) -> Loaded:
        """Verify and read everything. Blocking, once, before the first save.

        Raises:
            StorageError: the folder cannot be trusted; the message says what to do.
        """

    def write_identity(self, identity: Identity, *, replace: bool = False) -> None:
        """Make the identity durable. Blocking; before the first save, and again when the cluster id is known.

        With ``replace`` whoever the folder belonged to is forgotten.

        Raises:
            StorageForeignError: another node's identity is here.
            StorageError: it is not durable.
        """

    def save(self, save: Save, done: Callable[[], None]) -> None:
        """Make ``save`` durable in one atomic write, then call ``done`` on the event loop. At most one in flight.

        Without room for it, it waits until there is some.
        """

    def load_entries(self, load: Load, done: Callable[[tuple[Entry, ...]], None]) -> None:
        """Read entries of the log back, then call ``done`` on the event loop. At most one load at a time.

        Saves and loads are carried out in the order in which they are asked for. ``done`` gets the entries from
        ``load.first_index`` on: at least one of those that are on the disk; none if a compaction has taken them.
        """

    def compact(self, first_index: int, done: Callable[[], None]) -> None:
        """Forget log entries before ``first_index``, which a durable snapshot covers, then call ``done``.

        Works in slices, and saves may go on meanwhile; at most one compaction at a time. Every slice is crash-safe.
        """

    def free_bytes(self) -> int | None:
        """Return how many bytes can still be stored besides the reserve, as far as known; None: not known."""

    def measure(self, wanted_bytes: int) -> None:
        """Look how much room is left; call it now and then. Blocking: run it in a thread.

        A reserve that was given up is made again if ``wanted_bytes`` remain beside it.
        """

    def close(self) -> None:
        """Release the folder. Blocking; waits for the save in flight."""
