"""The quota on data: how many bytes the state may take before puts are refused.

The quota, and whether puts are refused now, are part of the replicated state: every node accepts and refuses the same.
What is used is computed from what is kept, by constants for what an object takes beside its bytes
(:mod:`kvorum.kv.limits`), so it too is the same on every node, and is computed anew when a snapshot is restored.

The state is full once an entry has brought what is used above the quota, and it stays full until what is used has
fallen below 95 % of it: otherwise every delete would let one put through. It is judged after each entry, so the quota
is exceeded by one entry at most. While the state is full, puts are refused; deletes, reads and the ends of sessions go
on. A retry of a put that was applied gets its answer. The leader proposes no delete then that would open a session,
which would take more than the delete of a small key frees; its client makes it without one.
"""

from __future__ import annotations

import msgspec

from kvorum.errors import NoSpaceError

FIRST = "first"
"""The first leader's proposal: it counts only while there is no quota, and leaves room for half of what is held."""
CONFIGURATION = "configuration"
"""The configuration's proposal: it counts only if the configuration said something else before."""
OPERATOR = "operator"
"""An operator's: it counts until another one comes."""

SOURCES = (FIRST, CONFIGURATION, OPERATOR)

_RESUME_PER_CENT = 95


class Quota(msgspec.Struct):
    """The quota, as a part of the state."""

    limit_bytes: int = 0
    """0: there is none (yet)."""
    configured_bytes: int = 0
    """What the configuration said last; 0: nothing."""
    is_full: bool = False
    """Whether puts are refused."""

    def set(self, limit_bytes: int, source: str, used_bytes: int) -> bool:
        """Take a proposal of one of the three sources; return whether it changed anything."""
        if source == FIRST:
            if self.limit_bytes:
                return False
            self.limit_bytes = max(limit_bytes, used_bytes * 3 // 2)
            return True
        if source == CONFIGURATION:
            if self.configured_bytes == limit_bytes:
                return False
            self.configured_bytes = limit_bytes
        elif self.limit_bytes == limit_bytes:
            return False
        self.limit_bytes = limit_bytes
        return True

    def judge(self, used_bytes: int) -> bool:
        """Decide whether puts are refused from now on; return whether that changed."""
        if self.is_full:
            if used_bytes >= resume_bytes(self.limit_bytes):
                return False
        elif not 0 < self.limit_bytes < used_bytes:
            return False
        self.is_full = not self.is_full
        return True


def quota_error(limit_bytes: int, used_bytes: int) -> NoSpaceError:
    """Return the error for a put that is refused."""
    return NoSpaceError(
        f"the data takes {used_bytes} of {limit_bytes} bytes (the quota), and puts are refused until it takes less "
        f"than {resume_bytes(limit_bytes)}: delete keys, or raise the quota (kv quota set)",
        reason="quota",
        limit=limit_bytes,
        used=used_bytes,
    )


def resume_bytes(limit_bytes: int) -> int:
    """Below so many bytes a state that was full takes puts again."""
    return limit_bytes * _RESUME_PER_CENT // 100
