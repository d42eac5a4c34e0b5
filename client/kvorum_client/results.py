"""What a call returns. Fields that a newer server adds are ignored."""

from __future__ import annotations

import msgspec

from kvorum_wire import Compacted, DeleteResult, ForeignPeer, MemberStatus, NodeStatus, PutResult, Quota

__all__ = [
    "CommonPrefix",
    "Compacted",
    "DeleteResult",
    "ForeignPeer",
    "History",
    "Member",
    "NodeHealth",
    "NodeStatus",
    "Page",
    "PutResult",
    "Quota",
    "Record",
    "KeyVersion",
    "WatchEvent",
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
    lease: int = 0
    """The id of the lease with which the key is deleted; 0: it has none. Here and in the next ones."""


class KeyVersion(msgspec.Struct, frozen=True):
    """One version of a key. A delete is one as well: ``deleted``, without a value, create_revision and version."""

    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    deleted: bool = False
    lease: int = 0


class History(msgspec.Struct, frozen=True):
    """The versions of a key that can still be read; ``revision`` is the store's when they were read."""

    key: bytes
    versions: tuple[KeyVersion, ...]
    """Newest first."""
    revision: int
    floor: int
    """The lowest revision that can be read."""
    truncated: bool = False
    """Older versions are left out: read on with the lowest ``mod_revision`` less 1."""


class CommonPrefix(msgspec.Struct, frozen=True):
    """What keys of a range have in common up to the delimiter, which ends it."""

    prefix: bytes
    count: int
    """How many keys begin with it."""


class Page(msgspec.Struct, frozen=True):
    """A part of a range, or all of it."""

    records: tuple[Record, ...]
    prefixes: tuple[CommonPrefix, ...]
    """If a delimiter was given: what other keys have in common. These are not in ``records``."""
    revision: int
    """All pages of a range are as it was at this revision."""
    count: int
    """How many keys the whole range has."""
    cursor: str | None = None
    """Where the next page begins; None: this is the last one."""
    staleness_ms: int | None = None
    """Of a stale read: everything committed this long ago was applied at the node that answered."""


class WatchEvent(msgspec.Struct, frozen=True):
    """A put or a delete that a watch saw. A delete has no value, create_revision and version."""

    is_put: bool
    """False: a delete."""
    key: bytes
    value: bytes
    mod_revision: int
    """The revision of the event. Events of one transaction have the same."""
    create_revision: int = 0
    version: int = 0
    prev_value: bytes | None = None
    """What the event replaced, if the watch asked for it; None: the key did not exist."""
    lease: int = 0

    @property
    def type(self) -> str:
        """``put`` or ``delete``."""
        return "put" if self.is_put else "delete"


class NodeHealth(msgspec.Struct, frozen=True):
    """One node's ``/readyz``."""

    endpoint: str
    ready: bool
    detail: str
    """The checks, a line each; or why there was no answer."""
