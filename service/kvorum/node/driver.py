"""The driver: between consensus, the disk, the peers and the replicated state. All of it runs on one event loop.

Nothing here awaits between a check and its use: every input changes consensus synchronously, and one call at the end of
the loop's turn (:meth:`Driver._drive`) does everything that consensus then has to do. While a save is in flight, what
arrives fills the next one: group commit comes for free.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from functools import partial
from random import Random, SystemRandom
from typing import TYPE_CHECKING

from kvorum.config import Config
from kvorum.errors import FatalError, InvariantViolated, SnapshotFailed, StorageError
from kvorum.identity import Identity
from kvorum.kv.cut import SnapshotCut
from kvorum.kv.store import Store
from kvorum.node.digests import Digests
from kvorum.node.proposals import Writes
from kvorum.node.reads import Barriers
from kvorum.node.role_changes import RoleChanges
from kvorum.node.roundtrips import RoundTrips
from kvorum.node.snapshots import Fetcher, take_snapshot
from kvorum.raft import Raft, RaftConfig, Role
from kvorum.raft.log import entry_bytes
from kvorum.raft.messages import Entry, Heartbeat, HeartbeatResponse, InstallSnapshot, Message, Ready, Snapshot
from kvorum.storage.interface import Loaded, Storage
from kvorum.telemetry.counters import Counters
from kvorum.transport import Transport

if TYPE_CHECKING:
    from kvorum.telemetry.tracing import Tracer

log = logging.getLogger("kvorum.raft")

READIES_A_TURN_MAX = 16
"""After this many, the loop gets a turn for its other work."""
SNAPSHOT_RETRY_S = 30.0


class Driver:
    """Runs one consensus server; see the module's docstring.

    Args:
        config: the node's.
        identity: whose log it is.
        loaded: what was durable at start.
        store: the state at ``loaded.snapshot``.
        storage: the open storage.
        transport: how messages leave.
        counters: where things are counted.
        fail: ends the process; called once, with what cannot be survived.
    """

    def __init__(
        self,
        config: Config,
        identity: Identity,
        loaded: Loaded,
        store: Store,
        storage: Storage,
        transport: Transport,
        counters: Counters,
        fail: Callable[[FatalError], None],
    ) -> None:
        self.config = config
        self.store = store
        self.digests = Digests()
        self.on_membership: Callable[[], None] = lambda: None
        self.on_contradiction: Callable[[int], None] = lambda _: None
        self.tracer: Tracer | None = None
        self._storage = storage
        self._transport = transport
        self._counters = counters
        self._fail = fail
        self._failed = False
        self._scheduled = False
        self._loop = asyncio.get_running_loop()
        # Election timeouts must differ between nodes; nothing else is random.
        self.raft = Raft(
            _raft_config(config, identity.node_id),
            Random(SystemRandom().getrandbits(64)),  # noqa: S311
            hard_state=loaded.hard_state,
            snapshot=loaded.snapshot,
            entries=loaded.entries,
        )
        self.writes = Writes(
            self.raft, counters, config.pending_max, config.batch_bytes_max, lambda: int(time.time() * 1000)
        )
        # Contexts of reads must never repeat, restarts included (bug B21).
        self.barriers = Barriers(self.raft, counters, secrets.randbits(40) << 21)
        self.fetcher = Fetcher(storage, transport, counters, self.task_ended, lambda: self.raft.leader)
        self.fetched: dict[tuple[int, int], Store] = {}
        self._round_trips = RoundTrips(counters)
        self._applied_bytes = 0
        self.is_doubtful = False
        """The state is wrong, and is being rebuilt."""
        self._snapshot_task: asyncio.Task[None] | None = None
        self._snapshot_not_before = 0.0
        self._compacting = False
        self._role_changes = RoleChanges(self.raft, counters)
        self._configuration_seen = self.raft.configuration
        # Nobody is called before something of the cluster is durable here: killed until then, we forget it.
        self._is_blank = not self.raft.log.last_index
        self.last_contact: float | None = None

    # --- Inputs -------------------------------------------------------------------------------------------------

    def schedule(self) -> None:
        """Drive at the end of this turn of the loop, once whatever the number of inputs."""
        if not self._scheduled and not self._failed:
            self._scheduled = True
            self._loop.call_soon(self._drive)

    def tick(self) -> None:
        """Let one tick of consensus time pass."""
        for act in (self.raft.tick, self.writes.expire, self.barriers.expire):
            self.guarded(act)
        self.schedule()

    def on_messages(self, messages: tuple[Message, ...]) -> None:
        """Take messages from a peer."""
        for message in messages:
            self.guarded(partial(self.raft.step, message))
            if isinstance(message, Heartbeat) and message.sender == self.raft.leader:
                self.last_contact = time.monotonic()
                if message.state_index:
                    self.digests.claim(message.state_index, message.state_hash)
            elif isinstance(message, HeartbeatResponse):
                self._round_trips.answered(message)
            elif isinstance(message, InstallSnapshot) and message.sender == self.raft.leader:
                self.fetcher.offered(message.sender)
        self.schedule()

    def trace_with(self, tracer: Tracer) -> None:
        """Tell this tracer what becomes of each write."""
        self.tracer = self.writes.tracer = tracer

    def peer_unreachable(self, node: str) -> None:
        """A stream to or from this peer broke."""
        self._round_trips.forget(node)
        self.raft.peer_unreachable(node)
        self.schedule()

    def guarded(self, act: Callable[[], object]) -> None:
        """Run a step of consensus; a broken invariant, or a bug that left it halfway, ends the process."""
        if self._failed:
            return
        try:
            act()
        except FatalError as error:
            self.fail(error)
        except Exception as error:
            log.exception("the driver failed")
            self.fail(InvariantViolated(f"the driver failed: {error!r}"))

    def fail(self, error: FatalError) -> None:
        """End the process: going on could break a promise."""
        if not self._failed:
            self.halt()
            self._fail(error)

    def halt(self) -> None:
        """Take no more input, and answer everybody who waits: consensus stands still from now on."""
        self._failed = True
        self.answer_all("the node stopped")

    def answer_all(self, reason: str) -> None:
        """Answer everybody who waits: what is proposed may still be done, nothing else will be."""
        self.writes.stop(reason)
        self.barriers.stop(reason)

    async def close(self) -> None:
        """Halt, and end the tasks."""
        self.halt()
        await self.fetcher.close()
        if self._snapshot_task is not None:
            self._snapshot_task.cancel()
            await asyncio.gather(self._snapshot_task, return_exceptions=True)

    # --- Driving ------------------------------------------------------------------------------------------------

    def _drive(self) -> None:
        self._scheduled = False
        self.guarded(self._drive_on)

    def _drive_on(self) -> None:
        self.writes.flush()
        self.barriers.flush()
        for _ in range(READIES_A_TURN_MAX):
            ready = self.raft.ready()
            if ready is None:
                break
            self._handle(ready)
            if ready.reads_refused:
                self.barriers.flush()
        else:
            self.schedule()
        contradiction = self.digests.contradicted_at()
        if contradiction is not None:
            self.on_contradiction(contradiction)
        self._counters.proposals_pending = self.writes.pending
        self._note_changes()

    def _handle(self, ready: Ready) -> None:
        # The leader's entries leave before its own disk is asked for anything (thesis 10.2.1).
        self._transport.send(ready.messages)
        self._round_trips.sent(ready.messages)
        if ready.save is not None:
            if self.tracer is not None:
                self.tracer.saving(ready.save.entries)
            self._storage.save(ready.save, partial(self._saved, ready.save.number, ready.messages_after_save))
        if ready.fetch is not None:
            self.fetcher.begin(ready.fetch.source, ready.fetch.snapshot, self._fetched, self._fetch_failed)
        if ready.restore is not None:
            self._restore(ready.restore)
        if ready.committed:
            self._apply(ready.committed)
        if ready.reads or ready.reads_refused:
            self.barriers.released(ready.reads, ready.reads_refused)

    def _saved(self, number: int, messages: tuple[Message, ...]) -> None:
        if self._failed:
            return
        if self.tracer is not None:
            self.tracer.saved()
        self.guarded(partial(self._go_on_after_save, number, messages))
        self._drive()

    def _go_on_after_save(self, number: int, messages: tuple[Message, ...]) -> None:
        if self._is_blank and self.raft.log.last_index:
            self._is_blank = False
            self._note_configuration()
        self._transport.send(messages)
        self.raft.saved(number)

    def _apply(self, entries: tuple[Entry, ...]) -> None:
        since = time.perf_counter()
        if self.tracer is not None:
            self.tracer.committed(entries)
        store, writes = self.store, self.writes
        for entry in entries:
            results = store.apply(entry)
            writes.applied(entry, results)
            self.digests.applied(entry.index, store.state_hash)
            self._applied_bytes += entry_bytes(entry)
        self._counters.apply_duration.record(time.perf_counter() - since)
        if self.tracer is not None:
            self.tracer.applied(entries)
        self.raft.set_state_digest(store.applied_index, store.state_hash)
        self._snapshot_if_due()

    # --- Snapshots ----------------------------------------------------------------------------------------------

    def _restore(self, snapshot: Snapshot) -> None:
        store = self.fetched.pop((snapshot.last_index, snapshot.last_term), None)
        if store is None:
            raise InvariantViolated(f"the snapshot at {snapshot.last_index} was adopted, but its state is not here")
        self.fetched.clear()
        self.replace_store(store)
        self.writes.restored(snapshot.last_index)
        log.info("%s installed the snapshot at index %d", self.raft.id, snapshot.last_index)

    def replace_store(self, store: Store) -> None:
        """Serve this state from now on."""
        self.store = store
        self._applied_bytes = 0
        self.digests.forget()
        self.digests.applied(store.applied_index, store.state_hash)

    def _fetched(self, snapshot: Snapshot, store: Store) -> None:
        if self._failed:
            return
        self.fetched[snapshot.last_index, snapshot.last_term] = store
        self.guarded(partial(self.raft.fetched, snapshot))
        if self.raft.snapshot != snapshot:
            # Consensus had no use for it: the log had caught up meanwhile.
            self.fetched.pop((snapshot.last_index, snapshot.last_term), None)
        self.schedule()

    def _fetch_failed(self, snapshot: Snapshot) -> None:
        self.guarded(partial(self.raft.fetch_failed, snapshot))
        self.schedule()

    def _snapshot_if_due(self) -> None:
        last = self.raft.snapshot.last_index if self.raft.snapshot else 0
        due = (
            self.store.applied_index - last >= self.config.snapshot_entries
            or self._applied_bytes >= self.config.snapshot_bytes
        )
        # A newer snapshot than what is applied is being adopted: the log no longer knows this index.
        if (
            due
            and not self.is_doubtful
            and last <= self.store.applied_index
            and time.monotonic() >= self._snapshot_not_before
        ):
            self.begin_snapshot()

    async def doubt(self, reason: str) -> None:
        """The state is wrong: let nobody be answered from it, and no snapshot be taken of it."""
        self.is_doubtful = True
        self.answer_all(reason)
        if self._snapshot_task is not None:
            await asyncio.wait([self._snapshot_task])

    def begin_snapshot(self) -> asyncio.Task[None]:
        """Begin to take a snapshot of the state as it is now, unless one is being taken; return the task.

        Raises:
            SnapshotFailed: a newer one is being installed, or the state is in doubt.
        """
        if self.is_doubtful:
            raise SnapshotFailed("the state is in doubt")
        if self._snapshot_task is None or self._snapshot_task.done():
            if self.store.applied_index < self.raft.log.base_index:
                raise SnapshotFailed("a newer snapshot is being installed")
            self._applied_bytes = 0
            snapshot = self.raft.snapshot_at(self.store.applied_index)
            # The cut is made now: by the time the task runs, the store may have moved on.
            cut = self.store.begin_snapshot()
            self._snapshot_task = asyncio.create_task(self._take_snapshot(cut, snapshot), name="snapshot")
            self._snapshot_task.add_done_callback(self.task_ended)
        return self._snapshot_task

    def task_ended(self, task: asyncio.Task[None]) -> None:
        """What a task did not expect ends the process, as in a step of consensus; it must not pass in silence."""
        if task.cancelled() or (error := task.exception()) is None:
            return
        self.fail(error if isinstance(error, FatalError) else InvariantViolated(f"{task.get_name()} failed: {error!r}"))

    async def _take_snapshot(self, cut: SnapshotCut, snapshot: Snapshot) -> None:
        try:
            await take_snapshot(self._storage, cut, snapshot, self._counters)
        except StorageError as error:
            # The log goes on without it; only space is lost. Try again later.
            self._snapshot_not_before = time.monotonic() + SNAPSHOT_RETRY_S
            log.error("no snapshot at index %d: %s", snapshot.last_index, error)
            return
        if self._failed:
            return
        self.raft.compact(snapshot, self.config.log_retain_entries)
        self._compact()

    def _compact(self) -> None:
        """Cut the durable log where the older of the kept snapshots still suffices."""
        kept = self._storage.snapshots.kept()
        if not kept or self._compacting:
            return
        first_index = min(self.raft.log.first_index, kept[-1].snapshot.last_index + 1)

        def done() -> None:
            self._compacting = False

        self._compacting = True
        self._storage.compact(first_index, done)

    # --- What others want to know -------------------------------------------------------------------------------

    def _note_changes(self) -> None:
        raft = self.raft
        if raft.role is Role.LEADER:
            self.last_contact = time.monotonic()
        if self._role_changes.note(raft.role, raft.current_term, raft.leader or ""):
            # The first hash of a new leadership is the one that is already there.
            raft.set_state_digest(self.store.applied_index, self.store.state_hash)
        self._note_configuration()

    def _note_configuration(self) -> None:
        raft = self.raft
        if raft.configuration is not self._configuration_seen and not self._is_blank:
            self._configuration_seen = raft.configuration
            log.info(
                "the members are now: %s (index %d)",
                ", ".join(f"{m.id}{'' if m.voter else ' (learner)'}" for m in raft.configuration.members) or "none",
                raft.configurations.latest_index,
            )
            self.on_membership()


def _raft_config(config: Config, node: str) -> RaftConfig:
    return RaftConfig(
        id=node,
        election_timeout_ticks=max(config.election_timeout_ms // config.tick_ms, 2),
        heartbeat_timeout_ticks=max(config.heartbeat_ms // config.tick_ms, 1),
        save_timeout_ticks=-(-config.save_timeout_ms // config.tick_ms),
        append_bytes_max=config.batch_bytes_max,
        committed_bytes_max=config.batch_bytes_max,
    )
