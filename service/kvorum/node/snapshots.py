"""Snapshots of our own (section 7): taken in slices between other work, kept, and read by peers in chunks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from kvorum.config import Config
from kvorum.errors import SnapshotFailedError, StorageCorruptError, StorageError
from kvorum.kv.snapshot import Restorer
from kvorum.kv.snapshot_iterator import SnapshotIterator
from kvorum.kv.store import Store
from kvorum.node.ports import Clock, Tasks, Threads
from kvorum.node.space import DiskSpace
from kvorum.node.state import State
from kvorum.node.supervisor import Supervisor
from kvorum.raft import Raft
from kvorum.raft.messages import Configuration, Snapshot
from kvorum.storage.interface import SnapshotCopy, SnapshotFile, SnapshotInfo, Storage
from kvorum.telemetry.counters import Counters
from kvorum.transport.interface import SnapshotChunk

log = logging.getLogger("kvorum.snapshot")

RETRY_S = 30.0
"""After a snapshot that could not be stored, none is begun by itself for so long."""

LOW_SHARE = 16
"""A disk with too little room gets a snapshot when that frees one part in so many of what is needed."""

PINS_MAX = 2
"""Snapshots that are kept only because peers read them."""
PIN_S = 60.0
"""A snapshot is kept for so long after a peer read a piece of it."""
PIN_READ_S = 5.0
"""The same after its last piece: another peer may be reading it, too."""


class Snapshots:
    """Takes the snapshots of one node, one at a time: the loop encodes a chunk, a thread writes it.

    Args:
        config: when one is due, and how much of the log stays behind it.
        raft: the consensus server.
        state: what is taken.
        storage: where it goes.
        clock: measures time.
        tasks: where it runs.
        threads: where the disk is written.
        supervisor: who knows whether the process is about to end.
        counters: where snapshots are counted.
        space: whether the disk has little room, so that the log is to be kept short.
    """

    def __init__(
        self,
        config: Config,
        raft: Raft,
        state: State,
        storage: Storage,
        clock: Clock,
        tasks: Tasks,
        threads: Threads,
        supervisor: Supervisor,
        counters: Counters,
        space: DiskSpace,
    ) -> None:
        self._space = space
        self._entries_due = config.snapshot_entries
        self._retain_entries = config.log_retain_entries
        self._raft = raft
        self._state = state
        self._storage = storage
        self._clock = clock
        self._tasks = tasks
        self._threads = threads
        self._supervisor = supervisor
        self._counters = counters
        self._task: asyncio.Task[None] | None = None
        self._not_before_s = 0.0
        self._verified: dict[int, float] = {}
        """Until when a snapshot that was verified is not verified again, by last index."""
        self._distrusted: set[str] = set()
        """The hashes of snapshot files that may hold a wrong state."""
        self._distrusts = 0
        """How often all snapshots were distrusted: one that was begun before the last time is not kept."""
        mismatch = state.store.mismatch
        if mismatch is not None and (loaded := storage.snapshots.find(mismatch.index)) is not None:
            self._distrusted.add(loaded.sha256)
        self._pins: dict[int, float] = {}
        """Until when each snapshot is kept for its readers, by last index."""
        self._is_compacting = False
        self._uncut_bytes = 1 << 62
        """Of log between the two snapshots that are kept: it is cut when the next one is there. Not known at start."""

    # --- Taking -------------------------------------------------------------------------------------------------

    def begin_if_due(self) -> None:
        """Begin a snapshot if enough was applied since the last one."""
        state, snapshot = self._state, self._raft.snapshot
        last = snapshot.last_index if snapshot else 0
        applied = state.store.applied_index
        if applied - last < self._entries_due and state.bytes_since_snapshot < self._space.log_bytes_due:
            return
        # A newer snapshot than what is applied is being adopted: the log no longer knows this index.
        if not state.may_be_wrong and last <= applied and self._clock.monotonic() >= self._not_before_s:
            self.begin()

    def begin_if_low(self) -> None:
        """Begin a snapshot if that gives a disk with too little room some. Called once a tick."""
        state, space = self._state, self._space
        if not space.is_low or (self._task is not None and not self._task.done()):
            return
        freed_bytes = self._uncut_bytes + state.bytes_since_snapshot
        freed_bytes += sum(info.size_bytes - space.state_bytes for info in self._storage.snapshots.kept())
        if freed_bytes < space.needed_bytes // LOW_SHARE:
            return
        last = self._raft.snapshot.last_index if self._raft.snapshot else 0
        is_new = state.store.applied_index > last and not state.may_be_wrong
        if is_new and self._clock.monotonic() >= self._not_before_s:
            self.begin()

    def begin(self) -> asyncio.Task[None]:
        """Begin to take a snapshot of the state as it is now, unless one is being taken; return the task.

        Raises:
            SnapshotFailedError: a newer one is being installed, or the state is wrong or suspected to be.
        """
        state, raft = self._state, self._raft
        if state.is_wrong:
            raise SnapshotFailedError("the state is in quarantine")
        if state.is_given_up:
            raise SnapshotFailedError("a newer snapshot is being installed")
        if state.may_be_wrong:
            raise SnapshotFailedError("the records in memory do not match their sum; the members are being asked")
        if self._task is None or self._task.done():
            if state.store.applied_index < raft.log.base_index:
                raise SnapshotFailedError("a newer snapshot is being installed")
            log_bytes, state.bytes_since_snapshot = state.bytes_since_snapshot, 0
            snapshot = raft.snapshot_at(state.store.applied_index)
            # The iterator is made now: by the time the task runs, the store may have moved on.
            iterator = state.store.begin_snapshot()
            self._task = self._tasks.spawn(self._take(iterator, snapshot, log_bytes, self._distrusts), name="snapshot")
        return self._task

    async def ended(self) -> None:
        """Return once no snapshot is being taken."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def close(self) -> None:
        """Stop taking a snapshot."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _take(self, iterator: SnapshotIterator, snapshot: Snapshot, log_bytes: int, distrusts: int) -> None:
        try:
            info = await self._write(iterator, snapshot)
        except StorageError as error:
            # The log goes on without a snapshot; only space is lost. Try again later.
            self._not_before_s = self._clock.monotonic() + RETRY_S
            self._state.bytes_since_snapshot += log_bytes
            log.error("snapshot at index %d failed: %s", snapshot.last_index, error)
            return
        if self._supervisor.has_failed:
            return
        if distrusts != self._distrusts:
            self._state.bytes_since_snapshot += log_bytes
            await self._discard(info)
            return
        for other in self._storage.snapshots.kept() if self._distrusted else ():
            if other.sha256 in self._distrusted and other.sha256 != info.sha256:
                await self._discard(other)
        if distrusts == self._distrusts:
            self._distrusted.clear()
        self._uncut_bytes = log_bytes
        self._compact(self._raft.compact(snapshot, 0 if self._space.is_tight else self._retain_entries))

    async def _write(self, iterator: SnapshotIterator, snapshot: Snapshot) -> SnapshotInfo:
        """Write the iterator as the snapshot that ``snapshot`` describes, and close it. Return it when it is durable.

        Raises:
            StorageError: it could not be written, or memory does not hold what was applied; nothing of it is kept.
        """
        counters, run = self._counters, self._threads.finish
        since = self._clock.monotonic()
        try:
            writer = await run(self._storage.snapshots.create, snapshot)
            try:
                while (chunk := iterator.next_chunk()) is not None:
                    await run(writer.write, chunk)
                if iterator.mismatch is not None:
                    self._state.is_in_doubt = True
                    raise SnapshotFailedError("the records in memory do not have the sum that was kept of them")
                self._unpin_lapsed()
                info = await run(writer.commit)
            except BaseException:
                writer.abort()
                raise
        except StorageError:
            counters.snapshots["create", "failed"] += 1
            raise
        finally:
            iterator.close()
        duration_s = self._clock.monotonic() - since
        counters.snapshots["create", "ok"] += 1
        counters.snapshot_duration["create"].record(duration_s)
        log.info(
            "took a snapshot at index %d: %d keys, %d bytes, %.1f s",
            snapshot.last_index,
            iterator.header.keys,
            info.size_bytes,
            duration_s,
        )
        return info

    def _compact(self, first_index: int) -> None:
        """Cut the durable log before ``first_index``, but only where the older of the kept snapshots still suffices."""
        kept = self._storage.snapshots.kept()
        if not kept or self._is_compacting:
            return

        def done() -> None:
            self._is_compacting = False

        self._is_compacting = True
        self._storage.compact(min(first_index, kept[-1].snapshot.last_index + 1), done)

    # --- What cannot be trusted ----------------------------------------------------------------------------------

    def latest(self) -> SnapshotInfo | None:
        """Return the newest snapshot that is not of a wrong state."""
        kept = self._storage.snapshots.kept()
        return next((info for info in kept if info.sha256 not in self._distrusted), None)

    def distrust_all(self) -> None:
        """Serve none of the present snapshots any more: the state is wrong, or may be.

        The next one to be taken replaces them.
        """
        self._distrusts += 1
        self._distrusted |= {info.sha256 for info in self._storage.snapshots.kept()}

    async def _discard(self, info: SnapshotInfo) -> None:
        """Remove a snapshot of a wrong state."""
        await self._threads.run(self._storage.snapshots.discard, info.snapshot.last_index, "its state may be wrong")

    # --- Reading ------------------------------------------------------------------------------------------------

    async def chunk(self, last_index: int, offset_bytes: int, size_bytes: int, at_least: int | None) -> SnapshotChunk:
        """Return a piece of our snapshot at ``last_index``; 0: the newest.

        The newest is taken now if there is none at ``at_least`` or later; with None, none is ever taken.

        Raises:
            StorageError: there is none, or ``at_least`` is not applied.
        """
        if self._state.is_wrong:
            raise SnapshotFailedError("the state is in quarantine")
        snapshots = self._storage.snapshots
        info = snapshots.find(last_index) if last_index else self.latest()
        if last_index == 0 and at_least is not None:
            applied = self._state.store.applied_index
            if at_least > applied:
                raise SnapshotFailedError(f"a snapshot at {at_least} is asked for, but only {applied} is applied here")
            if applied and (info is None or info.snapshot.last_index < at_least):
                # The caller may go away, but the snapshot is the node's.
                await asyncio.shield(self.begin())
                info = self.latest()
        if info is not None and info.sha256 in self._distrusted:
            self._begin_another()
            raise SnapshotFailedError(f"the snapshot at {last_index} may be of a wrong state; another is being taken")
        if info is None or (last_index == 0 and info.snapshot.last_index < (at_least or 0)):
            raise StorageCorruptError(f"there is no snapshot at {last_index or at_least or 0} here")
        index = info.snapshot.last_index
        if offset_bytes == 0:
            await self._verify(index)
        self._pin(index, is_end=offset_bytes + size_bytes >= info.size_bytes)
        data = await self._threads.run(snapshots.chunk, index, offset_bytes, size_bytes)
        return SnapshotChunk(data, index, info.size_bytes, info.sha256)

    async def _verify(self, last_index: int) -> None:
        """Verify a snapshot that a peer begins to read, unless that was just done; take another if it is damaged.

        Raises:
            StorageCorruptError: it is damaged.
        """
        now, run = self._clock.monotonic(), self._threads.run
        if self._verified.get(last_index, now) > now:
            return
        try:
            await run(self._storage.snapshots.verify, last_index)
        except StorageCorruptError as error:
            await run(self._storage.snapshots.discard, last_index, str(error))
            log.error("the snapshot at index %d cannot be used any more: %s; taking another", last_index, error)
            self._begin_another()
            raise
        self._verified = {index: until for index, until in self._verified.items() if until > now}
        self._verified[last_index] = now + PIN_S

    def _begin_another(self) -> None:
        """Take a snapshot, if one can be taken, in the place of one that cannot be served."""
        if not self._state.may_be_wrong and self._state.store.applied_index >= self._raft.log.base_index:
            self.begin()

    def _pin(self, last_index: int, *, is_end: bool) -> None:
        """Keep a snapshot that a peer reads until it is read, or not read for a while."""
        self._unpin_lapsed()
        # Those that are pinned already are read to their end first: so some reader always gets there.
        if last_index in self._pins or len(self._pins) < PINS_MAX:
            self._pins[last_index] = self._clock.monotonic() + (PIN_READ_S if is_end else PIN_S)
            self._storage.snapshots.pin(self._pins)

    def _unpin_lapsed(self) -> None:
        now = self._clock.monotonic()
        self._pins = {index: until for index, until in self._pins.items() if until > now}
        self._storage.snapshots.pin(self._pins)


def load_store(snapshots: SnapshotFile, snapshot: Snapshot, *, keeps_records: bool = True) -> Store:
    """Return the state in the durable snapshot that ``snapshot`` describes. Blocking: run it in a thread.

    ``keeps_records``: False: only verify it, in little memory.

    Raises:
        StorageCorruptError: it is damaged.
    """
    return _restored(snapshots.read(snapshot.last_index), snapshot.configuration, keeps_records)


def load_copy(copy: SnapshotCopy, *, keeps_records: bool = True) -> Store:
    """Return the state in a copy of another member's snapshot; as :func:`load_store`.

    Raises:
        StorageError: it is damaged, or cannot be read.
    """
    return _restored(copy.read(), copy.describe().configuration, keeps_records)


def _restored(payload: Iterable[bytes], configuration: Configuration, keeps_records: bool) -> Store:
    restorer = Restorer(configuration, keeps_records=keeps_records)
    for chunk in payload:
        restorer.feed(chunk)
    return restorer.finish()
