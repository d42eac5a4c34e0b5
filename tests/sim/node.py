"""One simulated process: the real core and the real store, driven by the contract that the real driver follows.

The disk (:mod:`sim.disk`) outlives the process; everything else dies with it.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

import msgspec
from sim.disk import Durable, SimDisk
from sim.snapshots import Snapshots, load_store
from sim.transcript import describe_entries

from kvorum.errors import InvariantViolated, NoLeader, NotLeader, Overloaded
from kvorum.kv.commands import Command, Result, encode_batch
from kvorum.kv.records import Record
from kvorum.kv.store import Store
from kvorum.raft import Raft, RaftConfig
from kvorum.raft.messages import (
    AppendEntriesResponse,
    HeartbeatResponse,
    InstallSnapshotResponse,
    Message,
    NodeId,
    Ready,
    Save,
    Snapshot,
)
from kvorum.storage.memory import Compaction

if TYPE_CHECKING:
    from sim.world import World

UNIX_MS = 1_700_000_000_000
ANSWERS = (AppendEntriesResponse, HeartbeatResponse, InstallSnapshotResponse)
"""What tells a leader that a follower follows."""
READIES_MAX = 10_000
"""In one turn of the driver: nothing arrives meanwhile, so there must be an end to it."""


class Answer(msgspec.Struct, frozen=True):
    """What a node tells a client.

    ``kind``: ``result`` (of a write), ``record`` (of a read), ``not_leader``, ``refused`` (certainly not done),
    ``lost`` (proposed, and certainly not done), ``unknown``.
    """

    kind: str
    result: Result | None = None
    record: Record | None = None
    revision: int = 0
    leader: NodeId | None = None


Reply = Callable[[Answer], None]


class SimNode:
    """A process and its disk.

    Args:
        world: where it lives.
        id: its member id.
        disk: what it was given at birth: empty, or bootstrapped.
    """

    def __init__(self, world: World, node: NodeId, disk: SimDisk) -> None:
        self.id = node
        self.disk = disk
        self.durable = Durable()
        self.is_lost = False
        self.is_removed = False
        self.is_retired = False
        self.paused_until = 0
        self.stalled_until = 0
        self.full_until = 0
        self.no_files_until = 0
        """A disk that has room for the log may have none for a snapshot."""
        self.clock_offset_ms = 0
        self.fail_next_save = False
        self.first_index = 1  # of what compaction has left on the disk
        self.armed: tuple[str, int, int] | None = None  # (crash point, how many times to let it pass, downtime)
        self.starts = 0
        self.loaded_term = 0
        self._world = world
        self._plan = world.plan
        self.draw = Random(f"{world.plan.seed}:{node}:driver")
        skew = world.plan.tick_skew_per_mille
        self._tick_us = world.plan.tick_us * (1000 + self.draw.randrange(-skew, skew + 1)) // 1000
        self.raft: Raft | None = None
        self.store = Store()
        self.snapshots = Snapshots(world, self)
        self.ticks = 0
        self.saving_since: int | None = None
        """Since which tick a save is in flight, if one is."""
        self.heard: dict[NodeId, int] = {}
        """At which tick a peer last answered what this process said as a leader of the present term."""

    # --- Life and death -----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the process from what is on the disk."""
        if self.raft is not None or self.is_lost or self.is_retired:
            return
        self.starts += 1
        loaded = self.disk.load()
        self.loaded_term = loaded.hard_state.current_term
        self._world.facts.on_load(self, loaded)
        self.store = load_store(self, loaded.snapshot) if loaded.snapshot else Store()
        plan = self._plan
        self.raft = self._world.make_raft(
            RaftConfig(
                id=self.id,
                election_timeout_ticks=plan.election_timeout_ticks,
                heartbeat_timeout_ticks=plan.heartbeat_timeout_ticks,
                append_bytes_max=plan.append_bytes_max,
                inflight_messages_max=plan.inflight_messages_max,
                committed_bytes_max=plan.committed_bytes_max,
                promote_lag_max=plan.promote_lag_max,
            ),
            Random(f"{plan.seed}:{self.id}:{self.starts}"),
            hard_state=loaded.hard_state,
            snapshot=loaded.snapshot,
            entries=loaded.entries,
        )
        self._writes: list[tuple[Command, Reply]] = []
        self._reads: list[tuple[bytes, Reply]] = []
        self._waiting: dict[int, list[tuple[int, list[Reply]]]] = {}
        self._barriers: dict[int, tuple[bytes, Reply]] = {}
        self._contexts = self.starts << 32
        self._after_save: tuple[Message, ...] = ()
        self._is_pump_due = False
        self.snapshots = Snapshots(self._world, self)
        self.ticks, self.saving_since, self.heard = 0, None, {}
        self._told_role = (self.raft.role, self.raft.current_term)
        self._world.facts.on_start(self)
        self._world.note(
            self.id, "starts at term {} with log ..{}", loaded.hard_state.current_term, self.durable.last_index
        )
        self._world.clock.after(self.draw.randrange(self._tick_us), self._tick, self.starts)

    def crash(self, why: str, *, durable: int = 0) -> None:
        """End the process at once; ``durable`` of the writes in flight have reached the disk."""
        if self.raft is None:
            return
        self._world.note(self.id, "crashes ({})", why)
        self._world.counts["crashes"] += 1
        pending = self.disk.pending
        for operation in pending[:durable]:
            if isinstance(operation, Save):
                self._on_durable(operation)
        if not durable and self.draw.random() < 0.5 and self.disk.tear(self.draw.randrange(1 << 16)):
            self._world.counts["torn saves"] += 1
        self.disk.lose_unsynced_parts(self.draw)
        self.disk.crash(min(durable, len(pending)))
        self.raft = None
        self.paused_until = 0
        self.armed = None
        self._world.on_crash(self)

    def crash_at(self, point: str) -> bool:
        """Die here if that is due. Return whether the process is gone."""
        world = self._world
        if world.is_recovering:
            return False
        world.crash_points += 1
        downtime_us = self._plan.election_timeout_us
        if world.crash_points != self._plan.crash_at:
            if self.armed is None or self.armed[0] != point:
                return False
            _, passes, downtime_us = self.armed
            if passes > 0:
                self.armed = (point, passes - 1, downtime_us)
                return False
        durable = len(self.disk.pending) if point == "save_durable_unanswered" else 0
        self.crash(point, durable=durable)
        world.clock.after(downtime_us, self.start)
        return True

    def retire(self) -> None:
        """Stop for good: this member was removed."""
        self.is_retired = True
        self.crash("removed")

    def recover(self) -> None:
        """No more faults: nothing that was armed strikes, what is paused or stalled goes on, and there is room."""
        self.armed = None
        self.fail_next_save = False
        self.paused_until = min(self.paused_until, self._world.clock.now)
        self.stalled_until = min(self.stalled_until, self._world.clock.now)
        self.full_until = self.no_files_until = 0

    def when_awake(self, action: Callable[..., None], *arguments: object) -> bool:
        """Return True if the process runs; else let the action wait until it does (SIGSTOP, or a long pause)."""
        if self.paused_until <= self._world.clock.now:
            return True
        self._world.clock.after(self.paused_until - self._world.clock.now, action, *arguments)
        return False

    # --- What happens to it -------------------------------------------------------------------------------------

    def _tick(self, start: int) -> None:
        if self.raft is None or start != self.starts or not self.when_awake(self._tick, start):
            return
        self.ticks += 1
        self.raft.tick()
        self._world.clock.after(self._tick_us, self._tick, start)
        self._world.facts.on_tick(self)
        self.after_input()

    def receive(self, message: Message, start: int | None = None) -> None:
        """Take a message from a peer."""
        start = self.starts if start is None else start
        if self.raft is None or start != self.starts or not self.when_awake(self.receive, message, start):
            return
        if isinstance(message, ANSWERS) and message.term == self.raft.current_term:
            self.heard[message.sender] = self.ticks
        self.raft.step(message)
        self.after_input()

    def unreachable(self, peer: NodeId) -> None:
        """The connection to a peer broke."""
        if self.raft is not None and self.paused_until <= self._world.clock.now:
            self.raft.peer_unreachable(peer)
            self.after_input()

    def ask(self, command: Command | bytes, reply: Reply, start: int | None = None) -> None:
        """Take a client's request: a write, or a linearizable read of a key."""
        start = self.starts if start is None else start
        if self.raft is None or start != self.starts or not self.when_awake(self.ask, command, reply, start):
            return
        if isinstance(command, bytes):
            self._reads.append((command, reply))
        else:
            self._writes.append((command, reply))
        self.after_input()

    def after_input(self) -> None:
        """The core took something in: look at it, and have the driver take its turn, now or soon."""
        self._world.facts.on_input(self)
        if self._world.is_told:
            self._tell_role()
        if not self._plan.pump_delay_us:
            self._pump(self.starts)
        elif not self._is_pump_due:
            self._is_pump_due = True
            delay = self.timely(self.draw.randrange(self._plan.pump_delay_us))
            self._world.clock.after(delay, self._pump, self.starts)

    def _tell_role(self) -> None:
        raft = self.raft
        if raft is not None and (raft.role, raft.current_term) != self._told_role:
            self._told_role = (raft.role, raft.current_term)
            self._world.note(self.id, "is now {} of term {}", raft.role.replace("_", "-"), raft.current_term)

    def timely(self, delay_us: int) -> int:
        """Return the delay, shortened in the liveness phase."""
        return min(delay_us, self._plan.timely_us) if self._world.is_recovering else delay_us

    # --- The driver's turn --------------------------------------------------------------------------------------

    def _pump(self, start: int) -> None:
        if self.raft is None or start != self.starts or not self.when_awake(self._pump, start):
            return
        self._is_pump_due = False
        if self._writes or self._reads:
            self._propose()
            self._begin_reads()
            self._world.facts.on_input(self)
        for _ in range(READIES_MAX):
            ready = self.raft.ready() if self.raft is not None else None
            if ready is None:
                break
            self._world.facts.on_ready(self, ready)
            self._handle(ready)
        else:
            raise InvariantViolated(f"{self.id} does not come to rest: {ready}")
        self.snapshots.begin_if_due()

    def _propose(self) -> None:
        if not self._writes or self.raft is None:
            return
        writes, self._writes = self._writes, []
        time_ms = UNIX_MS + self._world.clock.now // 1000 + self.clock_offset_ms
        try:
            index, term = self.raft.propose([encode_batch(time_ms, [command for command, _ in writes])])
        except NotLeader as error:
            answer = Answer("not_leader", leader=error.leader)
        except Overloaded:
            answer = Answer("refused")
        else:
            self._waiting.setdefault(index, []).append((term, [reply for _, reply in writes]))
            return
        for _, reply in writes:
            reply(answer)

    def _begin_reads(self) -> None:
        reads, self._reads = self._reads, []
        for key, reply in reads:
            self._contexts += 1
            try:
                assert self.raft is not None
                self.raft.read_index(self._contexts)
            except NoLeader:
                reply(Answer("refused"))
            else:
                self._barriers[self._contexts] = (key, reply)

    def _handle(self, ready: Ready) -> None:
        """Do what a Ready asks for, in its order; die at a crash point if that is due."""
        if ready.save is not None and self.crash_at("before_save"):
            return
        if not self._send(ready.messages):
            return
        if ready.save is not None:
            self._after_save = ready.messages_after_save
            self.disk.save(ready.save, lambda: None)
            self.saving_since = self.ticks
            self._schedule_disk(ready.save)
            if self.crash_at("save_lost") or self.crash_at("save_durable_unanswered"):
                return
        elif ready.messages_after_save:
            raise InvariantViolated("messages wait for a save that there is not")
        if (ready.committed or ready.restore) and self.crash_at("before_apply"):
            return
        if ready.fetch is not None:
            self.snapshots.fetch(ready.fetch)
        if ready.restore is not None:
            self._restore(ready.restore)
        if ready.committed and self._world.is_told:
            self._world.note(self.id, "applies {}", describe_entries(ready.committed))
        for entry in ready.committed:
            results = self.store.apply(entry)
            self._world.facts.on_apply(self, entry, results)
            self._answer_writes(entry.index, entry.term, results)
        self._answer_reads(ready)
        if ready.committed:
            self.crash_at("after_apply")

    def _send(self, messages: tuple[Message, ...]) -> bool:
        for message in messages:
            self._world.facts.on_send(self, message)
            self._world.send(message)
            if self.crash_at("between_sends"):
                return False
        return True

    def _answer_writes(self, index: int, term: int, results: list[Result]) -> None:
        for proposed_term, replies in self._waiting.pop(index, ()):
            if proposed_term != term:
                for reply in replies:
                    reply(Answer("lost"))
                continue
            for reply, result in zip(replies, results, strict=True):
                reply(Answer("result", result))

    def _answer_reads(self, ready: Ready) -> None:
        for read in ready.reads:
            self._world.facts.on_read(self, read)
            if read.context in self._barriers:
                key, reply = self._barriers.pop(read.context)
                reply(Answer("record", record=self.store.get(key), revision=self.store.revision))
        for context in ready.reads_refused:
            if context in self._barriers:
                self._barriers.pop(context)[1](Answer("refused"))

    def _restore(self, snapshot: Snapshot) -> None:
        self.snapshots.stop()
        self.store = load_store(self, snapshot)
        self._world.counts["restores"] += 1
        self._world.note(self.id, "restores the snapshot at {}", snapshot.last_index)
        self._world.facts.on_restore(self, snapshot)
        for index in [index for index in self._waiting if index <= snapshot.last_index]:
            for _, replies in self._waiting.pop(index):
                for reply in replies:
                    reply(Answer("unknown"))

    # --- The disk -----------------------------------------------------------------------------------------------

    def compact(self, first_index: int) -> None:
        """Let the disk forget what is before this index."""
        self.disk.compact(first_index, lambda: None)
        self._schedule_disk(self.disk.pending[-1])

    def _schedule_disk(self, operation: Save | Compaction) -> None:
        delay = self._plan.disk_us + int(self.draw.random() * self._plan.disk_jitter_us)
        self._world.clock.after(self.timely(delay), self._disk_done, self.starts, operation)

    def _disk_done(self, start: int, operation: Save | Compaction) -> None:
        if self.raft is None or start != self.starts:
            return
        now = self._world.clock.now
        if self.stalled_until > now:
            self._world.clock.after(self.stalled_until - now, self._disk_done, start, operation)
            return
        if self.disk.pending[0] is not operation:
            self._world.clock.after(self._plan.disk_us, self._disk_done, start, operation)
            return
        if self._is_refused(operation):
            return
        self.disk.complete()
        if isinstance(operation, Compaction):
            self.snapshots.compacted(operation)
            return
        self._on_durable(operation)
        self._saved(start, operation)

    def _is_refused(self, operation: Save | Compaction) -> bool:
        """Return whether the disk refuses this: once, or as long as it is full. The process ends (B31, B32)."""
        if self.full_until > self._world.clock.now:
            self._world.counts["writes without room"] += 1
            self.crash("the disk is full")
        elif self.fail_next_save and isinstance(operation, Save):
            self.fail_next_save = False
            self.crash("the disk fails", durable=self.draw.randrange(2))
        else:
            return False
        self._world.clock.after(self._plan.election_timeout_us, self.start)
        return True

    def _on_durable(self, save: Save) -> None:
        self.durable.apply(save)
        if self._world.is_told:
            state, entries = save.hard_state, describe_entries(save.entries)
            self._world.note(
                self.id, "has on disk: term {}, vote {}, {}", state.current_term, state.voted_for or "-", entries
            )
        if save.snapshot is not None:
            self.first_index = save.snapshot.last_index + 1
        self._world.facts.on_durable(self, save)

    def damage_newest_snapshot(self) -> None:
        """Flip a bit of the newest snapshot file, if the older one and the log can do without it (B26, B33)."""
        kept = [info.snapshot.last_index for info in self.disk.snapshots.kept()]
        if len(kept) < 2 or kept[1] + 1 < self.first_index or kept[1] < self.durable.base_index:
            return
        self.disk.damage(kept[0], self.draw)
        self._world.counts["snapshots damaged"] += 1
        self._world.note(self.id, "finds its snapshot at {} damaged", kept[0])

    def _saved(self, start: int, save: Save) -> None:
        if self.raft is None or start != self.starts or not self.when_awake(self._saved, start, save):
            return
        if self.crash_at("after_save_before_send"):
            return
        self.saving_since = None
        messages, self._after_save = self._after_save, ()
        if self._send(messages):
            self.raft.saved(save.number)
            self.after_input()
