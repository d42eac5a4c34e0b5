"""Comparing state hashes: a node whose state differs at the same index must not serve it.

The leader's heartbeats report the digest of its state and the index it belongs to. A follower that computed another
one at that index asks every member; who is in the minority is wrong. Nothing is decided without a majority of voters.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Container, Mapping

from kvorum.kv.state_hash import StateDigest
from kvorum.raft.messages import majority

REMEMBERED = 16_384
"""Indexes whose digest is remembered: some seconds of writing."""


class StateHashes:
    """The digests after the last entries applied here, and the one that the leader reported last."""

    def __init__(self) -> None:
        self.reported: tuple[int, StateDigest] | None = None
        """(index, digest) of the leader's latest report that is still to be compared."""
        self._by_index: dict[int, StateDigest] = {}
        self._order: deque[int] = deque()

    def applied(self, index: int, digest: StateDigest) -> None:
        """Remember the digest after applying ``index``."""
        if index not in self._by_index:
            self._order.append(index)
        self._by_index[index] = digest
        if len(self._order) > REMEMBERED:
            del self._by_index[self._order.popleft()]

    def at(self, index: int) -> StateDigest | None:
        """Return the digest after ``index`` if it is remembered."""
        return self._by_index.get(index)

    def mismatch(self) -> int | None:
        """Compare the leader's report, once its index is applied; return the index at which ours differs, once."""
        if self.reported is None:
            return None
        index, digest = self.reported
        ours = self._by_index.get(index)
        if ours is None:
            return None
        self.reported = None
        return index if ours.contradicts(digest) else None

    def forget(self) -> None:
        """The state was replaced: what was remembered of the old one is worth nothing."""
        self._by_index.clear()
        self._order.clear()
        self.reported = None


def is_wrong(
    ours: StateDigest,
    others: Mapping[str, StateDigest],
    voters: int,
    expected_sums: Container[int] = (),
    *,
    is_voter: bool = True,
) -> bool | None:
    """Tell whether our state is wrong: True or False when a majority of ``voters`` agrees, else None.

    The chains are voted on first. Where a majority has ours, the sums over the records are: a node whose sum does not
    count yet has no vote on them, and without a majority of sums nothing is decided.

    A learner has no vote on the chains. On the sums it counts as one voter more: the memory of the only voter may have
    changed as well as the learner's, so neither of the two decides alone.

    Args:
        ours: our digest at an index.
        others: the other voters' digests at the same index, as far as they remember them.
        voters: how many voters there are.
        expected_sums: what our sum may be if memory held what was applied, if sweeps found that it does not. One other
            node that has such a sum is enough: it and our own account of all changes agree.
        is_voter: whether this node is one of them.
    """
    theirs = [each for each in others.values() if each.version == ours.version]
    comparable = [ours, *theirs]
    chain = _agreed(Counter(each.chain for each in (comparable if is_voter else theirs)), voters)
    if chain is None or chain != ours.chain:
        return None if chain is None else True
    if ours.records is None:
        return False
    if any(each.chain == chain and each.records in expected_sums for each in others.values()):
        return True
    sums = Counter(each.records for each in comparable if each.chain == chain and each.records is not None)
    records = _agreed(sums, voters if is_voter else voters + 1)
    return None if records is None else records != ours.records


def _agreed(votes: Counter[int], voters: int) -> int | None:
    most_common = votes.most_common(1)
    return most_common[0][0] if most_common and most_common[0][1] >= majority(voters) else None
