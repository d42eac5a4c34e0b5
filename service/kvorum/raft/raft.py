"""One consensus server: what its driver calls, and every way from role to role (Figure 4).

The driver calls :meth:`Raft.tick`, :meth:`Raft.step` and the proposing methods in any order, then takes everything
there is to do from :meth:`Raft.ready`. What a message means to a role is in the role's own module.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import assert_never

from kvorum.errors import (
    InvariantViolatedError,
    MalformedMessageError,
    MembershipRefusedError,
    NoLeaderError,
    NotLeaderError,
)
from kvorum.raft.candidate import Candidate
from kvorum.raft.config import RaftConfig
from kvorum.raft.election import is_vote_granted
from kvorum.raft.follower import Follower, answer_old_leader
from kvorum.raft.leader import Leader
from kvorum.raft.log import OnDisk
from kvorum.raft.membership import Change, bootstrap_entry
from kvorum.raft.messages import (
    HISTORY_TERMS_MAX,
    INDEX_MAX,
    TERM_JUMP_MAX,
    Configuration,
    Entry,
    EntryKind,
    HandOver,
    HardState,
    LeaderMessage,
    Message,
    NodeId,
    PeerMark,
    Read,
    ReadIndex,
    ReadIndexResponse,
    Ready,
    RequestVote,
    RequestVoteResponse,
    Response,
    Snapshot,
    TimeoutNow,
)
from kvorum.raft.state import State
from kvorum.raft.status import PeerStatus, RaftStatus, Role


class Raft:
    """One server.

    Args:
        config: limits and timeouts.
        random: draws the election timeouts; nothing else is random.
        hard_state: as it was last saved.
        snapshot: the newest durable snapshot, or None.
        entries: the durable entries that follow it, but for those in ``on_disk``.
        on_disk: what is known of those between the snapshot and ``entries``.
        marks: what was known of the other members' disks.
        commit_index: what was known to be committed.

    Raises:
        InvariantViolatedError: the entries leave a gap, are ahead of the term, or carry a configuration that does not
            decode.
    """

    def __init__(
        self,
        config: RaftConfig,
        random: Random,
        *,
        hard_state: HardState | None = None,
        snapshot: Snapshot | None = None,
        entries: Sequence[Entry] = (),
        on_disk: OnDisk | None = None,
        marks: Sequence[PeerMark] = (),
        commit_index: int = 0,
    ) -> None:
        self.config = config
        self._state = State(
            config, random, hard_state or HardState(), snapshot, entries, on_disk or OnDisk(), marks, commit_index
        )
        self._role: Follower | Candidate | Leader = Follower(self._state)
        self.id = config.id
        self.log = self._state.log
        self.configurations = self._state.configurations
        self.marks = self._state.marks
        self.campaign_reason = "timeout"
        """Why this server last campaigned: ``timeout``, ``disconnect`` (of the leader) or ``transfer``."""

    # --- What the driver asks -----------------------------------------------------------------------------------

    @property
    def role(self) -> Role:
        """What this server is in its current term."""
        return self._role.role

    @property
    def leader(self) -> NodeId | None:
        """Who leads the current term, as far as this server has heard."""
        return self._state.leader

    @property
    def voted_for(self) -> NodeId | None:
        """For whom this server voted in its term."""
        return self._state.voted_for

    @property
    def next_term(self) -> int:
        """The term that this server would campaign for."""
        return self._state.next_term

    @property
    def current_term(self) -> int:
        """The latest term that this server has seen; it may not be durable yet."""
        return self._state.current_term

    @property
    def snapshot(self) -> Snapshot | None:
        """The newest snapshot that the log goes on from; one from the leader may not be durable yet."""
        return self._state.snapshot

    @property
    def configuration(self) -> Configuration:
        """The configuration in force: the latest in the log."""
        return self.configurations.latest

    @property
    def is_disk_stalled(self) -> bool:
        """Whether the disk makes no progress; such a server neither leads nor campaigns."""
        return self._state.is_disk_stalled

    @property
    def is_transferring(self) -> bool:
        """Whether this server is handing its leadership over; the driver holds writes meanwhile."""
        return isinstance(self._role, Leader) and self._role.transfer_target is not None

    @property
    def can_change_membership(self) -> bool:
        """Whether a change could be proposed now: this server leads, and no other change is pending."""
        return isinstance(self._role, Leader) and self._role.why_no_change() is None

    def status(self) -> RaftStatus:
        """Return a picture of this server."""
        state, log = self._state, self.log
        leader = self._role if isinstance(self._role, Leader) else None
        timeout = self.config.election_timeout_ticks
        return RaftStatus(
            id=self.id,
            role=self.role,
            term=state.current_term,
            voted_for=state.voted_for,
            leader=state.leader,
            commit_index=log.commit_index,
            applied_index=log.applied_index,
            first_index=log.first_index,
            last_index=log.last_index,
            last_term=log.last_term,
            saved_index=log.saved_index,
            snapshot_index=state.snapshot.last_index if state.snapshot else 0,
            configuration=self.configuration,
            configuration_index=self.configurations.latest_index,
            transfer_target=leader.transfer_target if leader else None,
            progress={
                node: PeerStatus(p.match_index, p.next_index, p.state, p.ticks_since_received < timeout)
                for node, p in (leader.progress if leader else {}).items()
            },
        )

    def bootstrap(self, configuration: Configuration, payloads: Sequence[bytes] = ()) -> None:
        """Write the first entries of a new cluster; called on one server, once in the cluster's life.

        The others learn of them from this server's log. Afterwards it campaigns.

        Args:
            configuration: the first members.
            payloads: commands that follow the configuration in the log.

        Raises:
            MembershipRefusedError: this server is not empty, or not one of the voters.
        """
        if self.current_term or self.log.last_index:
            raise MembershipRefusedError("this server has a log already: it cannot begin a new cluster")
        if self.id not in configuration.voters():
            raise MembershipRefusedError(f"{self.id} is not a voter of the first configuration")
        entry = bootstrap_entry(configuration)
        self._become_follower(entry.term, None)
        commands = [Entry(2 + at, entry.term, EntryKind.COMMAND, data) for at, data in enumerate(payloads)]
        self.log.append([entry, *commands])
        self.configurations.note([entry])
        self._become_pre_candidate()

    def propose(self, payloads: Sequence[bytes]) -> tuple[int, int]:
        """Append commands to the log; return (index of the first, term).

        They are committed if an entry of that term is later handed over at that index. If an entry of another term is,
        they are lost for good.

        Raises:
            NotLeaderError: nothing was appended.
            OverloadedError: nothing was appended: too much waits for a quorum, or the leadership is being transferred.
        """
        return self._leader().propose(payloads), self.current_term

    def propose_change(self, change: Change) -> tuple[int, int]:
        """Append a membership change; return (index, term), which mean the same as for :meth:`propose`.

        Raises:
            NotLeaderError: nothing was appended.
            MembershipRefusedError: nothing was appended: it would not be safe now, or makes no sense.
        """
        return self._leader().propose_change(change), self.current_term

    def transfer_leadership(self, target: NodeId | None = None) -> NodeId:
        """Begin to hand the leadership over (thesis 3.10); return to whom.

        Raises:
            NotLeaderError: this server has none to give.
            TransferFailedError: there is nobody to take it.
        """
        return self._leader().transfer(target)

    def transfer_candidate(self, is_eligible: Callable[[NodeId], bool]) -> NodeId | None:
        """Return the most caught-up of the eligible other voters that answer, or None; None also if another leads."""
        return self._role.transfer_candidate(is_eligible) if isinstance(self._role, Leader) else None

    def _leader(self) -> Leader:
        if not isinstance(self._role, Leader):
            raise NotLeaderError(self.leader)
        return self._role

    def read_index(self, context: int, *, can_wait: bool = False) -> None:
        """Begin a linearizable read barrier (thesis 6.4); a later Ready releases or refuses ``context``.

        ``context`` must never have been used before by this server, restarts included: a late answer would pass for
        a new one. A barrier that ``can_wait`` costs no round of heartbeats of its own: the leader's next regular one
        serves it.

        Raises:
            NoLeaderError: no leader is known.
        """
        if isinstance(self._role, Leader):
            self._role.read_index(self.id, context, can_wait=can_wait)
        elif self.leader is not None:
            self._state.reads.ask(context, can_wait=can_wait)
            self._send_read_index(context, can_wait=can_wait)
        else:
            raise NoLeaderError("no leader is known")

    def abandon_read(self, context: int) -> None:
        """Forget a barrier that nobody waits for any more."""
        self._state.reads.forget(context)
        if isinstance(self._role, Leader):
            self._role.abandon_read(context)

    def set_state_digest(self, index: int, state_hash: int, version: int = 1, state_sum: bytes = b"") -> None:
        """Let the leader's heartbeats carry the state machine's hash after applying ``index``.

        ``version`` is the hash's definition, and ``state_sum`` its second part, if that definition has one.
        """
        if isinstance(self._role, Leader):
            self._role.state_digest = (index, state_hash, version, state_sum)

    def set_unfit(self, is_unfit: bool) -> None:
        """Say whether the state machine is known to be wrong: such a server neither campaigns nor goes on leading."""
        self._state.is_unfit = is_unfit

    def set_free_bytes(self, free_bytes: int | None) -> None:
        """Let the answers to heartbeats carry how much the disk can still store; None: not known."""
        self._state.free_bytes = -1 if free_bytes is None else min(free_bytes, INDEX_MAX - 1)

    def remember(self) -> int:
        """Have the next Ready save what this server knows and no save says: what is committed, and of others' disks.

        It would be lost with the process. Without this, the next save says it, whenever that is.

        Returns:
            The number of the save that says the last of it: compare :attr:`saved_number`.
        """
        return self._state.remember()

    @property
    def is_saving(self) -> bool:
        """Whether a save is in flight: what is appended now is not part of it."""
        return self._state.is_saving

    @property
    def saved_number(self) -> int:
        """The number of the last save that is durable."""
        return self._state.saved_number

    def stand_down(self) -> None:
        """Follow nobody, and campaign no more: the disk cannot be trusted, or the others cannot.

        The driver gives such a server no more messages, and sends none of its own.
        """
        self.set_unfit(True)
        self._become_follower(self.current_term, None)

    def snapshot_at(self, index: int) -> Snapshot:
        """Describe a snapshot of the state after ``index``, which must be applied and in the log.

        Raises:
            InvariantViolatedError: it is not.
        """
        term = self.log.term(index)
        if term is None or index > self.log.applied_index:
            raise InvariantViolatedError(f"no snapshot at {index}: the log is at {self.log.applied_index}")
        return Snapshot(index, term, self.configurations.at(index), self._history(index))

    def _history(self, index: int) -> tuple[tuple[int, int], ...]:
        """Return the terms of all that was ever in this log, up to ``index``: see :attr:`Snapshot.terms`."""
        log = self.log
        before = self.snapshot.terms if self.snapshot is not None else ()
        terms = [run for run in before if run[0] <= log.base_index]
        if not terms and log.base_index:
            terms.append((log.base_index, log.base_term))
        for run in log.terms_up_to(index):
            if not terms or terms[-1][1] != run[1]:
                terms.append(run)
        return tuple(terms[-HISTORY_TERMS_MAX:])

    def compact(self, snapshot: Snapshot, retain: int) -> int:
        """Forget the log before a snapshot of our own that is durable (section 7).

        The last ``retain`` entries of it stay, as far as they are in memory.

        Returns:
            Where the durable log may be cut too: the first index that the log still holds, but nothing that only a
            newer snapshot covers, whose own save may not be done.
        """
        if self.snapshot is None or snapshot.last_index > self.snapshot.last_index:
            self._state.snapshot = snapshot
            # What is not in memory any more is not kept for others.
            in_memory = min(self.log.memory_base_index, snapshot.last_index)
            self.log.compact(max(snapshot.last_index - retain, in_memory))
            self.configurations.compact(self.log.base_index)
        return min(self.log.first_index, snapshot.last_index + 1)

    def reapply_from(self, index: int) -> None:
        """Hand over what follows ``index``: the state machine was rebuilt from a snapshot at ``index``.

        It is handed over again as far as that was done before; :meth:`hold_committed` ends.

        Raises:
            InvariantViolatedError: see :meth:`check_reapply`.
        """
        self.check_reapply(index)
        self.log.applied_index = index
        self._state.is_holding = False

    def give_back(self, index: int, reads: Sequence[Read]) -> None:
        """Take back what :meth:`ready` has just handed over: the entries after ``index``, and reads that wait for them.

        The next calls hand them over again. A driver does so when it must not apply more for now.

        Raises:
            InvariantViolatedError: see :meth:`check_reapply`.
        """
        self.check_reapply(index)
        self.log.applied_index = index
        self._state.reads.give_back(reads)

    def check_reapply(self, index: int) -> None:
        """Check that what follows ``index`` can be handed over.

        Raises:
            InvariantViolatedError: the log does not reach back that far, or it is not known to be committed and durable
                up to there.
        """
        log = self.log
        if not log.base_index <= index <= max(log.applied_index, min(log.commit_index, log.saved_index)):
            raise InvariantViolatedError(
                f"cannot apply from {index}: the log begins at {log.first_index}, and its end is {log.applied_index}"
            )

    # --- Inputs -------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Let one tick pass: the only notion of time."""
        state = self._state
        state.tick()
        if isinstance(self._role, Leader):
            if state.is_disk_stalled or state.is_unfit:
                self._role.resign()
                self._become_follower(state.current_term, None)
            elif not self._role.tick():
                self._become_follower(state.current_term, None)
        elif state.timer.tick():
            if state.is_electable():
                self._become_pre_candidate()
            else:
                self._become_follower(state.current_term, None)  # It waits, but not for a leader that is gone.
        context = state.reads.tick()
        if context is not None:
            self._send_read_index(context)

    def peer_started(self, node: NodeId, start: str) -> None:
        """``node`` called, and speaks for this start of its process from now on.

        Its disk may have been set back before that start. So a leader counts what an earlier process acknowledged
        towards no further commit.
        """
        if self.marks.started(node, start) and isinstance(self._role, Leader):
            self._role.peer_restarted(node)

    def peer_unreachable(self, node: NodeId) -> None:
        """A hint: the connection to ``node`` broke. If it led, do not wait for the whole election timeout.

        Safe when wrong: a pre-vote fails while the others hear the leader.
        """
        if node == self.leader and isinstance(self._role, Follower):
            self._state.timer.leader_unreachable()

    def saved(self, number: int) -> None:
        """The save with this number is durable here.

        Raises:
            InvariantViolatedError: no such save is in flight.
        """
        self._state.saved(number)
        if isinstance(self._role, Leader):
            self._role.advance_commit_index()
            self._step_down_if_removed(self._role)

    def hold_committed(self) -> None:
        """Hand over nothing that is committed, and do not lead, until a snapshot is restored.

        The state machine gives up its state for that of a snapshot. If that was fetched for consensus, call
        :meth:`fetched` next; then it is restored even if the log has passed it meanwhile. Else call
        :meth:`reapply_from`.

        Raises:
            InvariantViolatedError: this server leads.
        """
        if isinstance(self._role, Leader):
            raise InvariantViolatedError("a leader cannot do without its state")
        if isinstance(self._role, Candidate):
            self._become_follower(self._state.current_term, None)
        self._state.is_holding = True

    def fetched(self, snapshot: Snapshot) -> bool:
        """The snapshot that a Ready asked to fetch is durable here. Adopt it if it is ahead of the commit index.

        It helps whoever leads now: a snapshot covers only committed entries.

        Returns:
            Whether a Ready will say ``restore``, unless a later snapshot takes its place.

        Raises:
            CommitsLostError: the snapshot contradicts what is committed here.
            InvariantViolatedError: no such fetch is under way, or this server leads without what is committed.
        """
        state = self._state
        state.end_fetch(snapshot)
        if not state.commit_covered(snapshot):
            if isinstance(self._role, Leader):
                raise InvariantViolatedError(f"the leader lacks the committed entry {snapshot.last_index}")
            if isinstance(self._role, Candidate):
                self._become_follower(state.current_term, None)  # It asked for votes with the log that goes now.
            state.adopt(snapshot)
        elif state.is_holding:
            state.restore(snapshot)
        if isinstance(self._role, Follower):
            self._role.answer_snapshot()
        return state.snapshot is snapshot or state.is_holding

    def fetch_failed(self, snapshot: Snapshot) -> None:
        """The driver gave up fetching this snapshot: the next offer starts a fetch again.

        Raises:
            InvariantViolatedError: no such fetch is under way.
        """
        self._state.end_fetch(snapshot)

    def loaded(self, entries: Sequence[Entry]) -> None:
        """The entries that a Ready asked to load are here; fewer if the log on the disk was cut meanwhile.

        Raises:
            InvariantViolatedError: no load is under way, or the entries are not those of this log.
        """
        self._state.loaded(entries)
        if isinstance(self._role, Leader):
            self._role.log_loaded()

    def ready(self) -> Ready | None:
        """Hand over everything there is to do now, exactly once; None when there is nothing."""
        if isinstance(self._role, Leader) and self._role.is_flush_due:
            self._role.flush()
        return self._state.ready()

    def step(self, message: Message) -> None:
        """Take a message from a peer. One that is not for this server, or of an old term, changes nothing.

        Raises:
            CommitsLostError: the message contradicts what is committed here.
            DiskSetBackError: this server lacks what it acknowledged.
            InvariantViolatedError: the message proves a bug.
            MalformedMessageError: its term is further ahead than elections can explain, or it claims for a stranger to
                lead a term that has another leader; it changed nothing.
        """
        state = self._state
        if message.recipient != self.id or message.sender == self.id:
            return
        if message.term > state.current_term + TERM_JUMP_MAX:
            self._check_term_jump(message)
        if isinstance(message, RequestVote):
            self._on_request_vote(message)
            return
        if message.term < state.current_term:
            answer_old_leader(state, message)
            return
        if message.term > state.current_term and not _is_granted_pre_vote(message):
            # Section 5.1: whoever sees a higher term enters it as a follower.
            self._become_follower(message.term, message.sender if isinstance(message, LeaderMessage) else None)
        if isinstance(message, LeaderMessage):
            self._follow(message.sender).on_message(message)
            return
        if isinstance(message, Response):
            if isinstance(self._role, Leader):
                self._role.on_response(message)
                self._step_down_if_removed(self._role)
            return
        match message:
            case ReadIndex(sender=origin, context=context, can_wait=can_wait):
                if isinstance(self._role, Leader):
                    self._role.read_index(origin, context, can_wait=can_wait)
                else:
                    state.send(ReadIndexResponse(state.current_term, self.id, origin, context=context, index=0))
            case ReadIndexResponse():
                self._on_read_index_response(message)
            case RequestVoteResponse():
                if message.vote_granted and not message.pre_vote and self.configuration.get(message.sender) is not None:
                    state.marks.note(message.sender, message.term, self.id)
                if isinstance(self._role, Candidate):
                    self._role.on_request_vote_response(message)
                    self._count_votes(self._role)
            case TimeoutNow():
                # The leader hands over to this server (thesis 3.10): campaign at once, without a pre-vote.
                if not isinstance(self._role, Leader) and state.is_electable():
                    self._become_candidate(leadership_transfer=True)
            case HandOver():
                pass  # The driver's.
            case _:
                assert_never(message)

    def _check_term_jump(self, message: Message) -> None:
        """Let nobody but the leader of an old cluster, which an empty server joins, move the term so far."""
        if self.current_term or not isinstance(message, LeaderMessage):
            raise MalformedMessageError(
                f"{type(message).__name__} from {message.sender} is of term {message.term}, "
                f"more than {TERM_JUMP_MAX} ahead of term {self.current_term}"
            )

    # --- From role to role --------------------------------------------------------------------------------------

    def _become_follower(self, term: int, leader: NodeId | None) -> Follower:
        """Follow ``leader``, or nobody yet, in ``term``, which is this server's or a later one (section 5.1)."""
        if term > self._state.current_term:
            self._state.set_hard_state(term, None)
        if isinstance(self._role, Leader):
            self._role.abandon_reads()
        self._state.set_leader(leader)
        self._state.timer.restart()
        self._role = follower = Follower(self._state)
        return follower

    def _become_pre_candidate(self) -> None:
        """Ask whether an election could be won, without disturbing anybody (pre-vote, thesis 9.6)."""
        self.campaign_reason = "disconnect" if self._state.timer.is_leader_unreachable else "timeout"
        self._become_follower(self._state.current_term, None)
        self._role = Candidate(self._state, pre_vote=True)
        self._count_votes(self._role)

    def _become_candidate(self, *, leadership_transfer: bool = False) -> None:
        """Start an election (section 5.2)."""
        if leadership_transfer:
            self.campaign_reason = "transfer"
        self._become_follower(self._state.next_term, None)
        self._state.set_hard_state(self._state.current_term, self.id)
        self._role = Candidate(self._state, pre_vote=False, leadership_transfer=leadership_transfer)
        self._count_votes(self._role)

    def _count_votes(self, candidate: Candidate) -> None:
        if candidate.is_won():
            if candidate.role is Role.PRE_CANDIDATE:
                self._become_candidate()
            else:
                self._state.set_leader(self.id)
                self._role = Leader(self._state)
        elif candidate.is_lost():
            self._become_follower(self._state.current_term, None)

    def _step_down_if_removed(self, leader: Leader) -> None:
        """A leader that is no longer a voter steps down when that is committed (thesis 4.2.2)."""
        if leader.is_removed():
            leader.announce_removal()
            self._become_follower(self._state.current_term, None)

    def _follow(self, leader: NodeId) -> Follower:
        """Note that this term's leader was heard.

        Raises:
            InvariantViolatedError: another member leads this term (Election Safety, section 5.2).
            MalformedMessageError: the sender, which is no member here, cannot lead this term.
        """
        state, role = self._state, self._role
        if state.leader not in (None, leader):
            if self.configuration.get(leader) is None:
                raise MalformedMessageError(
                    f"{leader}, which is no member, claims to lead term {state.current_term}; {state.leader} does"
                )
            raise InvariantViolatedError(f"{leader} leads term {state.current_term}, and so does {state.leader}")
        if not isinstance(role, Follower) or state.leader is None:
            role = self._become_follower(state.current_term, leader)
        state.timer.restart()
        return role

    # --- Votes --------------------------------------------------------------------------------------------------

    def _on_request_vote(self, message: RequestVote) -> None:
        """Sections 5.2 and 5.4.1; the lease of section 6; pre-vote, thesis 9.6."""
        state = self._state
        if message.term > state.current_term:
            if not message.leadership_transfer and self._hears_leader():
                return  # A leader is at work here: no answer, and no new term.
            if not message.pre_vote:
                self._become_follower(message.term, None)
        granted = is_vote_granted(message, state.current_term, state.voted_for, self.log)
        if granted and not message.pre_vote:
            state.set_hard_state(state.current_term, message.sender)
            self._become_follower(state.current_term, state.leader)  # A pre-candidate gives way to one ahead of it.
        term = message.term if granted else state.current_term
        response = RequestVoteResponse(term, self.id, message.sender, vote_granted=granted, pre_vote=message.pre_vote)
        state.send(response)

    def _hears_leader(self) -> bool:
        """The lease that protects a working leader from candidates (section 6, thesis 4.2.3)."""
        return isinstance(self._role, Leader) or (self.leader is not None and self._state.timer.is_lease_valid())

    # --- Reads --------------------------------------------------------------------------------------------------

    def _send_read_index(self, context: int, *, can_wait: bool = False) -> None:
        if self.leader is not None:
            message = ReadIndex(self.current_term, self.id, self.leader, context=context, can_wait=can_wait)
            self._state.send(message)

    def _on_read_index_response(self, message: ReadIndexResponse) -> None:
        if message.sender != self.leader:
            return
        if message.index:
            self._state.reads.answered(message.context, message.index)
        else:
            # Whoever led this term and does not now, never will again: it is not asked again, and has no lease.
            self._state.set_leader(None)


def _is_granted_pre_vote(message: Message) -> bool:
    return isinstance(message, RequestVoteResponse) and message.pre_vote and message.vote_granted
