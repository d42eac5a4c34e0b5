"""What a server remembers of the others' disks, so that one that was set back is noticed.

A disk can be replaced by an older copy of itself: an old snapshot of a volume, a copied folder. Its server then lacks
votes that it gave and entries that it acknowledged, and does not know it. Those to whom it gave them know. They say so
when they next call it, and it compares.

Within one term nothing is taken back: a vote stays, and what matches the log of the term's leader is never truncated.
So of each server only the highest term counts, with the vote and the last entry in it. A lower bound is enough.
"""

from __future__ import annotations

from collections.abc import Container, Iterable

import msgspec

from kvorum.raft.messages import NodeId, PeerMark

STARTS_MAX = 128
"""Of so many servers it is known by which start of their process they speak: members, and some that call."""


class PeerMarks:
    """The marks of every other server: of its present process, and of all processes before.

    Args:
        marks: as they were last saved; of each server, that of its last process stands last.
    """

    def __init__(self, marks: Iterable[PeerMark] = ()) -> None:
        self.past: dict[NodeId, PeerMark] = {}
        """Of the processes that have ended."""
        self.present: dict[NodeId, PeerMark] = {}
        """Of the last process that was heard."""
        self._starts: dict[NodeId, str] = {}
        for mark in marks:
            self._retire(mark.node)
            self.present[mark.node] = mark

    def started(self, node: NodeId, start: str) -> bool:
        """Take note of the start of its process that a server speaks for from now on.

        Returns:
            whether it is another process than the last one that was heard, as far as is known.
        """
        present = self.present.get(node)
        is_other = present is None or present.start != start
        if is_other:
            self._retire(node)
        self._starts.pop(node, None)
        while len(self._starts) >= STARTS_MAX:
            del self._starts[next(iter(self._starts))]
        self._starts[node] = start
        return is_other

    def ended(self, node: NodeId) -> None:
        """Take note that it is not known any more by which start of its process a server speaks."""
        self._starts.pop(node, None)

    def note(
        self, node: NodeId, term: int, vote: NodeId | None = None, index: int = 0, index_term: int | None = None
    ) -> None:
        """Remember what a server's disk holds: a vote in this term, and the entry at ``index``.

        While it is not known by which start of its process it speaks, nothing is remembered: what it says now would
        later pass for what a process before said.

        Args:
            node: the server.
            term: its term.
            vote: for whom it voted in it; None: not known.
            index: an entry that it acknowledged, or saved as the leader, in this term.
            index_term: the term of that entry; None: it is not known any more.
        """
        start = self._starts.get(node)
        if not start:
            return
        if index_term is None:
            index = index_term = 0
        mark = self.present.get(node)
        if mark is None or term > mark.term:
            self.present[node] = PeerMark(node, start, term, vote, index, index_term)
        elif term == mark.term and index > mark.index:
            self.present[node] = PeerMark(node, mark.start, term, mark.vote or vote, index, index_term)
        elif term == mark.term and vote is not None and mark.vote is None:
            self.present[node] = msgspec.structs.replace(mark, vote=vote)

    def of(self, node: NodeId) -> tuple[PeerMark, ...]:
        """Return what is known of a server, that of its last process last."""
        known = (self.past.get(node), self.present.get(node))
        return tuple(mark for mark in known if mark is not None)

    def keep(self, members: Container[NodeId]) -> None:
        """Forget what is known of servers that are not among these members."""
        for marks in (self.past, self.present):
            for node in [node for node in marks if node not in members]:
                del marks[node]

    def _retire(self, node: NodeId) -> None:
        """The mark of a process that has ended joins those of the processes before it."""
        present = self.present.pop(node, None)
        if present is not None:
            past = self.past.get(node)
            self.past[node] = present if past is None else _joined(past, present)


def _joined(one: PeerMark, other: PeerMark) -> PeerMark:
    """Return what both say together; it bears the start of the first."""
    if one.term != other.term:
        return one if one.term > other.term else other
    further = one if one.index >= other.index else other
    vote = one.vote if one.vote is not None else other.vote
    return msgspec.structs.replace(one, vote=vote, index=further.index, index_term=further.index_term)
