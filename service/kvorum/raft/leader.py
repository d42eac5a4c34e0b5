"""What a server does while it leads: replicate, commit, prove that it leads, hand over (5.3, 5.4, thesis 4, 6.4).

A :class:`Leader` lives for one term of one leader; everything here is the "volatile state on leaders" of Figure 2.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from kvorum.errors import MembershipRefused, Overloaded, TransferFailed
from kvorum.raft.config import RaftConfig
from kvorum.raft.log import RaftLog, entry_bytes
from kvorum.raft.membership import AddLearner, Change, Configurations, Promote, Remove, changed, encode_configuration
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
    Snapshot,
    TimeoutNow,
)
from kvorum.raft.outbox import Outbox
from kvorum.raft.progress import Progress, ReplicationState
from kvorum.raft.reads import ReadRounds, WaitingRead


class Leader:
    """One leadership. It shares the log, the configurations and the outbox with its :class:`~kvorum.raft.raft.Raft`.

    Args:
        config: the server's limits and timeouts.
        term: the term that was won.
        log: the server's log.
        configurations: the configurations in the log.
        outbox: where messages go.
    """

    def __init__(
        self, config: RaftConfig, term: int, log: RaftLog, configurations: Configurations, outbox: Outbox
    ) -> None:
        self.term = term
        self.progress: dict[NodeId, Progress] = {}
        self.transfer_target: NodeId | None = None
        self.released: list[tuple[int, int]] = []  # (context, index) of this server's own reads
        self.state_index = 0
        self.state_hash = 0
        self._config = config
        self._log = log
        self._configurations = configurations
        self._outbox = outbox
        self._reads = ReadRounds()
        self._acknowledged_round: dict[NodeId, int] = {}
        self._heartbeat_elapsed = 0
        self._transfer_elapsed = 0
        self._uncommitted: deque[tuple[int, int]] = deque()  # (index, bytes) of what was appended in this term
        self._uncommitted_bytes = 0
        self.follow_configuration()

    # --- Proposals ----------------------------------------------------------------------------------------------

    def propose(self, payloads: Sequence[bytes]) -> int:
        """Append commands; return the index of the first.

        Raises:
            Overloaded: too many bytes wait for a quorum, or the leadership is being handed over.
        """
        if self.transfer_target is not None:
            raise Overloaded("the leadership is being handed over")
        if self._uncommitted_bytes > self._config.uncommitted_bytes_max:
            raise Overloaded(f"{self._uncommitted_bytes} bytes wait for a quorum")
        return self.append(EntryKind.COMMAND, payloads)

    def append(self, kind: EntryKind, payloads: Sequence[bytes]) -> int:
        """Append entries of this term; they leave with the next flush."""
        first = self._log.last_index + 1
        entries = [Entry(first + offset, self.term, kind, data) for offset, data in enumerate(payloads)]
        self._log.append(entries)
        for entry in entries:
            size = entry_bytes(entry)
            self._uncommitted.append((entry.index, size))
            self._uncommitted_bytes += size
        return first

    def propose_change(self, change: Change) -> int:
        """Append a configuration; it is in force at once (thesis 4.1).

        Raises:
            MembershipRefused: not now, with the reason.
        """
        if not self.has_committed_in_term():
            raise MembershipRefused("no entry of the leader's term is committed yet; try again")
        if self._configurations.latest_index > self._log.commit_index:
            raise MembershipRefused("another membership change is not committed yet; try again")
        if self.transfer_target is not None:
            raise MembershipRefused("the leadership is being handed over; try again")
        configuration = changed(self._configurations.latest, change)
        self._check_is_safe(change, configuration)
        index = self.append(EntryKind.CONFIGURATION, [encode_configuration(configuration)])
        self._configurations.append(index, configuration)
        self.follow_configuration()
        return index

    def _check_is_safe(self, change: Change, configuration: Configuration) -> None:
        match change:
            case AddLearner():
                return
            case Promote(node):
                progress = self.progress[node]
                lag = self._log.last_index - progress.match_index
                is_here = self._is_active(node) and progress.match_index > 0
                if not is_here or lag > self._config.promote_lag_max:
                    raise MembershipRefused(f"{node} has not caught up: it is {lag} entries behind")
            case Remove(node):
                live = [v for v in configuration.voters() if v == self._config.id or self._has_answered(v)]
                if len(live) < configuration.quorum():
                    raise MembershipRefused(
                        f"without {node} only {len(live)} of {len(configuration.voters())} voters answer: no quorum"
                    )

    def follow_configuration(self) -> None:
        """Track exactly the members of the configuration in force."""
        members = [m.id for m in self._configurations.latest.members if m.id != self._config.id]
        for node in members:
            if node not in self.progress:
                self.progress[node] = Progress(self._log.last_index + 1)
        for node in [node for node in self.progress if node not in members]:
            del self.progress[node]
            self._acknowledged_round.pop(node, None)
        if self.transfer_target is not None and self.transfer_target not in members:
            self.transfer_target = None
        self._release_reads()  # A smaller quorum may already have answered.

    def _is_active(self, node: NodeId) -> bool:
        progress = self.progress.get(node)
        return progress is not None and progress.silent_ticks < self._config.election_timeout_ticks

    def _has_answered(self, node: NodeId) -> bool:
        """Whether it is active and holds what this leader sent: a new leader takes everybody for active."""
        return self._is_active(node) and self.progress[node].match_index > 0

    def _active_voters(self) -> list[NodeId]:
        voters = self._configurations.latest.voters()
        return [node for node in voters if node == self._config.id or self._is_active(node)]

    # --- Time ---------------------------------------------------------------------------------------------------

    def tick(self) -> bool:
        """Let one tick pass. Return False when no quorum answered for an election timeout: step down (thesis 6.2)."""
        self._heartbeat_elapsed += 1
        for progress in self.progress.values():
            progress.silent_ticks += 1
            progress.quiet_ticks += 1
            if progress.state is ReplicationState.SNAPSHOT:
                progress.snapshot_ticks += 1
        if self.transfer_target is not None:
            self._transfer_elapsed += 1
            if self._transfer_elapsed >= self._config.election_timeout_ticks:
                self.transfer_target = None
        if len(self._active_voters()) < self._configurations.latest.quorum():
            return False
        if self._heartbeat_elapsed >= self._config.heartbeat_timeout_ticks:
            self.broadcast_heartbeat()
        return True

    def broadcast_heartbeat(self) -> None:
        """Tell every member that this server leads, what is committed, and the latest read round."""
        self._heartbeat_elapsed = 0
        for node, progress in self.progress.items():
            self._send_heartbeat(node, progress)

    def _send_heartbeat(self, node: NodeId, progress: Progress) -> None:
        progress.commit_sent = min(progress.match_index, self._log.commit_index)
        self._outbox.send(
            Heartbeat(
                term=self.term,
                sender=self._config.id,
                recipient=node,
                commit_index=progress.commit_sent,
                round=self._reads.number,
                state_index=self.state_index,
                state_hash=self.state_hash,
            )
        )

    # --- Replication --------------------------------------------------------------------------------------------

    def flush(self, snapshot: Snapshot | None) -> None:
        """Send what can be sent now: entries, a newer commit index, a read round.

        Args:
            snapshot: the newest durable snapshot, for followers that the log no longer serves.
        """
        for node, progress in self.progress.items():
            self._replicate(node, progress, snapshot)
        if self._reads.can_start() and self.has_committed_in_term():
            self._reads.start(self._log.commit_index)
            self.broadcast_heartbeat()
            self._release_reads()
        for node, progress in self.progress.items():
            # An idle follower learns at once what is committed; a busy one with its next entries.
            if progress.commit_sent < min(progress.match_index, self._log.commit_index) and not progress.has_inflight():
                self._send_heartbeat(node, progress)

    def _replicate(self, node: NodeId, progress: Progress, snapshot: Snapshot | None) -> None:
        if progress.state is ReplicationState.SNAPSHOT:
            # Lost, or its fetch failed: offered again now and then, the newest one.
            if progress.snapshot_ticks >= self._config.election_timeout_ticks and self._is_active(node):
                self._send_snapshot(node, progress, snapshot)
            return
        if progress.state is ReplicationState.PROBE:
            if not progress.probe_sent and self._send_entries(node, progress, snapshot):
                progress.probe_sent = True
            return
        while progress.next_index <= self._log.last_index and not progress.is_window_full(
            self._config.inflight_messages_max, self._config.inflight_bytes_max
        ):
            if not self._send_entries(node, progress, snapshot) or progress.state is not ReplicationState.REPLICATE:
                return

    def _send_entries(self, node: NodeId, progress: Progress, snapshot: Snapshot | None, empty: bool = False) -> bool:
        prev_log_index = progress.next_index - 1
        prev_log_term = self._log.term(prev_log_index)
        if prev_log_term is None:
            return self._send_snapshot(node, progress, snapshot)
        entries = () if empty else self._log.slice(progress.next_index, self._config.append_bytes_max)
        progress.quiet_ticks = 0
        self._outbox.send(
            AppendEntries(
                term=self.term,
                sender=self._config.id,
                recipient=node,
                prev_log_index=prev_log_index,
                prev_log_term=prev_log_term,
                entries=entries,
                leader_commit=self._log.commit_index,
            )
        )
        if progress.state is ReplicationState.REPLICATE:
            progress.commit_sent = self._log.commit_index
            if entries:
                progress.sent(entries[-1].index, sum(entry_bytes(entry) for entry in entries))
        return True

    def _send_snapshot(self, node: NodeId, progress: Progress, snapshot: Snapshot | None) -> bool:
        if snapshot is None:
            return False
        progress.become_snapshot()
        self._outbox.send(InstallSnapshot(term=self.term, sender=self._config.id, recipient=node, snapshot=snapshot))
        return True

    def on_append_entries_response(self, message: AppendEntriesResponse) -> None:
        """A follower holds entries, or refused them (section 5.3)."""
        progress = self.progress.get(message.sender)
        if progress is None:
            return
        progress.silent_ticks = 0
        if message.success:
            self._on_match(message.sender, progress, message.index)
            return
        if progress.state is ReplicationState.REPLICATE:
            if message.index > progress.match_index:
                progress.become_probe()
            return
        if progress.state is not ReplicationState.PROBE or message.index != progress.next_index - 1:
            return  # The answer to an older probe.
        agreed, _ = self._log.last_not_above(min(message.hint_index, message.index - 1), message.hint_term)
        progress.next_index = max(progress.match_index, min(agreed, message.index - 1)) + 1
        progress.probe_sent = False

    def _on_match(self, node: NodeId, progress: Progress, index: int) -> None:
        if index > self._log.last_index:
            return  # It claims what was never sent to it: refuse to count it.
        progress.matched(index)
        if progress.state is ReplicationState.PROBE or (
            progress.state is ReplicationState.SNAPSHOT and progress.match_index >= self._log.base_index
        ):
            progress.become_replicate()
        self.maybe_commit()
        if node == self.transfer_target and progress.match_index == self._log.last_index:
            self._send_timeout_now(node)

    def on_heartbeat_response(self, message: HeartbeatResponse) -> None:
        """A follower still follows; perhaps it lost what was sent."""
        progress = self.progress.get(message.sender)
        if progress is None:
            return
        progress.silent_ticks = 0
        acknowledged = min(message.round, self._reads.number)
        if acknowledged > self._acknowledged_round.get(message.sender, 0):
            self._acknowledged_round[message.sender] = acknowledged
            self._release_reads()
        # Answers to read rounds come much more often than heartbeats: what was just sent is not sent again (bug B18).
        if progress.quiet_ticks >= self._config.heartbeat_timeout_ticks:
            self._ask_again(message.sender, progress)

    def _ask_again(self, node: NodeId, progress: Progress) -> None:
        """Nothing was sent for a while: what was sent before may be lost (bug B15)."""
        progress.probe_sent = False
        if progress.state is not ReplicationState.REPLICATE or progress.match_index >= self._log.last_index:
            return
        if self._log.term(progress.next_index - 1) is None:
            progress.become_probe()  # The log was compacted meanwhile: it can be offered a snapshot only.
            return
        full = progress.is_window_full(self._config.inflight_messages_max, self._config.inflight_bytes_max)
        if full or progress.next_index > self._log.last_index:
            # If something was lost, this empty one is refused, and the follower is probed.
            self._send_entries(node, progress, None, empty=True)

    def on_install_snapshot_response(self, message: InstallSnapshotResponse) -> None:
        """A follower adopted a snapshot, or already held what it covers."""
        progress = self.progress.get(message.sender)
        if progress is None:
            return
        progress.silent_ticks = 0
        self._on_match(message.sender, progress, message.index)

    # --- Commit -------------------------------------------------------------------------------------------------

    def maybe_commit(self) -> bool:
        """Commit what a majority of voters has durable, if it is of this term (section 5.4.2). Return whether it rose.

        This server's own log counts as far as it is saved: to consensus the local disk is one more voter.
        """
        voters = self._configurations.latest.voters()
        matches = sorted((self._match_index(node) for node in voters), reverse=True)
        index = matches[len(voters) // 2]
        if index <= self._log.commit_index or self._log.term(index) != self.term:
            return False
        self._log.commit_to(index)
        while self._uncommitted and self._uncommitted[0][0] <= index:
            self._uncommitted_bytes -= self._uncommitted.popleft()[1]
        return True

    def _match_index(self, node: NodeId) -> int:
        if node == self._config.id:
            return self._log.saved_index
        return self.progress[node].match_index

    def has_committed_in_term(self) -> bool:
        """Tell whether an entry of this term is committed: from then on the commit index is current (thesis 6.4)."""
        return self._log.term(self._log.commit_index) == self.term

    # --- Reads --------------------------------------------------------------------------------------------------

    def read_index(self, origin: NodeId, context: int) -> None:
        """Begin a read barrier for this server or a follower."""
        read = WaitingRead(origin, context)
        if origin == self._config.id:
            self._reads.add(read)
        else:
            self._reads.add_latest(read)

    def abandon_read(self, context: int) -> None:
        """Forget a barrier of this server's own that nobody waits for any more."""
        self._reads.discard(WaitingRead(self._config.id, context))

    def _release_reads(self) -> None:
        voters = self._configurations.latest.voters()
        rounds = sorted((self._round_of(node) for node in voters), reverse=True)
        for released in self._reads.confirmed(rounds[len(voters) // 2]):
            read = released.read
            if read.origin == self._config.id:
                self.released.append((read.context, released.index))
                continue
            self._outbox.send(
                ReadIndexResponse(
                    term=self.term,
                    sender=self._config.id,
                    recipient=read.origin,
                    context=read.context,
                    index=released.index,
                )
            )

    def _round_of(self, node: NodeId) -> int:
        return self._reads.number if node == self._config.id else self._acknowledged_round.get(node, 0)

    def abandon_reads(self) -> list[int]:
        """Give up every read; return the contexts of this server's own."""
        return [read.context for read in self._reads.drain() if read.origin == self._config.id] + [
            context for context, _ in self.released
        ]

    # --- Handing over -------------------------------------------------------------------------------------------

    def transfer(self, target: NodeId | None) -> NodeId:
        """Begin to hand the leadership to ``target``, or to the voter that is furthest (thesis 3.10).

        Proposals are refused until it is over, or an election timeout has passed.

        Raises:
            TransferFailed: there is nobody to hand it to: no other voter, or none that answers.
        """
        voters = [node for node in self._configurations.latest.voters() if node in self.progress]
        if target is None:
            live = [node for node in voters if self._is_active(node)]
            if not live:
                raise TransferFailed("no other voter answers")
            target = max(live, key=lambda node: self.progress[node].match_index)
        if target not in voters:
            raise TransferFailed(f"{target} is not another voter")
        if not self._is_active(target):
            raise TransferFailed(f"{target} does not answer")
        self.transfer_target = target
        self._transfer_elapsed = 0
        if self.progress[target].match_index == self._log.last_index:
            self._send_timeout_now(target)
        return target

    def _send_timeout_now(self, node: NodeId) -> None:
        self._outbox.send(TimeoutNow(term=self.term, sender=self._config.id, recipient=node))

    def send_timeout_now_to_the_furthest(self) -> None:
        """A leader that cannot go on leaves: let the voter that is furthest campaign at once."""
        voters = [node for node in self._active_voters() if node in self.progress]
        if voters:
            self._send_timeout_now(max(voters, key=lambda node: self.progress[node].match_index))
