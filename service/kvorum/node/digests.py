"""Comparing state hashes: a node whose state differs at the same index must not serve it (issue: corruption).

The leader's heartbeats carry its state hash and the index it belongs to. A follower that computed another hash at that
index asks every member; who is in the minority is wrong. Nothing is decided without a majority of voters.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping

REMEMBERED = 16_384
"""Indexes whose hash is remembered: some seconds of writing."""


class Digests:
    """The hashes after the last entries applied here, and the leader's latest claim."""

    def __init__(self) -> None:
        self._by_index: dict[int, int] = {}
        self._order: deque[int] = deque()
        self._claim: tuple[int, int] | None = None

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

    def claim(self, index: int, state_hash: int) -> None:
        """The leader says what its hash was after ``index``; only the latest claim is kept."""
        self._claim = (index, state_hash)

    def contradicted_at(self) -> int | None:
        """Return the index at which the leader's latest claim contradicts us, once; None while it does not."""
        if self._claim is None:
            return None
        index, state_hash = self._claim
        ours = self._by_index.get(index)
        if ours is None:
            return None
        self._claim = None
        return None if ours == state_hash else index

    def forget(self) -> None:
        """The state was rebuilt: what was remembered of the old one is worth nothing."""
        self._by_index.clear()
        self._order.clear()
        self._claim = None


def verdict(ours: int, others: Mapping[str, int], voters: int) -> bool | None:
    """Tell whether our state is wrong: True or False when a majority of ``voters`` agrees on one hash, else None.

    Args:
        ours: our hash at an index.
        others: the other voters' hashes at the same index, as far as they remember it.
        voters: how many voters there are, this node included.
    """
    counted = Counter([ours, *others.values()])
    most_common, votes = counted.most_common(1)[0]
    if votes <= voters // 2:
        return None
    return most_common != ours
