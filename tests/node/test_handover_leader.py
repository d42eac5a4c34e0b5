"""The leader's side of writes that are handed over: what it proposes, refuses, ignores and bounds."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from kv.kv_support import CONFIGURATION, apply
from node.handover_support import LEADER, ME, OTHER, PUT, in_loop, store_at

from kvorum.errors import (
    CallerError,
    NoSpaceError,
    NotLeaderError,
    OutcomeUnknownError,
    OverloadedError,
)
from kvorum.kv.commands import (
    HandedOver,
    LeaseRenew,
    OpenOrigin,
    Put,
    QueuedCommand,
    Txn,
)
from kvorum.kv.features import HANDOVER_LEVEL, HIGHEST_LEVEL
from kvorum.kv.limits import ORIGIN_WINDOW
from kvorum.kv.operations import PutOp
from kvorum.node import handover_leader
from kvorum.node.handover_leader import Attempts, Receiver
from kvorum.node.handover_messages import (
    Frame,
    Opening,
    Refusal,
    error_of,
)
from kvorum.node.proposals import KEEPING_SHARE, DoesNotFitError, Waiter
from kvorum.node.state import State
from kvorum.raft.messages import Configuration
from kvorum.telemetry.counters import Counters


class Leader:
    """A receiver, and the queue that it fills."""

    def __init__(self, level: int = HIGHEST_LEVEL) -> None:
        self.raft = SimpleNamespace(id=LEADER, leader=None, current_term=4, configuration=CONFIGURATION)
        self.state = State(store_at(level))
        self.queued: list[tuple[object, Waiter]] = []
        self.said: list[tuple[str, Refusal]] = []
        self.terms: list[int] = []
        """Of what was said."""
        self.turns = 0
        self.counters = Counters()
        self.full: CallerError | None = None
        self.side = Receiver(
            cast(Any, self.raft), self.state, cast(Any, self), self.counters, 10, self.answer, self.schedule
        )
        self.raft.leader, self.raft.current_term = LEADER, 5

    def answer(self, node: str, term: int, refusal: Refusal) -> None:
        self.said.append((node, refusal))
        self.terms.append(term)

    def schedule(self) -> None:
        self.turns += 1

    async def turn(self) -> None:
        """Let the loop call back, and then the driver take its turn."""
        await asyncio.sleep(0)
        self.side.settle()

    def check(self, command: QueuedCommand, _: int, address: str) -> None:
        if self.full is not None and isinstance(command, Put):
            raise self.full

    def enqueue(self, command: object, _size: int, _timeout_s: float) -> Waiter:
        waiter: Waiter = asyncio.Future()
        self.queued.append((command, waiter))
        return waiter


def frame_of(attempt: int, *commands: QueuedCommand) -> Frame:
    return Frame(7, 3, attempt, commands, ("",) * len(commands))


@in_loop
async def test_the_leader_proposes_a_frame_once_while_it_is_under_way() -> None:
    leader = Leader()
    leader.side.take(ME, 5, frame_of(1, PUT))
    leader.side.take(ME, 5, frame_of(2, PUT))
    [(command, waiter)] = leader.queued
    assert command == HandedOver(7, 3, (PUT,))
    waiter.set_exception(OverloadedError("expired"))
    await leader.turn()
    [(node, refusal)] = leader.said
    assert (node, refusal.attempts) == (ME, (1, 2)), "both attempts are refused with it"
    leader.side.take(ME, 5, frame_of(3, PUT))
    assert len(leader.queued) == 2


@in_loop
async def test_the_leader_says_nothing_of_what_may_be_done() -> None:
    leader = Leader()
    leader.side.take(ME, 5, frame_of(1, PUT))
    leader.queued[0][1].set_exception(OutcomeUnknownError("?"))
    await leader.turn()
    assert leader.said == []


@in_loop
async def test_it_refuses_the_whole_frame_with_the_error_of_each_command() -> None:
    leader = Leader()
    leader.full = NoSpaceError("full", reason="disk", limit=1, used=2)
    leader.side.take(ME, 5, frame_of(1, PUT, Txn((), (PutOp(b"x", b"y"),), ())))
    assert leader.queued == []
    [(_, refusal)] = leader.said
    assert [(said.position, type(error_of(said))) for said in refusal.errors] == [(0, NoSpaceError)]


@pytest.mark.parametrize(("leader_id", "term"), [(OTHER, 5), (LEADER, 6), (None, 5)])
def test_one_that_does_not_lead_in_that_term_refuses(leader_id: str | None, term: int) -> None:
    leader = Leader()
    leader.raft.leader, leader.raft.current_term = leader_id, term
    leader.side.take(ME, 5, frame_of(1, PUT))
    leader.side.open(ME, 5, Opening(7, 0))
    assert leader.queued == []
    [(_, refusal)] = leader.said
    assert isinstance(error_of(refusal.errors[0]), NotLeaderError)


@in_loop
async def test_an_opening_is_proposed_once_while_it_is_under_way() -> None:
    leader = Leader()
    leader.side.open(ME, 5, Opening(7, 1))
    leader.side.open(ME, 5, Opening(7, 1))
    [(command, waiter)] = leader.queued
    assert command == OpenOrigin(ME, 7, 1)
    waiter.set_exception(NotLeaderError(None))
    await asyncio.sleep(0)
    leader.side.open(ME, 5, Opening(7, 1))
    assert len(leader.queued) == 2


@in_loop
async def test_a_copy_of_a_refused_attempt_is_not_proposed() -> None:
    leader = Leader()
    leader.full = OverloadedError("full")
    leader.side.take(ME, 5, frame_of(1, PUT))
    leader.full = None
    leader.side.take(ME, 5, frame_of(1, PUT))
    assert (leader.queued, len(leader.said)) == ([], 1)
    leader.side.take(ME, 5, frame_of(2, PUT))
    assert len(leader.queued) == 1, "another attempt is"


@in_loop
async def test_a_copy_of_a_proposed_attempt_is_not_refused() -> None:
    leader = Leader()
    leader.side.take(ME, 5, frame_of(1, PUT))
    leader.queued[0][1].set_exception(OutcomeUnknownError("?"))
    await leader.turn()
    leader.raft.leader = None
    leader.side.take(ME, 5, frame_of(1, PUT))
    assert leader.said == []


@in_loop
async def test_what_an_earlier_start_of_the_process_may_have_proposed_is_not_refused() -> None:
    leader = Leader()
    leader.side.take(ME, 4, frame_of(1, PUT))
    assert (leader.queued, leader.said) == ([], [])
    leader.side.take(ME, 6, frame_of(2, PUT))
    assert len(leader.said) == 1


def test_a_refusal_has_the_term_of_its_frame() -> None:
    leader = Leader()
    leader.raft.current_term = 9
    leader.side.take(ME, 5, frame_of(1, PUT))
    assert leader.terms == [5]


def test_attempts_arrive_in_any_order_and_each_is_taken_once() -> None:
    attempts = Attempts()
    for order in ([3, 1, 2, 10, 4], [ORIGIN_WINDOW + 3, 5]):
        assert all(attempts.take(each) for each in order)
        assert not any(attempts.take(each) for each in (3, 1, 2, 10, 4, *order))
    far = 5 * ORIGIN_WINDOW
    assert attempts.take(far)
    assert attempts.take(far - 1)
    assert not attempts.take(far - ORIGIN_WINDOW), "that one counts as arrived"


@in_loop
async def test_a_number_that_was_applied_is_not_proposed_again() -> None:
    leader = Leader()
    apply(leader.state.store, OpenOrigin(ME, 7, 0), HandedOver(7, 3, (PUT,)))
    leader.side.take(ME, 5, frame_of(1, PUT))
    assert (leader.queued, leader.said) == ([], [])
    leader.side.take(ME, 5, Frame(7, 4, 2, (PUT,), ("",)))
    assert len(leader.queued) == 1


@in_loop
async def test_a_member_uses_no_number_of_another_one() -> None:
    leader = Leader()
    apply(leader.state.store, OpenOrigin(ME, 7, 0))
    leader.side.take(OTHER, 5, frame_of(1, PUT))
    assert (leader.queued, leader.said) == ([], [])
    leader.side.take(ME, 5, frame_of(1, PUT))
    assert len(leader.queued) == 1


@in_loop
async def test_a_node_that_is_no_member_hands_nothing_over() -> None:
    leader = Leader()
    leader.raft.configuration = Configuration(CONFIGURATION.members[1:])
    leader.side.take(ME, 5, frame_of(1, PUT))
    assert (leader.queued, leader.said) == ([], [])


@in_loop
async def test_a_node_that_is_no_member_opens_nothing() -> None:
    leader = Leader()
    leader.raft.configuration = Configuration(CONFIGURATION.members[1:])
    leader.side.open(ME, 5, Opening(7, 0))
    assert leader.queued == []
    assert leader.counters.handover_ignored == {"foreign": 1}


@in_loop
async def test_a_nonce_that_is_open_is_not_opened_again() -> None:
    leader = Leader()
    apply(leader.state.store, OpenOrigin(ME, 7, 0))
    leader.side.open(ME, 5, Opening(7, 0))
    assert leader.queued == []
    assert leader.counters.handover_ignored == {"applied": 1}


@in_loop
async def test_below_the_level_nothing_is_proposed_that_an_older_version_does_not_know() -> None:
    leader = Leader(HANDOVER_LEVEL - 1)
    leader.side.open(ME, 5, Opening(7, 0))
    leader.side.take(ME, 5, frame_of(1, PUT))
    assert (leader.queued, leader.said) == ([], [])


@in_loop
async def test_the_bytes_that_wait_at_the_leader_are_bounded() -> None:
    leader, large = Leader(), Put(b"a", bytes(1024 * 1024))
    count = 0
    while not leader.said:
        count += 1
        leader.side.take(ME, 5, Frame(7, count, count, (large,), ("",)))
    assert len(leader.queued) == count - 1 == handover_leader.BYTES_MAX // len(large.value)
    leader.queued[0][1].set_exception(OutcomeUnknownError("?"))
    await leader.turn()
    leader.side.take(ME, 5, Frame(7, count, count + 1, (large,), ("",)))
    assert len(leader.queued) == count


@in_loop
async def test_frames_without_commands_are_bounded_too() -> None:
    leader, most = Leader(), KEEPING_SHARE * handover_leader.FRAMES_MAX
    for number in range(most + 1):
        leader.side.take(ME, 5, Frame(7, number + 1, number + 1))
    assert len(leader.queued) == most
    [(_, refusal)] = leader.said
    assert (refusal.number, type(error_of(refusal.errors[0]))) == (most + 1, OverloadedError)


@in_loop
async def test_a_leader_full_of_bytes_takes_frames_without_commands() -> None:
    """A write that it refuses leaves such a frame. Renewals need its number: the window begins at the lowest one."""
    leader = Leader()
    leader.side.take(ME, 5, Frame(7, 1, 1, (Put(b"a", bytes(handover_leader.BYTES_MAX)),), ("",)))
    leader.side.take(ME, 5, Frame(7, 2, 2, (PUT,), ("",)))
    [(_, refusal)] = leader.said
    assert refusal.number == 2
    leader.side.take(ME, 5, Frame(7, 2, 3))
    assert leader.queued[-1][0] == HandedOver(7, 2, ())
    assert len(leader.said) == 1


@in_loop
async def test_the_attempts_that_wait_for_a_frame_are_bounded() -> None:
    leader = Leader()
    for attempt in range(1, handover_leader.ATTEMPTS_MAX + 10):
        leader.side.take(ME, 5, frame_of(attempt, PUT))
    leader.queued[0][1].set_exception(OverloadedError("expired"))
    await leader.turn()
    assert len(leader.said[0][1].attempts) == handover_leader.ATTEMPTS_MAX


@in_loop
async def test_the_origins_that_are_remembered_are_bounded_and_an_open_one_is_kept() -> None:
    leader = Leader()
    apply(leader.state.store, OpenOrigin(ME, 7, 0))
    leader.full = OverloadedError("full")
    leader.side.take(ME, 5, frame_of(1, PUT))
    for nonce in range(100, 100 + 3 * handover_leader.ORIGINS_MAX):
        leader.side.take(OTHER, 5, Frame(nonce, 1, 1))
    assert len(leader.side._attempts) <= handover_leader.ORIGINS_MAX
    leader.full = None
    before = len(leader.queued)
    leader.side.take(ME, 5, frame_of(1, PUT))
    assert len(leader.queued) == before, "a copy of what was refused"


@in_loop
async def test_every_frame_is_counted_by_what_became_of_it() -> None:
    leader = Leader()
    counters = leader.counters
    apply(leader.state.store, OpenOrigin(ME, 7, 0), HandedOver(7, 1, (PUT,)))
    leader.side.take(ME, 5, Frame(7, 2, 1, (PUT, PUT), ("", "")))
    leader.side.take(ME, 5, Frame(7, 2, 1, (PUT, PUT), ("", "")))
    leader.side.take(ME, 5, Frame(7, 1, 2, (PUT,), ("",)))
    leader.side.take(ME, 4, Frame(7, 3, 3, (PUT,), ("",)))
    leader.side.take(OTHER, 5, Frame(7, 3, 3, (PUT,), ("",)))
    leader.full = OverloadedError("full")
    leader.side.take(ME, 5, Frame(7, 3, 3, (PUT,), ("",)))
    assert counters.handover_frames == {"received": 6}
    assert counters.handover_writes == {"received": 2}
    assert counters.handover_ignored == {"copy": 1, "applied": 1, "stale": 1, "foreign": 1}
    assert counters.handover_refused == {"overloaded": 1}


@in_loop
async def test_a_frame_that_does_not_fit_into_an_entry_is_to_be_split() -> None:
    leader = Leader()
    leader.side.take(ME, 5, frame_of(1, PUT, PUT, PUT))
    leader.queued[0][1].set_exception(DoesNotFitError(2, 3))
    await leader.turn()
    [(_, refusal)] = leader.said
    assert (refusal.attempts, refusal.fits) == ((1,), 2)
    assert leader.counters.handover_refused == {"split": 1}
    assert [(said.position, type(error_of(said))) for said in refusal.errors] == [(2, OverloadedError)], "for 0.5.0"


@in_loop
async def test_a_leader_where_many_frames_wait_takes_renewals() -> None:
    leader = Leader()
    for number in range(1, handover_leader.FRAMES_MAX + 1):
        leader.side.take(ME, 5, Frame(7, number, number))
    last = handover_leader.FRAMES_MAX + 1
    leader.side.take(ME, 5, Frame(7, last, last, (PUT, LeaseRenew(1)), ("", "")))
    [(_, refusal)] = leader.said
    assert [each.position for each in refusal.errors] == [0]
    leader.side.take(ME, 5, Frame(7, last, last + 1, (LeaseRenew(1),), ("",)))
    assert leader.queued[-1][0] == HandedOver(7, last, (LeaseRenew(1),))
