"""Linearizable reads without writing to the log: ReadIndex (thesis 6.4).

The leader notes its commit index, proves that it still leads by a round of heartbeats *begun after the read arrived*,
and releases the read once that index is applied. Rounds are numbered, so a late answer to an earlier round proves
nothing. Nothing rests on clocks.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from kvorum.raft.messages import NodeId, Read


class WaitingRead(msgspec.Struct, frozen=True):
    """A read barrier that ``origin`` asked for; ``context`` is the origin's own number for it."""

    origin: NodeId
    context: int


class ReadRounds:
    """The leader's side of ReadIndex, for one term.

    One round is out at a time. Reads that arrive meanwhile share the next round: measured, that serves more reads than
    two rounds that overlap, since each round serves all that wait.

    Of another server only its latest request waits, because the answer to it answers the earlier ones
    (:class:`OwnReads`). So the number of servers and of reads that this server's own driver waits for bound what is
    kept here.
    """

    def __init__(self) -> None:
        self.number = 0
        """The latest round; every heartbeat carries it, so a lost one is asked again."""
        self._own: dict[WaitingRead, None] = {}
        self._latest: dict[NodeId, WaitingRead] = {}
        self._asked: list[WaitingRead] = []  # the reads of the round that is out
        self._index = 0  # the commit index when it began
        self._is_urgent = False  # a read waits that does not wait for the next heartbeat

    @property
    def is_out(self) -> bool:
        """Whether a round is not confirmed yet."""
        return bool(self._asked)

    def add(self, read: WaitingRead, *, can_wait: bool = False) -> None:
        """Let a read of this server's own wait for the next round; one that can wait does not begin it."""
        self._own[read] = None
        self._is_urgent |= not can_wait

    def add_latest(self, read: WaitingRead, *, can_wait: bool = False) -> None:
        """Let another server's read wait for the next round, in place of the one it asked for before."""
        self._latest[read.origin] = read
        self._is_urgent |= not can_wait

    def discard(self, read: WaitingRead) -> None:
        """Forget a read of this server's own that nobody waits for any more."""
        self._own.pop(read, None)

    def can_start(self, *, with_heartbeat: bool = False) -> bool:
        """Return whether a round should begin now; ``with_heartbeat``: with the heartbeats that are sent anyway."""
        return not self._asked and (with_heartbeat or self._is_urgent) and bool(self._own or self._latest)

    def start(self, commit_index: int) -> None:
        """Begin a round for all reads that wait; ``commit_index`` must be of the leader's own term."""
        self.number += 1
        self._index = commit_index
        self._asked = self._take_waiting()

    def confirmed(self, number: int) -> list[tuple[WaitingRead, int]]:
        """Note that a quorum answered round ``number``; return the reads it releases, with the index to apply first."""
        if number < self.number:
            return []
        released, self._asked = [(read, self._index) for read in self._asked], []
        return released

    def drain(self) -> list[WaitingRead]:
        """Give up every read: the leadership is over."""
        reads, self._asked = self._take_waiting() + self._asked, []
        return reads

    def _take_waiting(self) -> list[WaitingRead]:
        reads = [*self._own, *self._latest.values()]
        self._own, self._latest, self._is_urgent = {}, {}, False
        return reads


class OwnReads:
    """The reads that this server's own driver waits for, whoever leads.

    The answer to a request answers every earlier one, too: its round began after they had been made. So only the latest
    is ever repeated, whatever the number of reads that wait.

    Args:
        retry_ticks: the leader is asked again after so many ticks without a request: request or answer was lost.
    """

    def __init__(self, retry_ticks: int) -> None:
        self._retry_ticks = retry_ticks
        self._asked: dict[int, None] = {}  # contexts, in the order in which the leader was asked
        self._ticks_since_asked = 0
        self._passed: list[Read] = []
        self._refused: list[int] = []

    def ask(self, context: int, *, can_wait: bool = False) -> None:
        """Note that the leader is asked. The answer to a read that can wait comes up to a heartbeat later."""
        self._asked[context] = None
        self._ticks_since_asked = -self._retry_ticks if can_wait else 0

    def forget(self, context: int) -> None:
        """Stop waiting for this read."""
        self._asked.pop(context, None)

    def tick(self) -> int | None:
        """Let one tick pass. Return the context to ask for again, if it is time."""
        self._ticks_since_asked += 1
        if not self._asked or self._ticks_since_asked < self._retry_ticks:
            return None
        self._ticks_since_asked = 0
        return next(reversed(self._asked))

    def answered(self, context: int, index: int) -> None:
        """Release this read, and all that were asked for before it, once ``index`` is applied: the leader answered."""
        if context not in self._asked:
            return  # An answer to a request that was repeated, or given up.
        for asked in list(self._asked):
            del self._asked[asked]
            self.passed(asked, index)
            if asked == context:
                return

    def passed(self, context: int, index: int) -> None:
        """Release this read once ``index`` is applied."""
        self._passed.append(Read(context, index))

    def refused(self, contexts: Iterable[int]) -> None:
        """Give up these reads; their callers may ask again."""
        self._refused += contexts

    def leader_changed(self) -> None:
        """Give up what the former leader was asked; its answers no longer count."""
        self.refused(self._asked)
        self._asked.clear()

    def take(self, applied_index: int) -> tuple[tuple[Read, ...], tuple[int, ...]]:
        """Hand over the reads that may be served now, and the contexts of those that were given up."""
        refused, self._refused = tuple(self._refused), []
        released: tuple[Read, ...] = ()
        if self._passed:
            released = tuple(read for read in self._passed if read.index <= applied_index)
            self._passed = [read for read in self._passed if read.index > applied_index]
        return released, refused

    def give_back(self, reads: Iterable[Read]) -> None:
        """Let reads that were handed over wait again until their index is applied."""
        self._passed += reads
