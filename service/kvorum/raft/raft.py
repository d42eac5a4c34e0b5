"""One consensus server: a synchronous, deterministic state machine.

No clock, no I/O, no randomness but the injected one. The driver calls :meth:`Raft.tick`, :meth:`Raft.step` and the
proposing methods in any order, then takes everything there is to do from :meth:`Raft.ready`.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import assert_never

from kvorum.errors import InvariantViolated, MembershipRefused, NoLeader, NotLeader
from kvorum.raft.config import RaftConfig
from kvorum.raft.follower import answer_an_old_leader, answer_append_entries
from kvorum.raft.leader import Leader
from kvorum.raft.log import RaftLog
from kvorum.raft.membership import Change, Configurations, bootstrap_entry
from kvorum.raft.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Configuration,
    Entry,
    HardState,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    InstallSnapshotResponse,
    Message,
    NodeId,
    ReadIndex,
    ReadIndexResponse,
    Ready,
    RequestVote,
    RequestVoteResponse,
    Save,
    Snapshot,
    TimeoutNow,
)
from kvorum.raft.outbox import Outbox
from kvorum.raft.reads import OwnReads
from kvorum.raft.roles import Roles
from kvorum.raft.saves import Saves
from kvorum.raft.status import PeerStatus, RaftStatus, Role


class Raft:
    """One server.

    Args:
        config: limits and timeouts.
        random: draws the election timeouts; nothing else is random.
        hard_state: as it was last saved.
        snapshot: the newest durable snapshot, or None.
        entries: the durable entries that follow it.

    Raises:
        InvariantViolated: the entries leave a gap, are ahead of the term, or carry a configuration that does not
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
    ) -> None:
        self.config = config
        self.snapshot = snapshot
        hard_state = hard_state or HardState()
        self.log = RaftLog(snapshot.last_index if snapshot else 0, snapshot.last_term if snapshot else 0, entries)
        if self.log.last_term > hard_state.current_term:
            raise InvariantViolated(
                f"the log is in term {self.log.last_term}, yet the term is {hard_state.current_term}"
            )
        self.configurations = Configurations(
            snapshot.last_index if snapshot else 0, snapshot.configuration if snapshot else Configuration()
        )
        self.configurations.note(entries)
        self._outbox = Outbox(hard_state)
        self._saves = Saves()
        self._reads = OwnReads(config.heartbeat_timeout_ticks)
        self._roles = Roles(
            config, random, hard_state, self.log, self.configurations, self._outbox, self._saves, self._reads
        )

    # --- What the driver asks -----------------------------------------------------------------------------------

    @property
    def id(self) -> NodeId:
        """This server's own id."""
        return self.config.id

    @property
    def role(self) -> Role:
        """What this server is in its current term."""
        return self._roles.role

    @property
    def leader(self) -> NodeId | None:
        """Who leads the current term, as far as this server has heard."""
        return self._roles.leader

    @property
    def current_term(self) -> int:
        """The latest term that this server has seen; it may not be durable yet."""
        return self._roles.current_term

    @property
    def voted_for(self) -> NodeId | None:
        """Who got this server's vote in the current term."""
        return self._roles.voted_for

    @property
    def campaign_reason(self) -> str:
        """Why this server last campaigned: ``timeout``, ``disconnect`` (of the leader) or ``transfer``."""
        return self._roles.campaign_reason

    @property
    def configuration(self) -> Configuration:
        """The configuration in force: the latest in the log."""
        return self.configurations.latest

    @property
    def _leader_state(self) -> Leader | None:
        return self._roles.leader_state

    @property
    def is_transferring(self) -> bool:
        """Whether this server is handing its leadership over; the driver holds writes meanwhile."""
        return self._leader_state is not None and self._leader_state.transfer_target is not None

    @property
    def can_change_membership(self) -> bool:
        """Whether a change could be proposed now: we lead, in a term with a committed entry, and none is pending."""
        return (
            self._leader_state is not None
            and self._leader_state.has_committed_in_term()
            and self.configurations.latest_index <= self.log.commit_index
            and not self.is_transferring
        )

    def status(self) -> RaftStatus:
        """Return a picture of this server."""
        state = self._leader_state
        timeout = self.config.election_timeout_ticks
        return RaftStatus(
            id=self.id,
            role=self.role,
            term=self.current_term,
            voted_for=self.voted_for,
            leader=self.leader,
            commit_index=self.log.commit_index,
            applied_index=self.log.applied_index,
            first_index=self.log.first_index,
            last_index=self.log.last_index,
            saved_index=self.log.saved_index,
            snapshot_index=self.snapshot.last_index if self.snapshot else 0,
            configuration=self.configuration,
            configuration_index=self.configurations.latest_index,
            transfer_target=state.transfer_target if state else None,
            progress={
                node: PeerStatus(p.match_index, p.next_index, p.state, p.silent_ticks < timeout)
                for node, p in (state.progress if state else {}).items()
            },
        )

    def bootstrap(self, configuration: Configuration) -> None:
        """Write the first configuration of a new cluster; called on one server, once in the cluster's life.

        The others learn of it from this server's log. Afterwards it campaigns.

        Raises:
            MembershipRefused: this server is not empty, or not one of the voters.
        """
        if self.current_term or self.log.last_index:
            raise MembershipRefused("this server has a log already: it cannot begin a new cluster")
        if self.id not in configuration.voters():
            raise MembershipRefused(f"{self.id} is not a voter of the first configuration")
        entry = bootstrap_entry(configuration)
        self._roles.become_follower(entry.term, None)
        self.log.append([entry])
        self.configurations.note([entry])
        self._roles.campaign_softly()

    def propose(self, payloads: Sequence[bytes]) -> tuple[int, int]:
        """Append commands to the log; return (index of the first, term).

        They are committed if an entry of that term is later handed over at that index; if another term's is, they are
        lost for good.

        Raises:
            NotLeader: nothing was appended.
            Overloaded: nothing was appended: too much waits for a quorum, or the leadership is being handed over.
        """
        if self._leader_state is None:
            raise NotLeader(self.leader)
        return self._leader_state.propose(payloads), self.current_term

    def propose_change(self, change: Change) -> int:
        """Append a membership change; return its index.

        Raises:
            NotLeader: nothing was appended.
            MembershipRefused: nothing was appended: it would not be safe now, or makes no sense.
        """
        if self._leader_state is None:
            raise NotLeader(self.leader)
        return self._leader_state.propose_change(change)

    def transfer_leadership(self, target: NodeId | None = None) -> NodeId:
        """Begin to hand the leadership over (thesis 3.10); return to whom.

        Raises:
            NotLeader: this server has none to give.
            TransferFailed: there is nobody to take it.
        """
        if self._leader_state is None:
            raise NotLeader(self.leader)
        return self._leader_state.transfer(target)

    def read_index(self, context: int) -> None:
        """Begin a linearizable read barrier (thesis 6.4); a later Ready releases or refuses ``context``.

        ``context`` must never have been used before by this server, restarts included: a late answer would pass for
        a new one.

        Raises:
            NoLeader: nobody to ask.
        """
        if self._leader_state is not None:
            self._leader_state.read_index(self.id, context)
        elif self.leader is not None:
            self._reads.ask(context)
            self._send_read_index(context)
        else:
            raise NoLeader("no leader is known")

    def abandon_read(self, context: int) -> None:
        """Forget a barrier that nobody waits for any more."""
        self._reads.forget(context)
        if self._leader_state is not None:
            self._leader_state.abandon_read(context)

    def set_state_digest(self, index: int, state_hash: int) -> None:
        """Let the leader's heartbeats carry the state machine's hash after applying ``index``."""
        if self._leader_state is not None:
            self._leader_state.state_index, self._leader_state.state_hash = index, state_hash

    def snapshot_at(self, index: int) -> Snapshot:
        """Describe a snapshot of the state after ``index``, which must be applied and in the log.

        Raises:
            InvariantViolated: it is not.
        """
        term = self.log.term(index)
        if term is None or index > self.log.applied_index:
            raise InvariantViolated(f"no snapshot at {index}: the log is at {self.log.applied_index}")
        return Snapshot(index, term, self.configurations.at(index))

    def compact(self, snapshot: Snapshot, retain: int) -> int:
        """A snapshot of our own is durable: forget the log before it, but for ``retain`` entries (section 7).

        Returns:
            Where the durable log may be cut too: the first index that the log still holds, but nothing that only a
            newer snapshot covers, whose own save may not be done.
        """
        if self.snapshot is None or snapshot.last_index > self.snapshot.last_index:
            self.snapshot = snapshot
            self.log.compact(snapshot.last_index - retain)
            self.configurations.compact(self.log.base_index)
        return min(self.log.first_index, snapshot.last_index + 1)

    def reapply_from(self, index: int) -> None:
        """Hand over again what follows ``index``: the state machine was rebuilt from a snapshot at ``index``.

        Raises:
            InvariantViolated: the log does not reach back that far.
        """
        if not self.log.base_index <= index <= self.log.applied_index:
            raise InvariantViolated(f"cannot apply again from {index}: the log begins at {self.log.first_index}")
        self.log.applied_index = index

    def peer_unreachable(self, node: NodeId) -> None:
        """A hint: the connection to ``node`` broke. If it led, do not wait for the whole election timeout.

        Safe when wrong: a pre-vote fails while the others hear the leader.
        """
        self._roles.suspect(node)

    # --- Time ---------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Let one tick pass: the only notion of time."""
        self._saves.tick()
        self._roles.tick()
        context = self._reads.tick()
        if context is not None:
            self._send_read_index(context)

    @property
    def is_disk_stalled(self) -> bool:
        """Whether the disk makes no progress; such a server neither leads nor campaigns (bug B8)."""
        return self._roles.is_disk_stalled

    # --- Messages -----------------------------------------------------------------------------------------------

    def step(self, message: Message) -> None:
        """Take a message from a peer. One that is not for this server, or of an old term, changes nothing.

        Raises:
            InvariantViolated: the message contradicts what is committed: a bug, or another cluster's.
        """
        if message.recipient != self.id or message.sender == self.id:
            return
        if isinstance(message, RequestVote):
            self._roles.on_request_vote(message)
            return
        if message.term > self.current_term and not self._is_granted_pre_vote(message):
            # Section 5.1: whoever sees a higher term enters it as a follower.
            self._roles.become_follower(message.term, message.sender if self._is_from_leader(message) else None)
        elif message.term < self.current_term:
            for answer in answer_an_old_leader(self.id, self.current_term, message):
                self._outbox.send(answer)
            return
        self._dispatch(message)

    @staticmethod
    def _is_granted_pre_vote(message: Message) -> bool:
        return isinstance(message, RequestVoteResponse) and message.pre_vote and message.vote_granted

    @staticmethod
    def _is_from_leader(message: Message) -> bool:
        return isinstance(message, AppendEntries | Heartbeat | InstallSnapshot)

    def _dispatch(self, message: Message) -> None:
        match message:
            case RequestVoteResponse():
                self._roles.on_request_vote_response(message)
            case AppendEntries():
                self._roles.follow(message.sender)
                self._on_append_entries(message)
            case Heartbeat():
                self._roles.follow(message.sender)
                self._on_heartbeat(message)
            case InstallSnapshot():
                self._roles.follow(message.sender)
                self._on_install_snapshot(message)
            case AppendEntriesResponse():
                if self._leader_state is not None:
                    self._leader_state.on_append_entries_response(message)
                    self._roles.leave_if_removed()
            case HeartbeatResponse():
                if self._leader_state is not None:
                    self._leader_state.on_heartbeat_response(message)
            case InstallSnapshotResponse():
                if self._leader_state is not None:
                    self._leader_state.on_install_snapshot_response(message)
                    self._roles.leave_if_removed()
            case ReadIndex():
                self._on_read_index(message)
            case ReadIndexResponse():
                self._on_read_index_response(message)
            case TimeoutNow():
                self._roles.on_timeout_now()
            case RequestVote():
                pass  # Taken in step(): its term is handled by rules of its own.
            case _:
                assert_never(message)

    def _on_append_entries(self, message: AppendEntries) -> None:
        response, appended = answer_append_entries(self.id, self.current_term, self.log, message)
        if appended:
            self.configurations.truncate(appended[0].index)
            self.configurations.note(appended)
        self._outbox.send(response, after_save=response.success and response.index > self.log.saved_index)

    def _on_heartbeat(self, message: Heartbeat) -> None:
        self.log.commit_to(message.commit_index)
        self._outbox.send(
            HeartbeatResponse(term=self.current_term, sender=self.id, recipient=message.sender, round=message.round)
        )

    def _on_install_snapshot(self, message: InstallSnapshot) -> None:
        """Section 7. The driver has fetched the snapshot and made it durable before it steps this."""
        snapshot = message.snapshot
        if snapshot.last_index > self.log.commit_index:
            if self.log.matches(snapshot.last_index, snapshot.last_term):
                # The log already holds what the snapshot covers: keep what follows it.
                self.log.commit_to(snapshot.last_index)
            else:
                self.log.restore(snapshot.last_index, snapshot.last_term)
                self.configurations.restore(snapshot.last_index, snapshot.configuration)
                self.snapshot = snapshot
                self._saves.adopt(snapshot)
        elif self.log.term(snapshot.last_index) not in (None, snapshot.last_term):
            raise InvariantViolated(
                f"{message.sender} has a snapshot at {snapshot.last_index} of term {snapshot.last_term}, "
                f"yet an entry of term {self.log.term(snapshot.last_index)} is committed there"
            )
        self._outbox.send(
            InstallSnapshotResponse(
                term=self.current_term, sender=self.id, recipient=message.sender, index=self.log.commit_index
            ),
            after_save=self.log.commit_index > self.log.saved_index,
        )

    # --- Reads --------------------------------------------------------------------------------------------------

    def _send_read_index(self, context: int) -> None:
        if self.leader is not None:
            self._outbox.send(ReadIndex(term=self.current_term, sender=self.id, recipient=self.leader, context=context))

    def _on_read_index(self, message: ReadIndex) -> None:
        if self._leader_state is not None:
            self._leader_state.read_index(message.sender, message.context)
            return
        self._outbox.send(
            ReadIndexResponse(
                term=self.current_term, sender=self.id, recipient=message.sender, context=message.context, index=0
            )
        )

    def _on_read_index_response(self, message: ReadIndexResponse) -> None:
        if message.sender != self.leader:
            return
        if message.index:
            self._reads.answered(message.context, message.index)
        else:
            # Whoever led this term and does not now, never will again.
            self._roles.forget_leader()

    # --- Handing over -------------------------------------------------------------------------------------------

    def saved(self, number: int) -> None:
        """The save with this number is durable here.

        Raises:
            InvariantViolated: no such save is in flight.
        """
        self._outbox.durable = self._saves.done(number)
        self.log.saved()
        if self._leader_state is not None:
            self._leader_state.maybe_commit()
            self._roles.leave_if_removed()

    def ready(self) -> Ready | None:
        """Hand over everything there is to do now, exactly once; None when there is nothing."""
        if self._leader_state is not None:
            self._leader_state.flush(self.snapshot)
            self._reads.passed(self._leader_state.released)
            self._leader_state.released = []
        save = self._take_save()
        messages_after_save: tuple[Message, ...] = ()
        messages = self._outbox.take_immediate()
        if save is not None:
            messages_after_save = self._outbox.take_after_save()
        elif not self._saves.is_in_flight:
            # Nothing is unsaved any more: what waited need not wait for another save.
            messages += self._outbox.take_after_save()
        restore = self._saves.take_restore()
        if restore is not None:
            self.log.applied_index = restore.last_index
        committed = self.log.take_applicable(self.config.committed_bytes_max) if self.log.has_applicable() else ()
        reads, refused = self._reads.take(self.log.applied_index), self._reads.take_refused()
        if not (save or messages or messages_after_save or restore or committed or reads or refused):
            return None
        return Ready(save, messages, messages_after_save, restore, committed, reads, refused)

    def _take_save(self) -> Save | None:
        is_saved = self._outbox.current == self._outbox.durable and not self.log.has_unsaved()
        if self._saves.is_in_flight or (is_saved and not self._saves.has_snapshot):
            return None
        return self._saves.begin(self._outbox.current, self.log.take_unsaved())
