"""The time that the leader writes into the log: the one clock by which the replicated state measures.

Log time begins at the wall clock of the first leader of an empty cluster. From then on it passes as the monotonic
clock of the leader passes, and each new leader goes on from the last time in its log. So a wall clock that is wrong, or
is set, neither makes log time jump nor stops it. Log time may fall behind the time of day, because it does not pass
while nobody leads; it is a measure of durations, and no date.

Log time must not run ahead of real time, since leases end by it. So it passes at 0.99 of the leader's clock. Between
two ticks of consensus no more of it passes than :data:`STALL_S`, and what did not count then never counts.
"""

from __future__ import annotations

from kvorum.node.ports import Clock
from kvorum.node.state import State
from kvorum.raft import Raft, Role

MS_PER_S = 990
"""So much log time passes in a second of the leader's clock: a clock that is fast by 1 % ends nothing early."""
STALL_S = 0.25
"""So much counts, at most, of the time between two ticks, or two ticks if these are longer. It is an eighth of the
shortest time to live of a lease: a client that renews after a third of it has more than half of it left when its leader
begins to stand still.
"""


class LogTime:
    """The log time as this node would write it, were it to propose now.

    A leader whose process or event loop stood still has not read what its clients sent meanwhile, renewals of their
    leases for example. Therefore what passes between two ticks counts up to a bound only. A loop that is busy, so that
    each of its turns takes several ticks, reads what its clients send in each of these turns, and loses no time.

    Args:
        raft: the consensus server.
        state: whose time follows from the entries that were applied.
        clock: by whose monotonic time the log time passes; its wall time is where an empty cluster begins.
        tick_ms: how long a tick of consensus is.
    """

    def __init__(self, raft: Raft, state: State, clock: Clock, tick_ms: int) -> None:
        self._raft = raft
        self._state = state
        self._clock = clock
        self._stall_s = max(STALL_S, 2 * tick_ms / 1000)
        self._term = 0
        """The term in which the log time was ``_base_ms`` before ``_counted_s`` and what followed."""
        self._base_ms = 0
        self._counted_s = 0.0
        """What has passed since the base, up to the last tick."""
        self._ticked_s = 0.0
        """When the last tick was."""

    @property
    def is_unknown(self) -> bool:
        """This node leads, and has not applied what its log may hold from earlier leaders: a time, or none yet."""
        store, raft = self._state.store, self._raft
        return not store.time_ms and raft.role is Role.LEADER and store.applied_term < raft.current_term

    def tick(self) -> None:
        """Let log time pass on the leader, also while nobody writes. Called once a tick of consensus."""
        self.now_ms()
        now_s = self._clock.monotonic()
        self._counted_s += self._passed_s(now_s)
        self._ticked_s = now_s

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
        time_ms = self._base_ms + int((self._counted_s + self._passed_s(now_s)) * MS_PER_S)
        if log_ms > time_ms:
            self._begin(log_ms, now_s)
            return log_ms
        return time_ms

    def _passed_s(self, now_s: float) -> float:
        """Return what has passed since the last tick, as far as it counts."""
        return min(now_s - self._ticked_s, self._stall_s)

    def _begin(self, time_ms: int, now_s: float) -> None:
        self._base_ms = time_ms
        # The bound goes on to count from the last tick.
        self._counted_s = -self._passed_s(now_s)
