"""Linearizable reads without writing to the log: ReadIndex (thesis 6.4).

The leader notes its commit index, proves by a round of heartbeats *begun after the read arrived* that it still leads,
and lets the read go once that index is applied. One round serves every read that waited for it. Each round has a
number of its own, so a late answer to an earlier round proves nothing (bug B21); an answer to a later round proves
every earlier one. Nothing rests on clocks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import msgspec

from kvorum.raft.messages import NodeId, Read

ROUNDS_IN_FLIGHT_MAX = 2
"""Reads that arrive while this many rounds are unanswered wait, and share the next round."""


class WaitingRead(msgspec.Struct, frozen=True):
    """A read barrier that ``origin`` asked for; ``context`` is the origin's own number for it."""

    origin: NodeId
    context: int


class ReleasedRead(msgspec.Struct, frozen=True):
    """A barrier that was passed: ``read`` may be served once ``index`` is applied."""

    read: WaitingRead
    index: int


class ReadRounds:
    """The leader's side of ReadIndex, for one term."""

    def __init__(self) -> None:
        self.number = 0
        """The latest round; every heartbeat carries it, so a lost one is asked again."""
        self._waiting: list[WaitingRead] = []
        self._rounds: deque[tuple[int, int, list[WaitingRead]]] = deque()  # (number, commit index, reads)

    def add(self, read: WaitingRead) -> None:
        """Let a read wait for the next round."""
        self._waiting.append(read)

    def can_start(self) -> bool:
        """Tell whether a round should begin now."""
        return bool(self._waiting) and len(self._rounds) < ROUNDS_IN_FLIGHT_MAX

    def start(self, commit_index: int) -> None:
        """Begin a round for all reads that wait; ``commit_index`` must be of the leader's own term (bug B19)."""
        self.number += 1
        self._rounds.append((self.number, commit_index, self._waiting))
        self._waiting = []

    def confirmed(self, number: int) -> list[ReleasedRead]:
        """Take note that a quorum answered round ``number`` or a later one; return the reads that this lets go."""
        released = []
        while self._rounds and self._rounds[0][0] <= number:
            _, index, reads = self._rounds.popleft()
            released += [ReleasedRead(read, index) for read in reads]
        return released

    def drain(self) -> list[WaitingRead]:
        """Give up every read: the leadership is over."""
        reads = self._waiting
        for _, _, waiting in self._rounds:
            reads = reads + waiting
        self._waiting = []
        self._rounds.clear()
        return reads


class OwnReads:
    """The reads that this server's own driver waits for, whoever leads.

    Args:
        retry_ticks: after so many ticks without an answer the leader is asked again: question or answer was lost.
    """

    def __init__(self, retry_ticks: int) -> None:
        self._retry_ticks = retry_ticks
        self._asked: dict[int, int] = {}  # context -> ticks since the leader was asked
        self._passed: list[Read] = []
        self._refused: list[int] = []

    def ask(self, context: int) -> None:
        """Take note that the leader is asked."""
        self._asked[context] = 0

    def forget(self, context: int) -> bool:
        """Wait for it no longer. Return whether it was waited for."""
        return self._asked.pop(context, None) is not None

    def tick(self) -> list[int]:
        """Let one tick pass. Return the contexts that should be asked again."""
        for context in self._asked:
            self._asked[context] += 1
        return [context for context, ticks in self._asked.items() if ticks % self._retry_ticks == 0]

    def answered(self, context: int, index: int) -> None:
        """The leader answered: the read may go once ``index`` is applied; 0: it did not lead."""
        if not self.forget(context):
            return  # An answer to a question that was repeated, or given up.
        if index:
            self.passed([(context, index)])
        else:
            self.refused([context])

    def passed(self, reads: Iterable[tuple[int, int]]) -> None:
        """Let reads, given as (context, index), go once their index is applied."""
        self._passed += [Read(context, index) for context, index in reads]

    def refused(self, contexts: Iterable[int]) -> None:
        """Give up these reads: ask again."""
        self._refused += contexts

    def leader_changed(self) -> None:
        """Give up what the former leader was asked; its answers no longer count."""
        self.refused(self._asked)
        self._asked.clear()

    def take(self, applied_index: int) -> tuple[Read, ...]:
        """Hand over the reads that may go now."""
        released = tuple(read for read in self._passed if read.index <= applied_index)
        if released:
            self._passed = [read for read in self._passed if read.index > applied_index]
        return released

    def take_refused(self) -> tuple[int, ...]:
        """Hand over the contexts of the reads that were given up."""
        contexts, self._refused = tuple(self._refused), []
        return contexts
