"""Waiting for one log entry, or for another leader: everybody is answered, and nobody is told what is not so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import pytest

from kvorum.errors import OutcomeUnknownError
from kvorum.kv.store import Store
from kvorum.node.reads import Reads
from kvorum.node.staleness import Staleness
from kvorum.node.state import State
from kvorum.node.waits import Waits
from kvorum.raft import Raft
from kvorum.raft.messages import Entry, EntryKind, Read
from kvorum.telemetry.counters import Counters


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.suspended_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def boottime(self) -> float:
        return self.now_s + self.suspended_s

    def wall_ms(self) -> int:
        raise AssertionError


def entry(index: int, term: int) -> Entry:
    return Entry(index, term, EntryKind.CONFIGURATION, b"")


def expire(waits: Waits, clock: Clock) -> None:
    clock.now_s += 2.0
    waits.expire()


def run(scenario: Callable[[Waits, Clock], None]) -> None:
    async def main() -> None:
        clock = Clock()
        scenario(Waits(clock), clock)

    asyncio.run(main())


def test_an_entry_that_is_applied_with_its_term_completes_the_wait() -> None:
    def scenario(waits: Waits, clock: Clock) -> None:
        waiter = waits.entry(7, 2, 1.0)
        waits.applied(entry(6, 2))
        assert not waiter.done()
        waits.applied(entry(7, 2))
        assert waiter.result() is None

    run(scenario)


@pytest.mark.parametrize(
    "happens",
    [
        pytest.param(lambda waits, clock: waits.applied(entry(7, 3)), id="replaced"),
        pytest.param(lambda waits, clock: waits.restored(7), id="covered by a snapshot"),
        pytest.param(lambda waits, clock: waits.stop("the node stopped"), id="stopped"),
        pytest.param(expire, id="too late"),
    ],
)
def test_an_entry_whose_fate_is_not_known_is_reported_as_unknown_at_once(
    happens: Callable[[Waits, Clock], None],
) -> None:
    def scenario(waits: Waits, clock: Clock) -> None:
        waiter = waits.entry(7, 2, 1.0)
        happens(waits, clock)
        assert isinstance(waiter.exception(), OutcomeUnknownError)
        assert not waits.entries

    run(scenario)


def test_a_snapshot_before_the_entry_says_nothing_of_it() -> None:
    def scenario(waits: Waits, clock: Clock) -> None:
        waiter = waits.entry(7, 2, 1.0)
        waits.restored(6)
        assert not waiter.done()

    run(scenario)


def test_a_wait_that_begins_after_the_stop_ends_at_once() -> None:
    def scenario(waits: Waits, clock: Clock) -> None:
        waits.stop("the node stopped")
        assert isinstance(waits.entry(7, 2, 1.0).exception(), OutcomeUnknownError)
        assert waits.change(1.0).result() is False

    run(scenario)


def test_a_change_of_leadership_wakes_all_who_wait_and_a_deadline_those_whose_time_is_over() -> None:
    def scenario(waits: Waits, clock: Clock) -> None:
        first, second = waits.change(1.0), waits.change(5.0)
        clock.now_s += 2.0
        waits.expire()
        assert (first.result(), second.done()) == (False, False)
        waits.changed()
        assert second.result() is True
        assert not waits.changes

    run(scenario)


def test_the_age_of_the_state_counts_from_the_question_and_not_from_the_answer() -> None:
    """A node that sleeps between them wakes up with an old state."""
    clock, state = Clock(), State(Store())
    raft = SimpleNamespace(leader="a@1", read_index=lambda context, can_wait: None)
    reads = Reads(cast(Raft, raft), Counters(), clock, state, probe_s=0.25, first_context=0)
    staleness = Staleness(state, clock)
    assert staleness.bound_ms() is None
    reads.probe()
    clock.now_s += 1.0
    clock.suspended_s += 2.0  # the monotonic clock stands still
    reads.released((Read(1, 10),), ())
    assert staleness.bound_ms() == 3000
    assert staleness.contact_ms() == 3000

    state.replace(Store())
    assert staleness.bound_ms() is None


def test_a_read_whose_caller_has_gone_does_not_count_while_there_is_no_leader() -> None:
    async def scenario() -> None:
        clock = Clock()
        raft = SimpleNamespace(leader=None)
        reads = Reads(cast(Raft, raft), Counters(), clock, State(Store()), probe_s=0.25, first_context=0)
        gone, waiting = reads.submit(60.0), reads.submit(60.0)
        gone.cancel()
        reads.expire()
        assert reads.queue == [waiting]
        assert reads._waiting == 1

    asyncio.run(scenario())
