"""Peers of this node's list that are in another cluster.

No node can move to another cluster, so that does not heal by itself: a backup was restored, or ``kvorum recover`` was
run, on more than one node, or an address leads to somebody else's node. This node's own cluster goes on; it only says
so, in the log, the metrics and the status.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from kvorum.node.incarnation import ClusterIdentity
from kvorum.node.ports import Clock
from kvorum.raft.messages import NodeId
from kvorum.status import ForeignPeer
from kvorum.telemetry.logs import RateLimit

log = logging.getLogger("kvorum.cluster")

SEEN_VALID_S = 15.0
"""How long a sighting counts. The peers are asked several times as often."""
LOGGED_EVERY_S = 60.0


class ForeignPeers:
    """What was seen lately, at the addresses where this node expects its peers.

    What a caller says of itself does not count: anybody may call, with any name and any cluster. The refusal is logged.

    Args:
        identity: of which cluster this node is.
        clock: by which sightings age.
    """

    def __init__(self, identity: ClusterIdentity, clock: Clock) -> None:
        self._identity = identity
        self._now: Callable[[], float] = clock.monotonic
        self._seen: dict[str, tuple[float, ForeignPeer]] = {}
        """The last sighting of each name; the names are those of members, and of peers that are expected."""
        self._limit = RateLimit(LOGGED_EVERY_S, self._now)

    def answered(self, name: str, url: str, node: NodeId, cluster_id: str) -> None:
        """The node that answers at the URL of the peer ``name`` says that it belongs to this cluster (empty: none)."""
        if cluster_id in ("", self._identity.current.cluster_id):
            # It is here: who answered wherever it was looked for before was somebody else.
            self._seen.pop(name, None)
        else:
            self._note(ForeignPeer(name, node, cluster_id, url))

    def current(self) -> tuple[ForeignPeer, ...]:
        """Return the peers that were seen in another cluster lately, one of each name, ordered."""
        self._forget()
        return tuple(self._seen[name][1] for name in sorted(self._seen))

    def _forget(self) -> None:
        oldest_s = self._now() - SEEN_VALID_S
        for name in [name for name, (seen_s, _) in self._seen.items() if seen_s < oldest_s]:
            del self._seen[name]

    def _note(self, peer: ForeignPeer) -> None:
        self._forget()
        self._seen[peer.name] = self._now(), peer
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


def _in_words(peer: ForeignPeer) -> str:
    return f"{peer.name} at {peer.url} is {peer.id} of cluster {peer.cluster_id}"
