"""The status that a node reports, and the checks of its probes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec

from kvorum import __version__
from kvorum.config import Config
from kvorum.identity import Identity, name_of
from kvorum.kv.features import HIGHEST_LEVEL
from kvorum.kv.store import Store
from kvorum.node.foreign import ForeignPeers
from kvorum.node.incarnation import ClusterIdentity
from kvorum.node.integrity import Integrity
from kvorum.node.levels import Announcement, FeatureLevels
from kvorum.node.set_back import Participation
from kvorum.node.space import DiskSpace
from kvorum.node.staleness import Staleness
from kvorum.node.state import State
from kvorum.node.supervisor import Supervisor
from kvorum.node.ticker import Ticker
from kvorum.raft import Raft, RaftStatus, Role
from kvorum.raft.messages import Member, NodeId
from kvorum.raft.progress import ReplicationState
from kvorum.status import Check, MemberStatus, NodeStatus
from kvorum.transport.interface import Hello

LOOP_STALLED_S = 30.0
"""The liveness probe fails when the loop has not ticked for this long."""
ELECTION_TIMEOUTS_BEHIND = 2
"""A node that has passed no read barrier for this many election timeouts is not caught up."""


class Report:
    """Answers the probes, the status and whoever asks for the leader.

    Args:
        config: how long an election takes.
        identity: who this node is.
        raft: the consensus server.
        state: what is applied.
        integrity: whether that may be served.
        participation: whether the disk can be trusted.
        staleness: how old it may be.
        levels: what the members announced.
        ticker: whether the event loop runs.
        supervisor: whether the process is about to end.
        space: what room the disks have.
        foreign: which peers are in another cluster.

    Attributes:
        is_stopping: the node is about to stop, and not ready any more.
        listed_elsewhere: why no leader calls this node, which is in no cluster yet; empty: nothing is known.
        removed_by: the leader that has removed this node, once it has said so to a node that stops.
    """

    def __init__(
        self,
        config: Config,
        identity: ClusterIdentity,
        raft: Raft,
        state: State,
        integrity: Integrity,
        participation: Participation,
        staleness: Staleness,
        levels: FeatureLevels,
        ticker: Ticker,
        supervisor: Supervisor,
        space: DiskSpace,
        foreign: ForeignPeers,
    ) -> None:
        self.is_stopping = False
        self.listed_elsewhere = ""
        self.removed_by: Hello | None = None
        self._config = config
        self._expected_urls = config.expected_urls()
        self._foreign = foreign
        self._behind_ms = ELECTION_TIMEOUTS_BEHIND * config.election_timeout_ms
        self._identity = identity
        self._raft = raft
        self._state = state
        self._integrity = integrity
        self._participation = participation
        self._staleness = staleness
        self._levels = levels
        self._ticker = ticker
        self._supervisor = supervisor
        self._space = space

    def status(self) -> NodeStatus:
        """Return the node's own account."""
        status = node_status(
            self._identity.current,
            self._raft.status(),
            self._state.store,
            last_contact_ms=self._staleness.contact_ms(),
            caught_up=self._is_caught_up(),
            quarantined=self._integrity.quarantined,
            distrusted=self._participation.why_not,
            announcement=self._levels.announcement,
            disks_full=self._space.refusal,
            free_bytes=self._space.free_bytes_of,
        )
        return msgspec.structs.replace(
            status,
            leader_client_url=self.leader_client_url(),
            peer_url=self._config.advertise_peer_url,
            client_url=self._config.advertise_client_url,
            address_mismatches=tuple(self._address_mismatches()),
            foreign_peers=self._foreign.current(),
        )

    def _address_mismatches(self) -> Iterator[str]:
        if self.listed_elsewhere and not self._identity.current.cluster_id:
            yield self.listed_elsewhere
        for member in self._raft.configuration.members:
            name, said = name_of(member.id), self._levels.announcement(member.id)
            if said is not None and said.client_url and said.client_url != member.client_url:
                yield f"{name} serves clients at {said.client_url}, and the members list says {member.client_url}"
            if said is not None and said.client_url and said.peer_url != member.peer_url:
                yield f"{name} serves peers at {said.peer_url}, and the members list says {member.peer_url}"
            expected = self._expected_urls.get(name, member.peer_url)
            # Of this node itself it was said above where it serves.
            if expected != member.peer_url and name != self._config.name:
                yield (
                    f"the options of {self._config.name} say that {name} serves peers at {expected}, and the members "
                    f"list says {member.peer_url}"
                )

    def leader_client_url(self) -> str | None:
        """Return the leader's client URL if a leader is known: what it announced itself, or what the cluster knows."""
        if self.removed_by is not None:
            return self.removed_by.client_url
        leader = self._raft.leader
        member = self._raft.configuration.get(leader) if leader else None
        if leader is None or member is None:
            return None
        said = self._levels.announcement(leader)
        return said.client_url if said is not None and said.client_url else member.client_url

    def leader_checks_cluster(self) -> bool:
        """Tell whether the leader understands a request that names its cluster (``?cluster=``).

        A version that announces where its clients reach it does; others refuse the parameter.
        """
        leader = self._raft.leader
        said = self._levels.announcement(leader) if leader and self.removed_by is None else None
        return said is not None and bool(said.client_url)

    def leader_name(self) -> str | None:
        """Return the leader's name if one is known."""
        if self.removed_by is not None:
            return self.removed_by.name
        leader = self._raft.leader
        return name_of(leader) if leader else None

    def liveness(self) -> list[Check]:
        """Return the checks of ``/livez``: this process works; nothing about quorum, peers or disk space."""
        silent_s = self._ticker.silent_s
        return [
            Check("loop", silent_s < LOOP_STALLED_S, f"the event loop last ticked {silent_s:.0f} s ago"),
            Check("storage", not self._supervisor.has_failed, "storage failed; the process is stopping"),
        ]

    def readiness(self) -> list[Check]:
        """Return the checks of ``/readyz``: this node can serve its clients, as leader or not."""
        raft, quarantined, distrusted = self._raft, self._integrity.quarantined, self._participation.why_not
        member = raft.configuration.get(raft.id)
        behind = (
            "no leader, so it is unknown whether this node has caught up"
            if raft.leader is None
            else "no quorum confirmed lately that all committed entries are applied"
        )
        return [
            Check("leader", raft.leader is not None, "no leader is known"),
            Check("member", member is not None and member.voter, "not a voter (joining, a learner, or removed)"),
            Check("caught-up", self._is_caught_up(), behind),
            Check("storage", not raft.is_disk_stalled, "the disk makes no progress"),
            Check("state", quarantined is None, quarantined or ""),
            Check("disk", distrusted is None, distrusted or ""),
            Check("serving", not self.is_stopping, "the node is stopping"),
        ]

    def _is_caught_up(self) -> bool:
        """Return whether all that was committed until a moment ago is applied here.

        The commit index alone does not show it: a leader tells a follower to commit no more than the follower is known
        to hold. While the follower fetches a snapshot, that is what it had before.
        """
        raft = self._raft
        if raft.leader is None or self._state.store.applied_index < raft.log.commit_index:
            return False
        age_ms = self._staleness.bound_ms()
        return age_ms is not None and age_ms <= self._behind_ms


def state_word(raft: RaftStatus) -> str:
    """Return the role in a word; ``learner`` and ``joining`` are followers that cannot vote."""
    if not raft.configuration.members:
        return "joining"
    member = raft.configuration.get(raft.id)
    if member is not None and not member.voter and raft.role is Role.FOLLOWER:
        return "learner"
    return raft.role.value


def node_status(
    identity: Identity,
    raft: RaftStatus,
    store: Store,
    *,
    last_contact_ms: int | None,
    caught_up: bool,
    quarantined: str | None,
    distrusted: str | None,
    announcement: Callable[[NodeId], Announcement | None],
    disks_full: str | None,
    free_bytes: Callable[[NodeId], int | None],
) -> NodeStatus:
    """Return the node's own account."""
    leader = raft.configuration.get(raft.leader) if raft.leader else None
    return NodeStatus(
        cluster_id=identity.cluster_id,
        name=identity.name,
        id=raft.id,
        version=__version__,
        state=state_word(raft),
        term=raft.term,
        leader=raft.leader,
        leader_name=name_of(raft.leader) if raft.leader else None,
        leader_client_url=leader.client_url if leader else None,
        commit_index=raft.commit_index,
        applied_index=store.applied_index,
        first_index=raft.first_index,
        last_index=raft.last_index,
        last_term=raft.last_term,
        saved_index=raft.saved_index,
        snapshot_index=raft.snapshot_index,
        revision=store.revision,
        state_hash=f"{store.state_hash:016x}",
        keys=len(store),
        sessions=store.session_count,
        leases=len(store.leases),
        used_bytes=store.counted_bytes,
        floor=store.floor,
        history_events=store.history_events,
        history_bytes=store.counted_history_bytes,
        quota_bytes=store.quota.limit_bytes,
        quota_exceeded=store.quota.is_full,
        members=tuple(
            _member_status(raft, member, announcement(member.id), free_bytes(member.id))
            for member in raft.configuration.members
        ),
        last_contact_ms=last_contact_ms,
        caught_up=caught_up,
        quarantined=quarantined,
        disks_full=disks_full,
        distrusted=distrusted,
        feature_level=store.feature_level,
        highest_feature_level=HIGHEST_LEVEL,
    )


def _member_status(raft: RaftStatus, member: Member, said: Announcement | None, free_bytes: int | None) -> MemberStatus:
    version, highest_level = (None, None) if said is None else (said.version, said.highest_level)
    progress = raft.progress.get(member.id)
    if raft.role is Role.LEADER and member.id == raft.id:
        match, healthy, replication = raft.saved_index, True, None
    elif progress is not None:
        match, healthy, replication = progress.match_index, progress.active, progress.state.value
    else:
        return MemberStatus(
            member.id,
            name_of(member.id),
            member.voter,
            peer_url=member.peer_url,
            client_url=member.client_url,
            version=version,
            highest_feature_level=highest_level,
            free_bytes=free_bytes,
        )
    return MemberStatus(
        member.id,
        name_of(member.id),
        member.voter,
        peer_url=member.peer_url,
        client_url=member.client_url,
        match_index=match,
        # Until it has answered a probe, a new leader does not know how far its log matches.
        lag=None if replication == ReplicationState.PROBE and not match else max(raft.last_index - match, 0),
        healthy=healthy,
        replication=replication,
        version=version,
        highest_feature_level=highest_level,
        free_bytes=free_bytes,
    )
