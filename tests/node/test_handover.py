"""Writes that a node hands to the leader: each rule of ``kvorum.node.handover``, with a scripted leader."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pytest
from kv.kv_support import CONFIGURATION, MEMBERS, apply, configured, raise_to
from node.local_cluster import TIMEOUT_MS, running

from kvorum.errors import (
    CallerError,
    InvariantViolatedError,
    MalformedMessageError,
    NoLeaderError,
    NoSpaceError,
    NotLeaderError,
    NotServingError,
    OutcomeUnknownError,
    OverloadedError,
    SessionError,
)
from kvorum.kv.commands import (
    BatchCommand,
    HandedOver,
    LeaseGrant,
    LeaseRevoke,
    OpenOrigin,
    Put,
    PutResult,
    QueuedCommand,
    SetQuota,
    Txn,
)
from kvorum.kv.features import HANDOVER_LEVEL, HIGHEST_LEVEL
from kvorum.kv.limits import ORIGIN_WINDOW
from kvorum.kv.operations import LeasedPutOp, PutOp
from kvorum.kv.store import Store
from kvorum.node import handover, handover_leader
from kvorum.node.handover import HandOvers
from kvorum.node.handover_leader import Attempts, Receiver
from kvorum.node.handover_messages import (
    WHOLE_FRAME,
    Frame,
    HandoverMessage,
    Opening,
    Refusal,
    decode_handover,
    encode_handover,
    error_of,
    refused,
)
from kvorum.node.proposals import Waiter
from kvorum.node.state import State
from kvorum.raft.messages import HandOver, Message
from kvorum.telemetry.counters import Counters

ME, LEADER, OTHER = MEMBERS
PUT = Put(b"a", b"v")


def store_at(level: int) -> Store:
    store = Store()
    store.apply(configured(CONFIGURATION))
    for each in range(2, level + 1):
        apply(store, raise_to(each))
    return store


class Origin:
    """One node's side, the log that it applies, and a leader that does what the test says."""

    def __init__(self, level: int = HIGHEST_LEVEL, pending_max: int = 100) -> None:
        self.now = 100.0
        self.state = State(store_at(level))
        self.raft = SimpleNamespace(id=ME, leader=LEADER, current_term=5)
        self.sent: list[tuple[str, int, HandoverMessage]] = []
        clock = SimpleNamespace(monotonic=lambda: self.now)
        self.side = HandOvers(
            cast(Any, self.raft),
            self.state,
            Counters(),
            pending_max,
            cast(Any, clock),
            Random(1),
            lambda node, term, message: self.sent.append((node, term, message)),
        )

    def ask(self, *commands: QueuedCommand, timeout_s: float = 10) -> list[Waiter]:
        """Ask for writes in one turn."""
        waiters = [self.side.submit(command, timeout_s) for command in commands]
        self.side.flush()
        return waiters

    def take(self) -> list[HandoverMessage]:
        """Return what was sent since the last call."""
        messages = [message for _, _, message in self.sent]
        self.sent.clear()
        return messages

    def frames(self) -> list[Frame]:
        return [message for message in self.take() if isinstance(message, Frame)]

    def apply(self, *commands: BatchCommand) -> None:
        apply(self.state.store, *commands)
        if self.state.store.handed_over:
            self.side.applied(self.state.store.handed_over)

    def open(self) -> None:
        """Let the origin open its nonce."""
        waiters = self.ask(Put(b"first", b"v"))
        [opening] = self.take()
        assert isinstance(opening, Opening)
        self.apply(OpenOrigin(ME, opening.nonce, opening.replaces))
        self.side.flush()
        [frame] = self.frames()
        self.propose(frame)
        assert [type(waiter.result()) for waiter in waiters] == [PutResult]

    def propose(self, frame: Frame) -> None:
        """Let a frame be applied here."""
        self.apply(HandedOver(frame.nonce, frame.number, frame.commands))

    def refuse(self, frame: Frame, *errors: tuple[int, CallerError]) -> None:
        said = tuple(refused(position, error) for position, error in errors)
        self.side.refused(Refusal(frame.nonce, frame.number, (frame.attempt,), said))

    def install(self, store: Store) -> None:
        """Let a snapshot take the place of the state."""
        self.state.replace(store)
        self.side.tick()


def in_loop(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    def run() -> None:
        async def inside() -> None:
            await test()

        asyncio.run(inside())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


def opened(**options: int) -> Origin:
    origin = Origin(**options)
    origin.open()
    return origin


def error(waiter: Waiter) -> BaseException | None:
    return waiter.exception() if waiter.done() else None


# --- The nonce ----------------------------------------------------------------------------------------------------


@in_loop
async def test_a_nonce_is_opened_before_anything_is_handed_over() -> None:
    origin = Origin()
    origin.ask(PUT)
    [opening] = origin.take()
    assert isinstance(opening, Opening)
    assert opening.replaces == 0
    origin.side.flush()
    assert origin.take() == [], "asked once"
    origin.now += handover.RESEND_S
    origin.side.tick()
    assert origin.take() == [opening]


@in_loop
async def test_the_opening_names_the_nonce_of_the_process_before() -> None:
    origin = Origin()
    origin.apply(OpenOrigin(ME, 77, 0))
    origin.ask(PUT)
    [opening] = origin.take()
    assert isinstance(opening, Opening)
    assert (opening.replaces, opening.nonce != 77) == (77, True)


@in_loop
async def test_late_frames_of_the_process_before_are_not_applied() -> None:
    origin = Origin()
    origin.apply(OpenOrigin(ME, 77, 0), HandedOver(77, 1, (PUT,)))
    origin.open()
    revision = origin.state.store.revision
    origin.apply(HandedOver(77, 2, (PUT,)), OpenOrigin(ME, 77, 0), HandedOver(77, 2, (PUT,)))
    assert origin.state.store.revision == revision


@in_loop
async def test_a_nonce_that_was_forgotten_is_never_opened_again() -> None:
    origin = opened()
    [waiter] = origin.ask(PUT)
    [frame] = origin.frames()
    origin.state.store.apply(
        configured(type(CONFIGURATION)(CONFIGURATION.members[1:]), origin.state.store.applied_index + 1)
    )
    origin.state.store.apply(configured(CONFIGURATION, origin.state.store.applied_index + 1))
    origin.side.tick()
    assert isinstance(error(waiter), OutcomeUnknownError)
    origin.ask(PUT)
    [opening] = origin.take()
    assert isinstance(opening, Opening)
    assert opening.nonce != frame.nonce


# --- Frames -------------------------------------------------------------------------------------------------------


@in_loop
async def test_what_is_asked_in_one_turn_is_one_frame_and_answered_when_it_is_applied_here() -> None:
    origin = opened()
    waiters = origin.ask(PUT, Put(b"b", b"w"))
    [frame] = origin.frames()
    assert frame.commands == (PUT, Put(b"b", b"w"))
    assert not any(waiter.done() for waiter in waiters)
    origin.propose(frame)
    first, second = (waiter.result() for waiter in waiters)
    assert isinstance(first, PutResult)
    assert isinstance(second, PutResult)
    assert second.revision == first.revision + 1 == origin.state.store.revision


@in_loop
async def test_a_frame_that_was_not_applied_is_sent_again_with_its_number() -> None:
    origin = opened()
    [waiter] = origin.ask(PUT)
    [frame] = origin.frames()
    origin.side.tick()
    assert origin.take() == []
    origin.now += handover.RESEND_S
    origin.side.tick()
    [again] = origin.frames()
    assert (again.number, again.commands) == (frame.number, frame.commands)
    assert again.attempt != frame.attempt
    revision = origin.state.store.revision
    origin.propose(frame)
    origin.propose(again)
    assert origin.state.store.revision == revision + 1
    assert isinstance(waiter.result(), PutResult)


@in_loop
async def test_a_new_leader_gets_it_at_once() -> None:
    origin = opened()
    origin.ask(PUT)
    origin.take()
    origin.raft.leader, origin.raft.current_term = OTHER, 6
    origin.side.tick()
    [(node, term, frame)] = origin.sent
    assert (node, term) == (OTHER, 6)
    assert isinstance(frame, Frame)
    origin.take()
    origin.raft.current_term = 7
    origin.side.tick()
    assert len(origin.frames()) == 1, "the same node, in another term, may have lost it"


@in_loop
async def test_a_number_stays_outstanding_after_its_callers_have_gone_and_is_sent_without_commands() -> None:
    origin = opened()
    [waiter] = origin.ask(PUT, timeout_s=0.5)
    [frame] = origin.frames()
    origin.now += 2
    origin.side.tick()
    assert isinstance(error(waiter), OutcomeUnknownError)
    [again] = origin.frames()
    assert (again.number, again.commands) == (frame.number, ())
    assert list(origin.side.outstanding) == [frame.number]
    origin.propose(again)
    assert not origin.side.outstanding


@in_loop
async def test_no_number_is_used_a_window_above_the_lowest_outstanding_one() -> None:
    origin = opened(pending_max=2 * ORIGIN_WINDOW)
    for _ in range(ORIGIN_WINDOW + 5):
        origin.ask(PUT)
    frames = origin.frames()
    assert len(frames) == ORIGIN_WINDOW
    for frame in frames[1:]:
        origin.propose(frame)
    origin.side.flush()
    assert origin.frames() == []
    origin.propose(frames[0])
    origin.side.flush()
    [frame] = origin.frames()
    assert len(frame.commands) == 5


# --- Refusals -----------------------------------------------------------------------------------------------------


@in_loop
async def test_what_the_leader_refuses_is_the_callers_error_and_the_rest_is_done() -> None:
    origin = opened()
    full, well = origin.ask(PUT, Put(b"b", b"w"))
    [frame] = origin.frames()
    origin.refuse(frame, (0, NoSpaceError("full", reason="disk", limit=2, used=3)))
    found = error(full)
    assert isinstance(found, NoSpaceError)
    assert (str(found), found.facts) == ("full", {"reason": "disk", "limit": 2, "used": 3})
    assert not well.done()
    origin.side.tick()
    [again] = origin.frames()
    assert (again.number, again.commands) == (frame.number, (Put(b"b", b"w"),))
    origin.propose(again)
    assert isinstance(well.result(), PutResult)
    assert origin.state.store.get(b"a") is None


@in_loop
async def test_refused_is_said_only_if_every_attempt_was() -> None:
    origin = opened()
    [waiter] = origin.ask(PUT, timeout_s=3)
    assert len(origin.frames()) == 1
    origin.now += handover.RESEND_S
    origin.side.tick()
    [second] = origin.frames()
    origin.refuse(second, (WHOLE_FRAME, OverloadedError("full")))
    assert not waiter.done(), "the first may be done"
    origin.now += 3
    origin.side.tick()
    assert isinstance(error(waiter), OutcomeUnknownError)


@in_loop
async def test_it_is_said_when_the_last_attempt_is_refused() -> None:
    origin = opened()
    [waiter] = origin.ask(PUT)
    [first] = origin.frames()
    origin.now += handover.RESEND_S
    origin.side.tick()
    [second] = origin.frames()
    origin.refuse(first, (WHOLE_FRAME, OverloadedError("full")))
    origin.refuse(second, (WHOLE_FRAME, OverloadedError("full")))
    assert isinstance(error(waiter), OverloadedError)
    origin.side.tick()
    [again] = origin.frames()
    assert again.commands == (), "the number is used up, and what was refused is not done"


@in_loop
async def test_a_refusal_of_another_attempt_or_process_says_nothing() -> None:
    origin = opened()
    [waiter] = origin.ask(PUT)
    [frame] = origin.frames()
    said = (refused(WHOLE_FRAME, OverloadedError("full")),)
    for other in (
        Refusal(frame.nonce + 1, frame.number, (frame.attempt,), said),
        Refusal(frame.nonce, frame.number + 1, (frame.attempt,), said),
        Refusal(frame.nonce, frame.number, (frame.attempt + 1,), said),
    ):
        origin.side.refused(other)
    assert not waiter.done()


@in_loop
async def test_too_many_attempts_to_remember_are_never_called_refused() -> None:
    origin = opened()
    [waiter] = origin.ask(PUT, timeout_s=100)
    frames = origin.frames()
    for _ in range(handover.ATTEMPTS_MAX):
        origin.now += handover.RESEND_S
        origin.side.tick()
        frames += origin.frames()
    for frame in frames:
        origin.refuse(frame, (WHOLE_FRAME, OverloadedError("full")))
    assert not waiter.done()


@in_loop
async def test_one_that_does_not_lead_any_more_leaves_it_to_the_next_leader() -> None:
    origin = opened()
    [waiter] = origin.ask(PUT)
    [frame] = origin.frames()
    origin.refuse(frame, (WHOLE_FRAME, NotLeaderError(None)))
    assert not waiter.done()
    origin.raft.leader, origin.raft.current_term = OTHER, 6
    origin.side.tick()
    [again] = origin.frames()
    origin.propose(again)
    assert isinstance(waiter.result(), PutResult)


@in_loop
async def test_without_a_next_leader_in_time_it_is_refused_and_not_done_later() -> None:
    origin = opened()
    [hasty] = origin.ask(PUT, timeout_s=1)
    [frame] = origin.frames()
    origin.refuse(frame, (WHOLE_FRAME, NotLeaderError(None)))
    origin.raft.leader = None
    origin.now += 2
    origin.side.tick()
    assert isinstance(error(hasty), NoLeaderError)
    origin.raft.leader, origin.raft.current_term = OTHER, 6
    origin.side.tick()
    [again] = origin.frames()
    assert again.commands == ()


@in_loop
async def test_of_two_callers_the_one_that_was_told_refused_is_not_done_with_the_other() -> None:
    origin = opened()
    hasty = origin.side.submit(PUT, 1)
    patient = origin.side.submit(Put(b"b", b"w"), 50)
    origin.side.flush()
    [frame] = origin.frames()
    origin.refuse(frame, (WHOLE_FRAME, NotLeaderError(None)))
    origin.raft.leader = None
    origin.now += 2
    origin.side.tick()
    assert isinstance(error(hasty), NoLeaderError)
    origin.raft.leader, origin.raft.current_term = OTHER, 6
    origin.side.tick()
    [again] = origin.frames()
    assert again.commands == (Put(b"b", b"w"),)
    origin.propose(again)
    assert isinstance(patient.result(), PutResult)


# --- Another state ------------------------------------------------------------------------------------------------


def installed(origin: Origin, *commands: BatchCommand) -> Store:
    """Return the state of another node, which has applied these as well."""
    store = store_at(HIGHEST_LEVEL)
    apply(store, OpenOrigin(ME, origin.side._nonce, 0), HandedOver(origin.side._nonce, 1, (Put(b"first", b"v"),)))
    apply(store, *commands)
    return store


@in_loop
async def test_a_snapshot_over_an_applied_frame_leaves_its_outcome_unknown_and_settles_it() -> None:
    origin = opened()
    [waiter] = origin.ask(PUT)
    [frame] = origin.frames()
    origin.install(installed(origin, HandedOver(frame.nonce, frame.number, frame.commands)))
    assert isinstance(error(waiter), OutcomeUnknownError)
    assert not origin.side.outstanding
    origin.now += handover.RESEND_S
    origin.side.tick()
    assert origin.take() == []


@in_loop
async def test_a_snapshot_without_the_frame_lets_it_be_sent_again() -> None:
    origin = opened()
    [waiter] = origin.ask(PUT)
    origin.take()
    origin.install(installed(origin))
    assert not waiter.done()
    origin.now += handover.RESEND_S
    origin.side.tick()
    [again] = origin.frames()
    origin.propose(again)
    assert isinstance(waiter.result(), PutResult)


@in_loop
async def test_while_the_state_is_given_up_nothing_is_sent_or_abandoned() -> None:
    origin = opened()
    [waiter] = origin.ask(PUT)
    origin.take()
    before = origin.state.store
    other = installed(origin)
    origin.state.give_up()
    origin.now += handover.RESEND_S
    origin.side.tick()
    assert (origin.take(), waiter.done()) == ([], False)
    assert before is not other
    origin.install(other)
    assert len(origin.frames()) == 1


# --- Bounds, and the end ------------------------------------------------------------------------------------------


@in_loop
async def test_without_a_leader_nothing_is_queued() -> None:
    origin = opened()
    origin.raft.leader = None
    with pytest.raises(NotLeaderError):
        origin.side.submit(PUT, 1)


@in_loop
async def test_more_than_may_wait_is_refused() -> None:
    origin = opened(pending_max=2)
    origin.ask(PUT, PUT)
    with pytest.raises(OverloadedError):
        origin.side.submit(PUT, 1)
    for frame in origin.frames():
        origin.propose(frame)
    origin.side.submit(PUT, 1)


@in_loop
async def test_more_bytes_than_may_wait_are_refused() -> None:
    origin = Origin()
    large = Put(b"a", bytes(1024 * 1024))
    with pytest.raises(OverloadedError):
        for _ in range(handover.QUEUED_BYTES_MAX // len(large.value) + 1):
            origin.side.submit(large, 1)


@in_loop
async def test_frames_are_small_and_wait_while_too_many_bytes_are_outstanding() -> None:
    origin = opened()
    large = Put(b"a", bytes(400 * 1024))
    origin.ask(*[large] * 50)
    frames = origin.frames()
    assert all(len(frame.commands) == 1 for frame in frames)
    assert len(frames) == -(-handover.OUTSTANDING_BYTES_MAX // (len(large.value) + 65))
    origin.propose(frames[0])
    origin.side.flush()
    assert len(origin.frames()) == 1


@in_loop
async def test_a_write_that_expires_before_it_is_handed_over_is_refused_and_never_sent() -> None:
    origin = Origin()
    [waiter] = origin.ask(PUT, timeout_s=0.1)
    [opening] = origin.take()
    assert isinstance(opening, Opening)
    origin.now += 1
    origin.side.tick()
    assert isinstance(error(waiter), OverloadedError)
    origin.apply(OpenOrigin(ME, opening.nonce, 0))
    origin.side.flush()
    assert origin.frames() == []


@in_loop
async def test_when_the_node_stops_what_was_not_sent_is_refused_and_the_rest_is_unknown() -> None:
    origin = opened()
    [sent] = origin.ask(PUT)
    [rejected] = origin.ask(PUT)
    _, frame = origin.frames()
    origin.refuse(frame, (WHOLE_FRAME, NotLeaderError(None)))
    queued = origin.side.submit(PUT, 1)
    done = origin.side.idle(origin.now + 10)
    assert not done.done()
    origin.side.stop("the node stopped")
    assert isinstance(error(sent), OutcomeUnknownError)
    assert isinstance(error(rejected), NotServingError)
    assert isinstance(error(queued), NotServingError)
    assert done.done()
    assert origin.side._pending >= 0


# --- The leader's side --------------------------------------------------------------------------------------------


class Leader:
    """A receiver, and the queue that it fills."""

    def __init__(self, level: int = HIGHEST_LEVEL) -> None:
        self.raft = SimpleNamespace(id=LEADER, leader=None, current_term=4)
        self.state = State(store_at(level))
        self.queued: list[tuple[object, Waiter]] = []
        self.said: list[tuple[str, Refusal]] = []
        self.terms: list[int] = []
        """Of what was said."""
        self.turns = 0
        self.full: CallerError | None = None
        self.side = Receiver(cast(Any, self.raft), self.state, cast(Any, self), 10, self.answer, self.schedule)
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
async def test_below_the_level_nothing_is_proposed_that_an_older_version_does_not_know() -> None:
    leader = Leader(HANDOVER_LEVEL - 1)
    leader.side.open(ME, 5, Opening(7, 0))
    leader.side.take(ME, 5, frame_of(1, PUT))
    assert (leader.queued, leader.said) == ([], [])


@in_loop
async def test_frames_without_commands_are_bounded_too() -> None:
    leader = Leader()
    for number in range(handover_leader.FRAMES_MAX + 1):
        leader.side.take(ME, 5, Frame(7, number + 1, number + 1))
    assert len(leader.queued) == handover_leader.FRAMES_MAX
    [(_, refusal)] = leader.said
    assert (refusal.number, type(error_of(refusal.errors[0]))) == (handover_leader.FRAMES_MAX + 1, OverloadedError)


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


# --- The messages -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"\xc1", encode_handover(Frame(1, 1, 1, (PUT,), ())), b"\x93\xa1o\x00\x00"])
def test_what_is_no_message_is_the_peers_fault(data: bytes) -> None:
    with pytest.raises(MalformedMessageError):
        decode_handover(data, LEADER)


@pytest.mark.parametrize(
    "said",
    [
        NoSpaceError("full", reason="quota", limit=1, used=2),
        SessionError("sessions_full", "too many", "full", 9),
        OverloadedError("busy"),
        NotServingError("stopping"),
        NotLeaderError(None),
    ],
)
def test_an_error_arrives_as_it_was(said: CallerError) -> None:
    found = error_of(refused(0, said))
    assert (type(found), found.code, str(found), found.facts) == (type(said), said.code, str(said), said.facts)


# --- Real nodes ---------------------------------------------------------------------------------------------------


def test_a_frame_is_bounded_by_the_keys_that_its_revocations_delete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "TXN_KEYS_MAX", 3)

    async def scenario() -> None:
        origin = Origin()
        origin.open()
        for lease in (1, 2):
            origin.apply(LeaseGrant(lease, 60))
            puts = tuple(LeasedPutOp(b"%d/%d" % (lease, number), b"v", lease=lease) for number in range(2))
            origin.apply(Txn(then=puts))
        origin.ask(LeaseRevoke(1), LeaseRevoke(2))
        assert [frame.commands for frame in origin.frames()] == [(LeaseRevoke(1),), (LeaseRevoke(2),)]

    asyncio.run(scenario())


def test_every_node_takes_every_write(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            leader = await cluster.leader()
            await leader.finalize(TIMEOUT_MS)
            await cluster.converge()
            for node in cluster.nodes.values():
                name = node.config.name.encode()
                writes: list[QueuedCommand] = [Put(b"%s-%d" % (name, each), b"v") for each in range(20)]
                results = await asyncio.gather(
                    *(node.propose(write, TIMEOUT_MS, hand_over=True) for write in writes),
                    node.propose(Txn((), (PutOp(name, b"t"),), ()), TIMEOUT_MS, hand_over=True),
                )
                assert node.store.get(b"%s-19" % name) is not None, "it has applied it itself"
                assert len({result.revision for result in results}) == len(results)
            follower = cluster.others(leader)[0]
            await follower.set_quota(64 << 20, TIMEOUT_MS, hand_over=True)
            assert follower.store.quota.limit_bytes == 64 << 20
            with pytest.raises(NotLeaderError):
                await follower.propose(PUT, TIMEOUT_MS)
            await cluster.converge()
            digests = {node.store.digest for node in cluster.nodes.values()}
            assert len(digests) == 1

    asyncio.run(scenario())


def test_an_error_while_a_refusal_is_sent_ends_the_process(tmp_path: Path) -> None:
    """What the event loop calls back would be swallowed by it: the answer is given in the driver's turn."""

    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            leader = await cluster.leader()
            await leader.finalize(TIMEOUT_MS)
            await cluster.converge()
            follower = cluster.others(leader)[0]
            await follower.propose(PUT, TIMEOUT_MS, hand_over=True)
            send = leader.peers.send

            def fail(messages: Iterable[Message]) -> None:
                messages = tuple(messages)
                if any(isinstance(message, HandOver) for message in messages):
                    raise ValueError("what nobody expects")
                send(messages)

            leader.peers.send = fail  # type: ignore[method-assign]
            follower.parts.handover.origin.submit(PUT, 1)
            leader.parts.proposals.flush = lambda: leader.parts.proposals.stop("no time")  # type: ignore[method-assign]
            follower.parts.turns.schedule()
            with pytest.raises(InvariantViolatedError, match="what nobody expects"):
                async with asyncio.timeout(10):
                    await leader.run()

    asyncio.run(scenario())


def test_below_the_level_it_is_not_available() -> None:
    assert not Origin(HANDOVER_LEVEL - 1).side.is_available
    assert Origin(HANDOVER_LEVEL).side.is_available


def test_a_quota_is_refused_by_the_leader_and_not_by_a_follower_that_lags() -> None:
    async def scenario() -> None:
        origin = opened()
        origin.apply(SetQuota(1 << 20, "operator"))
        origin.state.store.quota.is_full = True
        [waiter] = origin.ask(PUT)
        assert not waiter.done()

    asyncio.run(scenario())
