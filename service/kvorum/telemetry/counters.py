"""Plain numbers that the hot path counts and that :mod:`kvorum.telemetry` reads when it is scraped.

An OpenTelemetry ``counter.add`` costs 3 to 5 microseconds, more than applying an operation; adding to an integer costs
30 nanoseconds. So the node, the storage and the transport count here, and know nothing of OpenTelemetry.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

DURATION_BOUNDARIES_S = tuple(0.0005 * 2**k for k in range(15))
"""0.5 ms to 8.192 s: the boundaries of every duration histogram, in seconds."""


class Histogram:
    """A cumulative histogram of durations in seconds, with explicit boundaries (upper bounds, inclusive)."""

    __slots__ = ("boundaries", "counts", "max", "min", "sum")

    def __init__(self, boundaries: tuple[float, ...] = DURATION_BOUNDARIES_S) -> None:
        self.boundaries = boundaries
        self.counts = [0] * (len(boundaries) + 1)
        self.sum = 0.0
        self.min = float("inf")
        self.max = 0.0

    def record(self, value: float, times: int = 1) -> None:
        """Count ``value`` seconds, ``times`` times (a batch whose members share one duration)."""
        self.counts[bisect_left(self.boundaries, value)] += times
        self.sum += value * times
        if value > self.max:
            self.max = value
        if value < self.min:
            self.min = value

    @property
    def count(self) -> int:
        """How many values were recorded."""
        return sum(self.counts)


OTHER_PEERS = "other"
"""The label that all peers share which are no members."""


class Counters:
    """One node's numbers. A key of a dict is the value of a metric's label; never a key, a value or a client id.

    Figures of peers are kept by the names of the members (:meth:`keep_peers`); all others share :data:`OTHER_PEERS`.
    """

    def __init__(self) -> None:
        self._peers: frozenset[str] = frozenset()
        # Clients: writes, reads and latencies, and requests by operation and HTTP status.
        self.writes = 0  # acknowledged by a quorum and applied
        self.reads = 0  # linearizable ones
        self.stale_reads = 0  # not among the reads above
        self.write_duration = Histogram()  # end to end: from the request's arrival to its answer
        self.requests: defaultdict[tuple[str, int], int] = defaultdict(int)  # (op, code)
        self.request_duration: defaultdict[str, Histogram] = defaultdict(Histogram)  # op
        self.no_space: defaultdict[str, int] = defaultdict(int)  # what is full: quota, disk
        self.compactions: defaultdict[str, int] = defaultdict(int)  # why: age, bytes, disk, quota, request
        self.lease_changes: defaultdict[str, int] = defaultdict(int)  # granted, renewed, revoked, expired
        self.redirects = 0
        self.inflight = 0
        # Watches.
        self.watchers = 0
        self.watchers_behind = 0  # of these: those that have to catch up, or whose client does not read
        self.watch_events = 0  # delivered, each counted for each watcher
        self.watch_ends: defaultdict[str, int] = defaultdict(int)  # the code of the error; closed: by the client
        # Consensus.
        # (won | lost, timeout | disconnect | transfer)
        self.elections: defaultdict[tuple[str, str], int] = defaultdict(int)
        self.leader_changes = 0
        self.proposals: defaultdict[str, int] = defaultdict(int)  # committed, refused, unknown
        self.proposals_pending = 0
        # Writes that one node hands to another.
        self.handover_frames: defaultdict[str, int] = defaultdict(int)  # sent, resent, received
        self.handover_writes: defaultdict[str, int] = defaultdict(int)  # sent, received
        self.handover_refused: defaultdict[str, int] = defaultdict(int)  # frames, by the code of the error
        self.handover_ignored: defaultdict[str, int] = defaultdict(int)  # frames: copy, applied, stale, foreign
        self.handover_pending = 0
        self.commit_duration = Histogram()  # from proposal to commit on the leader, per batch
        self.apply_duration = Histogram()  # per batch of entries
        self.read_index_duration = Histogram()  # per round
        # (create | send | install, ok | failed)
        self.snapshots: defaultdict[tuple[str, str], int] = defaultdict(int)
        self.snapshot_duration: defaultdict[str, Histogram] = defaultdict(Histogram)  # op
        # Peers.
        self.peer_rtt: defaultdict[str, Histogram] = defaultdict(Histogram)  # peer name
        self.peer_failures: defaultdict[tuple[str, str], int] = defaultdict(int)  # (peer name, reason)
        self.identity_rejected: defaultdict[str, int] = defaultdict(int)  # reason
        self.dns_failures: defaultdict[str, int] = defaultdict(int)  # peer name
        self.messages_sent: defaultdict[str, int] = defaultdict(int)  # peer name
        self.messages_received: defaultdict[str, int] = defaultdict(int)  # peer name
        # Peer name: a kind of message that a later version sends, and this one skips.
        self.messages_unknown: defaultdict[str, int] = defaultdict(int)
        self.messages_dropped: defaultdict[str, int] = defaultdict(int)  # peer name: its queue was full
        self.malformed_requests = 0
        # Storage.
        self.save_duration = Histogram()  # from the request to the acknowledgement, on the loop
        self.fsync_duration = Histogram()  # of that, until the disk's thread had it synced
        self.saves = 0
        self.saved_bytes = 0
        # The process.
        self.loop_lag = Histogram()

    def keep_peers(self, names: Iterable[str]) -> None:
        """Count for these members, and drop the figures of those that are none any more."""
        self._peers = frozenset(names)
        kept = self._peers | {OTHER_PEERS}
        by_name: tuple[dict[str, Any], ...] = (
            self.peer_rtt,
            self.dns_failures,
            self.messages_sent,
            self.messages_received,
            self.messages_unknown,
            self.messages_dropped,
        )
        for figures in by_name:
            for name in [name for name in figures if name not in kept]:
                del figures[name]
        for pair in [pair for pair in self.peer_failures if pair[0] not in kept]:
            del self.peer_failures[pair]

    def peer_label(self, name: str) -> str:
        """Return the label under which a peer's figures are counted. A caller chooses its name, but no label."""
        return name if name in self._peers else OTHER_PEERS
