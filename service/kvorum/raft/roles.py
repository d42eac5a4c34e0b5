"""The term, vote and role of one server, and every way from role to role (Figure 4; sections 5.1, 5.2, 6; thesis 9.6).

What a server does with its log is :class:`~kvorum.raft.raft.Raft`'s; what it does while it leads, the
:class:`~kvorum.raft.leader.Leader`'s, which begins and ends here.
"""

from __future__ import annotations

from random import Random

from kvorum.errors import InvariantViolated
from kvorum.raft.config import RaftConfig
from kvorum.raft.election import Ballot, ElectionTimer, is_vote_granted
from kvorum.raft.leader import Leader
from kvorum.raft.log import RaftLog
from kvorum.raft.membership import Configurations
from kvorum.raft.messages import EntryKind, HardState, NodeId, RequestVote, RequestVoteResponse
from kvorum.raft.outbox import Outbox
from kvorum.raft.reads import OwnReads
from kvorum.raft.saves import Saves
from kvorum.raft.status import Role


class Roles:
    """What this server is. It shares everything it is given with its :class:`~kvorum.raft.raft.Raft`.

    Args:
        config: the server's limits and timeouts.
        random: draws the election timeouts.
        hard_state: the term and vote on disk.
        log: the server's log.
        configurations: the configurations in the log.
        outbox: where messages go.
        saves: what is on its way to the disk.
        reads: the reads that this server's driver waits for.
    """

    def __init__(
        self,
        config: RaftConfig,
        random: Random,
        hard_state: HardState,
        log: RaftLog,
        configurations: Configurations,
        outbox: Outbox,
        saves: Saves,
        reads: OwnReads,
    ) -> None:
        self.role = Role.FOLLOWER
        self.leader: NodeId | None = None
        self.leader_state: Leader | None = None
        """What this server knows while it leads; None while it does not."""
        self.current_term = hard_state.current_term
        self.voted_for = hard_state.voted_for
        self.campaign_reason = "timeout"
        """Why this server last campaigned: ``timeout``, ``disconnect`` (of the leader) or ``transfer``."""
        self._config = config
        self._log = log
        self._configurations = configurations
        self._outbox = outbox
        self._saves = saves
        self._reads = reads
        self._timer = ElectionTimer(config, random)
        self._ballot = Ballot(config.id)

    # --- Time ---------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Let one tick pass: a leader proves itself or steps down, anybody else waits for a leader or campaigns."""
        if self.leader_state is not None:
            if self.is_disk_stalled:
                self.leader_state.send_timeout_now_to_the_furthest()
                self.become_follower(self.current_term, None)
            elif not self.leader_state.tick():
                self.become_follower(self.current_term, None)
            return
        if self._timer.tick():
            if self._is_electable():
                self.campaign_softly()
            else:
                self.become_follower(self.current_term, None)  # It can only wait, but not for a leader that is gone.

    @property
    def is_disk_stalled(self) -> bool:
        """Whether the disk makes no progress: such a server must not lead, it would commit nothing (bug B8)."""
        return self._saves.is_stalled(self._config.save_timeout_ticks or self._config.election_timeout_ticks)

    def suspect(self, node: NodeId) -> None:
        """The connection to ``node`` broke: if it led, do not wait for the whole election timeout."""
        if node == self.leader and self.role is Role.FOLLOWER:
            self._timer.suspect_leader()

    def _is_electable(self) -> bool:
        is_voter = self._configurations.has_voter(self._config.id, self._log.commit_index)
        return is_voter and not self._saves.is_restoring and not self.is_disk_stalled

    def _hears_leader(self) -> bool:
        """The lease that protects a working leader from candidates (section 6, thesis 4.2.3)."""
        return self.role is Role.LEADER or (self.leader is not None and self._timer.is_lease_valid())

    def forget_leader(self) -> None:
        """The leader of this term says that it leads no more: it is not asked again, and has no lease."""
        self.leader = None
        self._reads.leader_changed()

    # --- From role to role --------------------------------------------------------------------------------------

    def become_follower(self, term: int, leader: NodeId | None) -> None:
        """Follow ``leader``, or nobody yet, in ``term``, which is this server's or a later one (section 5.1)."""
        if term > self.current_term:
            self._set_hard_state(term, None)
        if self.leader_state is not None:
            self._reads.refused(self.leader_state.abandon_reads())
            self.leader_state = None
        if leader != self.leader:
            self._reads.leader_changed()
        self.role = Role.FOLLOWER
        self.leader = leader
        self._timer.restart()

    def campaign_softly(self) -> None:
        """Ask whether an election could be won, without disturbing anybody (pre-vote, thesis 9.6)."""
        self.campaign_reason = "disconnect" if self._timer.is_leader_suspected else "timeout"
        self.become_follower(self.current_term, None)
        self.role = Role.PRE_CANDIDATE
        self._ask_for_votes(pre_vote=True, leadership_transfer=False)

    def _campaign(self, *, leadership_transfer: bool) -> None:
        """Start an election (section 5.2)."""
        self.become_follower(self.current_term + 1, None)
        self._set_hard_state(self.current_term, self._config.id)
        self.role = Role.CANDIDATE
        if leadership_transfer:
            self.campaign_reason = "transfer"
        self._ask_for_votes(pre_vote=False, leadership_transfer=leadership_transfer)

    def _ask_for_votes(self, *, pre_vote: bool, leadership_transfer: bool) -> None:
        self._ballot = Ballot(self._config.id)
        for voter in self._configurations.latest.voters():
            if voter == self._config.id:
                continue
            self._outbox.send(
                RequestVote(
                    term=self.current_term + 1 if pre_vote else self.current_term,
                    sender=self._config.id,
                    recipient=voter,
                    last_log_index=self._log.last_index,
                    last_log_term=self._log.last_term,
                    pre_vote=pre_vote,
                    leadership_transfer=leadership_transfer,
                )
            )
        self._count_votes()

    def _count_votes(self) -> None:
        if self._ballot.is_won(self._configurations.latest):
            if self.role is Role.PRE_CANDIDATE:
                self._campaign(leadership_transfer=False)
            else:
                self._become_leader()
        elif self._ballot.is_lost(self._configurations.latest):
            self.become_follower(self.current_term, None)

    def _become_leader(self) -> None:
        self.role = Role.LEADER
        self.leader = self._config.id
        self.leader_state = Leader(self._config, self.current_term, self._log, self._configurations, self._outbox)
        # An entry of this term commits what came before it, and makes the commit index current (5.4.2, 8).
        self.leader_state.append(EntryKind.NOOP, [b""])
        self.leader_state.broadcast_heartbeat()

    def leave_if_removed(self) -> None:
        """A leader that is no longer a voter leaves when that is committed (thesis 4.2.2)."""
        state = self.leader_state
        member = self._configurations.latest.get(self._config.id)
        if state is None or (member is not None and member.voter):
            return
        if self._configurations.latest_index <= self._log.commit_index:
            state.broadcast_heartbeat()
            state.send_timeout_now_to_the_furthest()
            self.become_follower(self.current_term, None)

    def _set_hard_state(self, current_term: int, voted_for: NodeId | None) -> None:
        self.current_term, self.voted_for = current_term, voted_for
        self._outbox.enter(HardState(current_term, voted_for))

    # --- Messages -----------------------------------------------------------------------------------------------

    def follow(self, leader: NodeId) -> None:
        """A message from this term's leader came.

        Raises:
            InvariantViolated: another server leads this term (Election Safety, section 5.2).
        """
        if self.leader_state is not None:
            raise InvariantViolated(f"{leader} also leads term {self.current_term}, which this server won")
        if self.leader not in (None, leader):
            raise InvariantViolated(f"{leader} leads term {self.current_term}, and so does {self.leader}")
        if self.role is not Role.FOLLOWER or self.leader != leader:
            self.become_follower(self.current_term, leader)
        self._timer.restart()

    def on_request_vote(self, message: RequestVote) -> None:
        """Sections 5.2 and 5.4.1; the lease of section 6; pre-vote, thesis 9.6."""
        if not message.leadership_transfer and self._hears_leader() and message.term > self.current_term:
            return  # A leader is at work here: no answer, and no new term.
        if message.term > self.current_term and not message.pre_vote:
            self.become_follower(message.term, None)
        granted = is_vote_granted(message, self.current_term, self.voted_for, self._log)
        if granted and not message.pre_vote:
            self._set_hard_state(self.current_term, message.sender)
            self.role = Role.FOLLOWER  # A pre-candidate gives way: the other is ahead of it.
            self._timer.restart()
        response = RequestVoteResponse(
            term=message.term if granted else self.current_term,
            sender=self._config.id,
            recipient=message.sender,
            vote_granted=granted,
            pre_vote=message.pre_vote,
        )
        self._outbox.send(response)

    def on_request_vote_response(self, message: RequestVoteResponse) -> None:
        """Count an answer to this ballot; those to an earlier one are worth nothing (bug B4)."""
        if message.pre_vote:
            asked_term = self.current_term + 1 if message.vote_granted else self.current_term
            if self.role is not Role.PRE_CANDIDATE or message.term != asked_term:
                return
        elif self.role is not Role.CANDIDATE or message.term != self.current_term:
            return
        self._ballot.record(message.sender, message.vote_granted)
        self._count_votes()

    def on_timeout_now(self) -> None:
        """The leader hands over to this server (thesis 3.10): campaign at once, without a pre-vote."""
        if self.leader_state is None and self._is_electable():
            self._campaign(leadership_transfer=True)
