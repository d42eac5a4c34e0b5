"""What a leader proposes by itself, without a client that asks for it: one command at a time."""

from __future__ import annotations

import logging

from kvorum.errors import CallerError
from kvorum.kv.commands import BatchCommand, encode_batch
from kvorum.node.log_time import LogTime
from kvorum.node.state import State
from kvorum.node.turns import Turns
from kvorum.raft import Raft, Role

log = logging.getLogger("kvorum.cluster")


class LeaderProposals:
    """Proposes one kind of command on the leader. The next one waits until the last one is applied, or lost.

    Args:
        raft: the consensus server.
        state: what the commands change.
        log_time: the time that entries carry.
        turns: the driver's.
    """

    def __init__(self, raft: Raft, state: State, log_time: LogTime, turns: Turns) -> None:
        self._raft = raft
        self._state = state
        self._log_time = log_time
        self._turns = turns
        self._proposed: tuple[int, int] | None = None
        """(index, term) of the last proposal."""

    @property
    def knows_all(self) -> bool:
        """Whether this node leads, and has applied what earlier leaders have proposed: an entry of its own, that is."""
        raft = self._raft
        return raft.role is Role.LEADER and self._state.store.applied_term == raft.current_term

    @property
    def are_possible(self) -> bool:
        """Whether this node may judge what to propose: it leads, and none of its own proposals is under way."""
        return self.knows_all and not self._raft.is_transferring and not self._is_under_way()

    def propose(self, *commands: BatchCommand) -> bool:
        """Propose commands in an entry of their own; return whether it is under way, or cannot be proposed now.

        Without any, the entry carries the log time, and nothing else.
        """
        try:
            self._proposed = self._raft.propose([encode_batch(self._log_time.now_ms(), commands)])
        except CallerError as error:
            names = ", ".join(type(command).__name__ for command in commands) or "a tick"
            log.debug("cannot propose %s now: %s", names, error)
            return False
        self._turns.schedule()
        return True

    def _is_under_way(self) -> bool:
        if self._proposed is None:
            return False
        index, term = self._proposed
        return term == self._raft.current_term and self._state.store.applied_index < index
