"""Writes that a node hands to the leader: each rule of ``kvorum.node.handover``, with a scripted leader."""

from __future__ import annotations

import asyncio
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pytest
from kv.kv_support import CONFIGURATION, apply, configured
from node.handover_support import LEADER, ME, OTHER, PUT, error, in_loop, store_at

from kvorum.errors import (
    CallerError,
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
    LeaseRenew,
    LeaseRevoke,
    OpenOrigin,
    Put,
    PutResult,
    QueuedCommand,
    SetQuota,
    Txn,
)
from kvorum.kv.features import HANDOVER_LEVEL, HIGHEST_LEVEL
from kvorum.kv.limits import BATCH_COMMANDS_MAX, ORIGIN_WINDOW
from kvorum.kv.operations import LeasedPutOp
from kvorum.kv.store import Store
from kvorum.node import handover
from kvorum.node.handover import HandOvers
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
from kvorum.telemetry.counters import Counters


class Origin:
    """One node's side, the log that it applies, and a leader that does what the test says."""

    def __init__(self, level: int = HIGHEST_LEVEL, pending_max: int = 100) -> None:
        self.now = 100.0
        self.state = State(store_at(level))
        self.raft = SimpleNamespace(id=ME, leader=LEADER, current_term=5)
        self.sent: list[tuple[str, int, HandoverMessage]] = []
        self.counters = Counters()
        clock = SimpleNamespace(monotonic=lambda: self.now)
        self.side = HandOvers(
            cast(Any, self.raft),
            self.state,
            self.counters,
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
        self.side.refused(LEADER, Refusal(frame.nonce, frame.number, (frame.attempt,), said))

    def install(self, store: Store) -> None:
        """Let a snapshot take the place of the state."""
        self.state.replace(store)
        self.side.tick()


def opened(**options: int) -> Origin:
    origin = Origin(**options)
    origin.open()
    return origin


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
    assert origin.counters.handover_frames == {"sent": 2, "resent": 1}
    assert origin.counters.handover_writes == {"sent": 2}
    assert origin.side.pending == 1
    revision = origin.state.store.revision
    origin.propose(frame)
    origin.propose(again)
    assert origin.state.store.revision == revision + 1
    assert isinstance(waiter.result(), PutResult)


@in_loop
async def test_a_frame_is_sent_again_ever_later_and_to_another_leader_as_soon_as_the_first_time() -> None:
    """On a slow network it may still wait in the queue of its stream, with others that were sent again."""
    origin = opened()
    origin.ask(PUT, timeout_s=1000)
    sent = []
    for second in range(30):
        if second == 25:
            origin.raft.leader, origin.raft.current_term = OTHER, 6
        origin.side.tick()
        sent += [second] * len(origin.frames())
        origin.now += 1
    assert sent == [0, 1, 3, 7, 15, 23, 25, 26, 28]


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
    plain = ORIGIN_WINDOW - handover.KEEPING_NUMBERS
    for _ in range(plain + 5):
        origin.ask(PUT)
    frames = origin.frames()
    assert len(frames) == plain
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
async def test_a_frame_without_commands_that_was_refused_is_sent_again_each_second() -> None:
    origin = opened()
    origin.ask(PUT)
    [frame] = origin.frames()
    origin.refuse(frame, (WHOLE_FRAME, OverloadedError("full")))
    origin.side.tick()
    for _ in range(3):
        [empty] = origin.frames()
        assert (empty.number, empty.commands) == (frame.number, ())
        origin.refuse(empty, (WHOLE_FRAME, OverloadedError("full")))
        origin.now += 0.9 * handover.RESEND_S
        origin.side.tick()
        assert origin.frames() == [], "a leader that is full would get it in every tick"
        origin.now += 0.1 * handover.RESEND_S
        origin.side.tick()
    [empty] = origin.frames()
    origin.refuse(empty, (WHOLE_FRAME, OverloadedError("full")))
    origin.raft.leader, origin.raft.current_term = OTHER, 6
    origin.side.tick()
    assert len(origin.frames()) == 1, "another leader may have room"


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
        origin.side.refused(LEADER, other)
    origin.side.refused(OTHER, Refusal(frame.nonce, frame.number, (frame.attempt,), said))
    assert not waiter.done()


@in_loop
async def test_too_many_attempts_to_remember_are_never_called_refused() -> None:
    origin = opened()
    [waiter] = origin.ask(PUT, timeout_s=1000)
    frames = origin.frames()
    for _ in range(handover.ATTEMPTS_MAX):
        origin.now += handover.RESEND_MAX_S
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


# --- The messages -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x93\xa1o\x00\x00",
        encode_handover(Frame(1, 1, 1, (PUT,), ())),
        encode_handover(Frame(1, 1, 1, (PUT,) * (BATCH_COMMANDS_MAX + 1), ("",) * (BATCH_COMMANDS_MAX + 1))),
    ],
)
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
        assert {frame.commands for frame in origin.frames()} == {(LeaseRevoke(1),), (LeaseRevoke(2),)}

    asyncio.run(scenario())


@in_loop
async def test_a_frame_that_is_too_much_for_an_entry_is_split_and_nothing_of_it_is_lost() -> None:
    origin = opened()
    puts = [Put(b"%d" % number, b"v" * 100) for number in range(5)]
    waiters = origin.ask(*puts)
    [frame] = origin.frames()
    pending, size_bytes = origin.side.pending, origin.side._outstanding_bytes
    for_old = tuple(refused(position, OverloadedError("does not fit")) for position in range(2, 5))
    origin.side.refused(LEADER, Refusal(frame.nonce, frame.number, (frame.attempt,), for_old, 2))
    assert (origin.side.pending, origin.side.queued) == (pending, 3)
    origin.side.flush()
    origin.side.tick()
    rest, first = origin.frames()
    assert (first.number, first.commands) == (frame.number, tuple(puts[:2]))
    assert (rest.number, rest.commands) == (frame.number + 1, tuple(puts[2:]))
    assert origin.side._outstanding_bytes == size_bytes
    origin.propose(first)
    origin.propose(rest)
    assert all(isinstance(waiter.result(), PutResult) for waiter in waiters)
    assert (origin.side.pending, origin.side._outstanding_bytes, origin.side._queued_bytes) == (0, 0, 0)


@in_loop
async def test_a_frame_is_not_split_while_an_attempt_of_it_may_be_done() -> None:
    origin = opened()
    origin.ask(PUT, Put(b"b", b"w"))
    [first] = origin.frames()
    origin.now += handover.RESEND_S
    origin.side.tick()
    [second] = origin.frames()
    origin.side.refused(LEADER, Refusal(first.nonce, first.number, (second.attempt,), fits=1))
    before = origin.side.queued
    origin.side.refused(LEADER, Refusal(first.nonce, first.number, (first.attempt,), fits=1))
    assert (before, origin.side.queued) == (0, 1)


@in_loop
async def test_a_write_that_was_split_off_and_not_sent_in_time_was_not_done() -> None:
    origin = opened()
    waiters = origin.ask(PUT, Put(b"b", b"w"), timeout_s=1)
    [frame] = origin.frames()
    origin.raft.leader = None
    origin.side.refused(LEADER, Refusal(frame.nonce, frame.number, (frame.attempt,), fits=1))
    origin.now += 2
    origin.side.tick()
    assert [type(error(waiter)) for waiter in waiters] == [NoLeaderError, OverloadedError]


def ask_batch(origin: Origin, *commands: QueuedCommand, batch: object) -> list[Waiter]:
    waiters = [origin.side.submit(command, 10, batch=batch) for command in commands]
    origin.side.flush()
    return waiters


@in_loop
async def test_a_batch_of_several_frames_is_applied_in_its_order_whatever_is_lost() -> None:
    origin = opened()
    puts = [Put(b"k", b"%05d" % number + b"v" * 16_000) for number in range(64)]
    waiters = ask_batch(origin, *puts, batch=object())
    [first] = origin.frames()
    assert 0 < len(first.commands) < len(puts)
    origin.now += handover.RESEND_S  # It was lost.
    origin.side.tick()
    origin.side.flush()
    [again] = origin.frames()
    assert again.commands == first.commands, "what follows waits"
    applied = [again]
    origin.propose(again)
    while origin.side.queued:
        origin.side.flush()
        [frame] = origin.frames()
        applied.append(frame)
        origin.propose(frame)
    assert [each for frame in applied for each in frame.commands] == puts
    assert all(isinstance(waiter.result(), PutResult) for waiter in waiters)


@in_loop
async def test_a_batch_of_which_a_command_is_refused_or_split_off_keeps_its_order() -> None:
    for refusing in ({"errors": (refused(0, OverloadedError("full")),)}, {"fits": 1}):
        origin = opened()
        first, second = Put(b"k", b"1"), Put(b"k", b"2")
        batch = object()
        ask_batch(origin, first, second, batch=batch)
        [frame] = origin.frames()
        ask_batch(origin, Put(b"k", b"3"), batch=batch)
        origin.side.refused(LEADER, Refusal(frame.nonce, frame.number, (frame.attempt,), **cast(Any, refusing)))
        origin.side.flush()
        assert origin.frames() == [], "the frame is outstanding"
        origin.side.tick()
        [frame] = origin.frames()
        origin.propose(frame)
        origin.side.flush()
        [frame] = origin.frames()
        origin.propose(frame)
        record = origin.state.store.get(b"k")
        assert record is not None
        assert record.value == b"3"


@in_loop
async def test_no_frame_takes_a_write_whose_batch_is_outstanding_behind_others() -> None:
    origin = opened()
    batch = object()
    ask_batch(origin, PUT, batch=batch)
    other = origin.side.submit(Put(b"other", b"v"), 10)
    ask_batch(origin, Put(b"a", b"later"), batch=batch)
    first, second = origin.frames()
    assert (first.commands, second.commands) == ((PUT,), (Put(b"other", b"v"),))
    origin.propose(second)
    assert isinstance(other.result(), PutResult)
    origin.propose(first)
    origin.side.flush()
    [third] = origin.frames()
    assert third.commands == (Put(b"a", b"later"),)


@in_loop
async def test_other_writes_do_not_wait_for_a_frame_of_theirs() -> None:
    origin = opened()
    ask_batch(origin, PUT, batch=object())
    ask_batch(origin, PUT, batch=object())
    origin.ask(PUT)
    assert len(origin.frames()) == 3


@in_loop
async def test_a_full_queue_hands_renewals_and_revocations_over_and_first() -> None:
    origin = opened(pending_max=3)
    for number in range(3):
        origin.side.submit(Put(b"%d" % number, b"v"), 10)
    for command in (PUT, LeaseGrant(7, 60)):
        with pytest.raises(OverloadedError):
            origin.side.submit(command, 10)
    origin.side.submit(LeaseRenew(7), 10)
    origin.side.submit(LeaseRevoke(8), 10)
    origin.side.submit(LeaseRenew(9), 10)
    with pytest.raises(OverloadedError):
        origin.side.submit(LeaseRenew(10), 10)
    origin.side.flush()
    first, others = origin.frames()
    assert first.commands == (LeaseRenew(7), LeaseRevoke(8), LeaseRenew(9))
    assert len(others.commands) == 3


@in_loop
async def test_renewals_are_sent_while_the_window_of_other_writes_is_full() -> None:
    origin = opened(pending_max=2 * ORIGIN_WINDOW)
    for _ in range(ORIGIN_WINDOW):
        origin.ask(PUT)
    lowest = origin.frames()[0].number
    for _ in range(handover.KEEPING_NUMBERS + 1):
        origin.ask(LeaseRenew(7))
    frames = origin.frames()
    assert all(frame.commands == (LeaseRenew(7),) for frame in frames)
    assert frames[-1].number == lowest + ORIGIN_WINDOW - 1


@in_loop
async def test_renewals_do_not_use_up_the_numbers_of_other_writes() -> None:
    origin = opened(pending_max=2 * ORIGIN_WINDOW)
    for _ in range(ORIGIN_WINDOW):
        origin.ask(LeaseRenew(7))
    renewals = origin.frames()
    assert len(renewals) == handover.KEEPING_NUMBERS
    origin.ask(PUT)
    assert len(origin.frames()) == 1
    origin.propose(renewals[0])
    origin.side.flush()
    [frame] = origin.frames()
    assert set(frame.commands) == {LeaseRenew(7)}


@in_loop
async def test_renewals_are_sent_while_too_many_bytes_are_outstanding() -> None:
    origin = opened()
    origin.ask(*[Put(b"a", bytes(1024 * 1024))] * 20)
    assert len(origin.frames()) == 16
    [waiter] = origin.ask(LeaseRenew(7))
    [frame] = origin.frames()
    assert frame.commands == (LeaseRenew(7),)
    origin.propose(frame)
    assert waiter.done()
    assert origin.side.queued == 4


@in_loop
async def test_a_renewal_that_waits_is_not_behind_what_was_split_off() -> None:
    origin = opened()
    ask_batch(origin, PUT, PUT, batch=object())
    [frame] = origin.frames()
    origin.side.submit(LeaseRenew(7), 10)
    origin.side.refused(LEADER, Refusal(frame.nonce, frame.number, (frame.attempt,), fits=1))
    origin.side.flush()
    assert [each.commands for each in origin.frames()] == [(LeaseRenew(7),)]


@in_loop
async def test_of_renewals_that_were_split_off_none_is_lost() -> None:
    origin = opened()
    origin.ask(LeaseRevoke(7), LeaseRevoke(8), LeaseRevoke(9))
    [frame] = origin.frames()
    origin.side.refused(LEADER, Refusal(frame.nonce, frame.number, (frame.attempt,), fits=1))
    origin.side.flush()
    assert [each.commands for each in origin.frames()] == [(LeaseRevoke(8), LeaseRevoke(9))]


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
