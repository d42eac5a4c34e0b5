"""What a node says of itself: status and checks."""

from __future__ import annotations

from kvorum import __version__
from kvorum.identity import Identity
from kvorum.kv.store import Store
from kvorum.raft import RaftStatus, Role
from kvorum.raft.messages import Member
from kvorum.status import MemberStatus, NodeStatus


def name_of(node: str) -> str:
    """Return the name in a member id."""
    return node.rpartition("@")[0]


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
        saved_index=raft.saved_index,
        snapshot_index=raft.snapshot_index,
        revision=store.revision,
        state_hash=f"{store.state_hash:016x}",
        keys=len(store),
        sessions=store.session_count,
        members=tuple(_member_status(raft, member) for member in raft.configuration.members),
        last_contact_ms=last_contact_ms,
        caught_up=caught_up,
        quarantined=quarantined,
    )


def _member_status(raft: RaftStatus, member: Member) -> MemberStatus:
    progress = raft.progress.get(member.id)
    if raft.role is Role.LEADER and member.id == raft.id:
        match, healthy, replication = raft.saved_index, True, None
    elif progress is not None:
        match, healthy, replication = progress.match_index, progress.active, progress.state.value
    else:
        return MemberStatus(
            member.id, name_of(member.id), member.voter, peer_url=member.peer_url, client_url=member.client_url
        )
    return MemberStatus(
        member.id,
        name_of(member.id),
        member.voter,
        peer_url=member.peer_url,
        client_url=member.client_url,
        match_index=match,
        lag=max(raft.last_index - match, 0),
        healthy=healthy,
        replication=replication,
    )
