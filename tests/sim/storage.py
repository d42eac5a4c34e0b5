"""What one process has of its disk: the port, and what befalls a disk while the process uses it.

The disk itself (:mod:`sim.disk`) outlives the process; what is here dies with it. The log's writes become durable at
drawn times, in order; snapshot files are written by whatever thread calls. A disk may stand still, answer late, be
full, or fail.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TYPE_CHECKING, BinaryIO

from sim.loop import ProcessKilled, SimLoop

from kvorum.errors import SnapshotFailedError, StorageError
from kvorum.raft.messages import Entry, Load, Save, Snapshot
from kvorum.storage.interface import (
    Identity,
    Loaded,
    SnapshotCopy,
    SnapshotInfo,
    SnapshotReceiver,
    SnapshotWriter,
)
from kvorum.storage.memory import Compaction, MemorySnapshots

if TYPE_CHECKING:
    from sim.node import SimNode


class SimStorage:
    """Implements :class:`kvorum.storage.interface.Storage`.

    Args:
        node: whose disk it is.
        loop: of the process that opened it.
        failed: told, on the loop, what the disk refused.
    """

    def __init__(self, node: SimNode, loop: SimLoop, failed: Callable[[StorageError], None]) -> None:
        self.snapshots = SimSnapshots(node, loop)
        self._node = node
        self._loop = loop
        self._failed = failed
        self._is_closed = False

    def _check(self) -> None:
        if self._loop.is_dead:
            raise ProcessKilled

    def load(self) -> Loaded:
        """Read everything; in a thread."""
        self._check()
        loaded = self._node.disk.load()
        self._node.on_load(loaded)
        return loaded

    def write_identity(self, identity: Identity, *, replace: bool = False) -> None:
        """Make the identity durable at once."""
        self._check()
        self._node.disk.write_identity(identity, replace=replace)

    def save(self, save: Save, done: Callable[[], None]) -> None:
        """Begin a save; it is durable, and then answered, later."""
        self._check()
        node = self._node
        node.crash_at("before_save")
        node.port_called("save")
        node.observe(node.world.facts.on_save, node, save)
        node.known_commit_index = save.commit_index
        node.disk.save(save, _nothing)
        node.saving_since = node.ticks
        self._schedule(save, done)
        node.crash_at("save_lost")
        node.crash_at("save_durable_unanswered")

    def load_entries(self, load: Load, done: Callable[[tuple[Entry, ...]], None]) -> None:
        """Begin to read entries back."""
        self._check()
        self._node.port_called("load")
        self._node.world.counts["loads"] += 1
        self._node.disk.load_entries(load, _nothing_of)
        self._schedule(load, lambda: done(self._node.disk.entries(load)))

    def compact(self, first_index: int, done: Callable[[], None]) -> None:
        """Begin to forget entries."""
        self._check()
        self._node.port_called("compact")
        self._node.observe(self._node.world.facts.on_compact, self._node, first_index)
        self._node.disk.compact(first_index, _nothing)
        self._schedule(self._node.disk.pending[-1], done)

    def close(self) -> None:
        """Wait for the save in flight, and let go of the disk; nothing is answered any more."""
        self._check()
        node = self._node
        self._is_closed = True
        pending = node.disk.pending
        if pending and self._is_refused(pending[0]):
            return
        if pending and not self._has_room(pending[0]):
            node.disk.crash()
            return
        for operation in pending:
            node.on_durable(operation)
        node.disk.close()

    # --- Time passes --------------------------------------------------------------------------------------------

    def _schedule(self, operation: Save | Compaction | Load, done: Callable[[], None]) -> None:
        node = self._node
        node.world.clock.after(node.timely(node.disk_us()), self._end, operation, done)

    def _end(self, operation: Save | Compaction | Load, done: Callable[[], None]) -> None:
        """Make it durable, if the disk does."""
        node, clock = self._node, self._node.world.clock
        if self._loop.is_dead or not node.disk.pending:
            return
        if node.stalled_until > clock.now:
            clock.after(node.stalled_until - clock.now, self._end, operation, done)
        elif node.disk.pending[0] is not operation:
            clock.after(node.plan.disk_us, self._end, operation, done)
        elif self._is_refused(operation):
            return
        elif not self._has_room(operation):
            node.world.counts["saves that wait for room"] += 1
            clock.after(node.plan.tick_us, self._end, operation, done)
        else:
            node.disk.complete()
            node.on_durable(operation)
            late_us = node.answer_us()
            if late_us:
                clock.after(late_us, self._loop.enter, self._answer, operation, done)
            else:
                self._loop.enter(self._answer, operation, done)

    def _has_room(self, operation: Save | Compaction | Load) -> bool:
        node = self._node
        return not isinstance(operation, Save) or node.room is None or node.has_room(node.disk.size_bytes(operation))

    def free_bytes(self) -> int | None:
        """Return what is left of the disk."""
        return self._node.free_bytes

    def measure(self, wanted_bytes: int) -> None:
        """Look at the disk: what is left of it is known anyway."""
        self._check()

    def _answer(self, operation: Save | Compaction | Load, done: Callable[[], None]) -> None:
        if self._is_closed:
            return
        if isinstance(operation, Save):
            if self._node.port_error == "answer":
                # What runs before the node is called back fails; the storage's watchdog ends the process later.
                self._node.port_error = ""
                self._node.world.counts["answers lost"] += 1
                late_us = self._node.plan.election_timeout_us
                self._node.world.clock.after(late_us, self._loop.enter, self._give_up)
                return
            self._node.crash_at("after_save_before_send")
            self._node.saving_since = None
        done()

    def _give_up(self) -> None:
        self._node.doom()
        self._failed(StorageError("a save has no answer"))

    def _is_refused(self, operation: Save | Compaction | Load) -> bool:
        """Return whether the disk refuses this: once, or as long as it is full. The process must end (B31, B32)."""
        node = self._node
        if isinstance(operation, Load):
            return False
        if node.full_until > node.world.clock.now:
            node.world.counts["writes without room"] += 1
            self._fail("the disk is full")
        elif node.fail_next_save and isinstance(operation, Save):
            node.fail_next_save = False
            if node.draw.randrange(2):
                # It was durable all the same.
                node.disk.crash(durable=1)
                node.on_durable(operation)
            self._fail("the disk fails")
        else:
            return False
        return True

    def _fail(self, why: str) -> None:
        node = self._node
        node.world.note(node.id, "is told: {}", why)
        if node.draw.random() < 0.5 and node.disk.tear(node.draw.randrange(1 << 16)):
            node.world.counts["torn saves"] += 1
        node.disk.fail(StorageError(why))
        node.doom()
        self._loop.enter(self._failed, StorageError(why))


class SimSnapshots:
    """Implements :class:`kvorum.storage.interface.SnapshotFile`."""

    def __init__(self, node: SimNode, loop: SimLoop) -> None:
        self._node = node
        self._loop = loop

    @property
    def _files(self) -> MemorySnapshots:
        self.check()
        return self._node.disk.snapshots

    def check(self) -> None:
        """Refuse a dead process."""
        if self._loop.is_dead:
            raise ProcessKilled

    def check_room(self) -> None:
        """Refuse to write while there is no room for files.

        Raises:
            SnapshotFailedError: there is none.
        """
        self.check()
        room = self._node.room
        is_full = room is not None and (self._node.free_bytes or 0) < room.needed_bytes // 8
        if is_full or self._node.no_files_until > self._node.world.clock.now:
            self._node.world.counts["snapshots without room"] += 1
            raise SnapshotFailedError("there is no room for a snapshot")

    def create(self, snapshot: Snapshot) -> SnapshotWriter:
        """Begin a snapshot."""
        self.check_room()
        self._node.port_called("create")
        return _Writer(self, self._node, snapshot, self._files.create(snapshot))

    def latest(self) -> SnapshotInfo | None:
        """Return the newest."""
        return self._files.latest()

    def kept(self) -> tuple[SnapshotInfo, ...]:
        """Return those that the log goes on from."""
        return self._files.kept()

    def find(self, last_index: int) -> SnapshotInfo | None:
        """Return the snapshot at an index."""
        return self._files.find(last_index)

    def pin(self, last_indexes: Collection[int]) -> None:
        """Keep these."""
        self._files.pin(last_indexes)

    def expect(self, last_index: int) -> None:
        """Keep this one."""
        self._files.expect(last_index)

    def read(self, last_index: int) -> Iterator[bytes]:
        """Yield the payload."""
        yield from self._files.read(last_index)

    def verify(self, last_index: int) -> None:
        """Compare the hash."""
        self._files.verify(last_index)

    def discard(self, last_index: int, why: str) -> None:
        """Remove it."""
        self._files.discard(last_index, why)

    def stream(self, last_index: int) -> BinaryIO:
        """Open a file."""
        return self._files.stream(last_index)

    def chunk(self, last_index: int, offset_bytes: int, size_bytes: int) -> bytes:
        """Return bytes of the file."""
        return self._files.chunk(last_index, offset_bytes, size_bytes)

    def receive(self, snapshot: Snapshot, sha256: str = "") -> SnapshotReceiver:
        """Begin, or resume, to receive a file."""
        self._node.port_called("receive")
        receiver = self._files.receive(snapshot, sha256)
        if receiver.offset_bytes:
            self._node.world.counts["fetches resumed"] += 1
        else:
            self._node.disk.has_damaged_part = False
        return _Receiver(self, self._node, receiver)

    def copy(self, last_index: int) -> SnapshotCopy:
        """Begin to receive a file of which only the state is used."""
        self._node.port_called("receive")
        return _Copy(self, self._node, self._files.copy(last_index))


class _Writer:
    """A snapshot of the node's own."""

    def __init__(self, files: SimSnapshots, node: SimNode, snapshot: Snapshot, writer: SnapshotWriter) -> None:
        self._files = files
        self._node = node
        self._snapshot = snapshot
        self._writer = writer

    def write(self, chunk: bytes) -> None:
        self._files.check_room()
        self._node.port_called("write")
        self._writer.write(chunk)

    def commit(self) -> SnapshotInfo:
        self._files.check_room()
        info = self._writer.commit()
        self._node.world.counts["snapshots"] += 1
        self._node.world.note(self._node.id, "has written a snapshot at {}", self._snapshot.last_index)
        return info

    def abort(self) -> None:
        self._files.check()
        self._writer.abort()


class _Receiver:
    """A snapshot of another, arriving."""

    def __init__(self, files: SimSnapshots, node: SimNode, receiver: SnapshotReceiver) -> None:
        self._files = files
        self._node = node
        self._receiver = receiver

    @property
    def offset_bytes(self) -> int:
        return self._receiver.offset_bytes

    def write(self, chunk: bytes) -> None:
        self._check_room()
        self._receiver.write(chunk)
        self._node.crash_at("during_fetch")

    def commit(self, sha256: str) -> SnapshotInfo:
        self._check_room()
        try:
            return self._receiver.commit(sha256)
        except SnapshotFailedError:
            # What arrived before a loss of power may be damaged; nothing else may be.
            self._node.on_damaged_snapshot()
            raise

    def abort(self) -> None:
        self._files.check()
        self._receiver.abort()

    def _check_room(self) -> None:
        try:
            self._files.check_room()
        except SnapshotFailedError:
            self._receiver.abort()
            raise


class _Copy:
    """A snapshot of another, of which only the state is used."""

    def __init__(self, files: SimSnapshots, node: SimNode, copy: SnapshotCopy) -> None:
        self._files = files
        self._node = node
        self._copy = copy

    def write(self, chunk: bytes) -> None:
        self._files.check_room()
        self._copy.write(chunk)
        self._node.crash_at("during_fetch")

    def describe(self) -> Snapshot:
        self._files.check()
        return self._copy.describe()

    def read(self) -> Iterable[bytes]:
        self._files.check()
        return self._copy.read()

    def abort(self) -> None:
        self._files.check()
        self._copy.abort()


def _nothing() -> None:
    """The disk answers nobody: :class:`SimStorage` does, later."""


def _nothing_of(_: tuple[Entry, ...]) -> None:
    """As above, of a load."""
