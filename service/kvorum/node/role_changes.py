"""Elections as an operator sees them: a log line for each change of role, and a count."""

from __future__ import annotations

import logging

from kvorum.raft import Raft, Role
from kvorum.telemetry.counters import Counters

log = logging.getLogger("kvorum.raft")


class RoleChanges:
    """Reports the role of this node at the end of each turn of the loop; a role that lasts no longer is not reported.

    Args:
        raft: the consensus server.
        counters: where elections and changes of the leader are counted.
    """

    def __init__(self, raft: Raft, counters: Counters) -> None:
        self._raft = raft
        self._counters = counters
        self._last = (Role.FOLLOWER, 0, "")
        self._was_transferring = False
        self._leadership = (0, "")  # the last one known: a leader heard again is not a new one
        self._candidacy: tuple[int, str] | None = None
        """The term of this node's candidacy, and its reason; by the time it is lost, the next one may have another."""

    def note(self, role: Role, term: int, leader: str) -> bool:
        """Return whether anything has changed since the last call; log and count it if so."""
        current = (role, term, leader)
        was_transferring, self._was_transferring = self._was_transferring, self._raft.is_transferring
        if current == self._last:
            return False
        before, self._last = self._last[0], current
        if leader and (term, leader) != self._leadership:
            self._leadership = (term, leader)
            self._counters.leader_changes += 1
        self._count_election(role, term)
        if before is Role.LEADER and role is not Role.LEADER and was_transferring:
            log.info("%s transferred the leadership; now in term %d", self._raft.id, term)
            before = role
        self._log(before, role, term, leader)
        return True

    def _count_election(self, role: Role, term: int) -> None:
        if self._candidacy is not None:
            stood_in, reason = self._candidacy
            self._candidacy = None
            if role is not Role.LEADER or term != stood_in:
                self._counters.elections["lost", reason] += 1
        if role is Role.LEADER:
            self._counters.elections["won", self._raft.campaign_reason] += 1
        elif role is Role.CANDIDATE:
            self._candidacy = (term, self._raft.campaign_reason)

    def _log(self, before: Role, role: Role, term: int, leader: str) -> None:
        node = self._raft.id
        match role:
            case Role.LEADER:
                log.info("%s was elected leader of term %d", node, term)
            case Role.CANDIDATE:
                log.info("%s is a candidate in term %d", node, term)
            case Role.PRE_CANDIDATE:
                log.info("%s starts a pre-vote for term %d: no leader heard", node, term + 1)
            case Role.FOLLOWER:
                if before is Role.LEADER:
                    log.warning("%s stepped down; now in term %d", node, term)
                if leader:
                    log.info("%s follows %s in term %d", node, leader, term)
