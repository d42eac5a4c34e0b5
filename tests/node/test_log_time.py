"""Log time passes at 0.99 of the leader's monotonic clock; a wall clock that is wrong neither moves nor stops it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kvorum.kv import sessions
from kvorum.kv.commands import Put, PutResult, Result, SessionRefused, decode_batch, encode_batch
from kvorum.kv.limits import SESSION_IDLE_MS
from kvorum.kv.store import Store
from kvorum.node.log_time import LogTime
from kvorum.node.proposals import Proposals
from kvorum.node.session_shares import SessionShares
from kvorum.node.state import State
from kvorum.raft import Role
from kvorum.raft.messages import Entry, EntryKind
from kvorum.telemetry.counters import Counters

NOW_MS = 1_800_000_000_000
YEAR_MS = 366 * 86_400_000
HOUR_MS = 3_600_000
TICK_MS = 500


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.wall = NOW_MS

    def monotonic(self) -> float:
        return self.now_s

    def boottime(self) -> float:
        raise AssertionError

    def wall_ms(self) -> int:
        return self.wall


class Member:
    """A member whose role a test sets, and on which what it proposes is applied when a test says so."""

    def __init__(self, store: Store, tick_ms: int = TICK_MS) -> None:
        self.state = State(store)
        self.clock = Clock()
        self.raft = SimpleNamespace(
            is_saving=False,
            id="n1",
            leader="n1",
            role=Role.FOLLOWER,
            current_term=0,
            is_transferring=False,
            propose=self._propose,
        )
        self.log_time = LogTime(cast(Any, self.raft), self.state, self.clock, tick_ms)
        self.writes = Proposals(
            cast(Any, self.raft),
            self.state,
            Counters(),
            100,
            1 << 20,
            self.clock,
            self.log_time,
            SessionShares(self.state, self.clock),
            cast(Any, SimpleNamespace(check=lambda _: None)),
        )
        self.proposed: list[bytes] = []

    def _propose(self, payloads: list[bytes]) -> tuple[int, int]:
        self.proposed += payloads
        return self.state.store.applied_index + len(self.proposed), self.raft.current_term

    def lead(self, term: int) -> None:
        """Win an election; the first entry of the term is applied at once."""
        self.elected(term)
        self.apply(Entry(self.state.store.applied_index + 1, term, EntryKind.NOOP, b""))

    def elected(self, term: int) -> None:
        self.raft.role, self.raft.current_term = Role.LEADER, term
        self.log_time.tick()

    def apply(self, entry: Entry) -> list[Result]:
        return self.state.store.apply(entry)

    def write(self, client: str = "", sequence: int = 0) -> Result:
        """Propose a put and apply it."""
        self.writes.submit(Put(b"a", b"1", client_id=client, sequence=sequence), 60.0)
        self.writes.flush()
        index, term = self.state.store.applied_index + 1, self.raft.current_term
        [result] = self.apply(Entry(index, term, EntryKind.COMMAND, self.proposed.pop()))
        return result

    def pass_time(self, seconds: float) -> None:
        """Let time pass, tick by tick."""
        for _ in range(int(seconds * 1000 / TICK_MS)):
            self.tick_after(TICK_MS)

    def tick_after(self, passed_ms: float) -> None:
        """Let a tick come when so much has passed."""
        self.clock.now_s += passed_ms / 1000
        self.log_time.tick()

    @property
    def passed_ms(self) -> int:
        """The log time that has passed since the last entry."""
        return self.log_time.now_ms() - self.state.store.time_ms


@pytest.fixture
def store() -> Store:
    """The state of a cluster that has written at ``NOW_MS``."""
    store = Store()
    store.apply(Entry(1, 1, EntryKind.COMMAND, encode_batch(NOW_MS, [Put(b"a", b"0")])))
    return store


def run(scenario: Any) -> None:
    """Run a scenario where futures can be made."""

    async def in_a_loop() -> None:
        scenario()

    asyncio.run(in_a_loop())


def test_log_time_begins_at_the_wall_clock_of_an_empty_cluster() -> None:
    def scenario() -> None:
        member = Member(Store())
        member.lead(1)
        member.write()
        assert member.state.store.time_ms == NOW_MS

    run(scenario)


@pytest.mark.parametrize("wrong_by_ms", [YEAR_MS, -YEAR_MS])
def test_a_wall_clock_that_is_set_neither_moves_log_time_nor_stops_it(store: Store, wrong_by_ms: int) -> None:
    def scenario() -> None:
        member = Member(store)
        member.lead(2)
        member.clock.wall += wrong_by_ms
        member.write()
        assert store.time_ms == NOW_MS

        member.pass_time(3600)
        member.write()
        assert store.time_ms == NOW_MS + HOUR_MS * 99 // 100, "also while nobody writes"

    run(scenario)


def test_a_new_leader_goes_on_from_the_last_time_in_its_log(store: Store) -> None:
    def scenario() -> None:
        member = Member(store)
        member.clock.wall += 2 * HOUR_MS
        member.pass_time(3600)
        member.lead(2)
        member.pass_time(10)
        member.write()
        assert store.time_ms == NOW_MS + 9900, "what passed before it led does not count"

        # Another leader writes, and this one follows meanwhile.
        member.raft.role, member.raft.current_term = Role.FOLLOWER, 3
        member.apply(Entry(4, 3, EntryKind.COMMAND, encode_batch(NOW_MS + 50_000, [])))
        member.pass_time(3600)
        member.lead(4)
        member.pass_time(10)
        member.write()
        assert store.time_ms == NOW_MS + 59_900

    run(scenario)


def test_log_time_never_falls_behind_what_the_log_already_has(store: Store) -> None:
    """Entries of the leader before are applied after the election; they carry a later time."""

    def scenario() -> None:
        member = Member(store)
        member.elected(2)
        member.pass_time(1)
        member.apply(Entry(2, 1, EntryKind.COMMAND, encode_batch(NOW_MS + 9000, [])))
        member.write()
        assert store.time_ms == NOW_MS + 9000
        member.pass_time(1)
        member.write()
        assert store.time_ms == NOW_MS + 9990

    run(scenario)


def test_log_time_passes_at_099_of_the_clock_also_between_ticks(store: Store) -> None:
    """A clock that is fast by 1 % must not end a lease early."""
    member = Member(store)
    member.lead(2)
    member.clock.now_s += 0.25
    assert member.passed_ms == 247
    member.tick_after(250)
    assert member.passed_ms == 495
    member.clock.now_s += 0.125
    assert member.passed_ms == 618


def test_the_time_for_which_a_leader_stood_still_counts_as_two_long_ticks_at_most(store: Store) -> None:
    """What its clients sent it has waited as well; it would find their sessions and leases gone."""

    def scenario() -> None:
        member = Member(store)
        member.lead(2)
        member.clock.now_s += 7200
        member.write()
        assert store.time_ms == NOW_MS + 990

        member.log_time.tick()
        assert member.passed_ms == 0, "what did not count then never counts"
        member.pass_time(1)
        assert member.passed_ms == 990

    run(scenario)


def test_ticks_that_are_somewhat_late_lose_no_time(store: Store) -> None:
    member = Member(store)
    member.lead(2)
    for _ in range(100):
        member.tick_after(TICK_MS + 125)
        member.tick_after(TICK_MS - 125)
    assert member.passed_ms == 100 * 990


def test_the_bound_between_two_ticks_holds_from_the_first_entry_on(store: Store) -> None:
    """A leader whose first entry comes 250 ms after a tick, and that stands still then, has heard nobody since."""
    member = Member(store)
    member.tick_after(0)
    member.raft.role, member.raft.current_term = Role.LEADER, 2
    member.apply(Entry(2, 2, EntryKind.NOOP, b""))
    member.clock.now_s += 0.25
    assert member.passed_ms == 0
    member.clock.now_s += 5
    assert member.passed_ms == 742


def test_what_is_not_counted_at_once_is_never_counted(store: Store) -> None:
    """A lease that is granted while log time lags, and catches up, would end early by as much."""
    member = Member(store)
    member.lead(2)
    member.clock.now_s += 1.25
    before_ms = member.passed_ms
    for _ in range(10):
        member.tick_after(TICK_MS / 2)
    assert before_ms == 990
    assert member.passed_ms - before_ms <= 10 * TICK_MS / 2


@pytest.mark.parametrize(("turn_ms", "counted_ms"), [(25, 25), (50, 50), (200, 200), (250, 250), (1000, 250)])
def test_a_busy_loop_loses_no_log_time_and_one_that_stands_still_counts_a_quarter_of_a_second(
    store: Store, turn_ms: int, counted_ms: int
) -> None:
    """Leases would end late by as much as the loop is behind with its ticks of 25 ms, when the cluster is busy."""
    member = Member(store, tick_ms=25)
    member.lead(2)
    for _ in range(100):
        member.tick_after(turn_ms)
    assert member.passed_ms == pytest.approx(100 * counted_ms * 0.99, abs=1)


def test_log_time_is_never_faster_than_the_clock_whatever_is_late(store: Store) -> None:
    member = Member(store, tick_ms=25)
    member.lead(2)
    seen = [(member.clock.now_s, member.passed_ms)]
    for late_ms in (25, 1000, 10, 300, 250, 5, 90) * 5:
        member.clock.now_s += late_ms / 2000
        seen.append((member.clock.now_s, member.passed_ms))
        member.tick_after(late_ms / 2)
        seen.append((member.clock.now_s, member.passed_ms))
    for number, (since_s, since_ms) in enumerate(seen):
        for now_s, now_ms in seen[number:]:
            assert 0 <= now_ms - since_ms <= (now_s - since_s) * 990 + 1


def test_a_leader_writes_nothing_before_it_knows_the_time_of_its_log() -> None:
    """A cluster without a snapshot was started again: what its log says of the time is applied only later."""

    def scenario() -> None:
        member = Member(Store())
        member.clock.wall += YEAR_MS
        member.elected(2)
        waiter = member.writes.submit(Put(b"a", b"1"), 60.0)
        member.writes.flush()
        assert member.proposed == []
        assert member.log_time.now_ms() == 0
        assert not waiter.done()

        member.apply(Entry(1, 1, EntryKind.COMMAND, encode_batch(NOW_MS, [])))
        member.writes.flush()
        assert decode_batch(member.proposed.pop()).time_ms == NOW_MS

    run(scenario)


def test_a_follower_that_has_no_time_refuses_its_writes_instead_of_keeping_them() -> None:
    def scenario() -> None:
        member = Member(Store())
        member.elected(2)
        member.writes.submit(Put(b"a", b"1"), 60.0)
        member.raft.role, member.raft.current_term = Role.FOLLOWER, 3
        member.writes.flush()
        assert not member.writes.queue

    run(scenario)


def test_a_retry_is_applied_once_after_a_leader_with_a_clock_two_hours_ahead(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "SESSIONS_MAX", 1)

    def scenario() -> None:
        first = Member(store)
        first.lead(2)
        done = first.write("ann", 1)
        assert isinstance(done, PutResult)

        second = Member(store)
        second.clock.wall += 2 * HOUR_MS
        second.lead(3)
        assert second.write("bob", 1) == SessionRefused(store.revision, "full")
        assert second.write("ann", 1) == done

    run(scenario)


def test_a_clock_that_was_a_year_ahead_keeps_sessions_for_an_hour_only(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "SESSIONS_MAX", 1)

    def scenario() -> None:
        store.apply(Entry(2, 1, EntryKind.COMMAND, encode_batch(NOW_MS + YEAR_MS, [Put(b"a", b"1", -1, "ann", 1)])))
        member = Member(store)
        member.lead(2)
        member.pass_time(SESSION_IDLE_MS / 1000)
        assert member.write("bob", 1) == SessionRefused(store.revision, "full")
        member.pass_time(SESSION_IDLE_MS / 1000 / 99 + 1)
        assert isinstance(member.write("bob", 1), PutResult)

    run(scenario)
