"""Taking snapshots of our own, and fetching those of others (section 7).

A snapshot is written in slices between other work: the loop encodes one chunk, a thread writes it. One that is needed
from a peer is fetched in chunks that resume, verified, made durable and decoded before consensus hears of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from time import monotonic

from kvorum.errors import MalformedMessage, PeerError, StorageCorrupt, StorageError
from kvorum.kv.cut import SnapshotCut
from kvorum.kv.snapshot import Restorer
from kvorum.kv.store import Store
from kvorum.raft.messages import Snapshot
from kvorum.storage.interface import SnapshotFile, SnapshotInfo, Storage
from kvorum.telemetry.counters import Counters
from kvorum.telemetry.logs import RateLimit
from kvorum.transport import Transport
from kvorum.transport.server import SnapshotChunk

log = logging.getLogger("kvorum.snapshot")

FETCH_TRIES = 20
FETCH_PAUSE_S = 0.25


async def take_snapshot(storage: Storage, cut: SnapshotCut, snapshot: Snapshot, counters: Counters) -> SnapshotInfo:
    """Write the cut as the snapshot that ``snapshot`` describes, and close it. Return when it is durable.

    Raises:
        StorageError: it could not be written; nothing of it is kept.
    """
    since = monotonic()
    try:
        writer = await asyncio.to_thread(storage.snapshots.create, snapshot)
        try:
            while (chunk := cut.next_chunk()) is not None:
                await asyncio.to_thread(writer.write, chunk)
            info = await asyncio.to_thread(writer.commit)
        except BaseException:
            writer.abort()
            raise
    except StorageError:
        counters.snapshots["create", "failed"] += 1
        raise
    finally:
        cut.close()
    duration_s = monotonic() - since
    counters.snapshots["create", "ok"] += 1
    counters.snapshot_duration["create"].record(duration_s)
    log.info(
        "took a snapshot at index %d: %d keys, %d bytes, %.1f s",
        snapshot.last_index,
        cut.header.keys,
        info.size_bytes,
        duration_s,
    )
    return info


def load_store(snapshots: SnapshotFile, last_index: int) -> Store:
    """Return the state in a durable snapshot. Blocking: run it in a thread.

    Raises:
        StorageCorrupt: it is damaged.
    """
    restorer = Restorer()
    for chunk in snapshots.read(last_index):
        restorer.feed(chunk)
    return restorer.finish()


def read_chunk(snapshots: SnapshotFile, last_index: int, offset_bytes: int, size_bytes: int) -> SnapshotChunk:
    """Return a piece of one of our snapshot files (``last_index`` 0: the newest). Blocking: run it in a thread.

    Raises:
        StorageError: there is no such snapshot.
    """
    for info in snapshots.kept():
        if last_index in (0, info.snapshot.last_index):
            index = info.snapshot.last_index
            data = snapshots.chunk(index, offset_bytes, size_bytes)
            return SnapshotChunk(data, index, info.size_bytes, info.sha256)
    raise StorageCorrupt(f"there is no snapshot at {last_index} here")


class Fetcher:
    """Fetches one snapshot at a time from another member.

    Args:
        storage: where it goes.
        transport: how to ask.
        counters: where fetches are counted.
        ended: called with every task that ends: what it did not expect must not pass in silence.
        leader: returns the present leader, if one is known.
    """

    def __init__(
        self,
        storage: Storage,
        transport: Transport,
        counters: Counters,
        ended: Callable[[asyncio.Task[None]], None],
        leader: Callable[[], str | None],
    ) -> None:
        self._storage = storage
        self._transport = transport
        self._counters = counters
        self._ended = ended
        self._leader = leader
        self._task: asyncio.Task[None] | None = None
        self._source = ""
        self._has_progressed = False  # since the last offer of another member
        self._give_up: Callable[[], None] = lambda: None
        self._limit = RateLimit()

    def begin(
        self,
        source: str,
        snapshot: Snapshot,
        then: Callable[[Snapshot, Store], None],
        failed: Callable[[Snapshot], None],
    ) -> None:
        """Fetch ``snapshot`` from ``source``: ``then`` gets the decoded state, ``failed`` is called after giving up.

        One of the two is called, once, unless :meth:`close` comes first. The fetch before must have ended.
        """
        self._source = source
        self._has_progressed = True
        self._give_up = partial(failed, snapshot)
        self._task = asyncio.create_task(self._run(source, snapshot, then), name="fetch a snapshot")
        self._task.add_done_callback(self._ended)

    def offered(self, by: str) -> None:
        """Give up a fetch from another member that brought nothing since such an offer before: it may never answer."""
        if self._task is None or self._task.done() or by == self._source:
            return
        if not self._has_progressed:
            self._task.cancel()
            self._task = None
            self._give_up()
        self._has_progressed = False

    async def close(self) -> None:
        """Stop fetching; what has arrived is kept for the next time."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self, source: str, snapshot: Snapshot, then: Callable[[Snapshot, Store], None]) -> None:
        since = monotonic()
        for _ in range(FETCH_TRIES):
            try:
                info = await self.fetch(source, snapshot)
                store = await asyncio.to_thread(load_store, self._storage.snapshots, info.snapshot.last_index)
            except (PeerError, StorageError) as error:
                self._counters.snapshots["install", "failed"] += 1
                if self._limit.allow() is not None:
                    log.warning("fetching the snapshot at %d from %s failed: %s", snapshot.last_index, source, error)
                if self._leader() != source:
                    break  # The leader of today offers its own.
                await asyncio.sleep(FETCH_PAUSE_S)
                continue
            duration_s = monotonic() - since
            self._counters.snapshots["install", "ok"] += 1
            self._counters.snapshot_duration["install"].record(duration_s)
            log.info(
                "fetched the snapshot at %d from %s: %d bytes, %.1f s",
                snapshot.last_index,
                source,
                info.size_bytes,
                duration_s,
            )
            then(snapshot, store)
            return
        self._give_up()

    async def fetch(self, source: str, snapshot: Snapshot) -> SnapshotInfo:
        """Bring the snapshot file here, resuming what an earlier try left.

        Raises:
            PeerError: the member does not give it.
            StorageError: it could not be stored, or is not what was announced.
        """
        first = await self._transport.snapshot_chunk(source, snapshot.last_index, 0)
        receiver = await asyncio.to_thread(self._storage.snapshots.receive, snapshot, first.sha256)
        while receiver.offset_bytes < first.size_bytes:
            offset = receiver.offset_bytes
            chunk = first
            if offset:
                chunk = await self._transport.snapshot_chunk(source, snapshot.last_index, offset)
            if chunk.sha256 != first.sha256 or not chunk.data:
                raise MalformedMessage(f"{source} changed its snapshot at {snapshot.last_index} meanwhile")
            await asyncio.to_thread(receiver.write, chunk.data)
            self._has_progressed = True
        return await asyncio.to_thread(receiver.commit, first.sha256)
