"""Writes that a node which does not lead hands to the leader: any node takes every write.

What is asked in one turn of the loop is one *frame*, and has one number. The leader proposes it; this node answers its
callers when it applies the frame itself, with the results that it computes (:mod:`kvorum.kv.origins`). The rules:

1. The frames of one start of the process have a nonce, which a command in the log opens.
2. A frame is applied once, however often it is sent.
3. A number stays outstanding until it was seen applied here, also after its callers have gone: then it is sent again
   without commands. No number is used that is a window above the lowest outstanding one.
4. A write is called refused only if every attempt to hand it over was; else its outcome is unknown. After a snapshot
   was installed over a frame, the window says whether it was applied; with what results nobody knows.
5. What a frame carries changes only after every attempt of it was refused: an earlier one might be applied.
6. The writes of one batch are applied in their order: no frame takes one while another frame with some is outstanding.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from random import Random
from typing import NamedTuple

from kvorum.errors import (
    CallerError,
    NoLeaderError,
    NotLeaderError,
    NotServingError,
    OutcomeUnknownError,
    OverloadedError,
)
from kvorum.kv.commands import HandedOver, HandedOverDone, QueuedCommand, Result
from kvorum.kv.features import HANDOVER_LEVEL, check_command_level
from kvorum.kv.limits import BATCH_COMMANDS_MAX, ORIGIN_WINDOW, TXN_KEYS_MAX
from kvorum.node.deadlines import Deadlines
from kvorum.node.handover_messages import WHOLE_FRAME, Frame, HandoverMessage, Opening, Refusal, error_of
from kvorum.node.ports import Clock
from kvorum.node.proposals import Waiter, share, visits, weight
from kvorum.node.state import State
from kvorum.raft import Raft
from kvorum.raft.messages import NodeId
from kvorum.telemetry.counters import Counters

FRAME_BYTES_MAX = 512 * 1024
"""A frame takes no further command above this; one that is larger has a frame of its own."""
FRAME_COMMANDS_MAX = BATCH_COMMANDS_MAX // 4
OUTSTANDING_BYTES_MAX = 16 * 1024 * 1024
"""While frames of so many bytes are outstanding, none is sent but those of renewals and revocations (:func:`share`)."""
KEEPING_NUMBERS = ORIGIN_WINDOW // 4
"""The last numbers of the window are for such frames, and no more of them are outstanding: others need numbers too."""
QUEUED_BYTES_MAX = 64 * 1024 * 1024
"""More are refused."""
ATTEMPTS_MAX = 16
"""Attempts of a frame that are remembered; with more of them its outcome stays unknown until it is applied."""
RESEND_S = 1.0
"""A frame is sent again, to the same leader, when it was not seen applied for so long; then after twice as long. One
without commands that was refused is sent again after so long each time."""
RESEND_MAX_S = 8.0
"""At the latest after so long. On a slow network a frame may still wait in the queue of its stream."""

Post = Callable[[NodeId, int, HandoverMessage], None]
"""Sends a message to a member, which leads in that term as far as we know."""


class Queued(NamedTuple):
    """A write that is not sent yet."""

    command: QueuedCommand
    waiter: Waiter
    size_bytes: int
    address: str
    batch: object | None


class Outstanding:
    """A frame that was not seen applied yet."""

    __slots__ = (
        "addresses",
        "all_batches",
        "attempts",
        "batches",
        "commands",
        "is_lost",
        "keeps",
        "resend_s",
        "sent",
        "sent_s",
        "size_bytes",
        "waiters",
    )

    def __init__(self, writes: Sequence[Queued]) -> None:
        self.commands = [each.command for each in writes]
        self.waiters = [each.waiter for each in writes]
        self.addresses = [each.address for each in writes]
        self.batches = [each.batch for each in writes]
        self.all_batches = frozenset(self.batches) - {None}
        """Those of which the frame has ever had a write."""
        self.keeps = share(self.commands[0]) > 1
        """Whether it has renewals and revocations; else it has others."""
        self.size_bytes = sum(each.size_bytes for each in writes)
        self.attempts: dict[int, NodeId] = {}
        """Those that were not refused, and to whom each was sent."""
        self.is_lost = False
        """There were more of them than are remembered."""
        self.sent: tuple[NodeId, int] | None = None
        """To whom it was sent last, and in which term; None: it has to be sent again."""
        self.sent_s = 0.0
        self.resend_s = RESEND_S
        """After how long it is sent again."""

    @property
    def may_be_done(self) -> bool:
        """Whether an attempt may have been, or may still be, proposed."""
        return self.is_lost or bool(self.attempts)

    def cut(self, fits: int) -> list[Queued]:
        """Keep the first commands only; return the others."""
        columns = (self.commands, self.waiters, map(weight, self.commands), self.addresses, self.batches)
        others = [Queued(*each) for each in zip(*columns, strict=True)][fits:]
        self.keep(range(min(fits, len(self.commands))))
        return others

    def keep(self, positions: Sequence[int]) -> None:
        """Keep these commands only."""
        self.commands = [self.commands[each] for each in positions]
        self.waiters = [self.waiters[each] for each in positions]
        self.addresses = [self.addresses[each] for each in positions]
        self.batches = [self.batches[each] for each in positions]


class HandOvers:
    """The writes that this node hands over, from :meth:`submit` to :meth:`applied`.

    Args:
        raft: says who leads.
        state: what the frames are applied to.
        counters: where writes are counted.
        pending_max: writes that wait; more are refused.
        clock: by which writes expire, and frames are sent again.
        random: draws the nonce.
        post: sends messages.
    """

    def __init__(
        self, raft: Raft, state: State, counters: Counters, pending_max: int, clock: Clock, random: Random, post: Post
    ) -> None:
        self._raft = raft
        self._state = state
        self._store = state.store
        self._counters = counters
        self._pending_max = pending_max
        self._clock = clock
        self._random = random
        self._post = post
        self._keeping: deque[Queued] = deque()
        """Renewals and revocations of leases. They go first, in frames of their own."""
        self._others: deque[Queued] = deque()
        self._batches: set[object] = set()
        """Those of which a frame is outstanding."""
        self.outstanding: dict[int, Outstanding] = {}
        """Number -> frame, in the order of the numbers."""
        self._queued_bytes = 0
        self._outstanding_bytes = 0
        self._keeping_frames = 0
        self._pending = 0
        self._nonce = 0
        """0: not drawn yet."""
        self._was_open = False
        self._opening: tuple[NodeId, int, int] | None = None
        """Who was asked to open it, in which term, in the place of which one."""
        self._opening_s = 0.0
        self._next_number = 1
        self._attempt = 0
        self._deadlines: Deadlines[Result] = Deadlines(clock)
        self._idle: list[tuple[float, asyncio.Future[None]]] = []

    @property
    def pending(self) -> int:
        """How many writes wait to be handed over, or to be seen applied."""
        return self._pending

    @property
    def queued(self) -> int:
        """How many of them are in no frame."""
        return len(self._keeping) + len(self._others)

    @property
    def is_available(self) -> bool:
        """Whether the feature level allows to hand over."""
        return self._state.store.feature_level >= HANDOVER_LEVEL

    # --- Callers ------------------------------------------------------------------------------------------------

    def submit(
        self, command: QueuedCommand, timeout_s: float, address: str = "", batch: object | None = None
    ) -> Waiter:
        """Queue a write within the limits (:func:`kvorum.kv.limits.check_command`); return the future of its result.

        Writes with the same ``batch`` are applied in the order in which they are submitted.

        Whether there is room is the leader's to say: a follower that lags might call a retry refused that was applied.

        Raises:
            NotLeaderError: nobody leads, as far as this node knows; nothing was queued.
            OverloadedError, FeatureUnavailableError: nothing was queued.
        """
        if self._raft.leader is None:
            raise NotLeaderError(None)
        check_command_level(command, self._state.store.feature_level)
        size_bytes = weight(command)
        times = share(command)
        is_full = self._pending >= times * self._pending_max
        if is_full or self._queued_bytes + size_bytes > times * QUEUED_BYTES_MAX:
            self._counters.proposals["refused"] += 1
            raise OverloadedError(f"{self._pending} writes already wait to be handed to the leader")
        waiter: Waiter = asyncio.Future()
        self._queue_of(command).append(Queued(command, waiter, size_bytes, address, batch))
        self._queued_bytes += size_bytes
        self._pending += 1
        self._deadlines.add(waiter, timeout_s)
        return waiter

    def _queue_of(self, command: QueuedCommand) -> deque[Queued]:
        # What keeps leases does not wait behind a batch, nor behind large writes.
        return self._keeping if share(command) > 1 else self._others

    def idle(self, deadline_s: float) -> asyncio.Future[None]:
        """Return a future that completes once no caller waits, at the latest at ``deadline_s``."""
        waiter: asyncio.Future[None] = asyncio.Future()
        self._idle.append((deadline_s, waiter))
        self._complete_idle()
        return waiter

    def _complete_idle(self) -> None:
        now_s = self._clock.monotonic()
        waiting = (waiter for frame in self.outstanding.values() for waiter in frame.waiters)
        is_idle = all(waiter.done() for waiter in chain(self._queued_waiters(), waiting))
        for deadline_s, future in self._idle:
            if (is_idle or now_s >= deadline_s) and not future.done():
                future.set_result(None)
        self._idle = [each for each in self._idle if not each[1].done()]

    def _queued_waiters(self) -> Iterator[Waiter]:
        return (each.waiter for each in chain(self._keeping, self._others))

    # --- To the leader ------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Hand over what is queued, as far as the window and the bytes outstanding allow it."""
        self._follow_state()
        leader = self._raft.leader
        if leader is None or self._state.is_given_up or not self._is_open(leader):
            return
        for queue in (self._keeping, self._others):
            self._flush(queue, leader)

    def _flush(self, queue: deque[Queued], leader: NodeId) -> None:
        while self._is_next(queue) and self._has_room(share(queue[0].command)):
            frame = self._take_frame(queue)
            if frame is not None:
                number = self._next_number
                self._next_number += 1
                self.outstanding[number] = frame
                self._batches |= frame.all_batches
                self._outstanding_bytes += frame.size_bytes
                self._keeping_frames += frame.keeps
                self._counters.handover_frames["sent"] += 1
                self._counters.handover_writes["sent"] += len(frame.commands)
                self._send(number, frame, leader)

    def _is_open(self, leader: NodeId) -> bool:
        """Tell whether our nonce is open; ask for it if it is not."""
        if self._nonce and self._state.store.origins.nonce_of(self._raft.id) == self._nonce:
            self._was_open = True
            return True
        if not self._nonce:
            self._nonce = self._random.getrandbits(62) + 1
        replaces = self._state.store.origins.nonce_of(self._raft.id)
        asked, now_s = (leader, self._raft.current_term, replaces), self._clock.monotonic()
        if asked != self._opening or now_s - self._opening_s >= RESEND_S:
            self._opening, self._opening_s = asked, now_s
            self._post(leader, self._raft.current_term, Opening(self._nonce, replaces))
        return False

    def _is_next(self, queue: deque[Queued]) -> bool:
        """Tell whether there is a write, and none of its batch is outstanding."""
        return bool(queue) and queue[0].batch not in self._batches

    def _has_room(self, times: int) -> bool:
        """Tell whether a frame may be sent, of writes that have so many times the room of others."""
        if times > 1 and self._keeping_frames >= KEEPING_NUMBERS:
            return False
        lowest = next(iter(self.outstanding), self._next_number)
        window = ORIGIN_WINDOW if times > 1 else ORIGIN_WINDOW - KEEPING_NUMBERS
        return self._next_number < lowest + window and self._outstanding_bytes < times * OUTSTANDING_BYTES_MAX

    def _take_frame(self, queue: deque[Queued]) -> Outstanding | None:
        writes: list[Queued] = []
        size = keys = 0
        while self._is_next(queue) and len(writes) < FRAME_COMMANDS_MAX:
            write = queue[0]
            visited = visits(write.command, self._state.store)
            if writes and (size + write.size_bytes > FRAME_BYTES_MAX or keys + visited > TXN_KEYS_MAX):
                break
            queue.popleft()
            self._queued_bytes -= write.size_bytes
            if write.waiter.done():  # Its caller gave up: the write was certainly not done.
                self._pending -= 1
                continue
            size += write.size_bytes
            keys += visited
            writes.append(write)
        return Outstanding(writes) if writes else None

    def _send(self, number: int, frame: Outstanding, leader: NodeId) -> None:
        if frame.commands and all(waiter.done() for waiter in frame.waiters):
            self._drop_commands(frame)
        self._attempt += 1
        if len(frame.attempts) >= ATTEMPTS_MAX:
            frame.is_lost = True
            frame.attempts.clear()
        frame.attempts[self._attempt] = leader
        frame.sent = (leader, self._raft.current_term)
        frame.sent_s = self._clock.monotonic()
        commands, addresses = tuple(frame.commands), tuple(frame.addresses)
        message = Frame(self._nonce, number, self._attempt, commands, addresses)
        self._post(leader, self._raft.current_term, message)

    def _drop_commands(self, frame: Outstanding) -> None:
        """Let a frame carry nothing any more: its callers have gone, and its number has to be used up."""
        self._pending -= len(frame.waiters)
        self._outstanding_bytes -= frame.size_bytes
        frame.size_bytes = 0
        frame.keep(())

    def tick(self) -> None:
        """Answer the callers whose deadline has passed, and send again what has to be; called once a tick."""
        self._expire()
        self._follow_state()
        leader = self._raft.leader
        if self.outstanding and leader is not None and not self._state.is_given_up and self._is_open(leader):
            now_s = self._clock.monotonic()
            for number, frame in list(self.outstanding.items()):
                is_other_leader = frame.sent != (leader, self._raft.current_term)
                if is_other_leader or now_s - frame.sent_s >= frame.resend_s:
                    frame.resend_s = RESEND_S if is_other_leader else min(2 * frame.resend_s, RESEND_MAX_S)
                    self._counters.handover_frames["resent"] += 1
                    self._send(number, frame, leader)
        elif self.queued and leader is not None:
            self.flush()
        if self._idle:
            self._complete_idle()

    def _expire(self) -> None:
        expired = list(self._deadlines.expired())
        if not expired:
            return
        queued = set(self._queued_waiters())
        refused = {waiter for frame in self.outstanding.values() if not frame.may_be_done for waiter in frame.waiters}
        for waiter in expired:
            if waiter in queued:
                error: CallerError = OverloadedError("the write was not handed to the leader in time; it was not done")
            elif waiter in refused:
                error = NoLeaderError("no leader took the write in time; it was not done")
            else:
                error = OutcomeUnknownError(
                    "the write was handed to the leader, and was not seen applied in time; it may still be done"
                )
            self._tell([waiter], error)
        for frame in self.outstanding.values():
            if not frame.may_be_done:
                self._keep_waiting(frame)

    def _keep_waiting(self, frame: Outstanding) -> None:
        """Take out of a frame that certainly is not done what nobody waits for any more: it must not be done later."""
        left = [position for position, waiter in enumerate(frame.waiters) if not waiter.done()]
        self._pending -= len(frame.waiters) - len(left)
        frame.keep(left)

    # --- From the leader, and from the log ----------------------------------------------------------------------

    def refused(self, sender: NodeId, refusal: Refusal) -> None:
        """The leader has not proposed these attempts, and will not."""
        frame = self.outstanding.get(refusal.number)
        if refusal.nonce != self._nonce or frame is None:
            return
        ended = [attempt for attempt in refusal.attempts if frame.attempts.get(attempt) == sender]
        if not ended:
            return
        for attempt in ended:
            frame.attempts.pop(attempt, None)
        said = () if refusal.fits else refusal.errors  # Those beside it are for origins that cannot split a frame.
        errors = {each.position: error_of(each) for each in said}
        whole = errors.get(WHOLE_FRAME)
        if frame.may_be_done or isinstance(whole, NotLeaderError):
            return  # It is sent to the next leader, if there is one in time.
        if not frame.commands:
            frame.resend_s = RESEND_S  # Not in the next tick: it has nothing but a number, and the leader is full.
            return
        for position, waiter in enumerate(frame.waiters):
            error = whole or errors.get(position)
            if error is not None:
                self._tell([waiter], error)
        if refusal.fits:
            self._split(frame, refusal.fits)
        self._keep_waiting(frame)
        frame.sent = None

    def _split(self, frame: Outstanding, fits: int) -> None:
        """Let a frame that certainly is not done carry its first commands only; the others wait for another frame."""
        others = frame.cut(fits)
        for each in reversed(others):
            self._queue_of(each.command).appendleft(each)
        size_bytes = sum(each.size_bytes for each in others)
        self._queued_bytes += size_bytes
        self._outstanding_bytes -= size_bytes
        frame.size_bytes -= size_bytes

    def applied(self, done: Iterable[tuple[HandedOver, HandedOverDone]]) -> None:
        """Answer the callers of what was applied."""
        self._follow_state()
        for command, result in done:
            if command.nonce != self._nonce:
                continue
            frame = self.outstanding.get(command.number)
            if frame is None:
                continue
            self._settle(command.number, frame)
            if len(command.commands) != len(frame.waiters):
                self._unknown(frame.waiters, "the write was handed to the leader, and its number was used without it")
                continue
            for waiter, answer in zip(frame.waiters, result.results, strict=True):
                if not waiter.done():
                    self._counters.proposals["committed"] += 1
                    waiter.set_result(answer)
        if self._idle:
            self._complete_idle()

    def _settle(self, number: int, frame: Outstanding) -> None:
        del self.outstanding[number]
        self._batches -= frame.all_batches
        self._pending -= len(frame.waiters)
        self._outstanding_bytes -= frame.size_bytes
        self._keeping_frames -= frame.keeps

    def _follow_state(self) -> None:
        """Take note of another state in the place of the last one: its window says what was applied."""
        state = self._state
        if state.is_given_up or not self._nonce:
            return
        store = state.store
        is_open = store.origins.nonce_of(self._raft.id) == self._nonce
        if self._was_open and not is_open:
            # We were removed, or the state goes back. A nonce that was forgotten must never be opened again.
            self._abandon()
            return
        if store is self._store:
            return
        self._store = store
        origin = store.origins.find(self._nonce)
        for number, frame in list(self.outstanding.items()):
            if origin is not None and origin.is_applied(number):
                self._settle(number, frame)
                self._unknown(frame.waiters, "a snapshot replaced the entry of this write")

    def _abandon(self) -> None:
        for number, frame in list(self.outstanding.items()):
            self._settle(number, frame)
            self._unknown(frame.waiters, "this node's origin was forgotten by the cluster")
        self._store = self._state.store
        self._nonce, self._was_open, self._opening = 0, False, None
        self._next_number = 1

    def stop(self, reason: str) -> None:
        """Answer every caller: the node stops, or its state is wrong. The numbers stay outstanding."""
        self._tell(self._queued_waiters(), NotServingError(reason))
        self._pending -= self.queued
        self._queued_bytes = 0
        self._keeping.clear()
        self._others.clear()
        for frame in self.outstanding.values():
            if frame.may_be_done:
                self._unknown(frame.waiters, f"{reason}; the write may still be applied")
            else:
                self._tell(frame.waiters, NotServingError(reason))
        self._complete_idle()

    def _unknown(self, waiters: Sequence[Waiter], why: str) -> None:
        self._tell(waiters, OutcomeUnknownError(why))

    def _tell(self, waiters: Iterable[Waiter], error: CallerError) -> None:
        outcome = "unknown" if isinstance(error, OutcomeUnknownError) else "refused"
        for waiter in waiters:
            if not waiter.done():
                self._counters.proposals[outcome] += 1
                waiter.set_exception(error)
