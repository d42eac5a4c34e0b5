"""What a call returns. Fields that a newer server adds are ignored."""

from __future__ import annotations

import msgspec

from kvorum_wire import Compacted, DeleteResult, ForeignPeer, MemberStatus, NodeStatus, PutResult, Quota

__all__ = [
    "Compacted",
    "DeleteResult",
    "ForeignPeer",
    "History",
    "Member",
    "NodeHealth",
    "NodeStatus",
    "PutResult",
    "Quota",
    "Record",
    "Version",
]

Member = MemberStatus


class Record(msgspec.Struct, frozen=True):
    """A key's value and revisions; ``revision`` is the store's when it was read."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    revision: int
    staleness_ms: int | None = None
    """Of a stale read: everything committed this long ago was applied at the node that answered."""


class Version(msgspec.Struct, frozen=True):
    """One version of a key. A delete is one as well: ``deleted``, without a value, create_revision and version."""

    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    deleted: bool = False


class History(msgspec.Struct, frozen=True):
    """The versions of a key that can still be read; ``revision`` is the store's when they were read."""

    key: bytes
    versions: tuple[Version, ...]
    """Newest first."""
    revision: int
    floor: int
    """The lowest revision that can be read."""
    truncated: bool = False
    """Older versions are left out: read on with the lowest ``mod_revision`` less 1."""


class NodeHealth(msgspec.Struct, frozen=True):
    """One node's ``/readyz``."""

    endpoint: str
    ready: bool
    detail: str
    """The checks, a line each; or why there was no answer."""
