"""Linearizable reads in flight: all that wait share the next ReadIndex round (thesis 6.4).

Each round that is passed also says how current the state is (:mod:`kvorum.node.staleness`). While no client asks for
one, the node asks by itself now and then.
"""

from __future__ import annotations

import asyncio

from kvorum.errors import NoLeaderError, NotServingError, OverloadedError, ReadTimeoutError
from kvorum.node.deadlines import Deadlines
from kvorum.node.ports import Clock
from kvorum.node.state import State
from kvorum.raft import Raft
from kvorum.raft.messages import Read
from kvorum.telemetry.counters import Counters

Waiter = asyncio.Future[None]
WAITING_MAX = 20_000


class Reads:
    """Read barriers, from :meth:`submit` to :meth:`released`.

    Args:
        raft: the consensus server.
        counters: where rounds are counted.
        clock: for the deadlines of reads, and for the age of the state.
        state: which each passed round shows to be current.
        probe_s: after so many seconds without a round, the node asks for one by itself.
        first_context: where the numbers of this run's rounds begin; no run of this node may use a number twice.
    """

    def __init__(
        self, raft: Raft, counters: Counters, clock: Clock, state: State, *, probe_s: float, first_context: int
    ) -> None:
        self._raft = raft
        self._counters = counters
        self._clock = clock
        self._state = state
        self._probe_s = probe_s
        self._last_asked_s = float("-inf")
        self._context = first_context
        self.queue: list[Waiter] = []
        """Not asked for yet."""
        self._asked: dict[int, tuple[list[Waiter], float]] = {}
        self._deadlines: Deadlines[None] = Deadlines(clock)
        self._waiting = 0

    def submit(self, timeout_s: float) -> Waiter:
        """Queue a read and return a future that completes once the store may be read.

        Raises:
            OverloadedError: too many wait.
        """
        if self._waiting >= WAITING_MAX:
            raise OverloadedError(f"{self._waiting} reads are already waiting")
        waiter: Waiter = asyncio.Future()
        self.queue.append(waiter)
        self._deadlines.add(waiter, timeout_s)
        self._waiting += 1
        return waiter

    def flush(self) -> None:
        """Ask for one barrier for all queued reads; without a leader they stay in the queue."""
        if self.queue and self._raft.leader is not None:
            self._ask(can_wait=False)

    def probe(self) -> None:
        """Ask for a barrier if none was asked for lately and none is out; called once a tick."""
        if self._asked or self._raft.leader is None:
            return
        if self._clock.boottime() - self._last_asked_s >= self._probe_s:
            self._ask(can_wait=True)

    def _ask(self, *, can_wait: bool) -> None:
        # Taken before the request leaves: whatever is committed by now, the barrier covers.
        self._last_asked_s = now = self._clock.boottime()
        self._context += 1
        self._raft.read_index(self._context, can_wait=can_wait)
        self._asked[self._context] = (self.queue, now)
        self.queue = []

    def released(self, reads: tuple[Read, ...], refused: tuple[int, ...]) -> None:
        """Answer the reads that were released; queue those that were refused again."""
        for read in reads:
            asked = self._asked.pop(read.context, None)
            if asked is None:
                continue
            waiters, since = asked
            self._waiting -= len(waiters)
            self._state.current_as_of_s = max(since, self._state.current_as_of_s or since)
            if waiters:
                self._counters.read_index_duration.record(self._clock.boottime() - since)
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)
        for context in refused:
            waiters, _ = self._asked.pop(context, ([], 0.0))
            alive = [waiter for waiter in waiters if not waiter.done()]
            self._waiting -= len(waiters) - len(alive)
            self.queue += alive

    def expire(self) -> None:
        """Answer the reads whose deadline has passed; called once a tick."""
        expired = False
        for waiter in self._deadlines.expired():
            expired = True
            waiter.set_exception(self._reason())
        # Without a leader nothing else takes the reads of callers that have gone out of the queue.
        if expired or (self.queue and self._raft.leader is None):
            self._forget_the_done()

    def _reason(self) -> NoLeaderError | ReadTimeoutError:
        if self._raft.leader is None:
            return NoLeaderError("no leader is known; a linearizable read needs one")
        return ReadTimeoutError("no quorum confirmed the leader in time")

    def _forget_the_done(self) -> None:
        before = len(self.queue)
        self.queue = [waiter for waiter in self.queue if not waiter.done()]
        self._waiting -= before - len(self.queue)
        for context, (waiters, _) in list(self._asked.items()):
            if waiters and all(waiter.done() for waiter in waiters):
                self._raft.abandon_read(context)
                del self._asked[context]
                self._waiting -= len(waiters)

    def stop(self, reason: str) -> None:
        """Answer every read: the node stops, or its state is wrong."""
        waiters = [*self.queue, *(waiter for waiting, _ in self._asked.values() for waiter in waiting)]
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(NotServingError(reason))
        for context in self._asked:
            self._raft.abandon_read(context)
        self.queue.clear()
        self._asked.clear()
        self._waiting = 0
