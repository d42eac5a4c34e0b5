"""What must always hold: one function each, with its section of the Raft paper (extended version) or of the thesis.

Each looks at one event and at what was seen before, so that all of them together cost little; each raises
:class:`Broken`. By induction over the events they hold for whole logs and all of time.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Container, Sequence
from typing import TYPE_CHECKING

from sim.damage import is_damaged
from sim.history import Applied

from kvorum.kv.commands import HandedOver, Put, Txn, decode_batch
from kvorum.kv.features import HISTORY_LEVEL
from kvorum.kv.store import Store
from kvorum.kv.txn_check import has_put
from kvorum.raft import Raft, Role
from kvorum.raft.messages import (
    Configuration,
    Entry,
    HandOver,
    Message,
    NodeId,
    RequestVote,
    RequestVoteResponse,
    Save,
    Snapshot,
)
from kvorum.storage.interface import Loaded

if TYPE_CHECKING:
    from sim.facts import Facts, Observed, Proposed
    from sim.node import SimNode


class Broken(Exception):
    """An invariant does not hold.

    Args:
        check: its name.
        detail: what was seen, in words.
    """

    def __init__(self, check: str, detail: str) -> None:
        super().__init__(f"{check}: {detail}")
        self.check = check
        self.detail = detail


# --- Figure 3 ------------------------------------------------------------------------------------------------------


def election_safety(facts: Facts, node: SimNode, raft: Raft) -> None:
    """At most one leader is elected in a term (section 5.2)."""
    leader = facts.leaders.get(raft.current_term)
    if leader is None:
        return
    # The only voter wins without telling anybody; if it dies before its vote is durable, it may win that term again.
    nobody_knew = leader[0] == node.id and leader[1] < node.starts and node.loaded_term < raft.current_term
    if not nobody_knew:
        raise Broken("election_safety", f"{node.id} leads term {raft.current_term}, which {leader[0]} won")


def leader_append_only(node: SimNode, raft: Raft, seen: Observed) -> None:
    """A leader never overwrites or deletes entries of its log (section 5.3)."""
    if raft.log.last_index < seen.last_index or raft.log.term(seen.last_index) not in (seen.last_term, None):
        raise Broken(
            "leader_append_only",
            f"{node.id} leads term {raft.current_term}; its entry {seen.last_index} of term {seen.last_term} is gone",
        )


def log_matching(node: SimNode, entry: Entry, known: tuple[int, int, bytes], seen: tuple[int, int, bytes]) -> None:
    """Two logs with an entry of the same index and term are equal up to it (section 5.3)."""
    if known != seen:
        raise Broken(
            "log_matching",
            f"entry {entry.index} of term {entry.term} of {node.id} follows term {seen[0]} and is {seen[1:]!r}; "
            f"elsewhere it follows term {known[0]} and is {known[1:]!r}",
        )


def leader_completeness(facts: Facts, node: SimNode, raft: Raft) -> None:
    """What was committed in a term is in the log of every leader of a later term (section 5.4)."""
    index = facts.commit_index
    while index and facts.committed[index].in_term >= raft.current_term:
        index -= 1
    committed = facts.committed[index]
    if index >= raft.log.base_index and raft.log.term(index) != committed.term:
        raise Broken(
            "leader_completeness",
            f"{node.id} leads term {raft.current_term}, but lacks entry {index} of term {committed.term}, which was "
            f"committed in term {committed.in_term}",
        )


def state_machine_safety(facts: Facts, node: SimNode, entry: Entry) -> None:
    """No two servers apply different entries at one index (section 5.4.3); none leaves an index out."""
    known = facts.applied[entry.index] if entry.index < len(facts.applied) else None
    if known != entry:
        raise Broken("state_machine_safety", f"{node.id} applies {entry}; at that index {known} was applied")


# --- Who leads -----------------------------------------------------------------------------------------------------


def a_candidate_was_encouraged(facts: Facts, node: SimNode, raft: Raft, seen: Observed) -> None:
    """Nobody enters a new term whom no quorum would elect, or the leader told to (thesis 9.6 and 3.10; bug B7)."""
    term, configuration = raft.current_term, raft.configuration
    encouraged = [v for v in configuration.voters() if v == node.id or (node.id, term, v) in facts.pre_votes]
    is_told = seen.term_before <= facts.told_to_campaign.get(node.id, -1) < term
    if len(encouraged) < configuration.quorum() and not is_told:
        raise Broken(
            "a_candidate_was_encouraged",
            f"{node.id} campaigns in term {term}; of {configuration.voters()} only {encouraged} would elect it",
        )


def a_leader_has_the_votes_of_a_quorum(facts: Facts, node: SimNode, raft: Raft) -> None:
    """A leader was elected by a majority of the voters, in its own term (section 5.2; bug B4)."""
    term, configuration = raft.current_term, raft.configuration
    voters = configuration.voters()
    electors = [voter for voter in voters if voter == node.id or facts.votes.get((voter, term)) == node.id]
    if len(electors) < configuration.quorum():
        raise Broken(
            "a_leader_has_the_votes_of_a_quorum", f"{node.id} leads term {term} by the votes of {electors} of {voters}"
        )


def a_leader_that_hears_no_quorum_steps_down(node: SimNode, raft: Raft, seen: Observed) -> None:
    """A leader that no quorum answers for an election timeout leads no more (thesis 6.2; bugs B6 and B20)."""
    since, timeout = seen.leader_tick, raft.config.election_timeout_ticks
    voters = raft.configuration.voters()
    active = [v for v in voters if v == node.id or node.ticks - max(since, node.heard.get(v, 0)) < timeout]
    if len(active) < raft.configuration.quorum():
        raise Broken(
            "a_leader_that_hears_no_quorum_steps_down",
            f"{node.id} leads term {raft.current_term}; for {timeout} ticks it has heard only {active} of {voters}",
        )


def a_leader_whose_disk_stands_still_steps_down(node: SimNode, raft: Raft) -> None:
    """A leader whose save takes an election timeout leads no more: it would commit nothing (bug B8)."""
    if node.saving_since is not None and node.ticks - node.saving_since >= raft.config.election_timeout_ticks:
        raise Broken(
            "a_leader_whose_disk_stands_still_steps_down",
            f"{node.id} leads term {raft.current_term}; its save takes {node.ticks - node.saving_since} ticks",
        )


# --- What is committed ---------------------------------------------------------------------------------------------


def only_a_leader_commits_what_is_new(facts: Facts, node: SimNode, raft: Raft) -> None:
    """Only a leader finds out that an entry is committed, and only by an entry of its own term (section 5.4.2)."""
    index = raft.log.commit_index
    if raft.log.base_index >= index:
        raise Broken("a_commit_is_not_invented", f"{node.id} has a snapshot at {index} of what nobody committed")
    if facts.leaders.get(raft.current_term) != (node.id, node.starts):
        raise Broken("a_commit_is_not_invented", f"{node.id} does not lead, and holds {index} for committed")
    if raft.log.term(index) != raft.current_term:
        raise Broken(
            "a_leader_commits_by_its_own_term",
            f"{node.id} leads term {raft.current_term} and commits entry {index} of term {raft.log.term(index)}",
        )


def a_commit_is_durable_on_a_quorum(facts: Facts, node: SimNode, raft: Raft) -> None:
    """A committed entry is on the disks of a majority of the voters (sections 5.3 and 5.4.2; thesis 10.2.1)."""
    index, term = raft.log.commit_index, raft.log.term(raft.log.commit_index)
    voters = raft.configuration.voters()
    holders = [v for v in voters if v in facts.nodes and facts.nodes[v].durable.term(index) == term]
    if len(holders) < raft.configuration.quorum():
        raise Broken(
            "a_commit_is_durable_on_a_quorum",
            f"{node.id} commits entry {index} of term {term}, which of {voters} only {holders} have on disk",
        )


def committed_entries_never_change(facts: Facts, node: SimNode, index: int, term: int | None) -> None:
    """What is committed is the same on every server, for ever (section 5.4.3)."""
    if term != facts.committed[index].term:
        raise Broken(
            "committed_entries_never_change",
            f"{node.id} holds entry {index} of term {term} for committed; it is of term {facts.committed[index].term}",
        )


def a_committed_entry_stays_on_disk(facts: Facts, node: SimNode, save: Save) -> None:
    """No save overwrites or cuts off an entry that is committed (section 5.4.3; bug B14)."""
    durable = node.durable
    kept = {entry.index: entry.term for entry in save.entries}
    if save.snapshot is not None:
        first = save.snapshot.last_index + 1
    elif save.entries:
        first = save.entries[0].index
    else:
        return
    for index in range(first, min(durable.last_index, facts.commit_index) + 1):
        term = facts.committed[index].term
        if durable.term(index) == term and kept.get(index) != term:
            raise Broken(
                "a_committed_entry_stays_on_disk",
                f"{node.id} removes the committed entry {index} of term {term} from its disk",
            )


def a_commit_is_not_invented(facts: Facts, node: SimNode, commit_index: int) -> None:
    """Nobody tells others of a commit that no leader has made (section 5.3)."""
    if commit_index > facts.commit_index:
        raise Broken(
            "a_commit_is_not_invented",
            f"{node.id} says that {commit_index} is committed; the highest is {facts.commit_index}",
        )


def only_committed_entries_are_applied(facts: Facts, node: SimNode, entry: Entry) -> None:
    """Only what is committed reaches the state machine (section 5.3)."""
    if entry.index > facts.commit_index:
        raise Broken(
            "only_committed_entries_are_applied", f"{node.id} applies {entry}; {facts.commit_index} is committed"
        )


def only_saved_entries_are_applied(node: SimNode, entry: Entry) -> None:
    """An entry is on a server's own disk before the server applies it (bug B16)."""
    if node.durable.term(entry.index) != entry.term:
        raise Broken("only_saved_entries_are_applied", f"{node.id} applies {entry}, which is not on its disk")


def indexes_and_terms_never_go_back(node: SimNode, raft: Raft, seen: Observed) -> None:
    """``current_term``, ``commit_index`` and ``last_applied`` increase monotonically (Figure 2)."""
    before = (seen.term, seen.commit_index, seen.applied_index)
    after = (raft.current_term, raft.log.commit_index, raft.log.applied_index)
    if after[0] < before[0] or after[1] < before[1] or after[2] < before[2]:
        raise Broken(
            "indexes_and_terms_never_go_back", f"term, commit index, applied index of {node.id}: {before}, then {after}"
        )


# --- What is durable -----------------------------------------------------------------------------------------------


def a_disk_gives_back_what_it_took(node: SimNode, loaded: Loaded) -> None:
    """What was durable when a process ended is what the next one starts from (Figure 2, persistent state)."""
    durable = node.durable
    first = loaded.snapshot.last_index if loaded.snapshot else 0
    known = [*loaded.on_disk.terms, *((entry.index, entry.term) for entry in loaded.entries)]
    last = loaded.entries[-1].index if loaded.entries else loaded.on_disk.last_index or first
    problem = loaded.hard_state != durable.hard_state or last != durable.last_index
    problem = problem or any(durable.term(index) != term for index, term in known)
    if problem:
        raise Broken(
            "a_disk_gives_back_what_it_took",
            f"{node.id}: {durable.hard_state} and a log to {durable.last_index} were durable; "
            f"loaded {loaded.hard_state} and a log to {last}",
        )


def a_cluster_is_durable_before_its_log(node: SimNode) -> None:
    """A log says whose it is: the id of the cluster is on disk before anything that the cluster said (bug B30)."""
    identity = node.disk.identity
    if identity is None or not identity.cluster_id:
        raise Broken("a_cluster_is_durable_before_its_log", f"{node.id} saves; its disk has {identity}")


def the_log_reaches_back_to_the_older_snapshot(node: SimNode, first_index: int) -> None:
    """If the newest snapshot is damaged, the one before it and the log still hold everything (bugs B26 and B33)."""
    kept = [info.snapshot.last_index for info in node.disk.snapshots.kept()]
    if not kept or first_index > kept[-1] + 1:
        raise Broken(
            "the_log_reaches_back_to_the_older_snapshot",
            f"{node.id} cuts its log before {first_index}; its snapshots end at {kept}",
        )


def one_vote_per_term(facts: Facts, node: SimNode, term: int, candidate: NodeId) -> None:
    """A server votes for at most one candidate in a term, restarts included (section 5.2)."""
    earlier = facts.votes.get((node.id, term), candidate)
    if earlier != candidate:
        raise Broken("one_vote_per_term", f"{node.id} votes for {candidate} in term {term}, after {earlier}")


def a_vote_is_durable(node: SimNode, term: int, candidate: NodeId) -> None:
    """A vote is on disk before it is sent (Figure 2, persistent state; bugs B1 to B3)."""
    durable = node.durable.hard_state
    if durable.current_term < term or (durable.current_term == term and durable.voted_for != candidate):
        raise Broken("a_vote_is_durable", f"{node.id} votes for {candidate} in term {term}, but its disk has {durable}")


def a_revealed_term_is_durable(facts: Facts, node: SimNode, message: Message) -> None:
    """A term is on disk before any message reveals it (Figure 2, persistent state; bug B3)."""
    term = message.term
    if isinstance(message, RequestVote) and message.pre_vote:
        # It asks for a later term without entering it (thesis 9.6).
        term = facts.campaigns_for[node.id, term]
    elif isinstance(message, RequestVoteResponse) and message.pre_vote and message.vote_granted:
        return  # It carries the term that was asked for.
    if term > node.durable.hard_state.current_term:
        raise Broken("a_revealed_term_is_durable", f"{node.id} sends {message}; its disk has {node.durable.hard_state}")


def only_saved_entries_are_acknowledged(facts: Facts, node: SimNode, term: int, index: int) -> None:
    """A follower acknowledges what is on its disk, and equal to the leader's log (section 5.3; bugs B3 and B13)."""
    if not node.durable.covers(index):
        raise Broken(
            "only_saved_entries_are_acknowledged",
            f"{node.id} acknowledges entry {index}; its disk ends at {node.durable.last_index}",
        )
    leader = facts.leader_nodes.get(term)
    if leader is None or leader.raft is None or leader.raft.current_term != term or leader.raft.role is not Role.LEADER:
        return
    theirs, ours = leader.raft.log.term(index), node.durable.term(index)
    if theirs is not None and ours is not None and theirs != ours:
        raise Broken(
            "only_saved_entries_are_acknowledged",
            f"{node.id} acknowledges entry {index} of term {ours}; the leader's is of term {theirs}",
        )


def a_node_that_takes_no_part_says_nothing(node: SimNode, message: Message) -> None:
    """A node whose disk was set back neither votes nor acknowledges; nor does one that has not heard its peers (K4)."""
    if node.product is not None and not node.product.parts.participation.is_active:
        raise Broken("a_node_that_takes_no_part_says_nothing", f"{node.id} sends {message}")


def a_node_that_takes_no_part_keeps_its_log(node: SimNode, save: Save) -> None:
    """A node that says "do not delete this disk" does not replace the log on it (decision 0012)."""
    is_distrusted = node.product is not None and node.product.parts.participation.is_distrusted
    if is_distrusted and (save.entries or save.snapshot is not None):
        raise Broken("a_node_that_takes_no_part_keeps_its_log", f"{node.id} saves {save}")


def what_is_committed_here_stays_here(node: SimNode, save: Save) -> None:
    """No save takes from a disk what its own node knows to be committed, whatever others say (decision 0012)."""
    durable, known = node.durable, node.known_commit_index
    kept = {entry.index: entry.term for entry in save.entries}
    first = save.entries[0].index if save.entries else durable.last_index + 1
    if save.snapshot is not None:
        first = durable.base_index + 1
        kept |= {
            index: save.snapshot.term_at(index) or durable.term(index) or 0
            for index in range(first, save.snapshot.last_index + 1)
        }
    for index in range(first, min(durable.last_index, known) + 1):
        if kept.get(index) != durable.term(index):
            raise Broken(
                "what_is_committed_here_stays_here",
                f"{node.id} knows that entry {index} of term {durable.term(index)} is committed, and removes it",
            )


def a_disk_that_was_set_back_is_noticed_in_time(node: SimNode, peer: SimNode) -> None:
    """A node whose disk was set back takes no part if a peer that remembers is there and can be called (K4)."""
    raise Broken(
        "a_disk_that_was_set_back_is_noticed_in_time",
        f"{node.id} takes part; {peer.id} remembers what its disk lacks, and has been there since it started",
    )


# --- Membership, snapshots, reads ----------------------------------------------------------------------------------


def one_configuration_at_a_time(node: SimNode, raft: Raft, seen: Observed) -> None:
    """A leader changes one voter at a time, when the change before is committed, in its own term (thesis 4.1; B27)."""
    commit_index = raft.log.commit_index
    if seen.configuration_index > commit_index:
        raise Broken(
            "one_configuration_at_a_time",
            f"{node.id} appends a configuration while the one at {seen.configuration_index} is not committed",
        )
    if raft.log.term(commit_index) != raft.current_term:
        raise Broken(
            "one_configuration_at_a_time",
            f"{node.id} appends a configuration before an entry of its term {raft.current_term} is committed",
        )
    before, after = seen.configuration.voters(), raft.configuration.voters()
    changed = [v for v in before if v not in after] + [v for v in after if v not in before]
    if len(changed) > 1:
        raise Broken("one_configuration_at_a_time", f"{node.id} changes the voters {before} to {after}")


def a_snapshot_is_of_committed_entries(facts: Facts, node: SimNode, snapshot: Snapshot) -> None:
    """A snapshot replaces committed entries only, and says truly where they end (section 7)."""
    index = snapshot.last_index
    if index > facts.commit_index or facts.committed[index].term != snapshot.last_term:
        raise Broken("a_snapshot_is_of_committed_entries", f"{node.id} restores {snapshot}")


def what_is_handed_over_is_applied(node: SimNode, raft: Raft) -> None:
    """Between two turns of the loop the store is where the core believes it to be (Figure 2, ``last_applied``)."""
    if node.store.applied_index != raft.log.applied_index:
        raise Broken(
            "what_is_handed_over_is_applied",
            f"the store of {node.id} is at {node.store.applied_index}; handed over is {raft.log.applied_index}",
        )


def state_hashes_agree(node: SimNode, index: int, state_hash: int | None, store: Store | None = None) -> None:
    """Every server has the same state after the same entry (section 2: replicated state machines)."""
    if (node.store if store is None else store).state_hash != state_hash:
        raise Broken("state_hashes_agree", f"after entry {index} the state of {node.id} is another")


def a_write_is_handed_to_a_leader_of_its_term(facts: Facts, node: SimNode, message: HandOver) -> None:
    """Writes go to a node that led in the term of the message, and what it answers has that term too."""
    leader, _ = facts.leaders.get(message.term, ("", 0))
    if leader not in (message.sender, message.recipient):
        raise Broken("a_write_is_handed_to_a_leader_of_its_term", f"{node.id} sends {message}; {leader!r} led")


def a_number_is_applied_once(applied: Container[tuple[int, int]], command: HandedOver) -> None:
    """What a node hands over under a number is applied at most once, however often it is sent."""
    if (command.nonce, command.number) in applied:
        raise Broken("a_number_is_applied_once", f"number {command.number} of origin {command.nonce}: {command}")


def what_was_refused_is_not_applied(command: HandedOver, attempts: Collection[int], refused: Container[int]) -> None:
    """Of the attempts that carried what is applied under a number, not every one was refused.

    Args:
        command: what is applied.
        attempts: those that carried it.
        refused: those that a leader has called refused.
    """
    if attempts and all(attempt in refused for attempt in attempts):
        raise Broken("what_was_refused_is_not_applied", f"{command}: the attempts {attempts} were refused")


def history_is_counted_alike(node: SimNode, store: Store, model: Store) -> None:
    """What of the history is kept, and what it takes, follows from the log alone: the quota depends on it."""
    ours = (store.floor, store.history_events, store.history_bytes, store.used_bytes)
    theirs = (model.floor, model.history_events, model.history_bytes, model.used_bytes)
    if ours != theirs:
        raise Broken(
            "history_is_counted_alike",
            f"floor, events, bytes of history and of all of {node.id} are {ours}; from the log follow {theirs}",
        )


def _value_at(log: Sequence[Applied], key: str, revision: int) -> str | None:
    """Return what a key was at a revision, by the writes of all time; None: it did not exist."""
    last = bisect_right(log, revision, key=lambda write: write.revision)
    return next((write.value for write in reversed(log[:last]) if write.key == key), None)


def the_past_does_not_change(node: SimNode, log: Sequence[Applied], key: str, revision: int, value: str | None) -> None:
    """A read at a revision answers what the key was then, whichever node is asked, and whenever."""
    expected = _value_at(log, key, revision)
    if value != expected:
        raise Broken(
            "the_past_does_not_change", f"{node.id}: {key} was {value!r} at revision {revision}; it was {expected!r}"
        )


def a_revision_is_refused_for_its_reason(
    facts: Facts, node: SimNode, revision: int, asked_at_revision: int, reason: str
) -> None:
    """Only what is below the floor is refused as compacted, and only what nobody has reached as of the future."""
    if reason == "compacted" and revision >= facts.model.floor:
        raise Broken(
            "a_revision_is_refused_for_its_reason",
            f"{node.id} calls revision {revision} compacted; nobody has a floor above {facts.model.floor}",
        )
    if reason == "future" and revision <= asked_at_revision:
        raise Broken(
            "a_revision_is_refused_for_its_reason",
            f"{node.id} calls revision {revision} one of the future; {asked_at_revision} was there when it was asked",
        )


def a_compaction_that_was_answered_is_in_force(facts: Facts, node: SimNode, revision: int, floor: int) -> None:
    """Whoever is told that a history was given up can rely on it, on every node that has heard of it."""
    if floor < revision or facts.model.floor < floor or node.store.floor < revision:
        raise Broken(
            "a_compaction_that_was_answered_is_in_force",
            f"{node.id} answered floor {floor} to a compaction at {revision}; its own is {node.store.floor}, and the "
            f"highest {facts.model.floor}",
        )


def a_backup_holds_its_history(node: SimNode, log: Sequence[Applied], backup: Store) -> None:
    """A backup answers every revision from its floor on as the cluster did."""
    if backup.feature_level < HISTORY_LEVEL:
        return
    keys = {write.key for write in log}
    for revision in {backup.floor, (backup.floor + backup.revision) // 2, backup.revision}:
        for key in sorted(keys):
            record = backup.get(key.encode(), revision)
            if is_damaged(record):
                continue
            value, expected = None if record is None else record.value.decode(), _value_at(log, key, revision)
            if value != expected:
                raise Broken(
                    "a_backup_holds_its_history",
                    f"in a backup of {node.id}, {key} was {value!r} at revision {revision}; it was {expected!r}",
                )


def a_state_that_was_found_wrong_is_not_served(node: SimNode) -> None:
    """A node whose state differs from the majority's serves nothing until it is rebuilt (docs/internals/state.md)."""
    assert node.product is not None
    if node.product.quarantined or node.product.parts.state.is_wrong:
        raise Broken("a_state_that_was_found_wrong_is_not_served", f"{node.id} serves it: {node.product.quarantined}")


def a_backup_has_all_that_was_committed(node: SimNode, committed: int, backup: Store) -> None:
    """A backup holds what was committed, anywhere, when it was asked for."""
    if backup.applied_index < committed:
        raise Broken(
            "a_backup_has_all_that_was_committed",
            f"the backup of {node.id} ends at {backup.applied_index}; {committed} was committed when it was asked for",
        )


def a_node_that_does_not_support_the_level_is_not_added(node: SimNode, model: Store, before: Configuration) -> None:
    """A node that could not apply what is written at the level in force does not become a member (decision 0009)."""
    for member in model.configuration.members:
        added = node.world.nodes.get(member.id)
        if added is None or not before.members or before.get(member.id) is not None:
            continue
        if added.supported_level < model.feature_level:
            raise Broken(
                "a_node_that_does_not_support_the_level_is_not_added",
                f"{member.id} supports level {added.supported_level}, and becomes a member at {model.feature_level}",
            )


def no_put_is_proposed_for_full_disks(node: SimNode, payloads: Sequence[bytes]) -> None:
    """Disks that are equal fill together: a put is refused while there is room for deletes.

    A leader needs some time to hear of it; and what is on its way when it does finds room.
    """
    raft, plan, nodes = node.raft, node.plan, node.world.nodes
    assert raft is not None
    known_after = 4 * plan.election_timeout_ticks + 4 * plan.heartbeat_timeout_ticks
    known_since = max(node.filled_at_tick, node.led_from_tick)
    if all(each.room is None for each in nodes.values()) or node.ticks - known_since < known_after:
        return
    commands = (command for data in payloads for command in decode_batch(data).commands)
    if not any(isinstance(each, Put) or (isinstance(each, Txn) and has_put(each)) for each in commands):
        return
    voters = [nodes[voter] for voter in raft.configuration.voters() if voter in nodes]
    full = [voter for voter in voters if voter.room is not None and _is_nearly_full(voter)]
    if node in full or len(voters) - len(full) < raft.configuration.quorum():
        raise Broken(
            "no_put_is_proposed_for_full_disks",
            f"{node.id} proposes a put, and the disks of {', '.join(voter.id for voter in full)} are full",
        )


def _is_nearly_full(node: SimNode) -> bool:
    return node.room is not None and (node.free_bytes or 0) < node.room.needed_bytes // 2


def log_time_is_no_faster_than_real_time(facts: Facts, node: SimNode, time_ms: int) -> None:
    """Log time never runs ahead of real time, by the fastest clock less 1 %: nothing ends early by it (B24)."""
    passed_us = node.world.clock.now - facts.log_time_from_us
    passed_ms = passed_us * 990 // (1000 * min(each.rate_per_mille for each in node.world.nodes.values()))
    if time_ms - facts.log_time_from_ms > passed_ms + 1:
        raise Broken(
            "log_time_is_no_faster_than_real_time",
            f"{time_ms - facts.log_time_from_ms} ms of log time have passed; the fastest clock allows {passed_ms} ms",
        )


def log_time_passes_with_the_ticks(node: SimNode, before: Proposed, now: Proposed) -> None:
    """Between two entries of one leader log time passes at 0.99 of its clock, by 250 ms at most in each tick (B24).

    Not by more: a leader that stood still has not heard its clients. The first entries of a leader may carry a time
    that is behind what it has still to apply.
    """
    if (before.term, before.starts) != (now.term, now.starts):
        return
    passed_ms, written_ms = (now.counted_s - before.counted_s) * 990, now.time_ms - before.time_ms
    if (before.is_settled and written_ms > passed_ms + 2) or written_ms < passed_ms - 2:
        raise Broken(
            "log_time_passes_with_the_ticks",
            f"{node.id} lets {written_ms} ms of log time pass between two entries; its ticks allow {passed_ms} ms",
        )


def staleness_is_a_bound(facts: Facts, node: SimNode, as_of_us: int) -> None:
    """A state that a node calls current as of a moment has all that was committed, anywhere, by then."""
    committed = bisect_right(facts.committed_at, as_of_us) - 1
    if node.store.applied_index < committed:
        raise Broken(
            "staleness_is_a_bound",
            f"{node.id} calls its state at {node.store.applied_index} current as of {as_of_us} us; {committed} was "
            "committed by then",
        )


def a_read_waits_until_its_index_is_applied(node: SimNode, committed: int) -> None:
    """A read is served from a state no older than what was committed, anywhere, when it was asked (thesis 6.4)."""
    if node.store.applied_index < committed:
        raise Broken(
            "a_read_waits_until_its_index_is_applied",
            f"{node.id} serves a read that came when {committed} was committed from a state at "
            f"{node.store.applied_index}",
        )
