"""The watches of this node: when the hub takes a turn, who may watch, and what ends all watches at once.

A watch needs no leader here: it works on any node, from what that node has applied. So that a client is not left with a
node that is cut off and hears of nothing, a node ends its watches when it has been without a leader for a while.
"""

from __future__ import annotations

from collections.abc import Callable

from kvorum.config import Config
from kvorum.errors import CallerError, NoLeaderError, NotServingError, TooManyWatchersError
from kvorum.kv.features import HISTORY_LEVEL, check_level
from kvorum.kv.watch import Hub, Interest, Sink, Watcher
from kvorum.node.state import State
from kvorum.telemetry.counters import Counters

WATCHERS_MAX = 20_000
LEADERLESS_ELECTION_TIMEOUTS = 3
"""Watches end when there has been no leader for so many election timeouts: an ordinary failover takes less."""
CLOSED = "closed"
"""The reason when the client ended the watch."""


class Watch:
    """One watch, as its front has it."""

    __slots__ = ("_watcher", "_watches")

    def __init__(self, watches: Watches, watcher: Watcher) -> None:
        self._watches = watches
        self._watcher = watcher

    def has_room(self) -> None:
        """Take note that the sink, which was full, takes events again."""
        self._watches.has_room(self._watcher)

    def progress(self) -> int | None:
        """Return the revision up to which the sink was given all events; None: it has to catch up, or has ended."""
        return self._watches.hub.progress(self._watcher)

    def close(self, reason: str = CLOSED) -> None:
        """End the watch, and count it by the reason; its sink is told nothing. Idempotent."""
        self._watches.close(self._watcher, reason)


class Watches:
    """All watches of one node.

    Args:
        config: how long an election takes.
        state: what is watched.
        schedule: asks for a turn, in which :meth:`advance` is called.
        counters: where watchers and events are counted.
        has_leader: tells whether a leader is known.
        watchers_max: how many there may be.
    """

    def __init__(
        self,
        config: Config,
        state: State,
        schedule: Callable[[], None],
        counters: Counters,
        has_leader: Callable[[], bool],
        watchers_max: int = WATCHERS_MAX,
    ) -> None:
        self.hub = Hub()
        self._name = config.name
        self._leaderless_ticks_max = LEADERLESS_ELECTION_TIMEOUTS * config.election_timeout_ms // config.tick_ms
        self._state = state
        self._schedule = schedule
        self._counters = counters
        self._has_leader = has_leader
        self._watchers_max = watchers_max
        self._leaderless_ticks = 0
        self._seen: tuple[object, int, int] = (None, 0, 0)
        """The state, its revision and its floor in the last turn."""

    def open(self, interest: Interest, sink: Sink, first: int) -> Watch:
        """Begin a watch; see :meth:`kvorum.node.node.Node.watch`, which checks first that the node serves.

        Raises:
            FeatureUnavailableError, RevisionCompactedError, TooManyWatchersError: there is no such watch.
        """
        store = self._state.store
        check_level("a watch", HISTORY_LEVEL, store.feature_level)
        self.check_room()
        watcher = self.hub.add(store, interest, _Ending(sink, self._counters), first)
        self._count()
        self._schedule()
        return Watch(self, watcher)

    def check_room(self) -> None:
        """Check that another watch may begin.

        Raises:
            TooManyWatchersError: there are as many as there may be.
        """
        if self.hub.size >= self._watchers_max:
            raise TooManyWatchersError(
                f"{self._name} has {self.hub.size} watchers already (limit {self._watchers_max}); watch at another node"
            )

    def close(self, watcher: Watcher, reason: str) -> None:
        """End a watch for a reason of its front. Idempotent."""
        before = self.hub.size
        self.hub.remove(watcher)
        if self.hub.size < before:
            self._counters.watch_ends[reason] += 1
            self._count()

    def has_room(self, watcher: Watcher) -> None:
        """Take note that the sink of a watcher takes events again."""
        self.hub.has_room(watcher)
        self._schedule()

    def advance(self) -> bool:
        """Deliver the next slice, at the end of a turn; return whether another turn is needed."""
        if not self.hub.size:
            self._seen = (None, 0, 0)
            return False
        state = self._state
        if state.is_wrong:
            self.stop(f"the state of {self._name} is wrong and is being rebuilt")
            return False
        if state.is_given_up:
            self.stop(f"{self._name} is installing a snapshot")
            return False
        store = state.store
        now = (store, store.revision, store.floor)
        if now == self._seen and not self.hub.has_work:
            return False
        has_more = self.hub.turn(store)
        if not has_more:
            self._seen = now
        self._count()
        return has_more

    def tick(self) -> None:
        """End all watches once there has been no leader for too long. Called once a tick."""
        if self._has_leader():
            self._leaderless_ticks = 0
            return
        self._leaderless_ticks += 1
        if self._leaderless_ticks >= self._leaderless_ticks_max:
            self.end_all(NoLeaderError(f"{self._name} knows no leader: resume the watch at another node"))

    def stop(self, reason: str) -> None:
        """End all watches: this node serves nobody now."""
        self.end_all(NotServingError(f"{reason}: resume the watch at another node"))

    def end_all(self, error: CallerError) -> None:
        """End all watches and tell their clients why."""
        if self.hub.size:
            self.hub.end_all(error)
            self._seen = (None, 0, 0)
            self._count()

    def _count(self) -> None:
        hub, counters = self.hub, self._counters
        counters.watchers, counters.watchers_behind, counters.watch_events = hub.size, hub.behind, hub.delivered


class _Ending:
    """A sink, and the count of how its watch ended."""

    __slots__ = ("_counters", "_sink", "take")

    def __init__(self, sink: Sink, counters: Counters) -> None:
        self._sink = sink
        self._counters = counters
        self.take = sink.take

    @property
    def is_full(self) -> bool:
        """Whether the sink takes no more now."""
        return self._sink.is_full

    def end(self, error: CallerError) -> None:
        """Count why, and tell the sink."""
        self._counters.watch_ends[error.code] += 1
        self._sink.end(error)
