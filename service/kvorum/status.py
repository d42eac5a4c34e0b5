"""What a node says of itself: to ``/v1/cluster``, to the probes, to the metrics and to the command line."""

from __future__ import annotations

from typing import NamedTuple

import msgspec


class Check(NamedTuple):
    """One line of ``/livez`` or ``/readyz``."""

    name: str
    """A short word that ``?exclude=`` may name."""
    ok: bool
    detail: str = ""
    """One readable sentence when it is not ok."""


class MemberStatus(msgspec.Struct, frozen=True):
    """One member as this node sees it; the figures are known on the leader only (else None)."""

    id: str
    name: str
    voter: bool
    peer_url: str
    client_url: str
    match_index: int | None = None
    lag: int | None = None
    """Entries behind the leader's log."""
    healthy: bool | None = None
    """Heard of within the last election timeout."""
    replication: str | None = None
    """``probe``, ``replicate`` or ``snapshot``."""


class NodeStatus(msgspec.Struct, frozen=True):
    """One node. Indexes count log entries; ``revision`` counts changes of the store."""

    cluster_id: str
    name: str
    id: str
    version: str
    state: str
    """``leader``, ``follower``, ``candidate``, ``pre_candidate``, ``learner`` or ``joining`` (no configuration yet)."""
    term: int
    leader: str | None
    leader_name: str | None
    leader_client_url: str | None
    commit_index: int
    applied_index: int
    first_index: int
    last_index: int
    saved_index: int
    snapshot_index: int
    revision: int
    state_hash: str
    """16 hex digits, after ``applied_index``."""
    keys: int
    sessions: int
    members: tuple[MemberStatus, ...]
    last_contact_ms: int | None
    """Milliseconds since this node last heard of its leader (a leader: of a quorum); None: never."""
    caught_up: bool
    """Everything that was committed when this node last heard of its leader is applied."""
    quarantined: str | None = None
    """Why this node serves nothing: its state differs from the leader's at the same index."""
