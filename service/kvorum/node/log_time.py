"""The time that the leader writes into the log: the one clock by which the replicated state measures.

Log time begins at the wall clock of the first leader of an empty cluster. From then on it passes as the monotonic
clock of the leader passes, and each new leader goes on from the last time in its log. So a wall clock that is wrong, or
is set, neither makes log time jump nor stops it. Log time may fall behind the time of day, because it does not pass
while nobody leads; it is a measure of durations, and no date.
"""

from __future__ import annotations

from kvorum.node.ports import Clock
from kvorum.node.state import State
from kvorum.raft import Raft, Role

STEP_MAX_S = 5.0
"""A leader that looked at its clock so long ago was stopped, with all that its clients had sent it: no more counts."""


class LogTime:
    """The log time as this node would write it, were it to propose now.

    Args:
        raft: the consensus server.
        state: whose time follows from the entries that were applied.
        clock: by whose monotonic time the log time passes; its wall time is where an empty cluster begins.
    """

    def __init__(self, raft: Raft, state: State, clock: Clock) -> None:
        self._raft = raft
        self._state = state
        self._clock = clock
        self._term = 0
        """The term in which the log time was ``_base_ms`` at the moment ``_base_s``."""
        self._base_ms = 0
        self._base_s = 0.0
        self._last_s = 0.0

    @property
    def is_unknown(self) -> bool:
        """This node leads, and has not applied what its log may hold from earlier leaders: a time, or none yet."""
        store, raft = self._state.store, self._raft
        return not store.time_ms and raft.role is Role.LEADER and store.applied_term < raft.current_term

    def tick(self) -> None:
        """Let log time pass on the leader, also while nobody writes. Called once a tick."""
        self.now_ms()

    def now_ms(self) -> int:
        """Return the time for the leader's next entry (Unix, ms); on others, and while it is unknown, the state's time.

        Entries of earlier leaders that are not applied yet may carry a later time. Until they are, log time waits.
        """
        log_ms, term = self._state.store.time_ms, self._raft.current_term
        if self._raft.role is not Role.LEADER or self.is_unknown:
            return log_ms
        now_s = self._clock.monotonic()
        if term != self._term:
            # What passed since the last entry of another leader is not known here.
            self._term = term
            self._begin(log_ms or max(self._clock.wall_ms(), 1), now_s)
        self._base_s += max(now_s - self._last_s - STEP_MAX_S, 0.0)
        self._last_s = now_s
        time_ms = self._base_ms + int((now_s - self._base_s) * 1000)
        if log_ms > time_ms:
            self._begin(log_ms, now_s)
            return log_ms
        return time_ms

    def _begin(self, time_ms: int, now_s: float) -> None:
        self._base_ms = time_ms
        self._base_s = self._last_s = now_s
