"""The snapshots of one simulated process: its own, written in slices, and those that it fetches in pieces."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.plan import MS

from kvorum.errors import InvariantViolated, StorageError
from kvorum.kv.snapshot import Restorer
from kvorum.kv.store import Store
from kvorum.raft.messages import Fetch, Snapshot
from kvorum.storage.interface import SnapshotInfo, SnapshotReceiver
from kvorum.storage.memory import Compaction

if TYPE_CHECKING:
    from sim.node import SimNode
    from sim.world import World

PIECES_MAX = 6
"""A file arrives in so many pieces, or in fewer."""
TRIES_MAX = 10
PAUSE_US = 50 * MS
"""Between two tries."""
SLOWEST = 500
"""Microseconds that a byte of it may take: so long that faults find it on its way."""


class Snapshots:
    """Lives and dies with a process; the files do not.

    Args:
        world: where it lives.
        node: whose process it belongs to.
    """

    def __init__(self, world: World, node: SimNode) -> None:
        self._world = world
        self._plan = world.plan
        self._node = node
        self._cut: _Cut | None = None
        self._not_before_us = 0
        self._is_compacting = False
        self._fetch: _Fetch | None = None

    @property
    def _is_over(self) -> bool:
        return self._node.raft is None or self._node.snapshots is not self

    # --- Of its own ---------------------------------------------------------------------------------------------

    def begin_if_due(self) -> None:
        """Begin a snapshot of what is applied now, if enough was applied since the last."""
        node, every = self._node, self._plan.snapshot_every
        if not every or self._cut is not None or node.raft is None:
            return
        last = node.raft.snapshot.last_index if node.raft.snapshot else 0
        if node.store.applied_index - last < every or self._world.clock.now < self._not_before_us:
            return
        self._cut = _Cut(node, node.raft.snapshot_at(node.store.applied_index))
        self._world.clock.after(self._plan.disk_us, self._continue, self._cut)

    def stop(self) -> None:
        """Throw away what is being written: the store is replaced."""
        if self._cut is not None:
            self._cut.abort()
            self._cut = None

    def _continue(self, cut: _Cut) -> None:
        node, clock = self._node, self._world.clock
        if self._is_over or cut is not self._cut or not node.when_awake(self._continue, cut):
            return
        if node.stalled_until > clock.now:
            clock.after(node.stalled_until - clock.now, self._continue, cut)
            return
        if node.no_files_until > clock.now:
            # Nothing of it is kept, the log goes on, and it is tried again later (bug B32).
            self.stop()
            self._not_before_us = clock.now + self._plan.election_timeout_us
            self._world.counts["snapshots without room"] += 1
            return
        if cut.write_slice(self._plan.chunk_keys):
            clock.after(self._plan.disk_us, self._continue, cut)
            return
        self._cut = None
        self._world.counts["snapshots"] += 1
        self._world.note(node.id, "has written a snapshot at {}", cut.snapshot.last_index)
        assert node.raft is not None
        node.raft.compact(cut.snapshot, self._plan.retain)
        self._compact()
        node.after_input()

    def _compact(self) -> None:
        kept = self._node.disk.snapshots.kept()
        if not kept or self._is_compacting or self._node.raft is None:
            return
        # The older of the kept snapshots must suffice, too.
        self._is_compacting = True
        self._node.compact(min(self._node.raft.log.first_index, kept[-1].snapshot.last_index + 1))

    def compacted(self, operation: Compaction) -> None:
        """A compaction is durable."""
        self._is_compacting = False
        self._node.first_index = max(self._node.first_index, operation.first_index)

    # --- Of others ----------------------------------------------------------------------------------------------

    def fetch(self, wanted: Fetch) -> None:
        """Bring this file here, then tell the core, which wants one at a time."""
        assert self._fetch is None
        self._fetch = _Fetch(wanted)
        delay = 2 * self._plan.latency_us + self._plan.disk_us
        self._world.clock.after(self._node.timely(delay), self._take_piece, self._fetch)

    def _take_piece(self, fetch: _Fetch) -> None:
        node = self._node
        if self._is_over or fetch is not self._fetch or not node.when_awake(self._take_piece, fetch):
            return
        wanted, info = fetch.wanted.snapshot, self._offered(fetch.wanted)
        if info is None:
            self._try_again(fetch)
            return
        receiver = node.disk.snapshots.receive(wanted, info.sha256)
        if not receiver.offset_bytes:
            node.disk.has_damaged_part = False
        elif fetch.is_resumed:
            self._world.counts["fetches resumed"] += 1
        fetch.is_resumed = False
        if node.no_files_until > self._world.clock.now:
            receiver.abort()
            self._try_again(fetch)
            return
        size_bytes = 1 + info.size_bytes // node.draw.randrange(2, PIECES_MAX + 1)
        piece = self._world.nodes[fetch.wanted.source].disk.snapshots.chunk(
            wanted.last_index, receiver.offset_bytes, size_bytes
        )
        receiver.write(piece)
        if node.crash_at("during_fetch"):
            return
        if receiver.offset_bytes < info.size_bytes:
            delay = 2 * self._plan.latency_us + self._plan.disk_us + size_bytes * (1 + node.draw.randrange(SLOWEST))
            self._world.clock.after(node.timely(delay), self._take_piece, fetch)
        else:
            self._finish(fetch, receiver, info)

    def _offered(self, wanted: Fetch) -> SnapshotInfo | None:
        """Return what the source has of this snapshot, or None if it does not answer, or has it no more."""
        world, node, plan = self._world, self._node, self._plan
        sender = world.nodes.get(wanted.source)
        if sender is None or sender.raft is None or sender.paused_until > world.clock.now:
            return None
        if world.network.is_cut(sender.id, node.id) or world.network.is_cut(node.id, sender.id):
            return None
        if world.network.is_faulty and node.draw.random() * 1000 < 2 * plan.drop_per_mille:
            return None
        return next((info for info in sender.disk.snapshots.kept() if info.snapshot == wanted.snapshot), None)

    def _try_again(self, fetch: _Fetch) -> None:
        """Keep what has arrived, and go on later; give up in the end, until the snapshot is offered again."""
        fetch.tries_left -= 1
        fetch.is_resumed = True
        if fetch.tries_left:
            self._world.clock.after(self._node.timely(PAUSE_US), self._take_piece, fetch)
            return
        self._fetch = None
        self._world.counts["fetches given up"] += 1
        self._world.note(self._node.id, "does not get the snapshot at {}", fetch.wanted.snapshot.last_index)
        assert self._node.raft is not None
        self._node.raft.fetch_failed(fetch.wanted.snapshot)

    def _finish(self, fetch: _Fetch, receiver: SnapshotReceiver, info: SnapshotInfo) -> None:
        node = self._node
        assert node.raft is not None
        self._fetch = None
        try:
            receiver.commit(info.sha256)
        except StorageError as error:
            # What arrived before a loss of power may be damaged; it is fetched anew when it is offered again.
            if not node.disk.has_damaged_part:
                raise InvariantViolated(f"a snapshot of {fetch.wanted.source} does not verify: {error}") from error
            node.disk.has_damaged_part = False
            self._world.counts["damaged parts found"] += 1
            node.raft.fetch_failed(fetch.wanted.snapshot)
            return
        node.raft.fetched(fetch.wanted.snapshot)
        node.after_input()


class _Fetch:
    """A snapshot file on its way."""

    def __init__(self, wanted: Fetch) -> None:
        self.wanted = wanted
        self.tries_left = TRIES_MAX
        self.is_resumed = True
        """An earlier try, or an earlier process, may have left something."""


class _Cut:
    """A snapshot being written in slices."""

    def __init__(self, node: SimNode, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._cut = node.store.begin_snapshot()
        self._writer = node.disk.snapshots.create(snapshot)

    def write_slice(self, keys: int) -> bool:
        """Write some; return whether there is more. In the end the snapshot is durable."""
        chunk = self._cut.next_chunk(keys)
        if chunk is not None:
            self._writer.write(chunk)
            return True
        self._cut.close()
        self._writer.commit()
        return False

    def abort(self) -> None:
        """Throw it away."""
        self._cut.close()
        self._writer.abort()


def load_store(node: SimNode, snapshot: Snapshot) -> Store:
    """Return the state in a snapshot on this node's disk."""
    restorer = Restorer(snapshot.configuration)
    for chunk in node.disk.snapshots.read(snapshot.last_index):
        restorer.feed(chunk)
    return restorer.finish()
