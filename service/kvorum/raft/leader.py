"""What a leader does: replicate, commit, prove that it leads, hand over (5.3, 5.4; thesis 3.10, 4, 6.4).

A :class:`Leader` lives for one term; everything here is the "volatile state on leaders" of Figure 2.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from kvorum.errors import InvariantViolatedError, MembershipRefusedError, OverloadedError, TransferFailedError
from kvorum.raft.log import entry_bytes
from kvorum.raft.membership import (
    AddLearner,
    Change,
    Promote,
    Remove,
    UpdateAddresses,
    changed,
    encode_configuration,
)
from kvorum.raft.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Configuration,
    Entry,
    EntryKind,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    InstallSnapshotResponse,
    NodeId,
    ReadIndexResponse,
    Response,
    TimeoutNow,
)
from kvorum.raft.progress import Progress, ReplicationState
from kvorum.raft.reads import ReadRounds, WaitingRead
from kvorum.raft.state import State
from kvorum.raft.status import Role


class Leader:
    """The leadership of one term. It begins with an empty entry and a heartbeat to every member.

    Args:
        state: what the roles of this server share.
    """

    role = Role.LEADER

    def __init__(self, state: State) -> None:
        self.progress: dict[NodeId, Progress] = {}
        self.transfer_target: NodeId | None = None
        self.is_flush_due = True
        """Something changed since the last :meth:`flush`."""
        self.state_digest: tuple[int, int, int, bytes] = (0, 0, 1, b"")
        """An applied index and the state machine's hash there; heartbeats carry it."""
        self._state = state
        self._id = state.id
        self._term = state.current_term
        self._send = state.send
        self._config = state.config
        self._log = state.log
        self._configurations = state.configurations
        self._reads = ReadRounds()
        self._ticks_since_heartbeat = 0
        self._ticks_since_transfer = 0
        self._uncommitted: deque[Entry] = deque()  # the entries of this term
        self._uncommitted_bytes = 0
        self._track_members()
        # An entry of this term commits what came before it, and makes the commit index current (5.4.2, 8).
        self._first_index = self._append(EntryKind.NOOP, [b""])
        self._broadcast_heartbeat()

    def _track_members(self) -> None:
        """Track exactly the members of the configuration in force."""
        configuration = self._configurations.latest
        others = [member.id for member in configuration.members if member.id != self._id]
        first = self._log.last_index + 1
        self.progress = {node: self.progress.get(node) or Progress(first) for node in others}
        self._other_voters = {node: self.progress[node] for node in configuration.voters() if node in self.progress}
        self._is_voter = self._id in configuration.voters()
        self._quorum = configuration.quorum()
        if self.transfer_target not in self.progress:
            self.transfer_target = None
        self._release_reads()  # A smaller quorum may already have answered.

    def is_removed(self) -> bool:
        """Return whether a committed configuration does not name this server as a voter (thesis 4.2.2)."""
        return not self._is_voter and self._configurations.latest_index <= self._log.commit_index

    # --- Proposals ----------------------------------------------------------------------------------------------

    def propose(self, payloads: Sequence[bytes]) -> int:
        """Append commands; return the index of the first.

        Raises:
            OverloadedError: too many bytes wait for a quorum, or the leadership is being transferred.
        """
        if self.transfer_target is not None:
            raise OverloadedError("the leadership is being transferred")
        if self._uncommitted_bytes > self._config.uncommitted_bytes_max:
            raise OverloadedError(f"{self._uncommitted_bytes} bytes wait for a quorum")
        return self._append(EntryKind.COMMAND, payloads)

    def _append(self, kind: EntryKind, payloads: Sequence[bytes]) -> int:
        """Append entries of this term; they leave with the next flush."""
        first = self._log.last_index + 1
        entries = [Entry(index, self._term, kind, data) for index, data in enumerate(payloads, first)]
        self._log.append(entries)
        self._uncommitted += entries
        self._uncommitted_bytes += sum(map(entry_bytes, entries))
        self._mark_all()
        return first

    def why_no_change(self) -> str | None:
        """Return why no membership change can be proposed now, or None if one can."""
        if not self.has_committed_in_term():
            return "no entry of the leader's term is committed yet; try again"
        if self._configurations.latest_index > self._log.commit_index:
            return "another membership change is not committed yet; try again"
        if self.transfer_target is not None:
            return "the leadership is being transferred; try again"
        return None

    def propose_change(self, change: Change) -> int:
        """Append a configuration and return its index; it is in force at once (thesis 4.1).

        Raises:
            MembershipRefusedError: the change would not be safe now, or makes no sense.
        """
        reason = self.why_no_change()
        if reason is not None:
            raise MembershipRefusedError(reason)
        configuration = changed(self._configurations.latest, change)
        self._check_is_safe(change, configuration)
        index = self._append(EntryKind.CONFIGURATION, [encode_configuration(configuration)])
        self._configurations.append(index, configuration)
        self._track_members()
        return index

    def _check_is_safe(self, change: Change, configuration: Configuration) -> None:
        match change:
            case AddLearner() | UpdateAddresses():
                return
            case Promote(node):
                lag = self._log.last_index - self.progress[node].confirmed_index
                if not self._has_answered(node) or lag > self._config.promote_lag_max:
                    raise MembershipRefusedError(f"{node} has not caught up: it is {lag} entries behind")
            case Remove(node):
                voters = configuration.voters()
                live = [voter for voter in voters if voter == self._id or self._has_answered(voter)]
                if len(live) < configuration.quorum():
                    raise MembershipRefusedError(
                        f"without {node} only {len(live)} of {len(voters)} voters answer: no quorum"
                    )

    def _has_answered(self, node: NodeId) -> bool:
        """Whether it is active and holds what this leader sent: a new leader takes every member for active."""
        progress = self.progress[node]
        return self._is_active(progress) and progress.match_index > 0

    def _is_active(self, progress: Progress) -> bool:
        return progress.ticks_since_received < self._config.election_timeout_ticks

    # --- Time ---------------------------------------------------------------------------------------------------

    def tick(self) -> bool:
        """Let one tick pass. Return False when no quorum answered for an election timeout: step down (thesis 6.2)."""
        self._ticks_since_heartbeat += 1
        for progress in self.progress.values():
            progress.ticks_since_received += 1
            progress.ticks_since_sent += 1
            if progress.state is ReplicationState.SNAPSHOT:
                progress.ticks_since_offered += 1
        if self.transfer_target is not None:
            self._ticks_since_transfer += 1
            if self._ticks_since_transfer >= self._config.election_timeout_ticks:
                self.transfer_target = None
        if not self._hears_quorum():
            return False
        if self._ticks_since_heartbeat >= self._config.heartbeat_timeout_ticks:
            if self._reads.can_start(with_heartbeat=True) and self.has_committed_in_term():
                self._reads.start(self._log.commit_index)
            self._broadcast_heartbeat()
            self._release_reads()  # A quorum of one has answered.
        return True

    def _hears_quorum(self) -> bool:
        active = [progress for progress in self._other_voters.values() if self._is_active(progress)]
        return len(active) + self._is_voter >= self._quorum

    def _broadcast_heartbeat(self) -> None:
        """Tell every member that this server leads, what is committed, and the latest read round."""
        self._ticks_since_heartbeat = 0
        for node, progress in self.progress.items():
            self._send_heartbeat(node, progress)

    def _send_heartbeat(self, node: NodeId, progress: Progress) -> None:
        progress.commit_sent = min(progress.match_index, self._log.commit_index)
        index, state_hash, version, state_sum = self.state_digest
        message = Heartbeat(
            self._term,
            self._id,
            node,
            commit_index=progress.commit_sent,
            round=self._reads.number,
            state_index=index,
            state_hash=state_hash,
            state_hash_version=version,
            state_sum=state_sum,
            saved_index=self._log.saved_index,
        )
        self._send(message)

    # --- Replication --------------------------------------------------------------------------------------------

    def _mark(self, progress: Progress) -> None:
        """Have the next flush consider this follower."""
        progress.is_pending = self.is_flush_due = True

    def _mark_all(self) -> None:
        for progress in self.progress.values():
            progress.is_pending = True
        self.is_flush_due = True

    def flush(self) -> None:
        """Send what can be sent now to the followers for whom something changed: entries, a newer commit index.

        Begin a read round if reads wait and none is out.
        """
        self.is_flush_due = False
        pending = [(node, progress) for node, progress in self.progress.items() if progress.is_pending]
        for node, progress in pending:
            progress.is_pending = False
            self._replicate(node, progress)
        if self._reads.can_start() and self.has_committed_in_term():
            self._reads.start(self._log.commit_index)
            self._broadcast_heartbeat()
            self._release_reads()
        for node, progress in pending:
            # An idle follower learns at once what is committed, a busy one with its next entries.
            if progress.commit_sent < min(progress.match_index, self._log.commit_index) and not progress.has_inflight():
                self._send_heartbeat(node, progress)

    def _replicate(self, node: NodeId, progress: Progress) -> None:
        match progress.state:
            case ReplicationState.PROBE:
                if not progress.probe_sent:
                    progress.probe_sent = True
                    self._send_entries(node, progress, empty=self._log.is_only_on_disk(progress.next_index))
            case ReplicationState.SNAPSHOT:
                # The offer was lost, or the fetch failed. A follower that still fetches ignores this one. Its answers
                # to heartbeats mark it as pending.
                if progress.ticks_since_offered >= self._config.election_timeout_ticks and self._is_active(progress):
                    self._offer_snapshot(node, progress)
            case ReplicationState.REPLICATE:
                while (
                    progress.state is ReplicationState.REPLICATE
                    and progress.next_index <= self._log.last_index
                    and not self._is_window_full(progress)
                ):
                    next_index = progress.next_index
                    if next_index <= self._log.memory_base_index and self._log.is_only_on_disk(next_index):
                        self._log.wanted_index = next_index
                        break
                    self._send_entries(node, progress)

    def log_loaded(self) -> None:
        """Go on with the followers whose next entries were only on the disk."""
        for progress in self.progress.values():
            if progress.next_index <= self._log.memory_base_index:
                self._mark(progress)

    def _is_window_full(self, progress: Progress) -> bool:
        return progress.is_window_full(self._config.inflight_messages_max, self._config.inflight_bytes_max)

    def _send_entries(self, node: NodeId, progress: Progress, *, empty: bool = False) -> None:
        log, index, commit = self._log, progress.next_index - 1, self._log.commit_index
        term = log.term(index)
        if term is None:
            self._offer_snapshot(node, progress)
            return
        entries = () if empty else log.slice(progress.next_index, self._config.append_bytes_max)
        progress.ticks_since_sent = 0
        message = AppendEntries(
            self._term,
            self._id,
            node,
            prev_log_index=index,
            prev_log_term=term,
            entries=entries,
            leader_commit=commit,
            saved_index=log.saved_index,
        )
        self._send(message)
        if progress.state is ReplicationState.REPLICATE:
            progress.commit_sent = commit
            if entries:
                progress.sent(entries[-1].index, sum(map(entry_bytes, entries)))

    def _offer_snapshot(self, node: NodeId, progress: Progress) -> None:
        snapshot = self._state.snapshot
        if snapshot is None:
            raise InvariantViolatedError(
                f"the log begins at {self._log.first_index}, and there is no snapshot before it"
            )
        progress.become_snapshot()
        self._send(InstallSnapshot(self._term, self._id, node, snapshot=snapshot))

    def on_response(self, message: Response) -> None:
        """A member answered; what one that is no member says counts for nothing."""
        progress = self.progress.get(message.sender)
        if progress is None:
            return
        progress.ticks_since_received = 0
        match message:
            case AppendEntriesResponse(success=True) | InstallSnapshotResponse():
                self._on_match(message.sender, progress, message.index)
            case AppendEntriesResponse():
                self._on_refusal(progress, message)
            case HeartbeatResponse():
                self._on_heartbeat_response(message, progress)

    def peer_restarted(self, node: NodeId) -> None:
        """Count what a member acknowledged towards no further commit before its present process acknowledges it too."""
        progress = self.progress.get(node)
        if progress is not None:
            progress.restarted()

    def _on_match(self, node: NodeId, progress: Progress, index: int) -> None:
        if index > self._log.last_index:
            return  # It claims what was never sent to it: refuse to count it.
        progress.is_pending = self.is_flush_due = True  # As _mark, without a call: this runs for each acknowledgement.
        is_news = progress.matched(index)
        if progress.state is ReplicationState.PROBE or (
            progress.state is ReplicationState.SNAPSHOT and progress.match_index >= self._log.base_index
        ):
            progress.become_replicate()
        if is_news:
            term = self._term if index >= self._first_index else self._log.term(index)
            self._state.marks.note(node, self._term, None, index, term)
            self.advance_commit_index()
        if node == self.transfer_target and progress.confirmed_index == self._log.last_index:
            self._send_timeout_now(node)

    def _on_refusal(self, progress: Progress, message: AppendEntriesResponse) -> None:
        """The logs do not match at ``message.index`` (section 5.3)."""
        self._mark(progress)
        if progress.state is ReplicationState.REPLICATE and message.index > progress.match_index:
            progress.become_probe()
        elif progress.state is ReplicationState.PROBE and message.index == progress.next_index - 1:
            hint = min(message.hint_index, message.index - 1)
            agreed, _ = self._log.find_conflict_by_term(hint, message.hint_term)
            progress.next_index = max(progress.match_index, min(agreed, message.index - 1)) + 1
            progress.probe_sent = False

    def _on_heartbeat_response(self, message: HeartbeatResponse, progress: Progress) -> None:
        acknowledged = min(message.round, self._reads.number)
        if acknowledged > progress.acknowledged_round:
            progress.acknowledged_round = acknowledged
            self._release_reads()
        # Read rounds are answered much more often than heartbeats: what was just sent is not sent again.
        if progress.ticks_since_sent >= self._config.heartbeat_timeout_ticks:
            self._mark(progress)
            self._repeat_lost(message.sender, progress)

    def _repeat_lost(self, node: NodeId, progress: Progress) -> None:
        """Nothing was sent for a while: what was sent before may be lost."""
        progress.probe_sent = False
        if progress.state is not ReplicationState.REPLICATE or progress.confirmed_index >= self._log.last_index:
            return
        if self._log.term(progress.next_index - 1) is None:
            progress.become_probe()  # The log was compacted meanwhile: only a snapshot can be offered.
        elif progress.next_index > self._log.last_index or self._is_window_full(progress):
            # If something was lost, this empty one is refused, and the follower is probed.
            self._send_entries(node, progress, empty=True)

    # --- Commit -------------------------------------------------------------------------------------------------

    def advance_commit_index(self) -> None:
        """Commit what a majority of voters has durable, if it is of this term (section 5.4.2).

        This server's own log counts as far as it is saved: to consensus the local disk is one more voter.
        """
        log = self._log
        matches = [progress.confirmed_index for progress in self._other_voters.values()]
        index = self._quorum_reached(log.saved_index, matches)
        if index <= log.commit_index or log.term(index) != self._term:
            return
        log.commit_to(index)
        while self._uncommitted and self._uncommitted[0].index <= index:
            self._uncommitted_bytes -= entry_bytes(self._uncommitted.popleft())
        self._mark_all()

    def _quorum_reached(self, own: int, others: list[int]) -> int:
        """Return the highest number that a quorum of voters has reached."""
        numbers = sorted([*others, own] if self._is_voter else others)
        return numbers[-self._quorum]

    def has_committed_in_term(self) -> bool:
        """Return whether an entry of this term is committed: from then on the commit index is current (thesis 6.4)."""
        return self._log.term(self._log.commit_index) == self._term

    # --- Reads --------------------------------------------------------------------------------------------------

    def read_index(self, origin: NodeId, context: int, *, can_wait: bool = False) -> None:
        """Begin a read barrier for this server or a follower; one that can wait begins with the next heartbeats."""
        read = WaitingRead(origin, context)
        if origin == self._id:
            self._reads.add(read, can_wait=can_wait)
        else:
            self._reads.add_latest(read, can_wait=can_wait)
        self.is_flush_due = True

    def abandon_read(self, context: int) -> None:
        """Forget a barrier of this server's own that nobody waits for any more."""
        self._reads.discard(WaitingRead(self._id, context))

    def _release_reads(self) -> None:
        if not self._reads.is_out:
            return
        rounds = [progress.acknowledged_round for progress in self._other_voters.values()]
        for read, index in self._reads.confirmed(self._quorum_reached(self._reads.number, rounds)):
            if read.origin == self._id:
                self._state.reads.passed(read.context, index)
            else:
                self._send(ReadIndexResponse(self._term, self._id, read.origin, context=read.context, index=index))
        if self._reads.can_start():
            self.is_flush_due = True  # The reads that wait begin the next round.

    def abandon_reads(self) -> None:
        """Give up every read: the leadership is over."""
        self._state.reads.refused(read.context for read in self._reads.drain() if read.origin == self._id)

    # --- Handing over -------------------------------------------------------------------------------------------

    def transfer(self, target: NodeId | None) -> NodeId:
        """Begin to hand the leadership to ``target``, or to the most caught-up voter (thesis 3.10).

        Proposals are refused until it is over, or an election timeout has passed.

        Raises:
            TransferFailedError: there is nobody to hand it to: no other voter, or none that answers.
        """
        if target is None:
            target = self.transfer_candidate()
        if target is None:
            raise TransferFailedError("no other voter answers")
        if target not in self._other_voters:
            raise TransferFailedError(f"{target} is not another voter")
        if not self._is_active(self.progress[target]):
            raise TransferFailedError(f"{target} does not answer")
        self.transfer_target = target
        self._ticks_since_transfer = 0
        if self.progress[target].confirmed_index == self._log.last_index:
            self._send_timeout_now(target)
        return target

    def resign(self) -> None:
        """Let the most caught-up voter campaign at once: this server cannot go on as leader."""
        target = self.transfer_candidate()
        if target is not None:
            self._send_timeout_now(target)

    def announce_removal(self) -> None:
        """Tell the others that the configuration without this server is committed, and resign (thesis 4.2.2)."""
        self._broadcast_heartbeat()
        self.resign()

    def transfer_candidate(self, is_eligible: Callable[[NodeId], bool] = lambda _: True) -> NodeId | None:
        """Return who should lead next: of the eligible other voters that answer, the one that holds most of the log."""
        voters = self._other_voters.items()
        active = [node for node, progress in voters if self._is_active(progress) and is_eligible(node)]
        return max(active, key=lambda node: self.progress[node].confirmed_index, default=None)

    def _send_timeout_now(self, node: NodeId) -> None:
        self._send(TimeoutNow(self._term, self._id, node))
