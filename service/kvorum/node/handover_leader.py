"""The leader's side of writes that other nodes hand over (:mod:`kvorum.node.handover`).

A message may come twice, and the copies far apart. So an attempt is taken once: a copy of one that was refused must not
be proposed, and a copy of one that was proposed must not be refused. What is ignored counts as lost, and is sent again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from kvorum.errors import CallerError, NotLeaderError, OutcomeUnknownError, OverloadedError
from kvorum.kv.commands import HandedOver, OpenOrigin
from kvorum.kv.features import HANDOVER_LEVEL
from kvorum.kv.limits import ORIGIN_WINDOW
from kvorum.node.handover_messages import WHOLE_FRAME, Frame, Opening, Refusal, Refused, refused
from kvorum.node.proposals import KEEPING_SHARE, DoesNotFitError, Proposals, Waiter, share, weight
from kvorum.node.state import State
from kvorum.raft import Raft
from kvorum.raft.messages import NodeId
from kvorum.telemetry.counters import Counters

BYTES_MAX = 64 * 1024 * 1024
"""Bytes of frames that wait for a quorum; more are refused. Of renewals, revocations (:func:`share`) and frames without
commands, :data:`KEEPING_SHARE` times as many are taken: an origin needs the numbers of the latter for the former."""
FRAMES_MAX = 8 * ORIGIN_WINDOW
"""Frames that wait for a quorum; more are refused likewise: those without commands take few bytes."""
ATTEMPTS_MAX = 64
"""Attempts that wait for one frame; more are ignored."""
ORIGINS_MAX = 64
"""Origins whose attempts are remembered; with more, those are forgotten that are not open: one is of each member."""
OPENINGS_MAX = 64
"""Openings under way; more are ignored, and asked for again."""

_ARRIVED = (1 << ORIGIN_WINDOW) - 1

Key = tuple[NodeId, int, int]
"""(sender, nonce, number) of a frame."""


class Attempts:
    """Which attempts of an origin have arrived. One far below the highest counts as arrived, and is lost."""

    __slots__ = ("_arrived", "_highest")

    def __init__(self) -> None:
        self._highest = 0
        self._arrived = 0
        """A bit for each attempt of the window; the lowest one is that of the highest attempt."""

    def take(self, attempt: int) -> bool:
        """Note that an attempt has arrived; return whether it is the first time."""
        ahead = attempt - self._highest
        if ahead > 0:
            self._arrived = (self._arrived << min(ahead, ORIGIN_WINDOW) | 1) & _ARRIVED
            self._highest = attempt
            return True
        if ahead <= -ORIGIN_WINDOW or self._arrived >> -ahead & 1:
            return False
        self._arrived |= 1 << -ahead
        return True


class Receiver:
    """Proposes what other members hand over, and says what it does not propose.

    Args:
        raft: the consensus server.
        state: which origins are open, and what they have applied.
        proposals: the leader's writes.
        counters: where frames are counted.
        timeout_s: how long a frame may wait for its proposal.
        answer: sends a refusal to a member, in the term of its frame.
        schedule: asks for a turn of the driver, which calls :meth:`settle`.
    """

    def __init__(
        self,
        raft: Raft,
        state: State,
        proposals: Proposals,
        counters: Counters,
        timeout_s: float,
        answer: Callable[[NodeId, int, Refusal], None],
        schedule: Callable[[], None],
    ) -> None:
        self._raft = raft
        self._state = state
        self._proposals = proposals
        self._counters = counters
        self._timeout_s = timeout_s
        self._answer = answer
        self._schedule = schedule
        self._first_term = raft.current_term
        """An earlier start of this process may have led in it; what that one proposed is not known here."""
        self._attempts: dict[tuple[NodeId, int], Attempts] = {}
        """(sender, nonce) -> what arrived."""
        self._under_way: dict[Key, list[int]] = {}
        """A frame that is queued or proposed -> the attempts that asked for it."""
        self._openings: set[int] = set()
        self._bytes = 0
        self.done: list[tuple[Key, int, int, Waiter]] = []
        """Frames that have an answer: with the term of the frame, and its size."""

    def open(self, sender: NodeId, term: int, opening: Opening) -> None:
        """Propose to open a nonce of a member. What comes of it the member sees when it applies it."""
        is_full = len(self._openings) >= OPENINGS_MAX
        if not self._is_possible or not self._leads(term) or opening.nonce in self._openings or is_full:
            return
        if self._raft.configuration.get(sender) is None:
            self._counters.handover_ignored["foreign"] += 1
            return
        if self._state.store.origins.find(opening.nonce) is not None:
            self._counters.handover_ignored["applied"] += 1
            return
        command = OpenOrigin(sender, opening.nonce, opening.replaces)
        self._openings.add(opening.nonce)
        waiter = self._proposals.enqueue(command, weight(command), self._timeout_s)
        waiter.add_done_callback(partial(self._opened, opening.nonce))

    def _opened(self, nonce: int, waiter: Waiter) -> None:
        self._openings.discard(nonce)
        if not waiter.cancelled():
            waiter.exception()

    def take(self, sender: NodeId, term: int, frame: Frame) -> None:
        """Propose a frame, or refuse it; ignore one that arrived before, and one that is no use."""
        self._counters.handover_frames["received"] += 1
        why = self._why_ignored(sender, term, frame)
        if why is not None:
            self._counters.handover_ignored[why] += 1
            return
        key = (sender, frame.nonce, frame.number)
        attempts = self._under_way.get(key)
        if attempts is not None:
            if len(attempts) < ATTEMPTS_MAX:
                attempts.append(frame.attempt)
            return
        errors = self._errors(term, frame)
        if errors:
            self._refuse(sender, term, Refusal(frame.nonce, frame.number, (frame.attempt,), errors))
            return
        command = HandedOver(frame.nonce, frame.number, frame.commands)
        size_bytes = weight(command)
        self._under_way[key] = [frame.attempt]
        self._bytes += size_bytes
        self._counters.handover_writes["received"] += len(frame.commands)
        waiter = self._proposals.enqueue(command, size_bytes, self._timeout_s)
        waiter.add_done_callback(partial(self._done, key, term, size_bytes))

    def _why_ignored(self, sender: NodeId, term: int, frame: Frame) -> str | None:
        """Return why a frame is ignored; None: it is not."""
        if term <= self._first_term or not self._is_possible:
            return "stale"
        origin = self._state.store.origins.find(frame.nonce)
        is_anothers = origin is not None and origin.member != sender
        if is_anothers or self._raft.configuration.get(sender) is None:
            return "foreign"
        if origin is not None and origin.is_applied(frame.number):
            return "applied"
        return None if self._is_first(sender, frame) else "copy"

    @property
    def _is_possible(self) -> bool:
        """Whether every member understands what would be proposed."""
        return self._state.store.feature_level >= HANDOVER_LEVEL

    def _is_first(self, sender: NodeId, frame: Frame) -> bool:
        """Tell whether this attempt has not arrived before, as far as that can be known."""
        attempts = self._attempts.get((sender, frame.nonce))
        if attempts is None:
            if len(self._attempts) >= ORIGINS_MAX:
                nonce_of = self._state.store.origins.nonce_of
                self._attempts = {key: each for key, each in self._attempts.items() if nonce_of(key[0]) == key[1]}
            self._attempts[sender, frame.nonce] = attempts = Attempts()
        return attempts.take(frame.attempt)

    def _errors(self, term: int, frame: Frame) -> tuple[Refused, ...]:
        """Return why the frame cannot be proposed as it is; nothing: it can."""
        if not self._leads(term):
            return (refused(WHOLE_FRAME, NotLeaderError(self._raft.leader)),)
        if not frame.commands and self._is_full(KEEPING_SHARE):
            return (refused(WHOLE_FRAME, self._overloaded()),)
        errors = []
        for position, (command, address) in enumerate(zip(frame.commands, frame.addresses, strict=True)):
            try:
                if self._is_full(share(command)):
                    raise self._overloaded()
                self._proposals.check(command, weight(command), address)
            except CallerError as error:
                errors.append(refused(position, error))
        return tuple(errors)

    def _is_full(self, times: int = 1) -> bool:
        return self._bytes >= times * BYTES_MAX or len(self._under_way) >= times * FRAMES_MAX

    def _overloaded(self) -> OverloadedError:
        count = len(self._under_way)
        return OverloadedError(f"{count} frames of {self._bytes} bytes are already waiting at the leader")

    def _leads(self, term: int) -> bool:
        # An attempt of another term may have been refused already, in that term.
        return self._raft.leader == self._raft.id and self._raft.current_term == term

    def _done(self, key: Key, term: int, size_bytes: int, waiter: Waiter) -> None:
        # Called by the event loop, which would swallow an error: what is to be done is left to the driver.
        self.done.append((key, term, size_bytes, waiter))
        self._schedule()

    def settle(self) -> None:
        """Say what was not proposed after all; called in the driver's turn."""
        done, self.done = self.done, []
        for key, term, size_bytes, waiter in done:
            attempts = self._under_way.pop(key)
            self._bytes -= size_bytes
            error = None if waiter.cancelled() else waiter.exception()
            sender, nonce, number = key
            if isinstance(error, DoesNotFitError):
                errors = _errors_of_split(error)
                self._refuse(sender, term, Refusal(nonce, number, tuple(attempts), errors, error.fits))
            elif isinstance(error, CallerError) and not isinstance(error, OutcomeUnknownError):
                self._refuse(sender, term, Refusal(nonce, number, tuple(attempts), (refused(WHOLE_FRAME, error),)))

    def _refuse(self, sender: NodeId, term: int, refusal: Refusal) -> None:
        self._counters.handover_refused["split" if refusal.fits else refusal.errors[0].code] += 1
        self._answer(sender, term, refusal)


def _errors_of_split(error: DoesNotFitError) -> tuple[Refused, ...]:
    """Return what to say of the commands that do not fit. An origin that knows of ``fits`` sends them again.

    Kvorum 0.5.0 does not know of it: it refuses them, and sends the first ones again, which fit.
    """
    why = OverloadedError("the writes of one turn visit more keys than one entry may; it was not done, try again")
    return tuple(refused(position, why) for position in range(error.fits, error.count))
