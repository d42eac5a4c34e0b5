"""Leases on a node: the ticks by which log time passes in the state while leases exist.

Leases end by the time that the log carries (:mod:`kvorum.kv.leases`). Where nobody writes, nothing carries it: no lease
would end, and a new leader would go on from the time of an old entry, so that every lease would live that much longer.
Therefore the leader proposes *ticks*, entries that change nothing but the time. There are leases only from feature
level 5 on, so there are no ticks below it.
"""

from __future__ import annotations

from kvorum.node.leader_proposals import LeaderProposals
from kvorum.node.log_time import LogTime
from kvorum.node.state import State
from kvorum.telemetry.counters import Counters

TICK_INTERVAL_MS = 1000
"""While a lease exists, an entry carries the log time into the state at least so often."""


class LeaseTicks:
    """Proposes ticks on the leader, one at a time, and counts what becomes of leases while this node leads.

    Args:
        state: whose leases these are.
        log_time: by which they end.
        proposals: by which the leader proposes ticks.
        counters: where the grants, renewals, revocations and expiries are counted.
    """

    def __init__(self, state: State, log_time: LogTime, proposals: LeaderProposals, counters: Counters) -> None:
        self._state = state
        self._log_time = log_time
        self._proposals = proposals
        self._counters = counters
        self._leases = state.store.leases
        self._counts = dict(self._leases.counts)
        """What had become of these leases when they were looked at last."""
        self._has_led = False

    def tick(self) -> None:
        """Propose a tick if one is due: a lease is to expire, or no entry has carried the time. Called once a tick."""
        self._count()
        due_ms = self._leases.next_due_ms()
        if due_ms is None or not self._proposals.are_possible:
            return
        if self._log_time.now_ms() >= min(due_ms, self._state.store.time_ms + TICK_INTERVAL_MS):
            self._proposals.propose()

    def _count(self) -> None:
        """Count what was applied since the last look, if this node led then, and knew all that others had done."""
        leases = self._state.store.leases
        if leases is self._leases and self._has_led:
            for change, count in leases.counts.items():
                self._counters.lease_changes[change] += count - self._counts[change]
        self._leases, self._counts = leases, dict(leases.counts)
        self._has_led = self._proposals.knows_all
