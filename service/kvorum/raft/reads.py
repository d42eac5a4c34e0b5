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
    """The leader's side of ReadIndex, for one term.

    Of another server only its latest question waits: the answer to that answers its earlier ones (:class:`OwnReads`).
    So what waits here is bounded by the number of servers, and by the reads that this server's own driver waits for.
    """

    def __init__(self) -> None:
        self.number = 0
        """The latest round; every heartbeat carries it, so a lost one is asked again."""
        self._own: dict[WaitingRead, None] = {}
        self._latest: dict[NodeId, WaitingRead] = {}
        self._rounds: deque[tuple[int, int, list[WaitingRead]]] = deque()  # (number, commit index, reads)

    def add(self, read: WaitingRead) -> None:
        """Let a read of this server's own wait for the next round."""
        self._own[read] = None

    def add_latest(self, read: WaitingRead) -> None:
        """Let another server's read wait for the next round, in place of the one that it had asked for before."""
        self._latest[read.origin] = read

    def discard(self, read: WaitingRead) -> None:
        """Nobody waits any more for this read of this server's own."""
        self._own.pop(read, None)

    def can_start(self) -> bool:
        """Tell whether a round should begin now."""
        return bool(self._own or self._latest) and len(self._rounds) < ROUNDS_IN_FLIGHT_MAX

    def start(self, commit_index: int) -> None:
        """Begin a round for all reads that wait; ``commit_index`` must be of the leader's own term (bug B19)."""
        self.number += 1
        self._rounds.append((self.number, commit_index, self._take_waiting()))

    def confirmed(self, number: int) -> list[ReleasedRead]:
        """Take note that a quorum answered round ``number`` or a later one; return the reads that this lets go."""
        released = []
        while self._rounds and self._rounds[0][0] <= number:
            _, index, reads = self._rounds.popleft()
            released += [ReleasedRead(read, index) for read in reads]
        return released

    def drain(self) -> list[WaitingRead]:
        """Give up every read: the leadership is over."""
        reads = self._take_waiting()
        for _, _, asked in self._rounds:
            reads += asked
        self._rounds.clear()
        return reads

    def _take_waiting(self) -> list[WaitingRead]:
        reads = [*self._own, *self._latest.values()]
        self._own, self._latest = {}, {}
        return reads


class OwnReads:
    """The reads that this server's own driver waits for, whoever leads.

    The answer to a question answers every earlier one, too: its round began after they had been asked. So only the
    latest is ever repeated, whatever the number of reads that wait (bug B18).

    Args:
        retry_ticks: after so many ticks without a question the leader is asked again: question or answer was lost.
    """

    def __init__(self, retry_ticks: int) -> None:
        self._retry_ticks = retry_ticks
        self._asked: dict[int, None] = {}  # contexts, in the order in which the leader was asked
        self._quiet_ticks = 0  # since it was asked
        self._passed: list[Read] = []
        self._refused: list[int] = []

    def ask(self, context: int) -> None:
        """Take note that the leader is asked."""
        self._asked[context] = None
        self._quiet_ticks = 0

    def forget(self, context: int) -> None:
        """Wait for it no longer."""
        self._asked.pop(context, None)

    def tick(self) -> int | None:
        """Let one tick pass. Return the context that should be asked again, if it is time."""
        self._quiet_ticks += 1
        if not self._asked or self._quiet_ticks < self._retry_ticks:
            return None
        self._quiet_ticks = 0
        return next(reversed(self._asked))

    def answered(self, context: int, index: int) -> None:
        """The leader answered: this read, and all that were asked before it, may go once ``index`` is applied."""
        if context not in self._asked:
            return  # An answer to a question that was repeated, or given up.
        for asked in list(self._asked):
            del self._asked[asked]
            self.passed([(asked, index)])
            if asked == context:
                return

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
