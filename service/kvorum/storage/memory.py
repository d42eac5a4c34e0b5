"""The twin of the disk, in memory: for tests, and for the simulator, which decides when a save becomes durable.

Nothing here touches a file, a clock or a thread. Everything that was asked and is not yet durable is ``pending``;
``complete`` makes the oldest of it durable and answers; ``crash`` loses it, or makes some of it durable without
answering, which is what a crash just after an fsync does.
"""

from __future__ import annotations

import hashlib
import io
from collections import deque
from collections.abc import Callable, Collection, Iterator
from typing import BinaryIO

import msgspec

from kvorum.errors import InvariantViolatedError, SnapshotFailedError, StorageCorruptError, StorageError
from kvorum.raft.log import entry_bytes
from kvorum.raft.messages import Entry, Load, Save, Snapshot
from kvorum.storage import retention
from kvorum.storage.interface import Identity, Loaded, SnapshotInfo
from kvorum.storage.records import LogState, check_compaction, check_identity, make_record, recover
from kvorum.storage.snapshot_format import (
    check_received,
    encode_header,
    read_header,
    read_payload,
    verify,
)


class Compaction(msgspec.Struct, frozen=True):
    """A compaction that was asked for."""

    first_index: int


class MemoryStorage:
    """A disk whose calls and failures the caller decides; implements :class:`~kvorum.storage.interface.Storage`.

    Args:
        failed: called by :meth:`fail`, as a real disk would when a write fails.
        automatic: every save is durable and answered before :meth:`save` returns; for tests that do not look at disks.
        log_memory_bytes_max: how much of the log :meth:`load` returns; None: all of it.
    """

    def __init__(
        self,
        failed: Callable[[StorageError], None] | None = None,
        *,
        automatic: bool = False,
        log_memory_bytes_max: int | None = None,
    ) -> None:
        self.snapshots = MemorySnapshots()
        self._failed = failed
        self._automatic = automatic
        self._log_memory_bytes_max = log_memory_bytes_max
        self._identity: Identity | None = None
        self._state = LogState()
        self._seq = 0
        self._pending: deque[tuple[Save | Compaction | Load, Callable[[], None]]] = deque()
        self._dead = False

    @property
    def pending(self) -> tuple[Save | Compaction | Load, ...]:
        """What is not durable yet, oldest first."""
        return tuple(operation for operation, _ in self._pending)

    def load(self) -> Loaded:
        """Return what is durable, as after a start."""
        self._pending.clear()
        self._dead = False
        damaged: list[int] = []
        state = self._state.bounded(self._log_memory_bytes_max)
        loaded = recover(self._identity, state, self.snapshots.verified(damaged), damaged)
        self.snapshots.start_from(loaded.snapshot)
        return loaded

    def write_identity(self, identity: Identity, *, replace: bool = False) -> None:
        """Make the identity durable at once."""
        if not replace:
            check_identity(self._identity, identity)
        self._identity = identity

    def save(self, save: Save, done: Callable[[], None]) -> None:
        """Put ``save`` among what is pending."""
        if any(isinstance(operation, Save) for operation, _ in self._pending):
            raise InvariantViolatedError("a save was begun while another is in flight")
        if save.snapshot is not None:
            self.snapshots.begin_adoption(save.snapshot.last_index)
        self._begin(save, done)

    def load_entries(self, load: Load, done: Callable[[tuple[Entry, ...]], None]) -> None:
        """Put a load among what is pending."""
        self._begin(load, lambda: done(self.entries(load)))

    def entries(self, load: Load) -> tuple[Entry, ...]:
        """Return what this load reads."""
        entries: list[Entry] = []
        size_bytes = 0
        for entry in self._state.entries:
            if load.first_index <= entry.index <= load.last_index:
                size_bytes += entry_bytes(entry)
                if entries and size_bytes > load.bytes_max:
                    break
                entries.append(entry)
        return tuple(entries)

    def compact(self, first_index: int, done: Callable[[], None]) -> None:
        """Put a compaction among what is pending."""
        check_compaction(first_index, self.snapshots.latest())
        if any(isinstance(operation, Compaction) for operation, _ in self._pending):
            raise InvariantViolatedError("a compaction was begun while another is in progress")
        self._begin(Compaction(first_index), done)

    def free_bytes(self) -> int | None:
        """Return that it is not known how much can be stored."""
        return None

    def measure(self, wanted_bytes: int) -> None:
        """Look at nothing: memory has room."""

    def close(self) -> None:
        """Make durable what is pending, as a disk does that waits for its writes; nothing is answered."""
        self.crash(len(self._pending))

    # --- What a disk does, and what happens to it ---------------------------------------------------------------------

    def complete(self) -> None:
        """Make the oldest pending operation durable, and answer it."""
        operation, done = self._pending.popleft()
        self._apply(operation)
        done()

    def crash(self, durable: int = 0) -> None:
        """Lose what is pending but for the ``durable`` oldest, which became durable and were never answered."""
        for operation, _ in list(self._pending)[:durable]:
            self._apply(operation)
        self._pending.clear()

    def fail(self, error: StorageError) -> None:
        """Fail as a real disk does: what is pending is lost or not, and nothing is ever answered again."""
        self._dead = True
        self._pending.clear()
        if self._failed is not None:
            self._failed(error)

    def _begin(self, operation: Save | Compaction | Load, done: Callable[[], None]) -> None:
        if self._dead:
            return
        self._pending.append((operation, done))
        if self._automatic:
            self.complete()

    def _apply(self, operation: Save | Compaction | Load) -> None:
        if isinstance(operation, Load):
            return
        if isinstance(operation, Compaction):
            self._state.forget_before(operation.first_index)
            return
        self._seq += 1
        self._state.apply(make_record(self._seq, 0, self._state.last_index, operation))
        if operation.snapshot is not None:
            self.snapshots.adopt(operation.snapshot)


class MemorySnapshots:
    """Snapshot files as bytes; implements :class:`~kvorum.storage.interface.SnapshotFile`."""

    def __init__(self) -> None:
        self.files: dict[int, bytes] = {}
        """The durable files by last index. A test may damage them."""
        self.parts: dict[int, tuple[str, bytearray]] = {}
        """What has arrived of files that peers send."""
        self._infos: dict[int, SnapshotInfo] = {}
        self._adopted = 0
        self._expected = 0
        self._saving = 0
        self._pinned: frozenset[int] = frozenset()

    def create(self, snapshot: Snapshot) -> MemoryWriter:
        """Begin a snapshot."""
        return MemoryWriter(self, snapshot)

    def latest(self) -> SnapshotInfo | None:
        """Return the newest that the log goes on from."""
        return next(iter(self.kept()), None)

    def kept(self) -> tuple[SnapshotInfo, ...]:
        """Return those that the log goes on from, newest first."""
        return tuple(self._infos[index] for index in retention.kept(self._infos, self._adopted))

    def find(self, last_index: int) -> SnapshotInfo | None:
        """Return the snapshot at ``last_index``, unless the log does not go on from it yet."""
        return self._infos.get(last_index) if last_index <= self._adopted else None

    def pin(self, last_indexes: Collection[int]) -> None:
        """Keep these, and none that was pinned before."""
        self._pinned = frozenset(last_indexes)

    def read(self, last_index: int) -> Iterator[bytes]:
        """Yield the payload, verified."""
        data = self._file(last_index)
        stream = io.BytesIO(data)
        _, header = read_header(stream)
        yield from read_payload(stream, header, len(data))

    def verify(self, last_index: int) -> None:
        """Compare the file's hash."""
        data = self._file(last_index)
        verify(io.BytesIO(data), len(data))

    def discard(self, last_index: int, why: str) -> None:
        """Remove the snapshot at ``last_index``."""
        self.files.pop(last_index, None)
        self._infos.pop(last_index, None)

    def stream(self, last_index: int) -> BinaryIO:
        """Return the file as a stream."""
        if last_index not in self.files:
            raise FileNotFoundError(f"memory:{last_index}")
        return io.BytesIO(self.files[last_index])

    def chunk(self, last_index: int, offset_bytes: int, size_bytes: int) -> bytes:
        """Return bytes of the file."""
        return self._file(last_index)[offset_bytes : offset_bytes + size_bytes]

    def receive(self, snapshot: Snapshot, sha256: str = "") -> MemoryReceiver:
        """Begin or resume to receive a file."""
        for last_index in [index for index in self.parts if index != snapshot.last_index]:
            del self.parts[last_index]
        expected, _ = self.parts.get(snapshot.last_index, ("", b""))
        if expected != sha256:
            self.parts.pop(snapshot.last_index, None)
        _, part = self.parts.setdefault(snapshot.last_index, (sha256, bytearray()))
        return MemoryReceiver(self, snapshot, part)

    def copy(self, last_index: int) -> MemoryCopy:
        """Begin to receive a file of which only the state is used."""
        return MemoryCopy()

    def expect(self, last_index: int) -> None:
        """Keep the snapshot at ``last_index``: a save will adopt it."""
        self._expected = last_index

    def begin_adoption(self, last_index: int) -> None:
        """Keep the snapshot at ``last_index``: the save that begins adopts it."""
        if last_index not in self._infos:
            raise InvariantViolatedError(f"a save adopts the snapshot at {last_index}, which is missing")
        self._saving = last_index

    def start_from(self, snapshot: Snapshot | None) -> None:
        """Note, at start, that the log goes on from ``snapshot``; what arrived and no save adopted is removed."""
        self._adopted = snapshot.last_index if snapshot is not None else 0
        for last_index in [index for index in self.files if index > self._adopted]:
            del self.files[last_index]
            self._infos.pop(last_index, None)

    def adopt(self, snapshot: Snapshot) -> None:
        """Note that the log goes on from ``snapshot``, and remove what is superfluous."""
        self._adopted = snapshot.last_index
        self._remove_superfluous()

    def verified(self, damaged: list[int]) -> Iterator[Snapshot]:
        """Yield the valid ones, newest first; the others are removed, and their indexes put into ``damaged``."""
        for last_index in sorted(self.files, reverse=True):
            try:
                data = self.files[last_index]
                yield verify(io.BytesIO(data), len(data))[0]
            except StorageCorruptError:
                damaged.append(last_index)
                del self.files[last_index]
                self._infos.pop(last_index, None)

    def put(self, data: bytes, *, own: bool) -> SnapshotInfo:
        """Make a complete file durable; ``own``: it was taken from the log of this node, which goes on from it."""
        snapshot, sha256 = verify(io.BytesIO(data), len(data))
        info = SnapshotInfo(snapshot, len(data), sha256)
        self.files[snapshot.last_index] = data
        self._infos[snapshot.last_index] = info
        if own:
            self._adopted = max(self._adopted, snapshot.last_index)
        self._remove_superfluous()
        return info

    def _remove_superfluous(self) -> None:
        for last_index in retention.superfluous(
            self._infos, self._adopted, (self._expected, self._saving), self._pinned
        ):
            del self._infos[last_index], self.files[last_index]

    def _file(self, last_index: int) -> bytes:
        if last_index not in self.files:
            raise StorageCorruptError(f"there is no snapshot at {last_index}")
        return self.files[last_index]


class MemoryWriter:
    """A snapshot being written."""

    def __init__(self, snapshots: MemorySnapshots, snapshot: Snapshot) -> None:
        self._snapshots = snapshots
        self._data = bytearray(encode_header(snapshot))

    def write(self, chunk: bytes) -> None:
        """Append to the payload."""
        self._data += chunk

    def commit(self) -> SnapshotInfo:
        """Make it durable."""
        return self._snapshots.put(sealed(bytes(self._data)), own=True)

    def abort(self) -> None:
        """Throw it away."""
        self._data.clear()


class MemoryReceiver:
    """A snapshot file arriving from a peer."""

    def __init__(self, snapshots: MemorySnapshots, snapshot: Snapshot, part: bytearray) -> None:
        self._snapshots = snapshots
        self._snapshot = snapshot
        self._part = part

    @property
    def offset_bytes(self) -> int:
        """Where to resume."""
        return len(self._part)

    def write(self, chunk: bytes) -> None:
        """Append bytes of the file."""
        self._part += chunk

    def commit(self, sha256: str) -> SnapshotInfo:
        """Verify the file and make it durable."""
        data = bytes(self._part)
        self.abort()
        try:
            snapshot, found = verify(io.BytesIO(data), len(data))
        except StorageCorruptError as error:
            raise SnapshotFailedError(f"the snapshot that arrived is damaged: {error}") from error
        check_received(self._snapshot, sha256, snapshot, found)
        return self._snapshots.put(data, own=False)

    def abort(self) -> None:
        """Throw away what has arrived."""
        self._snapshots.parts.pop(self._snapshot.last_index, None)


class MemoryCopy:
    """A snapshot file arriving from a peer, of which only the state is used."""

    def __init__(self) -> None:
        self._data = bytearray()

    def write(self, chunk: bytes) -> None:
        """Append bytes of the file."""
        self._data += chunk

    def describe(self) -> Snapshot:
        """Return the description."""
        return read_header(io.BytesIO(self._data))[0]

    def read(self) -> Iterator[bytes]:
        """Yield the payload, verified."""
        stream = io.BytesIO(self._data)
        _, header = read_header(stream)
        yield from read_payload(stream, header, len(self._data))

    def abort(self) -> None:
        """Throw away what has arrived."""
        self._data.clear()


def sealed(data: bytes) -> bytes:
    """Return a header and a payload with the hash that ends the file."""
    return data + hashlib.sha256(data).digest()
