"""What a leader knows of one follower, and how much it may send to it (section 5.3, thesis 10.2.1).

``probe``: the leader does not know where the logs agree, and sends one AppendEntries at a time. ``replicate``: it
knows, and sends entries ahead of the answers, within a window. ``snapshot``: the follower needs entries that the log no
longer holds; it gets none until it has installed the snapshot.
"""

from __future__ import annotations

from collections import deque
from enum import StrEnum


class ReplicationState(StrEnum):
    """The three ways to send to a follower."""

    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


class Progress:
    """One follower. ``match_index``: the last entry known to be durable there; ``next_index``: the next to send.

    Args:
        next_index: where to probe first; one past the leader's last index (Figure 2).
    """

    def __init__(self, next_index: int) -> None:
        self.match_index = 0
        self.confirmed_index = 0
        """The last entry that its present process acknowledged: its disk may be older than the process before knew."""
        self.next_index = next_index
        self.state = ReplicationState.PROBE
        self.is_pending = True
        """Something changed since the leader last considered what to send to it."""
        self.acknowledged_round = 0
        self.ticks_since_received = 0
        self.ticks_since_sent = 0  # an AppendEntries
        self.ticks_since_offered = 0  # the snapshot
        self.probe_sent = False
        self.commit_sent = 0
        self._inflight: deque[tuple[int, int]] = deque()  # (last index, bytes) of each unanswered AppendEntries
        self._inflight_bytes = 0

    def become_probe(self) -> None:
        """Go back to one message at a time, from what is known to match."""
        self.next_index = self.match_index + 1
        self._become(ReplicationState.PROBE)

    def become_replicate(self) -> None:
        """Send ahead of the answers."""
        self.next_index = self.match_index + 1
        self._become(ReplicationState.REPLICATE)

    def become_snapshot(self) -> None:
        """Wait until the follower has installed the snapshot that it is offered now."""
        self._become(ReplicationState.SNAPSHOT)

    def _become(self, state: ReplicationState) -> None:
        self.state = state
        self.probe_sent = False
        self.ticks_since_offered = 0
        self._inflight.clear()
        self._inflight_bytes = 0

    def has_inflight(self) -> bool:
        """Return whether an AppendEntries with entries is unanswered."""
        return bool(self._inflight)

    def is_window_full(self, messages_max: int, bytes_max: int) -> bool:
        """Return whether no further entries may be sent before an answer."""
        return len(self._inflight) >= messages_max or self._inflight_bytes >= bytes_max

    def sent(self, last_index: int, size_bytes: int) -> None:
        """Note that entries up to ``last_index`` were sent."""
        self.next_index = last_index + 1
        self._inflight.append((last_index, size_bytes))
        self._inflight_bytes += size_bytes

    def matched(self, index: int) -> bool:
        """Note that the follower holds everything up to ``index``. Return whether that is news."""
        while self._inflight and self._inflight[0][0] <= index:
            self._inflight_bytes -= self._inflight.popleft()[1]
        self.next_index = max(self.next_index, index + 1)
        if index <= self.confirmed_index:
            return False
        self.confirmed_index = index
        self.match_index = max(self.match_index, index)
        return True

    def restarted(self) -> None:
        """Note that another process speaks for the follower: nothing is known to be durable before it says so."""
        self.confirmed_index = 0
