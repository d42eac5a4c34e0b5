"""The leader's side of writes that other nodes hand over (:mod:`kvorum.node.handover`)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from kvorum.errors import CallerError, NotLeaderError, OutcomeUnknownError, OverloadedError
from kvorum.kv.commands import HandedOver, OpenOrigin
from kvorum.node.handover_messages import WHOLE_FRAME, Frame, Opening, Refusal, Refused, refused
from kvorum.node.proposals import Proposals, Waiter, weight
from kvorum.raft import Raft
from kvorum.raft.messages import NodeId

BYTES_MAX = 64 * 1024 * 1024
"""Bytes of frames that wait for a quorum; more are refused."""
OPENINGS_MAX = 64
"""Openings under way; more are ignored, and asked for again."""


class Receiver:
    """Proposes what other members hand over, and says what it does not propose.

    Args:
        raft: the consensus server.
        proposals: the leader's writes.
        timeout_s: how long a frame may wait for its proposal.
        answer: sends a refusal to a member.
    """

    def __init__(
        self, raft: Raft, proposals: Proposals, timeout_s: float, answer: Callable[[NodeId, Refusal], None]
    ) -> None:
        self._raft = raft
        self._proposals = proposals
        self._timeout_s = timeout_s
        self._answer = answer
        self._under_way: dict[tuple[int, int], list[int]] = {}
        """(nonce, number) of a frame that is queued or proposed -> the attempts that asked for it."""
        self._openings: set[int] = set()
        self._bytes = 0

    def open(self, sender: NodeId, term: int, opening: Opening) -> None:
        """Propose to open a nonce of a member. What comes of it the member sees when it applies it."""
        if not self._leads(term) or opening.nonce in self._openings or len(self._openings) >= OPENINGS_MAX:
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
        """Propose a frame, or refuse it."""
        key = (frame.nonce, frame.number)
        attempts = self._under_way.get(key)
        if attempts is not None:
            attempts.append(frame.attempt)
            return
        errors = self._errors(term, frame)
        if errors:
            self._answer(sender, Refusal(frame.nonce, frame.number, (frame.attempt,), errors))
            return
        command = HandedOver(frame.nonce, frame.number, frame.commands)
        size_bytes = weight(command)
        self._under_way[key] = [frame.attempt]
        self._bytes += size_bytes
        waiter = self._proposals.enqueue(command, size_bytes, self._timeout_s)
        waiter.add_done_callback(partial(self._done, sender, key, size_bytes))

    def _errors(self, term: int, frame: Frame) -> tuple[Refused, ...]:
        """Return why the frame cannot be proposed as it is; nothing: it can."""
        if not self._leads(term):
            return (refused(WHOLE_FRAME, NotLeaderError(self._raft.leader)),)
        if self._bytes >= BYTES_MAX:
            error = OverloadedError(f"frames of {self._bytes} bytes are already waiting at the leader")
            return (refused(WHOLE_FRAME, error),)
        errors = []
        for position, (command, address) in enumerate(zip(frame.commands, frame.addresses, strict=True)):
            try:
                self._proposals.check(command, weight(command), address)
            except CallerError as error:
                errors.append(refused(position, error))
        return tuple(errors)

    def _leads(self, term: int) -> bool:
        # An attempt of another term may have been refused already, in that term.
        return self._raft.leader == self._raft.id and self._raft.current_term == term

    def _done(self, sender: NodeId, key: tuple[int, int], size_bytes: int, waiter: Waiter) -> None:
        attempts = self._under_way.pop(key)
        self._bytes -= size_bytes
        error = None if waiter.cancelled() else waiter.exception()
        if isinstance(error, CallerError) and not isinstance(error, OutcomeUnknownError):
            nonce, number = key
            self._answer(sender, Refusal(nonce, number, tuple(attempts), (refused(WHOLE_FRAME, error),)))
