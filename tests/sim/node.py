"""One simulated machine: a disk that lasts, and the process that runs on it now and then.

The process is the product: the node, its driver and everything that belongs to it, on an event loop of its own. What
is simulated is what they are handed: the clock, the disk, the peers, the threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from copy import copy, deepcopy
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from sim.damage import DAMAGE, DAMAGED_BYTES, is_damaged
from sim.disk import Durable, SimDisk
from sim.invariants import Broken
from sim.loop import ProcessKilled, SimLoop
from sim.observed import ObservedRaft
from sim.peers import SimPeers
from sim.plan import Plan, S
from sim.storage import SimStorage
from sim.transcript import describe_entries

from kvorum.config import Config, PeerAddress
from kvorum.errors import (
    CallerError,
    CompareFailedError,
    FatalError,
    KvorumError,
    MemoryChangedError,
    NoSpaceError,
    NotLeaderError,
    RevisionCompactedError,
    RevisionInFutureError,
    SessionError,
    StorageError,
)
from kvorum.identity import name_of
from kvorum.kv.commands import (
    ClientCommand,
    CompareFailed,
    Delete,
    EndSession,
    LeaseCommand,
    LeaseGrant,
    LeaseRenew,
    LeaseRevoke,
    Put,
    Result,
    SessionRefused,
    Txn,
)
from kvorum.kv.features import FIRST_LEVEL, HIGHEST_LEVEL
from kvorum.kv.store import Store
from kvorum.node import Node, Ports, Supervisor, start_node
from kvorum.node.runtime import LoopTasks, LoopThreads
from kvorum.node.set_back import DiskAtStart
from kvorum.raft import Change, Role
from kvorum.raft.messages import Load, NodeId, Ready, Save
from kvorum.service import requests
from kvorum.service.access import ANONYMOUS
from kvorum.service.node_port import RecordView
from kvorum.service.outcomes import OUTCOMES
from kvorum.service.service import Service
from kvorum.storage.interface import Loaded
from kvorum.storage.memory import Compaction
from kvorum.telemetry.counters import Counters

if TYPE_CHECKING:
    from sim.world import World

CLUSTER = "sim"
PORT = 9001
CLIENT_PORT = 8001
MEMORY_BYTES = 64 << 20
UNIX_MS = 1_700_000_000_000
STALL_S = 0.25
"""Log time counts so much of the time between two ticks, at most."""


class TimeToLive(msgspec.Struct, frozen=True):
    """A linearizable read of a lease."""

    id: int


Request = ClientCommand | LeaseCommand | requests.Txn | TimeToLive | bytes
"""What a client asks: ``bytes`` are a key to be read."""


class Answer(msgspec.Struct, frozen=True):
    """What a node tells a client.

    ``kind``: ``result`` (of a write), ``record`` (of a read), ``lease`` (it was read), ``not_leader``,
    ``refused`` (certainly not done), ``unknown``.
    """

    kind: str
    result: Result | None = None
    record: RecordView | None = None
    revision: int = 0
    leader: NodeId | None = None


class Room(msgspec.Struct, frozen=True):
    """How much the log and the snapshot files may take while a disk is full."""

    bytes_max: int
    needed_bytes: int
    """How much a node wanted to be left when the disk filled."""
    scale: int
    """A byte of the log takes so many: a simulated workload is small."""


WRITES_THAT_FILL = 10_000
"""A log of so many bytes, about 40 writes, takes all that is to be left of a full disk."""


class PortError(Exception):
    """Something that nothing in the product expects."""


Reply = Callable[[Answer], None]


class SimClock:
    """The time as a process has it: its own rate, and a wall clock that may jump."""

    def __init__(self, node: SimNode, loop: SimLoop) -> None:
        self.monotonic = self.boottime = loop.time
        self._node = node

    def wall_ms(self) -> int:
        """Return milliseconds since 1970, as this machine believes."""
        return UNIX_MS + self._node.world.clock.now // 1000 + self._node.clock_offset_ms


def _first_voters(plan: Plan) -> tuple[str, ...]:
    return tuple(f"n{number}" for number in range(1, plan.voters + 1))


class SimNode:
    """A machine.

    Args:
        world: where it is.
        node: its member id.
        disk: what it was given at birth: empty, or bootstrapped.
    """

    def __init__(self, world: World, node: NodeId, disk: SimDisk) -> None:
        self.id = node
        self.name = name_of(node)
        self.host = self.name
        self._moves = 0
        self._listed: tuple[PeerAddress, ...] = ()
        """The peers in the options of the process."""
        self.world = world
        self.plan = world.plan
        self.draw = Random(f"{world.plan.seed}:{node}:driver")
        self._past = Random(f"{world.plan.seed}:{node}:past")
        self._handing = Random(f"{world.plan.seed}:{node}:handing")
        self.disk = disk
        self.upgraded_at_us = world.plan.upgraded_at_us
        self.durable = Durable()
        self.first_index = 1  # of what compaction has left on the disk
        self._copy: tuple[SimDisk, Durable, int] | None = None
        self.copied_at: int | None = None
        """When the copy was taken that the disk can be set back to."""
        self.is_set_back = False
        self.started_us = 0
        """When the process started last."""
        self.is_off = False
        """The machine has no power: nothing answers at its address, and nothing closes its streams."""
        self.is_lost = False
        self.is_removed = False
        self.is_retired = False
        # Faults.
        self.stalled_until = 0
        self.full_until = 0
        self.no_files_until = 0
        """A disk that has room for the log may have none for a snapshot."""
        self.room: Room | None = None
        """What other programs have left of the disk; None: more than enough."""
        self.filled_at_tick = 0
        """The last time at which some disk was filled."""
        self.led_from_tick = 0
        self._led_term = 0
        self.fail_next_save = False
        self.late_saves_until = 0
        self.late_tasks_until = 0
        self.cut_fetches_until = 0
        self.clock_offset_ms = 0
        self.port_error = ""
        """Which call of a port raises, once, what nobody expects."""
        self._is_told_to_stop: asyncio.Event | None = None
        self._downtime_us = 0
        self._is_doomed = False
        """A port failed: the process must end by itself."""
        self.armed: tuple[str, int, int] | None = None  # (crash point, how many times to let it pass, downtime)
        skew = world.plan.tick_skew_per_mille
        self.rate_per_mille = 1000 + self.draw.randrange(-skew, skew + 1)
        """How long a second of its clock is: 1,000 is a true second."""
        # The process.
        self.starts = 0
        self.loop: SimLoop | None = None
        self.product: Node | None = None
        self.peers: SimPeers | None = None
        self.raft: ObservedRaft | None = None
        self.loaded_term = 0
        self.known_commit_index = 0
        """What the last save that was asked for said to be committed."""
        self.copied_members: frozenset[NodeId] = frozenset()
        """The members that the process knew when its disk was copied."""
        self.ticks = 0
        self._ticked_s = self._counted_s = 0.0
        self.saving_since: int | None = None
        """Since which tick a save is in flight, if one is."""
        self.heard: dict[NodeId, int] = {}
        """At which tick a peer last answered what this process said as a leader of the present term."""
        self._is_cut_now = False
        self._indexes = (0, 0)
        """Where the state and the core were when the invariants saw them last."""
        self._picture: tuple[object, ...] = ()
        """What the invariants saw of the core last."""
        self._store = Store()
        self._told_role: tuple[str, int] = ("", 0)

    @property
    def url(self) -> str:
        """Where its peer port is."""
        return f"http://{self.host}:{PORT}"

    @property
    def client_url(self) -> str:
        """Where its client port is."""
        return f"http://{self.host}:{CLIENT_PORT}"

    def move(self) -> None:
        """Have another address from now on, unless nobody could find it there; the process does not run.

        It is found by an option that names it, and by what it calls: a node without entries knows nobody to call.
        """
        can_be_found = self.name in _first_voters(self.plan) and self.durable.last_index > 0
        if self.loop is None and not self.is_lost and can_be_found:
            self._moves += 1
            self.host = f"{self.id.replace('@', '-')}-{self._moves}"
            self.world.counts["nodes moved"] += 1
            self.world.note(self.id, "moves to {}", self.url)

    # --- Life and death -----------------------------------------------------------------------------------------

    @property
    def is_up(self) -> bool:
        """Its process runs, or at least starts."""
        return self.loop is not None

    @property
    def store(self) -> Store:
        """The state that the process serves, or served last."""
        if self.raft is not None and self.product is not None:
            self._store = self.product.store
        return self._store

    def start(self) -> None:
        """Start the process from what is on the disk."""
        if self.loop is not None or self.is_lost or self.is_retired:
            return
        self.is_off = False
        self.starts += 1
        self.started_us = self.world.clock.now
        self._is_doomed = False
        self._is_told_to_stop = None
        self.ticks, self.saving_since, self.heard = 0, None, {}
        self._ticked_s = self._counted_s = 0.0
        self.filled_at_tick = self.led_from_tick = self._led_term = 0
        self._listed = tuple(PeerAddress(n, self.world.host_of(n), PORT) for n in _first_voters(self.plan))
        plan = self.plan
        self.loop = loop = SimLoop(
            self.world.clock,
            rate_per_mille=self.rate_per_mille,
            name=self.id,
            on_error=self.world.clock.abort,
            turn_us=self._turn_us if plan.turn_us else None,
            job_us=self._job_us,
            task_us=self._task_us,
            after_turn=self._after_turn,
        )
        loop.jobs_held_until = self.stalled_until
        loop.enter(loop.start_task, self._run, loop)
        if plan.sweep_us:
            self.world.clock.after(plan.sweep_us, self._sweep_soon, loop)

    async def _run(self, loop: SimLoop) -> None:
        """Run the product until it ends; what then happens is what an init system does."""
        try:
            self._is_told_to_stop = told = asyncio.Event()
            ports = self._ports(loop)
            self.product = product = await start_node(self.config, ports)
            if self.plan.seed % 2:  # Time does not pass while entries are applied: each one takes a turn of its own.
                product.parts.driver.apply_s = 0.0
            await _first_of(told.wait(), product.run())
            deadline_s = loop.time() + product.config.shutdown_grace_s
            await _first_of(product.serve_on(deadline_s), product.run())
            await _first_of(product.drain(deadline_s), product.run())
            await product.close()
            await asyncio.to_thread(ports.storage.close)
            if self._is_doomed:
                # The disk failed while the node let go of it: the process ends all the same.
                self._ended(StorageError("a port failed during a clean stop"))
            else:
                self._stopped()
        except FatalError as error:
            self._ended(error)
        except Exception as error:
            self.world.clock.abort(error)
            raise

    def _ports(self, loop: SimLoop) -> Ports:
        supervisor = Supervisor()
        return Ports(
            supervisor=supervisor,
            clock=SimClock(self, loop),
            tasks=LoopTasks(supervisor),
            threads=LoopThreads(),
            storage=SimStorage(self, loop, supervisor.fail),
            peers=SimPeers(self, loop),
            random=Random(f"{self.plan.seed}:{self.id}:{self.starts}"),
            counters=Counters(),
            memory_bytes=MEMORY_BYTES,
            make_raft=partial(ObservedRaft, self),
        )

    def stop(self, downtime_us: int) -> None:
        """Tell the process to stop (SIGTERM); it is started again some time after it has ended."""
        if self.loop is None or self._is_told_to_stop is None or self._is_told_to_stop.is_set():
            return
        self._downtime_us = downtime_us
        self.loop.enter(self._is_told_to_stop.set)
        self.world.clock.after(self._stop_us(), self._must_have_stopped, self.loop)

    def _stopped(self) -> None:
        self.world.note(self.id, "has stopped")
        self.world.counts["clean stops"] += 1
        if self.disk.pending:
            self.world.clock.abort(Broken("a_clean_stop_loses_nothing", f"{self.id} ends; {self.disk.pending} is lost"))
        self._end()
        self.world.clock.after(self._downtime_us, self.start)

    def _stop_us(self) -> int:
        """Return how long a stop may take: the grace period, a hand-over begun at its end, and some turns."""
        plan = self.plan
        return 2 * (int(plan.shutdown_grace_s * S) + 4 * plan.election_timeout_us + 20 * plan.turn_us + 5 * S)

    def _must_have_stopped(self, loop: SimLoop) -> None:
        if loop.is_dead:
            return
        held_until = max(loop.paused_until, self.stalled_until)
        if held_until + self._stop_us() > self.world.clock.now and held_until:
            self.world.clock.after(self._stop_us(), self._must_have_stopped, loop)
        else:
            self.world.clock.abort(Broken("a_clean_stop_ends_in_time", f"{self.id} was told to stop, and goes on"))

    def _ended(self, error: FatalError) -> None:
        # Only the disk of the only voter can tell which of its records are right.
        if self._is_doomed or isinstance(error, MemoryChangedError):
            self.crash(f"ends: {error}")
            self.world.clock.after(self.plan.election_timeout_us, self.start)
        else:
            self.world.clock.abort(error)

    def doom(self) -> None:
        """A port failed: the process must end by itself, and soon."""
        self._is_doomed = True
        self.world.clock.after(self.plan.election_timeout_us, self._must_have_ended, self.loop)

    def _must_have_ended(self, loop: SimLoop) -> None:
        if loop.is_dead:
            return
        if loop.paused_until > self.world.clock.now:
            self.world.clock.after(self.plan.election_timeout_us, self._must_have_ended, loop)
        else:
            self.world.clock.abort(Broken("a_failure_ends_the_process", f"{self.id} goes on although a port failed"))

    def port_called(self, name: str) -> None:
        """Raise what nobody expects, if that is due."""
        if self.port_error == name:
            self.port_error = ""
            self.world.counts["port errors"] += 1
            self.world.note(self.id, "calls {}, which raises an exception", name)
            self.doom()
            raise PortError(name)

    def crash(self, why: str, *, durable: int = 0, is_off: bool = False) -> None:
        """End the process at once; ``durable`` of the writes in flight have reached the disk.

        Args:
            why: for the transcript.
            durable: how many.
            is_off: the machine has no power until the process is started again.
        """
        if self.loop is None:
            return
        self.is_off = is_off
        self.world.counts["machines off"] += is_off
        self.world.note(self.id, "crashes ({}{})", why, ", its machine is off" if is_off else "")
        self.world.counts["crashes"] += 1
        pending = self.disk.pending
        for operation in pending[:durable]:
            self.on_durable(operation)
        if not durable and self.draw.random() < 0.5 and self.disk.tear(self.draw.randrange(1 << 16)):
            self.world.counts["torn saves"] += 1
        self.disk.lose_unsynced_parts(self.draw)
        self.disk.crash(min(durable, len(pending)))
        self._end()

    def _end(self) -> None:
        """Nothing of the process runs any more."""
        loop, peers = self.loop, self.peers
        assert loop is not None
        self._store = self.store
        self.loop = self.product = self.peers = self.raft = None
        self.armed = None
        if peers is not None:
            self.world.on_deaf(peers)
        self.world.on_end(self)
        loop.kill()

    def on_deaf(self, peers: SimPeers) -> None:
        """The process has closed its peer port."""
        self.peers = None
        self.world.on_deaf(peers)

    def crash_at(self, point: str) -> None:
        """Die here if that is due.

        Raises:
            ProcessKilled: the process is gone.
        """
        world = self.world
        if world.is_recovering:
            return
        world.crash_points += 1
        downtime_us = self.plan.election_timeout_us
        if world.crash_points != self.plan.crash_at:
            if self.armed is None or self.armed[0] != point:
                return
            _, passes, downtime_us = self.armed
            if passes > 0:
                self.armed = (point, passes - 1, downtime_us)
                return
        durable = len(self.disk.pending) if point == "save_durable_unanswered" else 0
        self.crash(point, durable=durable)
        world.clock.after(downtime_us, self.start)
        raise ProcessKilled

    def retire(self) -> None:
        """Stop for good: this member was removed."""
        self.is_retired = True
        self.crash("removed")

    def recover(self) -> None:
        """No more faults: nothing that was armed strikes, what is paused or stalled goes on, and there is room."""
        self.armed = None
        self.port_error = ""
        self.fail_next_save = False
        self.stall(0)
        self.pause(0)
        self.full_until = self.no_files_until = 0
        self.room = None
        self.late_saves_until = self.late_tasks_until = self.cut_fetches_until = 0

    def fill_disk(self, left_bytes: int, needed_bytes: int, duration_us: int) -> None:
        """Leave so many bytes of the disk for a while."""
        scale = max(1, needed_bytes // WRITES_THAT_FILL)
        used = self.disk.log_bytes * scale + self.disk.file_bytes
        self.room = room = Room(used + left_bytes, needed_bytes, scale)

        def end() -> None:
            if self.room is room:
                self.room = None

        self.world.clock.after(duration_us, end)

    @property
    def free_bytes(self) -> int | None:
        """What is left of the disk; None: more than enough."""
        if self.room is None:
            return None
        return max(self.room.bytes_max - self.disk.log_bytes * self.room.scale - self.disk.file_bytes, 0)

    def has_room(self, log_bytes: int) -> bool:
        """Tell whether the log can grow by so much."""
        return self.room is None or (self.free_bytes or 0) >= log_bytes * self.room.scale

    def pause(self, until_us: int) -> None:
        """Stop the process until then (SIGSTOP)."""
        if self.loop is not None:
            self.loop.pause(until_us)

    def stall(self, until_us: int) -> None:
        """Let the disk stand still until then: for saves, and for the threads that read and write files."""
        self.stalled_until = until_us
        if self.loop is not None:
            self.loop.jobs_held_until = until_us

    # --- What the process is handed -----------------------------------------------------------------------------

    @property
    def config(self) -> Config:
        """The configuration of the product."""
        plan = self.plan
        tick_ms = plan.tick_us // 1000
        return Config(
            name=self.name,
            peers=self._listed,
            advertise_peer_url=self.url,
            advertise_client_url=self.client_url,
            tick_ms=tick_ms,
            heartbeat_ms=plan.heartbeat_timeout_ticks * tick_ms,
            election_timeout_ms=plan.election_timeout_ticks * tick_ms,
            save_timeout_ms=plan.election_timeout_ticks * tick_ms,
            snapshot_entries=plan.snapshot_every or 1 << 60,
            log_retain_entries=plan.retain,
            log_memory_bytes=plan.log_memory_bytes,
            batch_bytes_max=plan.append_bytes_max,
            shutdown_grace_s=plan.shutdown_grace_s,
            shutdown_delay_s=plan.shutdown_delay_s,
            history_age_s=plan.history_age_s,
            history_bytes_max=plan.history_bytes_max,
            finalize_after="manual" if plan.finalize_after_s < 0 else f"{plan.finalize_after_s}s",
        )

    @property
    def supported_level(self) -> int:
        """The highest feature level that this machine announces when it calls a peer."""
        return FIRST_LEVEL if self.world.clock.now < self.upgraded_at_us else HIGHEST_LEVEL

    def timely(self, delay_us: int) -> int:
        """Return the delay, shortened in the liveness phase."""
        return min(delay_us, self.plan.timely_us) if self.world.is_recovering else delay_us

    def disk_us(self) -> int:
        """Draw how long a write takes."""
        return self.plan.disk_us + int(self.draw.random() * self.plan.disk_jitter_us)

    def answer_us(self) -> int:
        """Draw how long the answer to a save takes after the save is durable."""
        if self.late_saves_until <= self.world.clock.now:
            return 0
        self.world.counts["late answers of saves"] += 1
        return self.draw.randrange(self.plan.election_timeout_us)

    def _turn_us(self) -> int:
        return self.timely(int(self.draw.random() * self.plan.turn_us))

    def _job_us(self) -> int:
        return self.timely(self.disk_us())

    def _task_us(self) -> int:
        if self.late_tasks_until <= self.world.clock.now or self.draw.randrange(2):
            return 0
        self.world.counts["late tasks"] += 1
        return self.draw.randrange(self.plan.election_timeout_us // 2)

    def is_fetch_cut(self) -> bool:
        """Tell whether the connection breaks behind the piece of a snapshot that arrives now."""
        if self.cut_fetches_until <= self.world.clock.now:
            return False
        self._is_cut_now = not self._is_cut_now
        self.world.counts["fetches cut"] += self._is_cut_now
        return self._is_cut_now

    # --- What is seen of it -------------------------------------------------------------------------------------

    def observe(self, hook: Callable[..., object], *arguments: object) -> None:
        """Show something to the invariants; one that is broken ends the simulation, whatever the product catches.

        Raises:
            ProcessKilled: one is broken.
        """
        try:
            hook(*arguments)
        except (Broken, KvorumError) as broken:
            self.world.clock.abort(broken)
            raise ProcessKilled from broken

    def on_load(self, loaded: Loaded) -> None:
        """The process has read its disk."""
        self.loaded_term = loaded.hard_state.current_term
        self.known_commit_index = loaded.commit_index
        self.world.note(
            self.id, "starts at term {} with log ..{}", loaded.hard_state.current_term, self.durable.last_index
        )
        self.observe(self.world.facts.on_load, self, loaded)

    def on_raft(self, raft: ObservedRaft) -> None:
        """The process has a core."""
        self.raft = raft
        self._told_role = (raft.role, raft.current_term)
        self._picture = ()
        self.world.facts.on_start(self)

    def on_listening(self, peers: SimPeers) -> None:
        """The process listens to its peers."""
        self.peers = peers

    def on_input(self) -> None:
        """The core took something in: look at what it made of it, if it made anything of it."""
        raft = self.raft
        assert raft is not None
        log = raft.log
        picture = (
            raft.current_term, raft.role, log.commit_index, log.applied_index, log.last_index, log.last_term,
            raft.configurations.latest_index,
        )  # fmt: skip
        if picture == self._picture:
            return
        if raft.role is Role.LEADER and raft.current_term != self._led_term:
            self._led_term, self.led_from_tick = raft.current_term, self.ticks
        self.observe(self.world.facts.on_input, self)
        # Kept afterwards: a picture that is refused is looked at again.
        self._picture = picture
        if self.world.is_told:
            self._tell_role()

    def on_change(self, change: Change) -> None:
        """A membership change was proposed here."""
        self.world.note(self.id, "proposes {}", change)
        self.world.facts.changes.append(change)

    @property
    def counted_s(self) -> float:
        """What has passed of the process's clock, without what exceeds :data:`STALL_S` between two ticks."""
        assert self.loop is not None
        return self._counted_s + min(self.loop.time() - self._ticked_s, STALL_S)

    def count_tick(self) -> None:
        """The process ticks."""
        assert self.loop is not None
        self._counted_s, self._ticked_s = self.counted_s, self.loop.time()

    def on_committed(self, ready: Ready) -> None:
        """The core hands over what is to be applied, or a snapshot in its place."""
        facts = self.world.facts
        if ready.restore is not None:
            self.world.counts["restores"] += 1
            self.world.note(self.id, "restores the snapshot at {}", ready.restore.last_index)
            facts.on_restore(self, ready.restore)
        if ready.committed and self.world.is_told:
            self.world.note(self.id, "applies {}", describe_entries(ready.committed))
        for entry in ready.committed:
            facts.on_committed(self, entry)

    def on_durable(self, operation: Save | Compaction | Load) -> None:
        """Something is on the disk; perhaps the process died before it knew."""
        if isinstance(operation, Load):
            return
        if isinstance(operation, Compaction):
            self.first_index = max(self.first_index, operation.first_index)
            return
        self.durable.apply(operation)
        if self.world.is_told:
            state, entries = operation.hard_state, describe_entries(operation.entries)
            self.world.note(
                self.id, "has on disk: term {}, vote {}, {}", state.current_term, state.voted_for or "-", entries
            )
        if operation.snapshot is not None:
            self.first_index = operation.snapshot.last_index + 1
        self.world.facts.on_durable(self, operation)

    def on_damaged_snapshot(self) -> None:
        """A snapshot that arrived does not verify: a loss of power may have damaged it, and nothing else may."""
        if not self.disk.has_damaged_part:
            self.world.clock.abort(Broken("a_snapshot_arrives_as_it_was_sent", f"{self.id} received another"))
            raise ProcessKilled
        self.disk.has_damaged_part = False
        self.world.counts["damaged parts found"] += 1

    def _after_turn(self) -> None:
        raft, product = self.raft, self.product
        # A process that is about to end may have stopped halfway.
        if raft is None or product is None or product.ports.supervisor.has_failed or self.world.clock.error is not None:
            return
        participation = product.parts.participation
        if participation.is_distrusted:
            self.world.on_distrusted(self)
        elif self.is_set_back and participation.is_active:
            self.world.on_taking_part(self)
        indexes = (product.parts.state.store.applied_index, raft.log.applied_index)
        if indexes != self._indexes:
            self._indexes = indexes
            self.world.facts.on_turn(self)

    def _tell_role(self) -> None:
        raft = self.raft
        if raft is not None and (raft.role, raft.current_term) != self._told_role:
            self._told_role = (raft.role, raft.current_term)
            self.world.note(self.id, "is now {} of term {}", raft.role.replace("_", "-"), raft.current_term)

    def copy_disk(self) -> None:
        """Take a copy of the whole disk."""
        self._copy = (self.disk.copy(), deepcopy(self.durable), self.first_index)
        self.copied_at = self.world.clock.now
        members = self.raft.configuration.members if self.raft is not None else ()
        self.copied_members = frozenset(member.id for member in members)

    def set_disk_back(self) -> None:
        """Put the copy in the disk's place, while the process is down."""
        assert self.loop is None
        if self._copy is not None:
            self.disk, self.durable, self.first_index = self._copy
            self._copy = self.copied_at = None
            self.is_set_back = True
            self.armed = None
            self.world.counts["disks set back"] += 1

    def is_undisturbed_since(self, since_us: int) -> bool:
        """Tell whether this process has run since then, and nothing has kept it from being heard, or is about to."""
        is_well = self.raft is not None and self.started_us <= since_us and not (self.armed or self.port_error)
        is_told = self._is_told_to_stop is not None and not self._is_told_to_stop.is_set()
        paused_until = self.loop.paused_until if self.loop is not None else 0
        strange = max(self.stalled_until, self.full_until, self.late_saves_until, self.late_tasks_until, paused_until)
        is_reached = not self.world.network.was_cut(self.id, since_us)
        return is_well and is_told and is_reached and not self.fail_next_save and strange <= since_us

    def what_the_copy_lacks(self) -> DiskAtStart | None:
        """Return what was on the disk when it was copied, if it holds less than the disk does now, and holds a log.

        Terms in which nothing was voted or logged do not count: nobody could be misled.
        """
        if self._copy is None:
            return None
        disk, durable, _ = self._copy
        now = self.durable
        has_voted = now.hard_state.voted_for is not None and now.hard_state != durable.hard_state
        lacks = has_voted or durable.last_index < now.last_index or durable.term(now.last_index) != now.last_term
        return DiskAtStart(disk.load()) if lacks and durable.last_index else None

    def remembers(self, node: NodeId, disk: DiskAtStart) -> bool:
        """Tell whether this process remembers something of a node that a disk of that one lacks."""
        marks = self.raft.marks.of(node) if self.raft is not None else ()
        return any(disk.what_it_lacks(mark) for mark in marks)

    def damage_newest_snapshot(self) -> None:
        """Flip a bit of the newest snapshot file, if the older one and the log can do without it (B26, B33)."""
        kept = [info.snapshot.last_index for info in self.disk.snapshots.kept()]
        if len(kept) < 2 or kept[1] + 1 < self.first_index or kept[1] < self.durable.base_index:
            return
        self.disk.damage(kept[0], self.draw)
        self.world.counts["snapshots damaged"] += 1
        self.world.note(self.id, "finds its snapshot at {} damaged", kept[0])

    # --- Its memory ---------------------------------------------------------------------------------------------

    def damage_state(self) -> bool:
        """Change the value of a record in memory, if the state is of a level at which that can be noticed."""
        store = self.store
        keys = [key for key, each in store.versions.records.items() if not is_damaged(each)]
        if self.product is None or store.record_sum is None or not keys:
            return False
        key = self.draw.choice(keys)
        record = store.versions.records[key]
        record.value = DAMAGE * len(record.value)  # In the event log, too: it is the same object.
        self.world.note(self.id, "has another value of {} in its memory", key)
        return True

    @property
    def holds_damage(self) -> bool:
        """Whether a damaged value is in its memory, or in one of its snapshot files, or it is not decided what is."""
        files = self.disk.snapshots.files.values()
        if self.product is not None and self.product.parts.state.may_be_wrong:
            return True
        return self.serves_damage or any(DAMAGE * DAMAGED_BYTES in file for file in files)

    @property
    def is_quarantined(self) -> bool:
        """Whether its state was found wrong and is being rebuilt."""
        return self.product is not None and bool(self.product.quarantined)

    @property
    def serves_damage(self) -> bool:
        """Whether a damaged value is in its memory."""
        return any(is_damaged(record) for record in self.store.versions.records.values())

    def _sweep_soon(self, loop: SimLoop) -> None:
        """Let the state be swept more often than the product does it, which takes minutes."""
        if not loop.is_dead:
            loop.enter(self._sweep)
            self.world.clock.after(self.plan.sweep_us, self._sweep_soon, loop)

    def _sweep(self) -> None:
        if self.product is not None and not self.product.parts.turns.is_over:
            self.product.parts.sweeps.step(1 << 20)

    # --- What it is asked ---------------------------------------------------------------------------------------

    def ask(self, command: Request, reply: Reply) -> None:
        """Take a client's request: a write, a transaction, or a linearizable read of a key."""
        self.call(self._serve, command, reply)
        if isinstance(command, bytes):
            self.call(self._look_at_the_past, command)

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """Run a coroutine function as a task of the process, if there is one that could take a request."""
        if self.loop is not None and self.product is not None:
            self.loop.enter(self.loop.start_task, function, *arguments)

    async def _serve(self, command: Request, reply: Reply) -> None:
        product, loop = self.product, self.loop
        assert product is not None
        assert loop is not None
        answer = loop.create_future()
        self.world.clock.after(self._patience_us(), self._must_have_answered, loop, answer, command)
        answered = await self._answer(product, command)
        answer.set_result(None)
        reply(answered)

    async def _answer(self, product: Node, command: Request) -> Answer:
        """Put the request to the service, the one way in that every front uses."""
        assert self.loop is not None
        service, timeout_ms = Service(product, self.loop.time), self.world.timeout_us // 1000
        if self.plan.handing_per_mille and self._handing.random() * 1000 < self.plan.handing_per_mille:
            service = service.handing_over()
            if product.raft.leader != product.raft.id and product.parts.handover.origin.is_available:
                self.world.counts["requests that may be handed over"] += 1
        try:
            match command:
                case Put(key, value, prev_revision, client_id, sequence):
                    put = requests.Put(key, value, prev_revision, client_id, sequence, timeout_ms)
                    return Answer("result", await service.execute(ANONYMOUS, put))
                case Delete(key, prev_revision, client_id, sequence):
                    delete = requests.Delete(key, prev_revision, client_id, sequence, timeout_ms)
                    return Answer("result", await service.execute(ANONYMOUS, delete))
                case EndSession(client_id):
                    end = requests.EndSession(client_id, timeout_ms)
                    return Answer("result", await service.execute(ANONYMOUS, end))
                case requests.Txn():
                    txn = msgspec.structs.replace(command, timeout_ms=timeout_ms)
                    return Answer("result", await service.execute(ANONYMOUS, txn))
                case Txn() | LeaseGrant() | LeaseRenew() | LeaseRevoke():
                    return Answer("result", await product.propose(command, timeout_ms))
                case TimeToLive(lease):
                    await product.read_barrier(timeout_ms)
                    found_lease = product.store.leases.get(lease)
                    remaining_ms = None if found_lease is None else found_lease.remaining_ms(product.now_ms())
                    self.observe(self.world.facts.on_lease_read, self, lease, remaining_ms)
                    return Answer("lease")
                case bytes():
                    await self._look_at_staleness(service, command)
                    committed = self.world.facts.commit_index
                    found = await service.execute(ANONYMOUS, requests.Get(command, timeout_ms=timeout_ms))
                    self.observe(self.world.facts.on_read, self, committed)
                    if is_damaged(found.record):
                        # The fault's own doing, until the product has noticed: the client asks somebody else.
                        self.world.counts["reads of a damaged value"] += 1
                        self.observe(self.world.facts.on_damaged_read, self)
                        return Answer("refused")
                    # A front encodes an answer at once: what is on its way does not change with the node's memory.
                    return Answer("record", record=copy(found.record), revision=found.revision)
                case _:
                    raise TypeError(f"no client sends {command}")
        except CompareFailedError as error:
            return Answer("result", CompareFailed(error.revision, error.facts["mod_revision"]))
        except SessionError as error:
            return Answer("result", SessionRefused(error.facts["revision"], error.facts["reason"]))
        except NotLeaderError as error:
            return Answer("not_leader", leader=error.leader)
        except NoSpaceError:
            self.world.counts["puts refused for lack of room"] += 1
            return Answer("refused")
        except CallerError as error:
            return Answer(OUTCOMES[error.code].effect)

    async def _look_at_staleness(self, service: Service, key: bytes) -> None:
        """Read without asking a quorum, and compare how old the answer may be with what was committed by then."""
        try:
            found = await service.execute(ANONYMOUS, requests.Get(key, consistency="stale"))
        except CallerError:
            return
        if is_damaged(found.record):
            self.observe(self.world.facts.on_damaged_read, self)
        if found.staleness_ms is not None:
            self.world.counts["stale reads of a known age"] += 1
            self.observe(self.world.facts.on_stale_read, self, found.staleness_ms * self.rate_per_mille)

    async def _look_at_the_past(self, key: bytes) -> None:
        """Read the key at some revision, and compare the answer with what was applied."""
        assert self.product is not None
        assert self.loop is not None
        service = Service(self.product, self.loop.time)
        facts, draw = self.world.facts, self._past
        latest = facts.model.revision
        revision = draw.randrange(max(1, latest - 30), latest + 3)
        consistency: Literal["linearizable", "stale"] = "stale" if draw.random() < 0.7 else "linearizable"
        get = requests.Get(key, consistency, timeout_ms=self.world.timeout_us // 1000, revision=revision)
        try:
            found = await service.execute(ANONYMOUS, get)
        except RevisionCompactedError:
            self.observe(facts.on_past_refused, self, revision, latest, "compacted")
        except RevisionInFutureError:
            self.observe(facts.on_past_refused, self, revision, latest, "future")
        except CallerError:
            return
        else:
            if not is_damaged(found.record):
                value = None if found.record is None else found.record.value.decode()
                self.observe(facts.on_past_read, self, key.decode(), revision, value)

    def _patience_us(self) -> int:
        """Return how long a request may take at the most: its deadline by a slow clock, and a few turns and ticks."""
        plan = self.plan
        return 2 * (self.world.timeout_us + 4 * plan.tick_us + 10 * plan.turn_us)

    def _must_have_answered(self, loop: SimLoop, answer: asyncio.Future[None], command: Request) -> None:
        if answer.done() or loop.is_dead:
            return
        if loop.paused_until + self._patience_us() > self.world.clock.now:
            self.world.clock.after(self._patience_us(), self._must_have_answered, loop, answer, command)
        else:
            self.world.clock.abort(Broken("a_request_is_answered_in_time", f"{self.id} has no answer to {command!r}"))


async def _first_of(*parts: Coroutine[Any, Any, object]) -> None:
    """Run all of them until one has ended, and cancel the others.

    Raises:
        FatalError: what one of them raised.
    """
    done, rest = await asyncio.wait([asyncio.create_task(part) for part in parts], return_when=asyncio.FIRST_COMPLETED)
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
    for task in done:
        task.result()
