"""When the leader compacts the history by itself, and how memory follows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from kv.kv_support import apply, store_at_level_3, store_at_level_4

from kvorum.config import Config
from kvorum.errors import OverloadedError
from kvorum.kv.commands import BatchCommand, Compact, Put, SetQuota, decode_batch
from kvorum.kv.quota import OPERATOR
from kvorum.kv.store import Store
from kvorum.node import compactions
from kvorum.node.compactions import MARKS_A_SPAN, RECLAIMED_A_TICK, Compactions, Marks
from kvorum.node.leader_proposals import LeaderProposals
from kvorum.node.state import State
from kvorum.raft import Role
from kvorum.telemetry.counters import Counters

MIB = 1024 * 1024
START_MS = 1_800_000_000_000
AGE_MS = 600_000
STEP_OF_600_S_MS = 30_000


class Node:
    """A node that leads until a test says otherwise. Its log time passes as the test says."""

    def __init__(self, store: Store | None = None, **options: Any) -> None:
        self.state = State(store if store is not None else store_at_level_4())
        self.now_ms = START_MS
        self.counters = Counters()
        self.proposed: list[bytes] = []
        self.refusal: Exception | None = None
        self.raft = SimpleNamespace(
            id="n1@1", leader="n1@1", role=Role.LEADER, is_transferring=False, current_term=1, propose=self._propose
        )
        log_time = cast(Any, SimpleNamespace(now_ms=self._log_time_ms))
        proposals = LeaderProposals(
            cast(Any, self.raft), self.state, log_time, cast(Any, SimpleNamespace(schedule=lambda: None))
        )
        self.space = SimpleNamespace(is_tight=False, refusal=None)
        self.compactions = Compactions(
            Config(**options), self.state, log_time, proposals, cast(Any, self.space), self.counters
        )

    @property
    def store(self) -> Store:
        return self.state.store

    def _log_time_ms(self) -> int:
        return self.now_ms if self.raft.role is Role.LEADER else self.store.time_ms

    def _propose(self, payloads: list[bytes]) -> tuple[int, int]:
        if self.refusal is not None:
            raise self.refusal
        self.proposed += payloads
        return self.store.applied_index + len(payloads), self.raft.current_term

    def put(self, *values: bytes, key: bytes = b"k") -> int:
        """Apply a put of each value; return the revision."""
        for value in values:
            apply(self.store, Put(key, value), time_ms=self.now_ms)
            self.compactions.applied(1)
        return self.store.revision

    def tick(self) -> list[BatchCommand]:
        """Let a tick pass; apply what was proposed in it, and return it."""
        self.compactions.tick()
        commands = [command for data in self.proposed for command in decode_batch(data).commands]
        self.proposed.clear()
        for command in commands:
            apply(self.store, command, time_ms=self.now_ms)
        return commands


def test_history_that_is_older_than_the_configured_age_is_compacted() -> None:
    it = Node()
    old = it.put(b"1")
    it.now_ms += 1_000
    it.put(b"2")
    it.now_ms = START_MS + AGE_MS - 1
    assert it.tick() == []
    it.now_ms += 1
    assert it.tick() == [Compact(old)]
    assert it.store.floor == old
    assert it.counters.compactions == {"age": 1}


def test_by_age_the_leader_compacts_now_and_then_and_not_at_all_while_nothing_is_written() -> None:
    it = Node()
    entries = []
    for second in range(2 * AGE_MS // 1000):
        it.now_ms = START_MS + 1000 * second
        if second < 120:
            it.put(b"v")
        found = it.tick()
        assert not found or second >= AGE_MS // 1000
        entries += found
    assert len(entries) == 120_000 // STEP_OF_600_S_MS + 1
    assert entries[-1] == Compact(it.store.revision)


def test_what_was_written_after_the_last_mark_is_compacted_too() -> None:
    """Marks are a second apart, and the last writes of a busy second come after its mark."""
    it = Node()
    revision = it.put(*[b"%d" % number for number in range(50)])
    it.tick()
    it.now_ms += 10_000
    it.tick()
    it.now_ms += AGE_MS
    assert it.tick() == [Compact(revision)]


def test_a_new_leader_that_applied_the_entries_knows_how_old_they_are() -> None:
    it = Node()
    it.raft.role = Role.FOLLOWER
    old = it.put(b"1")
    it.now_ms += AGE_MS
    it.put(b"2")
    assert it.tick() == []
    it.raft.role = Role.LEADER
    assert it.tick() == [Compact(old)]


def test_a_new_leader_that_knows_no_age_counts_from_its_own_start() -> None:
    """It has just started: history is kept longer than configured, and never shorter."""
    before = Node()
    revision = before.put(b"1", b"2")
    it = Node(before.store)
    it.now_ms = START_MS + 10 * AGE_MS
    assert it.tick() == []
    it.now_ms += AGE_MS - 1
    assert it.tick() == []
    it.now_ms += 1
    assert it.tick() == [Compact(revision)]


def test_history_beyond_its_bytes_is_compacted_however_young_and_no_more_than_needed() -> None:
    it = Node(history_bytes_max=MIB)
    while it.store.history_bytes <= MIB:
        assert it.tick() == []
        it.put(bytes(10_000))
    newest = it.store.revision
    (command,) = it.tick()
    assert isinstance(command, Compact) and command.revision < newest
    assert MIB * 3 // 4 < it.store.history_bytes <= MIB * 7 // 8
    assert it.counters.compactions == {"bytes": 1}
    assert it.tick() == []


def test_history_may_take_a_quarter_of_the_quota() -> None:
    it = Node(history_bytes_max=64 * MIB)
    apply(it.store, SetQuota(4 * MIB, OPERATOR))
    while it.store.history_bytes <= MIB:
        assert it.tick() == []
        it.put(bytes(10_000))
    assert len(it.tick()) == 1
    assert it.store.history_bytes <= MIB * 7 // 8


def test_history_that_gives_way_to_the_quota_is_counted_and_told_once_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    it = Node(history_bytes_max=0)
    apply(it.store, SetQuota(MIB, OPERATOR))
    it.put(*[bytes(100_000)] * 30)
    assert it.counters.compactions == {"quota": it.store.given_way} and it.store.given_way > 5
    assert [record.message for record in caplog.records if "gives way" in record.message] == [
        f"the data is near its quota of {MIB} bytes: the history gives way, and begins at revision "
        f"{caplog.records[-1].args[1]} now"  # type: ignore[index]
    ]
    it.now_ms += compactions.GIVEN_WAY_TOLD_MS
    it.put(*[bytes(100_000)] * 30)
    assert len([record for record in caplog.records if "gives way" in record.message]) == 2


@pytest.mark.parametrize(("is_tight", "refusal"), [(True, None), (False, "the disks are nearly full")])
def test_history_gives_way_when_the_disks_have_little_room(is_tight: bool, refusal: str | None) -> None:
    """Snapshots hold it: a delete that makes history of a value would make no room."""
    it = Node()
    revision = it.put(b"1", b"2", b"3")
    assert it.tick() == []
    it.space.is_tight, it.space.refusal = is_tight, refusal
    assert it.tick() == [Compact(revision)]
    it.put(b"4")
    assert it.tick() == [], "not at each tick"
    it.now_ms += compactions.ROOM_STEP_MS
    assert it.tick() == [Compact(revision + 1)]
    it.now_ms += compactions.ROOM_STEP_MS
    assert it.tick() == []
    assert it.counters.compactions == {"disk": 2}


@pytest.mark.parametrize(("option", "reason"), [("history_age_s", "bytes"), ("history_bytes_max", "age")])
def test_0_turns_a_limit_off_and_leaves_the_other(option: str, reason: str) -> None:
    options: dict[str, Any] = {"history_bytes_max": MIB, option: 0}
    it = Node(**options)
    for _ in range(200):
        it.put(bytes(10_000))
    it.tick()
    it.now_ms += 2 * AGE_MS
    it.tick()
    assert it.counters.compactions == {reason: 1}


def test_below_its_feature_level_nothing_is_compacted() -> None:
    it = Node(store_at_level_3(), history_bytes_max=MIB)
    it.put(b"1", b"2")
    it.now_ms += 2 * AGE_MS
    assert it.tick() == []


def test_a_compaction_that_cannot_be_proposed_is_tried_again_and_not_counted() -> None:
    it = Node()
    old = it.put(b"1")
    it.now_ms += AGE_MS
    it.refusal = OverloadedError("too much")
    assert it.tick() == []
    assert it.counters.compactions == {}
    it.refusal = None
    assert it.tick() == [Compact(old)]


def test_marks_are_bounded_and_say_no_revision_too_much() -> None:
    marks = Marks(AGE_MS)
    at = {}
    for step in range(20_000):
        time_ms = START_MS + step * 100
        marks.note(time_ms, step + 1)
        at[time_ms] = step + 1
        assert len(marks) <= MARKS_A_SPAN + 2
        assert marks.revision_at(time_ms - AGE_MS) <= at.get(time_ms - AGE_MS, 0)
    assert marks.revision_at(START_MS - 1) == 0


class Memory:
    """A store of which only the memory that lies below the floor counts."""

    feature_level, revision, floor, time_ms, mismatch, given_way = 1, 0, 0, 0, None, 0

    def __init__(self, below: int) -> None:
        self.below = below
        self.dropped: list[int] = []

    def reclaim(self, budget: int) -> int:
        self.dropped.append(min(budget, self.below))
        self.below -= self.dropped[-1]
        return self.dropped[-1]


def test_memory_follows_the_floor_by_twice_what_is_applied_and_by_a_thousand_events_a_tick() -> None:
    memory = Memory(5000)
    it = Node(cast(Any, memory))
    it.compactions.applied(100)
    it.compactions.applied(150)
    assert memory.dropped == [200, 300]
    it.tick()
    it.tick()
    assert memory.dropped == [200, 300, RECLAIMED_A_TICK - 500, RECLAIMED_A_TICK]
    it.compactions.applied(2 * RECLAIMED_A_TICK)
    it.tick()
    assert memory.below == 0


def test_by_age_the_history_is_compacted_twenty_times_in_its_age_at_most() -> None:
    assert Node(history_age_s=400).compactions._step_ms == 20_000
    assert compactions.STEPS_A_SPAN * STEP_OF_600_S_MS == AGE_MS
