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
    def are_possible(self) -> bool:
        """Whether this node may judge what to propose: it leads, and none of its own proposals is under way."""
        raft, store = self._raft, self._state.store
        # Until a new leader has applied an entry of its own, it does not know what earlier ones have proposed.
        if raft.role is not Role.LEADER or raft.is_transferring or store.applied_term != raft.current_term:
            return False
        return not self._is_under_way()

    def propose(self, command: BatchCommand) -> bool:
        """Propose a command in an entry of its own; return whether it is under way, or cannot be proposed now."""
        try:
            self._proposed = self._raft.propose([encode_batch(self._log_time.now_ms(), [command])])
        except CallerError as error:
            log.debug("cannot propose %s now: %s", type(command).__name__, error)
            return False
        self._turns.schedule()
        return True

    def _is_under_way(self) -> bool:
        if self._proposed is None:
            return False
        index, term = self._proposed
        return term == self._raft.current_term and self._state.store.applied_index < index
