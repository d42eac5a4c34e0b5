"""A picture of one server, for people, metrics and tests."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from kvorum.raft.messages import Configuration, NodeId
from kvorum.raft.progress import ReplicationState


class Role(StrEnum):
    """What a server is in its current term. A learner, and a server without a configuration, is a follower."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre_candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


class PeerStatus(msgspec.Struct, frozen=True):
    """What the leader knows of one member."""

    match_index: int
    next_index: int
    state: ReplicationState
    active: bool


class RaftStatus(msgspec.Struct, frozen=True):
    """A picture of one server, for people, metrics and tests."""

    id: NodeId
    role: Role
    term: int
    voted_for: NodeId | None
    leader: NodeId | None
    commit_index: int
    applied_index: int
    first_index: int
    last_index: int
    last_term: int
    saved_index: int
    snapshot_index: int
    configuration: Configuration
    configuration_index: int
    transfer_target: NodeId | None
    progress: dict[NodeId, PeerStatus]
