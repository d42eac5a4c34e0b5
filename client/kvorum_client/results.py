"""What a call returns. Fields that a newer server adds are ignored."""

from __future__ import annotations

import msgspec

from kvorum_wire import DeleteResult, ForeignPeer, MemberStatus, NodeStatus, PutResult, Quota

__all__ = ["DeleteResult", "ForeignPeer", "Member", "NodeHealth", "NodeStatus", "PutResult", "Quota", "Record"]

Member = MemberStatus


class Record(msgspec.Struct, frozen=True):
    """A key's value and history; ``revision`` is the store's when it was read."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    revision: int
    staleness_ms: int | None = None
    """Of a stale read: everything committed this long ago was applied at the node that answered."""


class NodeHealth(msgspec.Struct, frozen=True):
    """One node's ``/readyz``."""

    endpoint: str
    ready: bool
    detail: str
    """The checks, a line each; or why there was no answer."""
