"""The history of the keys: when the leader compacts it without being asked, and how memory follows on every node.

The leader proposes :class:`~kvorum.kv.commands.Compact` when the history is older than ``history_age_s``, or has more
than ``history_bytes_max`` or a quarter of the quota, and all of it when the disks have little room: snapshots hold the
history, and deletes must make room. Bytes and room count more than age. (Near the quota the history gives way when an
entry is applied, without a command: :meth:`kvorum.kv.store.Store.apply`. Every node counts and logs that.)

How old a revision is, the state does not say. Every node marks, as it applies entries, which revision was reached at
which log time. A node that has no marks, since it has just started or installed a snapshot, begins at that moment: if
it leads, history is kept longer than configured, and never shorter.
"""

from __future__ import annotations

import logging
from collections import deque

from kvorum.config import Config
from kvorum.kv.commands import Compact
from kvorum.kv.features import HISTORY_LEVEL
from kvorum.kv.store import Store
from kvorum.node.leader_proposals import LeaderProposals
from kvorum.node.log_time import LogTime
from kvorum.node.space import DiskSpace
from kvorum.node.state import State
from kvorum.telemetry.counters import Counters

MARKS_A_SPAN = 256
"""The age that is kept is divided into so many parts: no more marks than that are needed."""
log = logging.getLogger(__name__)

STEPS_A_SPAN = 20
"""By age, the leader compacts at most so often in the age that is kept."""
ROOM_STEP_MS = 1000
"""For room on the disks, the leader compacts at most so often."""
QUOTA_PARTS = 4
"""The history may take one of so many parts of the quota."""
STEP_PARTS = 8
"""When bytes force it, one of so many parts of what the history may take is freed at once, beyond what is needed."""
GIVEN_WAY_TOLD_MS = 60_000
"""A line tells at most so often that the history gives way to the quota: it may do so with every entry."""
RECLAIMED_PER_APPLIED = 2
"""So many events are dropped from memory for each command that is applied: memory catches up with the floor."""
RECLAIMED_A_TICK = 1000
"""So many events are dropped from memory in a tick at most, when fewer commands are applied (about 1 ms)."""


class Compactions:
    """Proposes compactions on the leader, and drops from memory what lies below the floor.

    Args:
        config: how much history is kept.
        state: whose history it is.
        log_time: by which its age is measured.
        proposals: by which the leader proposes compactions.
        space: whether the disks have room.
        counters: where these are counted.
    """

    def __init__(
        self,
        config: Config,
        state: State,
        log_time: LogTime,
        proposals: LeaderProposals,
        space: DiskSpace,
        counters: Counters,
    ) -> None:
        self._age_ms = int(config.history_age_s * 1000)
        self._step_ms = self._age_ms // STEPS_A_SPAN
        self._bytes_max = config.history_bytes_max
        self._state = state
        self._log_time = log_time
        self._proposals = proposals
        self._space = space
        self._counters = counters
        self._marks = Marks(self._age_ms)
        self._stepped_ms = {"age": 0, "disk": 0}
        """The log time of the last compaction that this node proposed for a reason that has its time."""
        self._reclaimed = 0
        """How many events were dropped since the last tick."""
        self._given_way = 0
        """How often the history of this store had given way to the quota, as far as it is counted."""
        self._told_ms = 0
        """The log time at which a line last told of it."""

    def applied(self, commands: int) -> None:
        """Take note that so many commands were applied, and let memory catch up."""
        store = self._state.store
        if self._age_ms:
            self._marks.note(store.time_ms, store.revision)
        self._reclaimed += store.reclaim(RECLAIMED_PER_APPLIED * commands)
        if store.given_way != self._given_way:
            self._note_given_way(store)

    def _note_given_way(self, store: Store) -> None:
        """Count that the history gave way; say it once, until it is some time without."""
        # Another store, from a snapshot, counts from 0.
        self._counters.compactions["quota"] += max(store.given_way - self._given_way, 0)
        self._given_way = store.given_way
        now_ms = store.time_ms
        if now_ms >= self._told_ms + GIVEN_WAY_TOLD_MS:
            log.warning(
                "the data is near its quota of %d bytes: the history gives way, and begins at revision %d now",
                store.quota.limit_bytes,
                store.floor,
            )
            self._told_ms = now_ms

    def tick(self) -> None:
        """Let memory catch up, and propose a compaction if one is due. Called once a tick."""
        store = self._state.store
        if self._reclaimed < RECLAIMED_A_TICK:
            store.reclaim(RECLAIMED_A_TICK - self._reclaimed)
        self._reclaimed = 0
        now_ms = self._log_time.now_ms()
        if self._age_ms:
            self._marks.note(now_ms, store.revision)
        if store.feature_level < HISTORY_LEVEL or not self._proposals.are_possible:
            return
        revision, reason = self._due(store, now_ms)
        if revision > store.floor and self._proposals.propose(Compact(revision)):
            self._counters.compactions[reason] += 1
            if reason in self._stepped_ms:
                self._stepped_ms[reason] = now_ms

    def _due(self, store: Store, now_ms: int) -> tuple[int, str]:
        """Return the revision at which to compact now, and why; one that is not above the floor: do not."""
        limit_bytes, quota_bytes = self._bytes_max, store.quota.limit_bytes
        if quota_bytes:
            limit_bytes = min(limit_bytes, quota_bytes // QUOTA_PARTS)
        if limit_bytes and store.history_bytes > limit_bytes:
            return store.revision_to_free(store.history_bytes - limit_bytes + limit_bytes // STEP_PARTS), "bytes"
        is_short = self._space.is_tight or self._space.refusal is not None
        if is_short and store.history_bytes and now_ms >= self._stepped_ms["disk"] + ROOM_STEP_MS:
            return store.revision, "disk"
        if self._age_ms and now_ms >= self._stepped_ms["age"] + self._step_ms:
            return self._marks.revision_at(now_ms - self._age_ms), "age"
        return 0, ""


class Marks:
    """Which revision was reached at which log time: not many, and only as far back as history is kept.

    Args:
        span_ms: how far back it must be known.
    """

    def __init__(self, span_ms: int) -> None:
        self._span_ms = span_ms
        self._interval_ms = span_ms // MARKS_A_SPAN
        self._marks: deque[tuple[int, int]] = deque()
        """(log time, revision), both ascending. All up to that revision is at least as old."""

    def __len__(self) -> int:
        """How many there are."""
        return len(self._marks)

    def note(self, time_ms: int, revision: int) -> None:
        """Mark the revision that the state has at a log time, unless the last mark was just now, or says it already."""
        marks = self._marks
        if marks and (time_ms < marks[-1][0] + self._interval_ms or revision <= marks[-1][1]):
            return
        marks.append((time_ms, revision))
        while len(marks) > 1 and marks[1][0] <= time_ms - self._span_ms:
            marks.popleft()

    def revision_at(self, time_ms: int) -> int:
        """Return the highest revision that is known to have been reached at a log time; 0: none is."""
        reached = 0
        for marked_ms, revision in self._marks:
            if marked_ms > time_ms:
                break
            reached = revision
        return reached
