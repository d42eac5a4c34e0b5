"""How old the applied state may be."""

from __future__ import annotations

from kvorum.node.ports import Clock
from kvorum.raft import Raft, Role


class Staleness:
    """Counts from the last word of a leader.

    Args:
        raft: the consensus server.
        clock: what measures.
    """

    def __init__(self, raft: Raft, clock: Clock) -> None:
        self._raft = raft
        self._clock = clock
        self._heard_s: float | None = None

    def heard(self) -> None:
        """The leader said that it leads; or this node leads."""
        self._heard_s = self._clock.monotonic()

    def age_ms(self) -> int | None:
        """Return the milliseconds since this node last heard of a leader (a leader: 0), or None."""
        if self._raft.role is Role.LEADER:
            return 0
        return None if self._heard_s is None else int((self._clock.monotonic() - self._heard_s) * 1000)
