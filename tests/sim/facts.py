"""What has been seen so far, over all nodes and all time, and when each invariant is asked about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec
from sim import invariants, lease_invariants, txn_invariants
from sim.handed import Handed
from sim.history import Applied
from sim.lease_invariants import LeaseTruth
from sim.watchers import Truth

from kvorum.kv.commands import (
    BatchCommand,
    Delete,
    DeleteResult,
    FeatureLevelRaised,
    HandedOver,
    HandedOverDone,
    LeaseRevoked,
    Put,
    PutResult,
    Result,
    Txn,
    TxnResult,
    decode_batch,
)
from kvorum.kv.store import Store
from kvorum.raft import Change, Raft, Role
from kvorum.raft.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Configuration,
    Entry,
    EntryKind,
    HandOver,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshotResponse,
    Message,
    NodeId,
    RequestVote,
    RequestVoteResponse,
    Save,
    Snapshot,
    TimeoutNow,
)
from kvorum.storage.interface import Loaded

if TYPE_CHECKING:
    from sim.node import SimNode


class Committed(msgspec.Struct, frozen=True, gc=False):
    """An entry that a leader committed: its term, and the term in which that happened."""

    term: int
    in_term: int


class Proposed(msgspec.Struct, frozen=True, gc=False):
    """The last entry with a time that a leader proposed: its term and its process, and its log time.

    ``counted_s``: what had passed of its clock since the process began, as far as log time counts it.
    """

    term: int
    starts: int
    counted_s: float
    time_ms: int
    is_settled: bool = True
    """The leader had applied an entry of its own: it knew all times in its log."""


class Observed:
    """What was seen of one process, to compare the next picture with."""

    def __init__(self, term: int) -> None:
        self.term = term
        self.term_before = term
        """The term that it was in before its present one."""
        self.commit_index = 0
        self.applied_index = 0
        self.checked_index = 0
        """Up to here its log was compared with what is committed."""
        self.leader_term = 0
        """The term in which it was last seen to lead."""
        self.leader_tick = 0
        """Since which of its ticks it leads with the members that it has now."""
        self.campaign_term = 0
        """The term in which it was last seen to campaign."""
        self.last_index = 0
        self.last_term = 0
        self.configuration_index = 0
        self.configuration = Configuration()


class Facts:
    """The global truth, and the hooks through which it is learned."""

    def __init__(self) -> None:
        self.leaders: dict[int, tuple[NodeId, int]] = {}
        self.leader_nodes: dict[int, SimNode] = {}
        self.votes: dict[tuple[NodeId, int], NodeId] = {}
        self.pre_votes: set[tuple[NodeId, int, NodeId]] = set()
        """(who could win, in which term, by whose word)."""
        self.told_to_campaign: dict[NodeId, int] = {}
        """Whom the leader told to, and the last term in which one did."""
        self.campaigns_for: dict[tuple[NodeId, int], int] = {}
        """(who, for which term) -> the term from which it would enter that one."""
        self.entries: dict[tuple[int, int], tuple[int, int, bytes]] = {}
        """(index, term) -> (the term before it, kind, data)."""
        self.committed: list[Committed] = [Committed(0, 0)]
        self.committed_at: list[int] = [0]
        """When each of them was committed, by the world's clock in microseconds."""
        self.applied: list[Entry | None] = [None]
        self.model = Store()
        """The state that follows from what was committed."""
        self.state_hashes: dict[int, int] = {0: self.model.state_hash}
        self.changes: list[Change] = []
        """The membership changes that were proposed."""
        self.log: list[Applied] = []
        self.transactions: dict[tuple[str, int], TxnResult] = {}
        """(client id, sequence) -> what came of the transaction when it was applied."""
        self.handed = Handed()
        """What the nodes hand to leaders."""
        self.truth = Truth()
        """The events that watchers must see."""
        self.leases = LeaseTruth()
        """What becomes of the leases."""
        self.log_time_from_ms = 0
        """Where log time began; 0: it has not begun."""
        self.log_time_from_us = 0
        """When somebody proposed the first entry with a time; 0: nobody has."""
        self.proposed = Proposed(0, 0, 0, 0)
        self.elections = 0
        self.nodes: dict[NodeId, SimNode] = {}
        self._seen: dict[NodeId, Observed] = {}
        self._revision = 0

    def bootstrap(self, entry: Entry) -> None:
        """Take note of the first entry of the cluster: committed by construction, on every first voter's disk."""
        self.entries[entry.index, entry.term] = (0, int(entry.kind), entry.data)

    @property
    def commit_index(self) -> int:
        """The highest index that anybody committed."""
        return len(self.committed) - 1

    # --- A process ----------------------------------------------------------------------------------------------

    def on_load(self, node: SimNode, loaded: Loaded) -> None:
        """A process read its disk."""
        self.nodes[node.id] = node
        invariants.a_disk_gives_back_what_it_took(node, loaded)

    def on_start(self, node: SimNode) -> None:
        """A process started."""
        assert node.raft is not None
        self._seen[node.id] = Observed(node.raft.current_term)
        self._on_term(node, node.raft)

    def on_proposed(self, node: SimNode, payloads: Sequence[bytes]) -> None:
        """A leader proposed entries."""
        assert node.raft is not None
        invariants.no_put_is_proposed_for_full_disks(node, payloads)
        self.leases.proposed(node, node.raft.log.last_index, payloads)
        for data in payloads:
            time_ms = decode_batch(data).time_ms
            if time_ms:
                self.log_time_from_us = self.log_time_from_us or node.world.clock.now
                is_settled = node.store.applied_term == node.raft.current_term
                proposed = Proposed(node.raft.current_term, node.starts, node.counted_s, time_ms, is_settled)
                invariants.log_time_passes_with_the_ticks(node, self.proposed, proposed)
                self.proposed = proposed

    def on_input(self, node: SimNode) -> None:
        """A process took an input: look at what it made of it."""
        raft, seen = node.raft, self._seen[node.id]
        assert raft is not None
        log = raft.log
        invariants.indexes_and_terms_never_go_back(node, raft, seen)
        if raft.current_term != seen.term:
            seen.term_before = seen.term
            self._on_term(node, raft)
        seen.term, seen.commit_index, seen.applied_index = raft.current_term, log.commit_index, log.applied_index
        if raft.role is Role.LEADER:
            self._on_leader(node, seen)
        elif raft.role is Role.CANDIDATE:
            self._on_campaign(node, seen)
        if log.commit_index > seen.checked_index:
            self._on_commit(node, seen)

    def _on_term(self, node: SimNode, raft: Raft) -> None:
        self.campaigns_for[node.id, raft.next_term] = raft.current_term

    def on_tick(self, node: SimNode) -> None:
        """A tick passed for a process: does it lead, and may it still?"""
        raft, seen = node.raft, self._seen[node.id]
        if raft is not None and raft.role is Role.LEADER and seen.leader_term == raft.current_term:
            invariants.a_leader_that_hears_no_quorum_steps_down(node, raft, seen)
            invariants.a_leader_whose_disk_stands_still_steps_down(node, raft)

    def _on_campaign(self, node: SimNode, seen: Observed) -> None:
        assert node.raft is not None
        if seen.campaign_term != node.raft.current_term:
            invariants.a_candidate_was_encouraged(self, node, node.raft, seen)
            seen.campaign_term = node.raft.current_term

    def _on_leader(self, node: SimNode, seen: Observed) -> None:
        raft = node.raft
        assert raft is not None
        if seen.leader_term != raft.current_term:
            self._on_campaign(node, seen)
            invariants.election_safety(self, node, raft)
            invariants.a_leader_has_the_votes_of_a_quorum(self, node, raft)
            self.leaders[raft.current_term] = (node.id, node.starts)
            self.leader_nodes[raft.current_term] = node
            self.elections += 1
            invariants.leader_completeness(self, node, raft)
            seen.leader_term, seen.leader_tick = raft.current_term, node.ticks
        else:
            invariants.leader_append_only(node, raft, seen)
            if raft.configurations.latest_index != seen.configuration_index:
                invariants.one_configuration_at_a_time(node, raft, seen)
                seen.leader_tick = node.ticks
        seen.last_index, seen.last_term = raft.log.last_index, raft.log.last_term
        seen.configuration_index, seen.configuration = raft.configurations.latest_index, raft.configuration

    def _on_commit(self, node: SimNode, seen: Observed) -> None:
        raft = node.raft
        assert raft is not None
        log = raft.log
        if log.commit_index > self.commit_index:
            invariants.only_a_leader_commits_what_is_new(self, node, raft)
            invariants.a_commit_is_durable_on_a_quorum(self, node, raft)
            for index in range(self.commit_index + 1, log.commit_index + 1):
                self.committed.append(Committed(log.term(index) or 0, raft.current_term))
                self.committed_at.append(node.world.clock.now)
        for index in range(max(seen.checked_index + 1, log.base_index), log.commit_index + 1):
            invariants.committed_entries_never_change(self, node, index, log.term(index))
        seen.checked_index = log.commit_index

    # --- What a process does ------------------------------------------------------------------------------------

    def on_save(self, node: SimNode, save: Save) -> None:
        """A process asks its disk for a save."""
        invariants.a_cluster_is_durable_before_its_log(node)
        invariants.a_node_that_takes_no_part_keeps_its_log(node, save)
        invariants.what_is_committed_here_stays_here(node, save)
        invariants.a_committed_entry_stays_on_disk(self, node, save)

    def on_compact(self, node: SimNode, first_index: int) -> None:
        """A process asks its disk to forget what is before this index."""
        invariants.the_log_reaches_back_to_the_older_snapshot(node, first_index)

    def _on_entries(self, node: SimNode, before: int | None, entries: Sequence[Entry]) -> None:
        for entry in entries:
            seen = (before or 0, int(entry.kind), entry.data)
            known = self.entries.setdefault((entry.index, entry.term), seen)
            if known is not seen:
                invariants.log_matching(node, entry, known, seen)
            before = entry.term

    def on_send(self, node: SimNode, message: Message) -> None:
        """A message leaves a process."""
        if isinstance(message, HandOver):
            # Its recipient does not take over its term. So it may leave before its sender has saved that.
            invariants.a_write_is_handed_to_a_leader_of_its_term(self, node, message)
            self.handed.sent(self, message)
            return
        if message.term > node.durable.hard_state.current_term:
            invariants.a_revealed_term_is_durable(self, node, message)
        if isinstance(message, HeartbeatResponse):
            return
        match message:
            case AppendEntries():
                self._on_entries(node, message.prev_log_term, message.entries)
                invariants.a_commit_is_not_invented(self, node, message.leader_commit)
            case Heartbeat():
                invariants.a_commit_is_not_invented(self, node, message.commit_index)
            case AppendEntriesResponse():
                if message.success:
                    invariants.only_saved_entries_are_acknowledged(self, node, message.term, message.index)
            case InstallSnapshotResponse():
                invariants.only_saved_entries_are_acknowledged(self, node, message.term, message.index)
            case RequestVote() if not message.pre_vote:
                self._on_vote(node, message.term, node.id)
            case RequestVoteResponse() if message.vote_granted and message.pre_vote:
                self.pre_votes.add((message.recipient, message.term, node.id))
            case RequestVoteResponse() if message.vote_granted:
                self._on_vote(node, message.term, message.recipient)
            case TimeoutNow():
                self.told_to_campaign[message.recipient] = message.term
            case _:
                pass

    def _on_vote(self, node: SimNode, term: int, candidate: NodeId) -> None:
        invariants.one_vote_per_term(self, node, term, candidate)
        self.votes[node.id, term] = candidate
        invariants.a_vote_is_durable(node, term, candidate)

    def on_committed(self, node: SimNode, entry: Entry) -> None:
        """A process is to apply an entry to its store."""
        if entry.index == len(self.applied):
            self.applied.append(entry)
            before, leases = self.model.configuration, lease_invariants.picture(self.model)
            results = self.model.apply(entry)
            self._log_writes(entry, results)
            self.truth.note(self.model)
            self.leases.applied(node.world, entry, results, leases, self.model, self.truth)
            self.log_time_from_ms = self.log_time_from_ms or self.model.time_ms
            invariants.log_time_is_no_faster_than_real_time(self, node, self.model.time_ms)
            if self.model.configuration is not before:
                invariants.a_node_that_does_not_support_the_level_is_not_added(node, self.model, before)
            self.state_hashes[entry.index] = self.model.state_hash
        invariants.state_machine_safety(self, node, entry)
        invariants.only_committed_entries_are_applied(self, node, entry)
        invariants.only_saved_entries_are_applied(node, entry)

    def on_turn(self, node: SimNode) -> None:
        """A process has applied something in a turn of its loop: look at the state that it serves."""
        raft, store = node.raft, node.store
        assert raft is not None
        invariants.what_is_handed_over_is_applied(node, raft)
        invariants.state_hashes_agree(node, store.applied_index, self.state_hashes.get(store.applied_index))
        if store.applied_index == self.model.applied_index:
            invariants.history_is_counted_alike(node, store, self.model)
            lease_invariants.leases_agree(node, store, self.model)

    def _log_writes(self, entry: Entry, results: Sequence[Result]) -> None:
        """Note the writes that changed the store; a retry is answered with a revision of the past."""
        if entry.kind is not EntryKind.COMMAND:
            return
        for command, result in self._each(decode_batch(entry.data).commands, results):
            if isinstance(result, FeatureLevelRaised) and result.revision > self._revision:
                self._revision = result.revision
                self.log.append(Applied(result.revision, "raise", ""))
            if isinstance(command, Txn) and isinstance(result, TxnResult):
                self._log_transaction(command, result)
            if isinstance(result, LeaseRevoked):
                self._log_leases(result.revision)
            changed = isinstance(result, PutResult) or (isinstance(result, DeleteResult) and result.deleted == 1)
            if not changed or not isinstance(command, Put | Delete) or result.revision <= self._revision:
                continue
            self._revision = result.revision
            key, client, sequence = command.key.decode(), command.client_id, command.sequence
            if isinstance(command, Put):
                self.log.append(Applied(result.revision, "put", key, command.value.decode(), client, sequence))
            else:
                self.log.append(Applied(result.revision, "delete", key, None, client, sequence))
        self._log_leases(self.model.revision)

    def _log_leases(self, revision: int) -> None:
        """Note that leases ended up to a revision, one at each."""
        while self._revision < revision:
            self._revision += 1
            self.log.append(Applied(self._revision, "lease", ""))

    def _each(
        self, commands: Sequence[BatchCommand], results: Sequence[Result]
    ) -> Iterator[tuple[BatchCommand, Result]]:
        """Yield every command with its result, those that were handed over one by one."""
        for command, result in zip(commands, results, strict=True):
            if isinstance(command, HandedOver) and isinstance(result, HandedOverDone):
                self.handed.applied(self, command)
                yield from zip(command.commands, result.results, strict=True)
            else:
                yield command, result

    def _log_transaction(self, txn: Txn, result: TxnResult) -> None:
        if txn.sequence:
            txn_invariants.a_transaction_is_applied_once(self, txn, result)
        if not result.replayed:
            self.transactions[txn.client_id, txn.sequence] = result
        if result.revision > self._revision:
            txn_invariants.a_transaction_makes_one_revision(self, result)
            self._revision = result.revision
            self.log.append(Applied(result.revision, "txn", ""))
        txn_invariants.the_sum_never_changes(self.model.versions.records.values())

    def on_restore(self, node: SimNode, snapshot: Snapshot) -> None:
        """A process is to replace its store by a snapshot."""
        invariants.a_snapshot_is_of_committed_entries(self, node, snapshot)

    def on_lease_read(self, node: SimNode, lease: int, remaining_ms: int | None) -> None:
        """A linearizable read found a lease, or none (any more)."""
        node.world.counts["reads of leases"] += 1
        if remaining_ms:
            promise = self.leases.promises.get(lease)
            if promise is not None:
                lease_invariants.a_lease_has_at_most_its_ttl_left(lease, remaining_ms, promise.ttl_s)
        else:
            lease_invariants.a_lease_never_ends_early(self.leases, node.world, lease)

    def on_read(self, node: SimNode, committed: int) -> None:
        """A read is served that was asked for when so much was committed."""
        invariants.a_read_waits_until_its_index_is_applied(node, committed)

    def on_damaged_read(self, node: SimNode) -> None:
        """A read found a value that a fault has changed in this process's memory."""
        invariants.a_state_that_was_found_wrong_is_not_served(node)

    def on_rebuilt(self, node: SimNode, index: int) -> None:
        """The state of a process was found wrong, and is another member's from now on."""
        node.world.counts["states rebuilt"] += 1
        node.world.note(node.id, "rebuilds its state from {} on", index)
        self._seen[node.id].applied_index = index

    def on_backup(self, node: SimNode, committed: int, backup: Store) -> None:
        """A backup was taken that was asked for when so much was committed."""
        node.world.counts["backups"] += 1
        invariants.a_backup_has_all_that_was_committed(node, committed, backup)
        invariants.state_hashes_agree(node, backup.applied_index, self.state_hashes.get(backup.applied_index), backup)
        invariants.a_backup_holds_its_history(node, self.log, backup)

    def on_past_read(self, node: SimNode, key: str, revision: int, value: str | None) -> None:
        """A read of a key was answered with what it was at a revision."""
        node.world.counts["reads of the past"] += 1
        invariants.the_past_does_not_change(node, self.log, key, revision, value)

    def on_past_refused(self, node: SimNode, revision: int, asked_at_revision: int, reason: str) -> None:
        """A read of the past was refused; when it was asked for, somebody had applied ``asked_at_revision``."""
        node.world.counts[f"reads of the past refused: {reason}"] += 1
        invariants.a_revision_is_refused_for_its_reason(self, node, revision, asked_at_revision, reason)

    def on_compaction(self, node: SimNode, revision: int, floor: int) -> None:
        """Somebody was told that the history below a revision is given up."""
        invariants.a_compaction_that_was_answered_is_in_force(self, node, revision, floor)

    def on_stale_read(self, node: SimNode, age_us: int) -> None:
        """A read is served from a state that is no older than this, as the process says."""
        invariants.staleness_is_a_bound(self, node, node.world.clock.now - age_us)

    def on_durable(self, node: SimNode, save: Save) -> None:
        """A save became durable; perhaps the process died before it knew."""
        if save.entries:
            self._on_entries(node, node.durable.term(save.entries[0].index - 1), save.entries)


class ForkedFacts(Facts):
    """What is looked at when there may be two histories: each disk keeps what its own node knows to be committed.

    Args:
        facts: what was seen before.
    """

    def __init__(self, facts: Facts) -> None:
        self.__dict__.update(facts.__dict__)
        # What holds for one history need not hold for two.
        for hook in dir(Facts):
            if hook.startswith("on_") and hook not in ("on_save", "on_load"):
                setattr(self, hook, _nothing)

    def on_save(self, node: SimNode, save: Save) -> None:
        """A process asks its disk for a save."""
        invariants.a_node_that_takes_no_part_keeps_its_log(node, save)
        invariants.what_is_committed_here_stays_here(node, save)

    def on_load(self, node: SimNode, loaded: Loaded) -> None:
        """A process read its disk."""
        invariants.a_disk_gives_back_what_it_took(node, loaded)


def _nothing(*_: object) -> None:
    pass
