"""A recorded history of a key-value store: what the clients asked, and what they were answered.

The simulator, the chaos tests and the e2e suite record it in this one form; :mod:`sim.linearizability` judges it. Keys
and values are strings (decode bytes as latin-1); times are integers of any one monotonic clock.
"""

from __future__ import annotations

import msgspec

ANY_REVISION = -1


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One call and what its caller knows of it; its retries are part of it.

    ``client`` and ``sequence`` name a session's request (sequence 0: no session).
    """

    kind: str
    """``put``, ``delete`` or ``get``."""
    key: str
    invoked: int
    completed: int | None = None
    """None: there was no definite answer."""
    outcome: str = "unknown"
    """``ok``, ``refused`` (certainly not done, then or later) or ``unknown``."""
    client: str = ""
    sequence: int = 0
    value: str | None = None
    """What a put wrote (unique in the history), or what a get found (None: no such key)."""
    prev_revision: int = ANY_REVISION
    """What a conditional write compared with: 0 for "must not exist"."""
    compare_failed: bool = False
    """Answered: nothing was done, since the key's ``mod_revision`` is another."""
    deleted: int = 0
    """Answered by a delete: 1 or 0 keys removed."""
    revision: int = 0
    """Answered: the revision that a write created, or at which everything else was answered."""
    mod_revision: int = 0
    """Answered: the key's mod_revision (0: no such key)."""
    create_revision: int = 0
    version: int = 0
    """Answered, when not 0: how many puts the key has seen since it was created."""

    @property
    def is_effective(self) -> bool:
        """It was answered, and it changed something."""
        if self.outcome != "ok" or self.compare_failed:
            return False
        return self.kind == "put" or (self.kind == "delete" and self.deleted == 1)

    @property
    def is_open(self) -> bool:
        """A write that may have been done, or may still be."""
        return self.kind != "get" and self.outcome == "unknown"


class Applied(msgspec.Struct, frozen=True):
    """A write in the log of the replicated state: it created ``revision``."""

    revision: int
    kind: str
    """``put``, ``delete``, ``txn``, ``lease``: the end of one, or ``raise``: of the feature level from which on there
    is a history."""
    key: str
    value: str | None = None
    client: str = ""
    sequence: int = 0


class Violation(msgspec.Struct, frozen=True):
    """One broken promise: which check found it, and what it saw, in words."""

    check: str
    detail: str
