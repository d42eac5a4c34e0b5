"""Room on the disks: members report theirs, and the leader refuses puts before the disks of a majority are full.

The members store the same, so equal disks fill together; if they filled up, no node could save anything, a delete
neither. So a disk counts as full while there is still room for a snapshot of the present state, for the log until that
snapshot is taken, and for the deletes that follow. Each node looks at its own disk and tells the leader in its answers
to heartbeats; a member that reports nothing (an older version) counts as having room. What the leader has proposed
since is not in the reports yet, so it is counted by the leader.

Nothing here is final: when there is room again, on any disk, puts are accepted again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import suppress

from kvorum.config import Config
from kvorum.errors import CallerError, NoSpaceError
from kvorum.identity import name_of
from kvorum.node.ports import Clock, Tasks, Threads
from kvorum.node.state import State
from kvorum.raft import Raft, Role
from kvorum.raft.messages import HeartbeatResponse, NodeId
from kvorum.storage.interface import Storage
from kvorum.telemetry.logs import RateLimit

log = logging.getLogger("kvorum.storage")

MEASURE_S = 1.0
"""How often the own disk is looked at."""
SETTLE_S = 2.0
"""What was proposed within so long may not be in the reports yet."""
HAND_OVER_S = 10.0
"""A leader without room tries to hand over at most so often."""

ADVANCE_S = 10.0
"""A leader that refuses puts proposes an entry that changes nothing so often."""

RECORD_BYTES = 48
"""What a snapshot holds of a key besides the key and its value, at most."""
SESSION_BYTES = 512
"""About what a snapshot holds of a session."""
BATCH_BYTES_MIN = 64 * 1024
"""The least that counts as one of the largest entries."""
STATE_PARTS = 2
"""The log may grow by one of so many parts of the state between two snapshots, if that is more than ``snapshot_bytes``:
the larger the state is, the longer it takes to write, and to read at the next start."""
LARGE_LOG_BYTES = 256 << 20
"""But by no more than this, since a start applies it again."""
LOG_BATCHES = 4
"""The log may grow by so many of the largest entries between two snapshots, however small the state is."""
MARGIN_BATCHES = 8
"""Room for so many of the largest entries is left for what is on its way and for deletes."""
WRITES_PER_BYTE = 2
"""An entry is written to the write-ahead log, and to the database."""

_ENOUGH = 1 << 62


class DiskSpace:
    """Knows the room of every member, from :meth:`start` to :meth:`close`.

    Args:
        config: what bounds the log.
        raft: the consensus server.
        state: whose snapshot must find room.
        storage: the own disk.
        clock: measures time.
        tasks: where the own disk is looked at.
        threads: likewise.

    Attributes:
        refusal: why this node, as the leader, refuses puts; None: it does not.
        is_tight: the own disk has little room, and the log is to be kept short.
        is_low: the own disk has too little room for puts to be accepted.
        log_bytes_due: a snapshot is due when the log has grown by so much.
    """

    def __init__(
        self, config: Config, raft: Raft, state: State, storage: Storage, clock: Clock, tasks: Tasks, threads: Threads
    ) -> None:
        self.refusal: str | None = None
        self.is_tight = False
        self.is_low = False
        self.log_bytes_due = config.snapshot_bytes
        self._snapshot_bytes_due = config.snapshot_bytes
        self._batch_bytes = max(config.batch_bytes_max, BATCH_BYTES_MIN)
        self._patience_s = 2 * config.election_timeout_ms / 1000
        self._raft = raft
        self._state = state
        self._storage = storage
        self._clock = clock
        self._tasks = tasks
        self._threads = threads
        self._task: asyncio.Task[None] | None = None
        self._led_since_s: float | None = None
        self._reports: dict[NodeId, tuple[int, float]] = {}
        """What each member reported last, and when."""
        self._spare_bytes = _ENOUGH
        """How much may be proposed until the next tick."""
        self._proposed_bytes = 0
        """By this leader, in all."""
        self._recent: deque[tuple[float, int]] = deque()
        """The same at the ticks of the last moments."""
        self._handed_over_s = float("-inf")
        self._advanced_s = float("-inf")
        self._limit = RateLimit(clock=clock.monotonic)

    def start(self) -> None:
        """Begin to look at the own disk."""
        self._task = self._tasks.spawn(self._run(), name="room on the disk")

    async def close(self) -> None:
        """Stop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await self._threads.run(self._storage.measure, self.needed_bytes)
            await self._tasks.sleep(MEASURE_S)

    # --- What is needed -------------------------------------------------------------------------------------------

    @property
    def state_bytes(self) -> int:
        """About the size of a snapshot of the present state and its history."""
        store = self._state.store
        return store.data_bytes + store.history_bytes + RECORD_BYTES * len(store) + SESSION_BYTES * store.session_count

    @property
    def usual_log_bytes(self) -> int:
        """How much the log may grow between two snapshots on a disk with enough room."""
        return max(self._snapshot_bytes_due, min(self.state_bytes // STATE_PARTS, LARGE_LOG_BYTES))

    @property
    def log_bytes(self) -> int:
        """How much the log may grow between two snapshots on a disk with little room."""
        return min(self._snapshot_bytes_due, max(self.state_bytes, LOG_BATCHES * self._batch_bytes))

    @property
    def needed_bytes(self) -> int:
        """How much must be free on a disk for puts to be accepted."""
        return self.state_bytes + self.log_bytes + MARGIN_BATCHES * self._batch_bytes

    # --- What the members say -------------------------------------------------------------------------------------

    def reported(self, message: HeartbeatResponse) -> None:
        """A member answered a heartbeat; what others say counts for nothing."""
        members = self._raft.configuration
        if members.get(message.sender) is None:
            return
        if len(self._reports) > len(members.members):
            self._reports = {node: said for node, said in self._reports.items() if members.get(node) is not None}
        free_bytes = message.free_bytes if message.free_bytes >= 0 else _ENOUGH
        self._reports[message.sender] = (free_bytes, self._clock.monotonic())

    def free_bytes_of(self, node: NodeId) -> int | None:
        """Return what a member's disk can still store, as far as this node knows."""
        if node == self._raft.id:
            return self._storage.free_bytes()
        free_bytes, _ = self._reports.get(node, (_ENOUGH, 0.0))
        return None if free_bytes == _ENOUGH else free_bytes

    # --- The leader's judgement -----------------------------------------------------------------------------------

    def check(self, size_bytes: int) -> None:
        """Check that a put of so many bytes may be proposed, and count it.

        Raises:
            NoSpaceError: the disks of a majority have no room for it.
        """
        self._proposed_bytes += size_bytes
        self._spare_bytes -= WRITES_PER_BYTE * size_bytes
        if self._spare_bytes < 0:
            self._proposed_bytes -= size_bytes
            self._spare_bytes += WRITES_PER_BYTE * size_bytes
            used = self.state_bytes
            raise NoSpaceError(
                self.refusal or "the disks of a majority are nearly full; deletes and reads go on",
                reason="disk",
                limit=max(used + self._spare_bytes, 0),
                used=used,
            )

    def tick(self) -> None:
        """Judge anew. Called once a tick."""
        raft = self._raft
        own, needed = self._storage.free_bytes(), self.needed_bytes
        raft.set_free_bytes(own)
        self.is_tight = own is not None and own < 2 * needed
        self.is_low = own is not None and own < _wanted(needed)
        self.log_bytes_due = self.log_bytes if self.is_tight else self.usual_log_bytes
        if raft.role is not Role.LEADER:
            self._forget()
            return
        now_s = self._clock.monotonic()
        if self._led_since_s is None:
            self._led_since_s = now_s
        voters = raft.configuration.voters()
        own_bytes = _ENOUGH if own is None else own
        # Silence alone is no lack of room: a leader that hears no quorum steps down for that.
        said = (self._reports[node][0] for node in voters if node in self._reports)
        is_any_low = own_bytes < needed or any(free_bytes < needed for free_bytes in said)
        free = {node: self._free_bytes_now(node, now_s, is_any_low) for node in voters}
        free[raft.id] = own_bytes
        majority = sorted((free[node] for node in voters), reverse=True)[: raft.configuration.quorum()]
        of_majority = min(majority, default=_ENOUGH)
        # The leader cannot do without its own disk: nothing is proposed that it has no room for.
        self._note(min(of_majority, free[raft.id]), needed, free)
        self._spare_bytes = min(of_majority, free[raft.id]) - needed - WRITES_PER_BYTE * self._recent_bytes(now_s)
        if free[raft.id] < needed and of_majority >= _wanted(needed):
            self._hand_over(now_s, _wanted(needed), free)

    def _forget(self) -> None:
        if self._led_since_s is not None or self._reports:
            self._led_since_s = self.refusal = None
            self._reports.clear()
            self._recent.clear()
        self._spare_bytes = _ENOUGH

    def _free_bytes_now(self, node: NodeId, now_s: float, is_any_low: bool) -> int:
        """Return what counts for a member: where a disk is full, one that does not answer is no help to a majority."""
        free_bytes, at_s = self._reports.get(node, (_ENOUGH, self._led_since_s or now_s))
        return 0 if is_any_low and now_s - at_s >= self._patience_s else free_bytes

    def _recent_bytes(self, now_s: float) -> int:
        recent = self._recent
        recent.append((now_s, self._proposed_bytes))
        while len(recent) > 1 and recent[1][0] <= now_s - SETTLE_S:
            recent.popleft()
        return self._proposed_bytes - recent[0][1]

    def _note(self, room_bytes: int, needed: int, free: dict[NodeId, int]) -> None:
        if room_bytes >= (needed if self.refusal is None else _wanted(needed)):
            if self.refusal is not None:
                self.refusal = None
                log.warning("there is room on the disks of a majority again: puts are accepted")
            return
        full = sorted(name_of(node) for node, free_bytes in free.items() if free_bytes < needed)
        was_refusing = self.refusal is not None
        self.refusal = (
            f"the disks of a majority are nearly full ({', '.join(full) or 'for a moment'}): each needs {needed} free "
            "bytes; deletes and reads go on"
        )
        if not was_refusing and self._limit.allow() is not None:
            log.error("puts are refused: %s", self.refusal)

    def is_entry_due(self) -> bool:
        """Tell, now and then, a leader that refuses puts to propose something all the same.

        Without an entry no node could take another snapshot, which may be what frees the room.
        """
        now_s = self._clock.monotonic()
        if self.refusal is None or now_s < self._advanced_s + ADVANCE_S:
            return False
        self._advanced_s = now_s
        return True

    def _hand_over(self, now_s: float, needed: int, free: dict[NodeId, int]) -> None:
        """Let a voter lead that has room."""
        raft = self._raft
        if raft.is_transferring or now_s < self._handed_over_s + HAND_OVER_S:
            return
        target = raft.transfer_candidate(lambda node: free.get(node, 0) >= needed)
        if target is None:
            return
        self._handed_over_s = now_s
        log.warning("%s hands over to %s, whose disk has room", raft.id, target)
        with suppress(CallerError):
            raft.transfer_leadership(target)


def _wanted(needed_bytes: int) -> int:
    """Return what must be free to accept puts again: a little more than to go on accepting them."""
    return needed_bytes + needed_bytes // 8
