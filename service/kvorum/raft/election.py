"""When a server campaigns, and whether it won (section 5.2; pre-vote, thesis 9.6; the lease of section 6)."""

from __future__ import annotations

from random import Random

from kvorum.raft.config import RaftConfig
from kvorum.raft.log import RaftLog
from kvorum.raft.messages import Configuration, NodeId, RequestVote


class ElectionTimer:
    """How long no leader was heard. A server that leads does not use it.

    Args:
        config: the timeouts, in ticks.
        random: draws the timeouts, so that split votes are rare (section 5.2).
    """

    def __init__(self, config: RaftConfig, random: Random) -> None:
        self._config = config
        self._random = random
        self.is_leader_suspected = False
        """The connection to the leader broke; it was not heard since."""
        self.restart()

    def restart(self) -> None:
        """A leader was heard, a vote was given, or a role changed: wait for a whole timeout, drawn anew."""
        ticks = self._config.election_timeout_ticks
        self._elapsed = 0
        self._timeout = ticks + self._random.randrange(ticks)
        self.is_leader_suspected = False

    def tick(self) -> bool:
        """Let one tick pass. Return whether the timeout has passed."""
        self._elapsed += 1
        return self._elapsed >= self._timeout

    def suspect_leader(self) -> None:
        """The connection to the leader broke: wait for a few ticks only, not all servers for the same."""
        if not self.is_leader_suspected:
            self.is_leader_suspected = True
            soon = self._elapsed + 1 + self._random.randrange(2 * self._config.heartbeat_timeout_ticks)
            self._timeout = min(self._timeout, soon)

    def is_lease_valid(self) -> bool:
        """Tell whether a leader was heard within the shortest election timeout (section 6, thesis 4.2.3)."""
        return self._elapsed < self._config.election_timeout_ticks and not self.is_leader_suspected


def is_vote_granted(message: RequestVote, current_term: int, voted_for: NodeId | None, log: RaftLog) -> bool:
    """Tell whether to grant a vote, or a pre-vote (Figure 2, "RequestVote, receiver implementation").

    A vote is for the term that this server is in: a higher one was entered before. A pre-vote is for a term that this
    server could still vote in, and promises nothing.
    """
    if not log.is_up_to_date(message.last_log_index, message.last_log_term):
        return False
    if message.pre_vote:
        return message.term > current_term
    return message.term == current_term and voted_for in (None, message.sender)


class Ballot:
    """The answers in one election, or in one round of pre-votes.

    Args:
        candidate: votes for itself (its vote counts only if it is a voter, thesis 4.2.2).
    """

    def __init__(self, candidate: NodeId) -> None:
        self._votes = {candidate: True}

    def record(self, node: NodeId, granted: bool) -> None:
        """Take an answer; the first of each server counts."""
        self._votes.setdefault(node, granted)

    def is_won(self, configuration: Configuration) -> bool:
        """Tell whether a majority of the voters granted it."""
        return sum(self._votes.get(voter, False) for voter in configuration.voters()) >= configuration.quorum()

    def is_lost(self, configuration: Configuration) -> bool:
        """Tell whether so many voters refused that no majority is left."""
        voters = configuration.voters()
        refused = sum(not self._votes.get(voter, True) for voter in voters)
        return refused > len(voters) - configuration.quorum()
