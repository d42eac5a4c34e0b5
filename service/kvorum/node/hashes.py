"""Comparing state hashes: a node whose state differs at the same index must not serve it.

The leader's heartbeats report its state hash and the index it belongs to. A follower that computed another hash at that
index asks every member; who is in the minority is wrong. Nothing is decided without a majority of voters.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping

from kvorum.raft.messages import majority

REMEMBERED = 16_384
"""Indexes whose hash is remembered: some seconds of writing."""


class StateHashes:
    """The hashes after the last entries applied here, and the one that the leader reported last."""

    def __init__(self) -> None:
        self.reported: tuple[int, int] | None = None
        """(index, hash) of the leader's latest report that is still to be compared."""
        self._by_index: dict[int, int] = {}
        self._order: deque[int] = deque()

    def applied(self, index: int, state_hash: int) -> None:
        """Remember the hash after applying ``index``."""
        if index not in self._by_index:
            self._order.append(index)
        self._by_index[index] = state_hash
        if len(self._order) > REMEMBERED:
            del self._by_index[self._order.popleft()]

    def at(self, index: int) -> int | None:
        """Return the hash after ``index`` if it is remembered."""
        return self._by_index.get(index)

    def mismatch(self) -> int | None:
        """Compare the leader's report, once its index is applied; return the index at which ours differs, once."""
        if self.reported is None:
            return None
        index, state_hash = self.reported
        ours = self._by_index.get(index)
        if ours is None:
            return None
        self.reported = None
        return None if ours == state_hash else index

    def forget(self) -> None:
        """The state was replaced: what was remembered of the old one is worth nothing."""
        self._by_index.clear()
        self._order.clear()
        self.reported = None


def is_wrong(ours: int, others: Mapping[str, int], voters: int) -> bool | None:
    """Tell whether our state is wrong: True or False when a majority of ``voters`` agrees on one hash, else None.

    Args:
        ours: our hash at an index.
        others: the other voters' hashes at the same index, as far as they remember it.
        voters: how many voters there are, this node included.
    """
    counted = Counter([ours, *others.values()])
    most_common, votes = counted.most_common(1)[0]
    if votes < majority(voters):
        return None
    return most_common != ours
