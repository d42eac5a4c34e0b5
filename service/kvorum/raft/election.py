"""When a server campaigns, and for whom it votes (section 5.2; pre-vote, thesis 9.6; the lease of section 6)."""

from __future__ import annotations

from random import Random

from kvorum.raft.config import RaftConfig
from kvorum.raft.log import RaftLog
from kvorum.raft.messages import NodeId, RequestVote


class ElectionTimer:
    """Counts the ticks since a leader was last heard. A server that leads does not use it.

    Args:
        config: the timeouts, in ticks.
        random: draws the timeouts, so that split votes are rare (section 5.2).
    """

    def __init__(self, config: RaftConfig, random: Random) -> None:
        self._config = config
        self._random = random
        self.restart()

    def restart(self) -> None:
        """Wait for a whole timeout, drawn anew: a leader was heard, a vote was given, or the role changed."""
        ticks = self._config.election_timeout_ticks
        self._elapsed = 0
        self._timeout = ticks + self._random.randrange(ticks)
        self.is_leader_unreachable = False
        """The connection to the leader broke, and the leader was not heard since."""

    def tick(self) -> bool:
        """Let one tick pass. Return whether the timeout has passed."""
        self._elapsed += 1
        return self._elapsed >= self._timeout

    def leader_unreachable(self) -> None:
        """Wait for a few ticks only: the connection to the leader broke. The draw keeps servers from colliding."""
        if not self.is_leader_unreachable:
            self.is_leader_unreachable = True
            soon = self._elapsed + 1 + self._random.randrange(2 * self._config.heartbeat_timeout_ticks)
            self._timeout = min(self._timeout, soon)

    def is_lease_valid(self) -> bool:
        """Return whether a leader was heard within the shortest election timeout (section 6, thesis 4.2.3)."""
        return self._elapsed < self._config.election_timeout_ticks and not self.is_leader_unreachable


def is_vote_granted(message: RequestVote, current_term: int, voted_for: NodeId | None, log: RaftLog) -> bool:
    """Return whether to grant a vote, or a pre-vote (Figure 2, "RequestVote, receiver implementation").

    A vote is for the term that this server is in: it entered a higher one before. A pre-vote is for a term that this
    server could still vote in, and promises nothing.
    """
    if not log.is_up_to_date(message.last_log_index, message.last_log_term):
        return False
    if message.pre_vote:
        return message.term > current_term
    return message.term == current_term and voted_for in (None, message.sender)
