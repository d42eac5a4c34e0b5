"""Every instrument of a node: its name, kind, unit, labels, meaning, and how it is read. docs/metrics.md is made of it.

The table below is the only list. Names and units follow OpenTelemetry; the Prometheus exporter derives its names from
them (``s`` becomes ``_seconds``, ``By`` ``_bytes``, a counter gets ``_total``, ``{x}`` and ``1`` add nothing). A
label's value is never a key, a value of the store, a token or a client id. Label values that are known beforehand are
reported as 0 from the start: a counter that first appears with 1 has no rate, and the alert on it stays silent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import TypeVar

import msgspec

from kvorum.raft.messages import majority
from kvorum.status import MemberStatus
from kvorum.telemetry.counters import Histogram
from kvorum.telemetry.log_output import lines_dropped
from kvorum.telemetry.scrape import Scrape

Labels = tuple[str, ...]
Number = int | float
Points = Iterable[tuple[Labels, Number]]
HistogramPoints = Iterable[tuple[Labels, Histogram]]
Second = TypeVar("Second", str, int)

STATES = ("leader", "follower", "candidate", "pre_candidate", "learner", "joining")
ELECTION_REASONS = ("timeout", "disconnect", "transfer")
ELECTIONS = tuple((result, reason) for reason in ELECTION_REASONS for result in ("won", "lost"))
NO_SPACE_REASONS = ("quota", "disk")
LEASE_CHANGES = ("granted", "renewed", "revoked", "expired")
COMPACTION_REASONS = ("age", "bytes", "disk", "quota", "request")
PROPOSAL_RESULTS = ("committed", "refused", "unknown")
HANDOVER_DIRECTIONS = ("sent", "received")
HANDOVER_REFUSALS = (
    "not_leader",
    "overloaded",
    "no_space",
    "feature_unavailable",
    "not_serving",
    "sessions_full",
    "split",
)
HANDOVER_IGNORED = ("copy", "applied", "stale", "foreign")
SNAPSHOTS = tuple((op, result) for op in ("create", "send", "install") for result in ("ok", "failed"))
TIMED_SNAPSHOT_OPS = ("create", "install")
REQUESTS = tuple((op, code) for op in ("put", "get", "delete") for code in (200, 500, 503, 504))
WATCH_END_REASONS = ("closed", "stalled", "compacted", "no_leader", "not_serving", "too_large")
IDENTITY_REASONS = ("cluster", "name", "incarnation", "version", "token", "removed", "malformed")


class Kind(Enum):
    """The three kinds of instruments that a node has."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Instrument(msgspec.Struct, frozen=True, kw_only=True):
    """One instrument. Exactly one of ``read`` and ``histograms`` is set, by kind."""

    name: str
    kind: Kind
    unit: str
    labels: Labels = ()
    description: str
    read: Callable[[Scrape], Points] | None = None
    histograms: Callable[[Scrape], HistogramPoints] | None = None


def all_instruments() -> tuple[Instrument, ...]:
    """Return the whole table, in the order of the documentation."""
    return (*_consensus(), *_progress(), *_peers(), *_storage(), *_clients(), *_state(), *_process())


def _counter(name: str, unit: str, description: str, read: Callable[[Scrape], Points], *labels: str) -> Instrument:
    return Instrument(name=name, kind=Kind.COUNTER, unit=unit, labels=labels, description=description, read=read)


def _gauge(name: str, unit: str, description: str, read: Callable[[Scrape], Points], *labels: str) -> Instrument:
    return Instrument(name=name, kind=Kind.GAUGE, unit=unit, labels=labels, description=description, read=read)


def _histogram(name: str, description: str, read: Callable[[Scrape], HistogramPoints], *labels: str) -> Instrument:
    return Instrument(name=name, kind=Kind.HISTOGRAM, unit="s", labels=labels, description=description, histograms=read)


def _one(value: Number | None) -> Points:
    """Return one point without labels; none if the value is unknown (an unknown is never reported as 0)."""
    return () if value is None else (((), value),)


def _only(histogram: Histogram) -> HistogramPoints:
    return (((), histogram),)


def _by(values: Mapping[str, Number], known: Iterable[str] = ()) -> Points:
    return [((label,), value) for label, value in {**dict.fromkeys(known, 0), **values}.items()]


def _by_pair(values: Mapping[tuple[str, Second], int], known: Iterable[tuple[str, Second]] = ()) -> Points:
    return [((a, str(b)), value) for (a, b), value in {**dict.fromkeys(known, 0), **values}.items()]


def _histograms_by(values: Mapping[str, Histogram]) -> HistogramPoints:
    return [((label,), histogram) for label, histogram in values.items()]


def _consensus() -> tuple[Instrument, ...]:
    return (
        _gauge(
            "kvorum.raft.has_leader",
            "1",
            "1 if this node knows a leader of its current term (itself included), else 0.",
            lambda s: _one(int(s.status.leader is not None)),
        ),
        _gauge(
            "kvorum.raft.is_leader",
            "1",
            "1 if this node leads, else 0.",
            lambda s: _one(int(s.status.state == "leader")),
        ),
        _gauge(
            "kvorum.raft.state",
            "1",
            "1 for the state that this node is in, 0 for every other.",
            lambda s: _by({s.status.state: 1}, STATES),
            "state",
        ),
        _gauge("kvorum.raft.term", "{term}", "The current term.", lambda s: _one(s.status.term)),
        _counter(
            "kvorum.raft.leader.changes",
            "{change}",
            "Newly elected leaders that this node has learned of.",
            lambda s: _one(s.counters.leader_changes),
        ),
        _counter(
            "kvorum.raft.elections",
            "{election}",
            "Elections in which this node stood, by result and reason (silence, a broken connection, a transfer).",
            lambda s: _by_pair(s.counters.elections, ELECTIONS),
            "result",
            "reason",
        ),
        _gauge(
            "kvorum.raft.members",
            "{member}",
            "Members of the configuration in force on this node, by suffrage.",
            _members,
            "suffrage",
        ),
        _gauge(
            "kvorum.raft.healthy_voters",
            "{member}",
            "Voters that the leader heard from within the last election timeout, itself included. The leader only.",
            lambda s: _one(_healthy_voters(s)),
        ),
        _gauge(
            "kvorum.raft.failure_tolerance",
            "{member}",
            "Number of voters that may still fail before writes stop; negative: there is no quorum. The leader only.",
            _failure_tolerance,
        ),
        _gauge(
            "kvorum.raft.last_contact",
            "s",
            "Time since this node last heard from its leader; on the leader, from a quorum.",
            lambda s: _one(None if s.status.last_contact_ms is None else s.status.last_contact_ms / 1000),
        ),
        _counter(
            "kvorum.raft.identity.rejected",
            "{connection}",
            "Peers refused for their identity: another cluster, name, incarnation, version or token, removed, "
            "or malformed headers.",
            lambda s: _by(s.counters.identity_rejected, IDENTITY_REASONS),
            "reason",
        ),
        _gauge(
            "kvorum.raft.foreign_peers",
            "{node}",
            "Peers in this node's list that were seen in another cluster within the last 15 s. No node changes its "
            "cluster.",
            lambda s: _one(len(s.status.foreign_peers)),
        ),
        _gauge(
            "kvorum.raft.quarantined",
            "1",
            "1 if this node is in quarantine: its state differed from the majority's at the same index. Else 0.",
            lambda s: _one(int(s.status.quarantined is not None)),
        ),
        _gauge(
            "kvorum.raft.distrusted",
            "1",
            "1 if this node takes no part in consensus, because its disk was set back to an older state, or because "
            "its disk alone still holds committed entries. Else 0.",
            lambda s: _one(int(s.status.distrusted is not None)),
        ),
    )


def _members(scrape: Scrape) -> Points:
    voters = sum(member.voter for member in scrape.status.members)
    return _by({"voter": voters, "learner": len(scrape.status.members) - voters})


def _healthy_voters(scrape: Scrape) -> int | None:
    if scrape.status.state != "leader":
        return None
    return sum(member.voter and _is_healthy(scrape, member) for member in scrape.status.members)


def _is_healthy(scrape: Scrape, member: MemberStatus) -> bool:
    return member.id == scrape.status.id or bool(member.healthy)


def _failure_tolerance(scrape: Scrape) -> Points:
    healthy = _healthy_voters(scrape)
    if healthy is None:
        return ()
    voters = sum(member.voter for member in scrape.status.members)
    return _one(healthy - majority(voters))


def _progress() -> tuple[Instrument, ...]:
    return (
        _gauge(
            "kvorum.raft.commit.index",
            "{entry}",
            "Index of the last entry that this node knows to be committed.",
            lambda s: _one(s.status.commit_index),
        ),
        _gauge(
            "kvorum.raft.applied.index",
            "{entry}",
            "Index of the last entry applied to this node's store.",
            lambda s: _one(s.status.applied_index),
        ),
        _gauge(
            "kvorum.raft.last_log.index",
            "{entry}",
            "Index of the last entry of this node's log.",
            lambda s: _one(s.status.last_index),
        ),
        _gauge(
            "kvorum.raft.first_log.index",
            "{entry}",
            "Index of the first entry that this node's log still holds.",
            lambda s: _one(s.status.first_index),
        ),
        _gauge(
            "kvorum.raft.saved.index",
            "{entry}",
            "Index of the last entry that is durable on this node's disk.",
            lambda s: _one(s.status.saved_index),
        ),
        _gauge(
            "kvorum.raft.snapshot.index",
            "{entry}",
            "Index of the last entry in this node's newest snapshot; 0: there is none.",
            lambda s: _one(s.status.snapshot_index),
        ),
        _gauge(
            "kvorum.raft.snapshot.threshold",
            "{entry}",
            "A snapshot is due when this many entries were applied since the last one (configuration).",
            lambda s: _one(s.config.snapshot_entries),
        ),
        _counter(
            "kvorum.raft.proposals",
            "{proposal}",
            "Commands proposed on this node, by outcome: committed, refused (not done) or unknown.",
            lambda s: _by(s.counters.proposals, PROPOSAL_RESULTS),
            "result",
        ),
        _gauge(
            "kvorum.raft.proposals.pending",
            "{proposal}",
            "Commands proposed on this node that wait for their outcome.",
            lambda s: _one(s.counters.proposals_pending),
        ),
        _histogram(
            "kvorum.raft.commit.duration",
            "From a batch's proposal to its commit, on the leader.",
            lambda s: _only(s.counters.commit_duration),
        ),
        _histogram(
            "kvorum.raft.apply.duration",
            "Time to apply a batch of committed entries.",
            lambda s: _only(s.counters.apply_duration),
        ),
        _histogram(
            "kvorum.raft.read_index.duration",
            "Time until a quorum confirmed a round of linearizable reads.",
            lambda s: _only(s.counters.read_index_duration),
        ),
        _counter(
            "kvorum.raft.snapshots",
            "{snapshot}",
            "Snapshots written, sent to a peer, and installed, by result.",
            lambda s: _by_pair(s.counters.snapshots, SNAPSHOTS),
            "op",
            "result",
        ),
        _histogram(
            "kvorum.raft.snapshot.duration",
            "Time to write a snapshot, or to fetch and load one.",
            lambda s: _histograms_by({**dict.fromkeys(TIMED_SNAPSHOT_OPS, _NEVER), **s.counters.snapshot_duration}),
            "op",
        ),
    )


_NEVER = Histogram()
"""What has not happened yet; never recorded into."""


def _peers() -> tuple[Instrument, ...]:
    return (
        _histogram(
            "kvorum.raft.peer.rtt",
            "From a heartbeat to the peer's answer.",
            lambda s: _histograms_by(s.counters.peer_rtt),
            "peer",
        ),
        _counter(
            "kvorum.raft.peer.failures",
            "{failure}",
            "Connections to a peer that failed, by reason.",
            lambda s: _by_pair(s.counters.peer_failures),
            "peer",
            "reason",
        ),
        _gauge(
            "kvorum.raft.peer.lag",
            "{entry}",
            "Number of entries that the peer is behind the leader's log. The leader only.",
            _peer_lag,
            "peer",
        ),
        _gauge(
            "kvorum.raft.peer.healthy",
            "1",
            "1 if the leader heard from the peer within the last election timeout. The leader only.",
            _peer_healthy,
            "peer",
        ),
        _counter(
            "kvorum.raft.peer.messages.sent",
            "{message}",
            "Messages sent to a peer.",
            lambda s: _by(s.counters.messages_sent),
            "peer",
        ),
        _counter(
            "kvorum.raft.peer.messages.received",
            "{message}",
            "Messages received from a peer.",
            lambda s: _by(s.counters.messages_received),
            "peer",
        ),
        _counter(
            "kvorum.raft.peer.messages.dropped",
            "{message}",
            "Messages to a peer that were dropped because its queue was full (Raft sends again what matters).",
            lambda s: _by(s.counters.messages_dropped, _peer_names(s)),
            "peer",
        ),
        _counter(
            "kvorum.raft.peer.messages.unknown",
            "{message}",
            "Messages from a peer that were skipped: only a later version knows their kind.",
            lambda s: _by(s.counters.messages_unknown, _peer_names(s)),
            "peer",
        ),
        _counter(
            "kvorum.dns.failures",
            "{failure}",
            "Failed DNS look-ups of a peer's name.",
            lambda s: _by(s.counters.dns_failures, _peer_names(s)),
            "peer",
        ),
    )


def _peer_names(scrape: Scrape) -> list[str]:
    return [member.name for member in scrape.status.members if member.id != scrape.status.id]


def _peer_lag(scrape: Scrape) -> Points:
    # A name may be there twice while a lost disk's incarnation is being replaced: the worse one is reported.
    lags: dict[str, Number] = {}
    for member in scrape.status.members:
        if member.id != scrape.status.id and member.lag is not None:
            lags[member.name] = max(member.lag, lags.get(member.name, 0))
    return _by(lags)


def _peer_healthy(scrape: Scrape) -> Points:
    healthy: dict[str, Number] = {}
    for member in scrape.status.members:
        if member.id != scrape.status.id and member.healthy is not None:
            healthy[member.name] = min(int(member.healthy), healthy.get(member.name, 1))
    return _by(healthy)


def _storage() -> tuple[Instrument, ...]:
    return (
        _histogram(
            "kvorum.storage.save.duration",
            "One durable write of the log, fsync included, from its request to its acknowledgement.",
            lambda s: _only(s.counters.save_duration),
        ),
        _histogram(
            "kvorum.storage.fsync.duration",
            "The part of a durable write that the disk thread took, fsync included. The event loop took the rest.",
            lambda s: _only(s.counters.fsync_duration),
        ),
        _counter(
            "kvorum.storage.saves",
            "{save}",
            "Durable writes of the log; each is one transaction and one fsync.",
            lambda s: _one(s.counters.saves),
        ),
        _counter(
            "kvorum.storage.saved",
            "By",
            "Bytes written by durable writes of the log.",
            lambda s: _one(s.counters.saved_bytes),
        ),
        _gauge(
            "kvorum.storage.size",
            "By",
            "The size of each file of the data folder; a sub-folder (the snapshots) counts as one.",
            lambda s: _by(dict(s.disk.files)) if s.disk else (),
            "file",
        ),
        _gauge(
            "kvorum.storage.disk.free",
            "By",
            "Free space of the file system that holds the data folder.",
            lambda s: _one(s.disk.free_bytes if s.disk else None),
        ),
        _gauge(
            "kvorum.storage.disk.size",
            "By",
            "Size of the file system that holds the data folder.",
            lambda s: _one(s.disk.size_bytes if s.disk else None),
        ),
        _gauge(
            "kvorum.storage.puts.refused",
            "1",
            "1 if this node, as the leader, refuses puts because the disks of a majority are nearly full. Else 0.",
            lambda s: _one(int(s.status.disks_full is not None)),
        ),
    )


def _clients() -> tuple[Instrument, ...]:
    return (
        _counter(
            "kvorum.requests",
            "{request}",
            "Client requests answered, by operation and HTTP status.",
            lambda s: _by_pair(s.counters.requests, REQUESTS),
            "op",
            "code",
        ),
        _histogram(
            "kvorum.request.duration",
            "From a client request's arrival to its answer, by operation.",
            lambda s: _histograms_by(s.counters.request_duration),
            "op",
        ),
        _histogram(
            "kvorum.write.duration",
            "End-to-end latency of acknowledged writes, from the request to the applied commit.",
            lambda s: _only(s.counters.write_duration),
        ),
        _counter(
            "kvorum.writes",
            "{write}",
            "Writes acknowledged: on a quorum's disks, and applied.",
            lambda s: _one(s.counters.writes),
        ),
        _counter(
            "kvorum.reads",
            "{read}",
            "Reads answered, by consistency.",
            lambda s: _by({"linearizable": s.counters.reads, "stale": s.counters.stale_reads}),
            "consistency",
        ),
        _counter(
            "kvorum.redirects",
            "{request}",
            "Requests redirected to the leader.",
            lambda s: _one(s.counters.redirects),
        ),
        _counter(
            "kvorum.requests.malformed",
            "{request}",
            "Requests at the client port or the peer port that were not HTTP.",
            lambda s: _one(s.counters.malformed_requests),
        ),
        _gauge(
            "kvorum.inflight",
            "{request}",
            "Client requests being served now.",
            lambda s: _one(s.counters.inflight),
        ),
        _gauge("kvorum.watchers", "{watcher}", "Watches that are open.", lambda s: _one(s.counters.watchers)),
        _gauge(
            "kvorum.watchers.behind",
            "{watcher}",
            "Watches that have to catch up, or whose client does not read.",
            lambda s: _one(s.counters.watchers_behind),
        ),
        _counter(
            "kvorum.watch.events",
            "{event}",
            "Events delivered to watches, each counted once for each watch.",
            lambda s: _one(s.counters.watch_events),
        ),
        _counter(
            "kvorum.watch.ends",
            "{watcher}",
            "Watches that ended, by reason: closed by the client; stalled: its client did not read; else an error.",
            lambda s: _by(s.counters.watch_ends, WATCH_END_REASONS),
            "reason",
        ),
        _counter(
            "kvorum.handover.frames",
            "{frame}",
            "Frames of writes that this node handed to a leader (sent; resent: again) or was handed (received).",
            lambda s: _by(s.counters.handover_frames, (*HANDOVER_DIRECTIONS, "resent")),
            "event",
        ),
        _counter(
            "kvorum.handover.writes",
            "{write}",
            "Writes in the frames that were sent for the first time, and in those that were received and proposed.",
            lambda s: _by(s.counters.handover_writes, HANDOVER_DIRECTIONS),
            "event",
        ),
        _counter(
            "kvorum.handover.refused",
            "{frame}",
            "Frames that this node was handed and did not propose, by the code of the first error; split: "
            "its commands visit more keys than one entry may, and come again in several frames.",
            lambda s: _by(s.counters.handover_refused, HANDOVER_REFUSALS),
            "reason",
        ),
        _counter(
            "kvorum.handover.ignored",
            "{frame}",
            "Frames that this node was handed and ignored: a copy; applied already; stale (of a term before its "
            "process began, or below the feature level); foreign (of no member, or of another one). "
            "Requests of such nodes to open an origin, or one that is open, count too.",
            lambda s: _by(s.counters.handover_ignored, HANDOVER_IGNORED),
            "reason",
        ),
        _gauge(
            "kvorum.handover.pending",
            "{write}",
            "Writes that this node hands over and has not seen applied.",
            lambda s: _one(s.counters.handover_pending),
        ),
    )


def _state() -> tuple[Instrument, ...]:
    return (
        _gauge("kvorum.keys", "{key}", "Keys in this node's store.", lambda s: _one(s.status.keys)),
        _gauge(
            "kvorum.db.size",
            "By",
            "Size of the data folder: the log and the snapshots.",
            lambda s: _one(sum(size for _, size in s.disk.files) if s.disk else None),
        ),
        _gauge(
            "kvorum.revision",
            "{revision}",
            "The cluster-wide revision that this node's store has reached.",
            lambda s: _one(s.status.revision),
        ),
        _gauge(
            "kvorum.compacted.revision",
            "{revision}",
            "The lowest revision that can be read: that of the last compaction of the history.",
            lambda s: _one(s.status.floor),
        ),
        _gauge(
            "kvorum.history.events",
            "{event}",
            "Changes of keys that the history holds.",
            lambda s: _one(s.status.history_events),
        ),
        _gauge(
            "kvorum.history.size",
            "By",
            "What superseded and deleted versions of keys take, as the quota counts it; a part of the data.",
            lambda s: _one(s.status.history_bytes),
        ),
        _counter(
            "kvorum.compactions",
            "{compaction}",
            "Compactions of the history that this node, as the leader, proposed: by age, by bytes, for room on "
            "the disks, or at the request of a client; and how often the history gave way to the quota on this node.",
            lambda s: _by(s.counters.compactions, COMPACTION_REASONS),
            "reason",
        ),
        _gauge("kvorum.leases", "{lease}", "Leases in this node's store.", lambda s: _one(s.status.leases)),
        _counter(
            "kvorum.lease.changes",
            "{lease}",
            "Leases that were granted, renewed, revoked by a client, or expired, while this node led. The leader only.",
            lambda s: _by(s.counters.lease_changes, LEASE_CHANGES),
            "change",
        ),
        _gauge(
            "kvorum.feature.level",
            "{level}",
            "The feature level of the cluster, as far as this node has applied the log.",
            lambda s: _one(s.status.feature_level),
        ),
        _gauge(
            "kvorum.feature.level.supported",
            "{level}",
            "The highest feature level that this node supports; above the level in force, an upgrade is not finalized.",
            lambda s: _one(s.status.highest_feature_level),
        ),
        _gauge(
            "kvorum.sessions",
            "{session}",
            "Client sessions whose answers are remembered, for retries.",
            lambda s: _one(s.status.sessions),
        ),
        _gauge(
            "kvorum.data.size",
            "By",
            "What keys, values, history, leases and sessions take, with a fixed overhead for each, as the quota "
            "counts it.",
            lambda s: _one(s.status.used_bytes),
        ),
        _gauge(
            "kvorum.data.quota",
            "By",
            "The quota on data; 0: there is none yet. Above it puts are refused.",
            lambda s: _one(s.status.quota_bytes),
        ),
        _counter(
            "kvorum.no_space",
            "{write}",
            "Puts refused because there is no room for more data, by what is full: quota or disk.",
            lambda s: _by(s.counters.no_space, NO_SPACE_REASONS),
            "reason",
        ),
    )


def _process() -> tuple[Instrument, ...]:
    return (
        _histogram(
            "kvorum.loop.lag",
            "Lag of the event loop, measured at each Raft tick.",
            lambda s: _only(s.counters.loop_lag),
        ),
        _counter(
            "kvorum.log.lines.dropped",
            "{line}",
            "Log lines that were dropped because nothing read the output.",
            lambda s: _one(lines_dropped()),
        ),
        _gauge(
            "kvorum.build.info",
            "1",
            "Always 1; the labels say what is running.",
            lambda s: [((s.status.version, s.build_revision), 1)],
            "version",
            "revision",
        ),
    )
