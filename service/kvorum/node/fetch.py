"""Fetching another member's snapshot: in chunks, resumable; durable and decoded before consensus gets it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

from kvorum.errors import (
    ContradictionError,
    InvariantViolatedError,
    MalformedMessageError,
    PeerError,
    StorageCorruptError,
    StorageError,
)
from kvorum.kv.store import Store
from kvorum.node.loader import Loader
from kvorum.node.ports import Clock, Peers, Tasks, Threads
from kvorum.node.set_back import Participation
from kvorum.node.snapshots import load_store
from kvorum.node.state import State
from kvorum.node.turns import Turns
from kvorum.raft import Raft
from kvorum.raft.messages import Fetch, NodeId, Snapshot
from kvorum.storage.interface import SnapshotInfo, Storage
from kvorum.telemetry.counters import Counters
from kvorum.telemetry.logs import RateLimit
from kvorum.transport.interface import SnapshotChunk

log = logging.getLogger("kvorum.snapshot")

T = TypeVar("T")

TRIES = 20
PAUSE_S = 0.25
PAUSE_MAX_S = 5.0
"""The longest pause after a snapshot that arrived and could not be used."""


async def download(
    peers: Peers,
    source: NodeId,
    first: SnapshotChunk,
    take: Callable[[bytes], Awaitable[object]],
    offset_bytes: int = 0,
) -> None:
    """Give ``take`` a member's snapshot file from ``offset_bytes`` on, piece by piece; ``first`` is its first piece.

    Raises:
        PeerError: the member does not give it, or gives another one meanwhile.
    """
    chunk = first
    while offset_bytes < first.size_bytes:
        if offset_bytes:
            chunk = await peers.snapshot_chunk(source, first.last_index, offset_bytes)
        if chunk.sha256 != first.sha256 or not chunk.data:
            raise MalformedMessageError(f"{source} has replaced its snapshot at {first.last_index} in the meantime")
        await take(chunk.data)
        offset_bytes += len(chunk.data)


class Fetcher:
    """Fetches what consensus asks for, one snapshot at a time, and holds its state until that is restored.

    Args:
        raft: the consensus server, which gets the result of each fetch.
        state: the present one, which is made again from the disk if the one that was fetched is not taken after all.
        loader: what puts the state that was fetched in the place of the present one.
        storage: where the file goes.
        peers: whom to ask.
        clock: measures time.
        tasks: where it runs.
        threads: where the disk is written.
        turns: the driver's.
        counters: where fetches are counted.
        participation: what hears that a snapshot contradicts what is committed here.
    """

    def __init__(
        self,
        raft: Raft,
        state: State,
        loader: Loader,
        storage: Storage,
        peers: Peers,
        clock: Clock,
        tasks: Tasks,
        threads: Threads,
        turns: Turns,
        counters: Counters,
        participation: Participation,
    ) -> None:
        self._participation = participation
        self._raft = raft
        self._state = state
        self._loader = loader
        self._storage = storage
        self._peers = peers
        self._clock = clock
        self._tasks = tasks
        self._threads = threads
        self._turns = turns
        self._counters = counters
        self._fetch: Fetch | None = None
        """The fetch under way."""
        self._has_progressed = False
        """Something arrived since the last offer of another member."""
        self._is_replacing = False
        """The state was given up, or is about to be, for the one that arrived."""
        self._is_storing = False
        """A thread writes, verifies or decodes what arrived; it goes on when the task is cancelled."""
        self._pause_s = PAUSE_S
        self._task: asyncio.Task[None] | None = None
        self._held: tuple[Snapshot, Store] | None = None
        """The snapshot that consensus adopted last, decoded, until it is restored."""
        self._limit = RateLimit(clock=clock.monotonic)

    def begin(self, fetch: Fetch) -> None:
        """Fetch a snapshot, and report its end to consensus, which asks for no other one before."""
        self._fetch = fetch
        self._has_progressed = True
        self._task = self._tasks.spawn(self._run(fetch), name="fetch a snapshot")

    def take(self, snapshot: Snapshot) -> Store:
        """Return the state of a fetched snapshot, once.

        Raises:
            InvariantViolatedError: it is not here.
        """
        held, self._held = self._held, None
        if held is None or held[0] != snapshot:
            raise InvariantViolatedError(f"the snapshot at {snapshot.last_index} was adopted, but its state is missing")
        return held[1]

    def offered(self, by: NodeId) -> None:
        """Give up a fetch from another member that brought nothing since the last such offer: it may never answer.

        It is not given up while a thread uses the file: the next fetch would remove that.
        """
        fetch = self._fetch
        if self._task is None or fetch is None or by == fetch.source:
            return
        if not self._has_progressed and not self._is_storing:
            self._task.cancel()
            self._give_up(fetch)
        self._has_progressed = False

    def stop(self) -> None:
        """Fetch nothing any more: this node takes no part any more, and its log and its state are to be kept.

        A state that was given up is made again from the disk.
        """
        if self._task is not None:
            self._task.cancel()
        # A wrong state is not taken back: what investigates it goes on until it has another.
        if self._is_replacing and self._state.is_given_up and not self._state.is_wrong:
            self._task = self._tasks.spawn(self._take_back(), name="take back the state that was given up")

    async def _take_back(self) -> None:
        """Load this node's own newest snapshot, and have what follows it applied again."""
        snapshot, store = self._raft.snapshot, Store()
        if snapshot is not None:
            store = await self._store(load_store, self._storage.snapshots, snapshot)
        if self._turns.is_over:
            return
        self._loader.put(store)
        self._turns.schedule()

    async def close(self) -> None:
        """Stop fetching; what has arrived is kept for the next time."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self, fetch: Fetch) -> None:
        source, snapshot = fetch.source, fetch.snapshot
        since = self._clock.monotonic()
        for _ in range(TRIES):
            if self._is_overtaken(snapshot):
                break  # The next offer may be needed.
            pause_s = PAUSE_S
            try:
                info = await self._download(source, snapshot)
                await self._verify(snapshot)
            except (PeerError, StorageError) as error:
                if isinstance(error, StorageError):
                    # A whole download was for nothing: the next one waits longer.
                    self._pause_s = pause_s = min(2 * self._pause_s, PAUSE_MAX_S)
                self._counters.snapshots["install", "failed"] += 1
                if self._limit.allow() is not None:
                    log.warning("fetching the snapshot at %d from %s failed: %s", snapshot.last_index, source, error)
                if self._raft.leader != source:
                    break  # The present leader offers its own.
                await self._tasks.sleep(pause_s)
                continue
            self._pause_s = PAUSE_S
            load = partial(load_store, self._storage.snapshots, snapshot)
            self._is_replacing = True
            try:
                store = await self._busy(self._loader.load(load, lambda: not self._is_overtaken(snapshot)))
            except StorageError as error:
                # It was verified a moment ago. Nothing that a peer sends ends the process.
                log.error("the snapshot at %d from %s cannot be loaded: %s", snapshot.last_index, source, error)
                self._counters.snapshots["install", "failed"] += 1
                await self._store(self._storage.snapshots.discard, snapshot.last_index, str(error))
                await self._take_back()
                break
            if store is None:
                break
            duration_s = self._clock.monotonic() - since
            self._counters.snapshots["install", "ok"] += 1
            self._counters.snapshot_duration["install"].record(duration_s)
            log.info(
                "fetched the snapshot at %d from %s: %d bytes, %.1f s",
                snapshot.last_index,
                source,
                info.size_bytes,
                duration_s,
            )
            self._fetched(snapshot, store)
            return
        self._give_up(fetch)

    def _is_overtaken(self, snapshot: Snapshot) -> bool:
        """Whether the log has what the snapshot covers by now, committed or not."""
        log = self._raft.log
        return snapshot.last_index <= log.commit_index or log.matches(snapshot.last_index, snapshot.last_term)

    async def _verify(self, snapshot: Snapshot) -> None:
        """Read the snapshot that arrived to its end.

        Raises:
            StorageCorruptError: it is damaged, or contradicts the sum that it carries; its file is not used.
        """
        files = self._storage.snapshots
        try:
            await self._busy(self._loader.verify(partial(load_store, files, snapshot)))
        except StorageCorruptError as error:
            await self._store(files.discard, snapshot.last_index, str(error))
            raise

    def _fetched(self, snapshot: Snapshot, store: Store) -> None:
        if self._turns.is_over:
            return
        self._fetch = None
        try:
            is_adopted = self._raft.fetched(snapshot)
        except ContradictionError as error:
            self._participation.contradicted(error)
            return
        self._is_replacing = False
        if is_adopted:
            # It takes the place of an earlier one that is not restored yet, and never will be.
            self._held = (snapshot, store)
        if self._raft.snapshot is snapshot:
            self._storage.snapshots.expect(snapshot.last_index)
        self._turns.may_have_changed = True
        self._turns.schedule()

    def _give_up(self, fetch: Fetch) -> None:
        if self._turns.is_over:
            return
        self._fetch, self._is_replacing = None, False
        self._raft.fetch_failed(fetch.snapshot)
        self._turns.schedule()

    async def _download(self, source: NodeId, snapshot: Snapshot) -> SnapshotInfo:
        """Bring the snapshot file here, resuming what an earlier try left.

        Raises:
            PeerError: the member does not give it.
            StorageError: it could not be stored, or is not what was announced.
        """
        first = await self._peers.snapshot_chunk(source, snapshot.last_index, 0)
        receiver = await self._store(self._storage.snapshots.receive, snapshot, first.sha256)

        async def write(data: bytes) -> None:
            await self._store(receiver.write, data)

        await download(self._peers, source, first, write, receiver.offset_bytes)
        return await self._store(receiver.commit, first.sha256)

    async def _store(self, function: Callable[..., T], *arguments: object) -> T:
        """Return what the function returns in a thread."""
        return await self._busy(self._threads.run(function, *arguments))

    async def _busy(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what the work returns; the fetch is not given up meanwhile."""
        self._is_storing = True
        try:
            result = await work
        finally:
            self._is_storing = False
        self._has_progressed = True
        return result
