"""How a server asks for votes: first whether it could win (pre-vote, thesis 9.6), then in earnest (section 5.2)."""

from __future__ import annotations

from kvorum.raft.messages import RequestVote, RequestVoteResponse
from kvorum.raft.state import State
from kvorum.raft.status import Role


class Candidate:
    """One election, or one round of pre-votes; it asks every other voter as it begins.

    Args:
        state: what the roles of this server share.
        pre_vote: ask for the next term without entering it.
        leadership_transfer: the leader told this server to campaign.
    """

    def __init__(self, state: State, *, pre_vote: bool, leadership_transfer: bool = False) -> None:
        self.role = Role.PRE_CANDIDATE if pre_vote else Role.CANDIDATE
        self._state = state
        self._pre_vote = pre_vote
        # Its own vote counts only if it is a voter (thesis 4.2.2).
        self._votes = {state.id: True}
        for voter in state.configurations.latest.voters():
            if voter != state.id:
                request = RequestVote(
                    state.next_term if pre_vote else state.current_term,
                    state.id,
                    voter,
                    last_log_index=state.log.last_index,
                    last_log_term=state.log.last_term,
                    pre_vote=pre_vote,
                    leadership_transfer=leadership_transfer,
                )
                state.send(request)

    def on_request_vote_response(self, message: RequestVoteResponse) -> None:
        """Count the first answer of each server. An answer to an earlier request is worth nothing."""
        is_of_next_term = message.pre_vote and message.vote_granted
        expected = self._state.next_term if is_of_next_term else self._state.current_term
        if message.pre_vote == self._pre_vote and message.term == expected:
            self._votes.setdefault(message.sender, message.vote_granted)

    def is_won(self) -> bool:
        """Return whether a majority of the voters granted their vote."""
        configuration = self._state.configurations.latest
        return sum(self._votes.get(voter, False) for voter in configuration.voters()) >= configuration.quorum()

    def is_lost(self) -> bool:
        """Return whether so many voters refused that no majority is left."""
        configuration = self._state.configurations.latest
        voters = configuration.voters()
        refused = sum(not self._votes.get(voter, True) for voter in voters)
        return refused > len(voters) - configuration.quorum()
