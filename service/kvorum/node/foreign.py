"""Peers of this node's list that are in another cluster.

No node can move to another cluster, so that does not heal by itself: a backup was restored, or ``kvorum recover`` was
run, on more than one node, or an address leads to somebody else's node. This node's own cluster goes on; it only says
so, in the log, the metrics and the status.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from kvorum.config import Config
from kvorum.identity import name_of
from kvorum.node.incarnation import ClusterIdentity
from kvorum.node.ports import Clock
from kvorum.raft import Raft
from kvorum.raft.messages import NodeId
from kvorum.status import ForeignPeer
from kvorum.telemetry.logs import RateLimit

log = logging.getLogger("kvorum.cluster")

SEEN_VALID_S = 15.0
"""How long a sighting counts. The peers are asked several times as often."""
LOGGED_EVERY_S = 60.0


class ForeignPeers:
    """What was seen lately.

    Args:
        config: names the peers.
        identity: of which cluster this node is.
        raft: names the members.
        clock: by which sightings age.
    """

    def __init__(self, config: Config, identity: ClusterIdentity, raft: Raft, clock: Clock) -> None:
        self._expected = {peer.name for peer in config.expected_members()}
        self._identity = identity
        self._raft = raft
        self._now: Callable[[], float] = clock.monotonic
        self._seen: dict[tuple[str, str], tuple[float, ForeignPeer]] = {}
        """By name and URL; both are ours, or a member's, so there are few."""
        self._limit = RateLimit(LOGGED_EVERY_S, self._now)

    def answered(self, name: str, url: str, node: NodeId, cluster_id: str) -> None:
        """The node that answers at the URL of the peer ``name`` says that it belongs to this cluster (empty: none)."""
        if cluster_id in ("", self._identity.current.cluster_id):
            # It is here: who answered wherever it was looked for before was somebody else.
            for sighting in [sighting for sighting in self._seen if sighting[0] == name and sighting[1]]:
                del self._seen[sighting]
        else:
            self._note(ForeignPeer(name, node, cluster_id, url))

    def called(self, node: NodeId, cluster_id: str) -> None:
        """A caller was refused, since it says that it belongs to this other cluster."""
        name = name_of(node)
        ours = self._identity.current.cluster_id
        if ours not in ("", cluster_id) and (name in self._expected or self._is_of_a_member(name)):
            self._note(ForeignPeer(name, node, cluster_id, ""))

    def current(self) -> tuple[ForeignPeer, ...]:
        """Return the peers that were seen in another cluster lately, one of each name, ordered."""
        oldest_s = self._now() - SEEN_VALID_S
        latest = {peer.name: peer for seen_s, peer in sorted(self._seen.values(), key=_when) if seen_s >= oldest_s}
        return tuple(latest[name] for name in sorted(latest))

    def _is_of_a_member(self, name: str) -> bool:
        return any(name_of(member.id) == name for member in self._raft.configuration.members)

    def _note(self, peer: ForeignPeer) -> None:
        self._seen[peer.name, peer.url] = self._now(), peer
        held_back = self._limit.allow()
        if held_back is None:
            return
        log.warning(
            "peers of this node belong to another cluster and can never join its cluster, %s: %s. If a backup was "
            "restored, or `kvorum recover` was run, on several nodes, keep one of the clusters (docs/operations/"
            "two-clusters.md). Otherwise correct the addresses of the peers",
            self._identity.current.cluster_id,
            "; ".join(map(_in_words, self.current())),
        )


def _when(sighting: tuple[float, ForeignPeer]) -> float:
    return sighting[0]


def _in_words(peer: ForeignPeer) -> str:
    where = f" at {peer.url}" if peer.url else ""
    return f"{peer.name}{where} is {peer.id} of cluster {peer.cluster_id}"
