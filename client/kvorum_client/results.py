"""What a call returns. Fields that a newer server adds are ignored."""

from __future__ import annotations

import msgspec


class PutResult(msgspec.Struct, frozen=True):
    """The key after the put; ``revision`` is the cluster-wide revision that the put created."""

    revision: int
    create_revision: int
    mod_revision: int
    version: int


class DeleteResult(msgspec.Struct, frozen=True):
    """``deleted`` is how many keys there were: 1 or 0."""

    revision: int
    deleted: int


class Record(msgspec.Struct, frozen=True):
    """A key's value and history; ``revision`` is the store's when it was read."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    revision: int
    staleness_ms: int | None = None
    """Of a stale read: how long ago the node that answered had last heard of a leader."""


class Member(msgspec.Struct, frozen=True):
    """A member as the asked node sees it; the figures are known on the leader only."""

    id: str
    name: str
    voter: bool
    peer_url: str
    client_url: str
    match_index: int | None = None
    lag: int | None = None
    healthy: bool | None = None
    replication: str | None = None


class NodeStatus(msgspec.Struct, frozen=True):
    """What one node says of itself and of the cluster."""

    cluster_id: str
    name: str
    id: str
    version: str
    state: str
    term: int
    leader_name: str | None
    leader_client_url: str | None
    commit_index: int
    applied_index: int
    last_index: int
    revision: int
    state_hash: str
    keys: int
    members: tuple[Member, ...]
    last_contact_ms: int | None = None
    caught_up: bool = False
    snapshot_index: int = 0
    sessions: int = 0
    quarantined: str | None = None


class NodeHealth(msgspec.Struct, frozen=True):
    """One node's ``/readyz``."""

    endpoint: str
    ready: bool
    detail: str
    """The checks, a line each; or why there was no answer."""


class Problem(msgspec.Struct, frozen=True):
    """The body of an error (RFC 9457)."""

    code: str
    detail: str = ""
    outcome: str = "unknown"
    mod_revision: int = 0
    revision: int = 0
    node: str = ""
