"""What a server has whatever its role (Figure 2, "all servers"), and the only place that writes term, vote and saves.

It decides when a message may leave. A message that says something of this server's term, vote or log must not leave
before that is on disk. Every message carries the term, so all of them wait while the term or the vote in memory is not
the one on disk; an answer about the log waits for the save that it depends on.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from kvorum.errors import CommitsLostError, InvariantViolatedError
from kvorum.raft.config import RaftConfig
from kvorum.raft.election import ElectionTimer
from kvorum.raft.log import OnDisk, RaftLog
from kvorum.raft.marks import PeerMarks
from kvorum.raft.membership import Configurations
from kvorum.raft.messages import (
    Configuration,
    Entry,
    Fetch,
    HardState,
    Load,
    Message,
    NodeId,
    PeerMark,
    Ready,
    Save,
    Snapshot,
)
from kvorum.raft.reads import OwnReads

QUIET_SAVE_BYTES = 1 << 20
"""A disk with less room is left alone by saves that can wait."""


class State:
    """The state that the roles of one server share.

    Args:
        config: limits and timeouts.
        random: draws the election timeouts, and the terms to campaign for.
        hard_state: the term and vote on disk.
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
        hard_state: HardState,
        snapshot: Snapshot | None,
        entries: Sequence[Entry],
        on_disk: OnDisk,
        marks: Sequence[PeerMark] = (),
        commit_index: int = 0,
    ) -> None:
        self.config = config
        self.id = config.id
        self._random = random
        self.current_term = hard_state.current_term
        self.next_term = self._draw_next_term()
        """The term that this server campaigns for, first with a pre-vote."""
        self.voted_for = hard_state.voted_for
        self.leader: NodeId | None = None
        """Who leads the current term, as far as this server has heard."""
        self.snapshot = snapshot
        """The newest that the log goes on from."""
        base = snapshot or Snapshot(0, 0, Configuration())
        self.log = RaftLog(base.last_index, base.last_term, entries, on_disk, config.log_memory_bytes_max, commit_index)
        if self.log.last_term > self.current_term:
            raise InvariantViolatedError(
                f"the log is in term {self.log.last_term}, yet the term is {self.current_term}"
            )
        self.configurations = Configurations(base.last_index, base.configuration)
        self.configurations.note(on_disk.configurations)
        self.configurations.note(entries)
        self.marks = PeerMarks(marks)
        self.reads = OwnReads(config.heartbeat_timeout_ticks)
        self.timer = ElectionTimer(config, random)
        self._durable = hard_state
        self._is_hard_state_durable = True
        self._messages: list[Message] = []
        self._messages_after_save: list[Message] = []
        self._save: Save | None = None  # in flight
        self._save_number = 0
        self._save_ticks = 0
        self._quiet_ticks = 0
        self._said = self._memory()
        """What the last save said besides term, vote and entries."""
        self._must_say = False
        self.is_unfit = False
        """The state machine is known to be wrong: this server must not lead."""
        self.is_holding = False
        """The state machine was given up for a snapshot: this server hands over no entries and does not campaign."""
        self.free_bytes = -1
        """How much the disk can still store; -1: not known. Said to the leader; means nothing here."""
        self._snapshot_to_save: Snapshot | None = None
        self._snapshot_to_restore: Snapshot | None = None
        self._fetching: Fetch | None = None
        self._fetch_to_begin: Fetch | None = None
        self._load: Load | None = None  # under way

    # --- Term, vote, leader ---------------------------------------------------------------------------------------

    def set_hard_state(self, current_term: int, voted_for: NodeId | None) -> None:
        """Enter a term, or vote in it.

        Messages of an older term that wait for a save never leave. They would leave with a save that may already
        replace the entries they acknowledge, and mislead a leader that does not know of the new term yet. A lost
        message does no harm.
        """
        if current_term != self.current_term:
            self._messages_after_save.clear()
            self.current_term = current_term
            self.next_term = self._draw_next_term()
        self.voted_for = voted_for
        self._is_hard_state_durable = self._durable == HardState(current_term, voted_for)

    def _draw_next_term(self) -> int:
        step_max = self.config.term_step_max
        return self.current_term + (1 if step_max == 1 else self._random.randint(1, step_max))

    def set_leader(self, leader: NodeId | None) -> None:
        """Note who leads the current term; what another leader was asked is given up."""
        if leader != self.leader:
            self.leader = leader
            self.reads.leader_changed()

    def is_electable(self) -> bool:
        """Return whether this server may campaign: a voter that is fit to lead, with a log on a disk that works."""
        is_voter = self.configurations.has_voter(self.id, self.log.commit_index)
        is_fit = not self.is_unfit and not self.is_holding
        return is_voter and not self.is_restoring and not self.is_disk_stalled and is_fit

    # --- Messages -------------------------------------------------------------------------------------------------

    def send(self, message: Message, *, after_save: bool = False) -> None:
        """Let the message leave at once, or with the next save if it must wait or the hard state is not durable."""
        if after_save or not self._is_hard_state_durable:
            self._messages_after_save.append(message)
        else:
            self._messages.append(message)

    # --- Saves: at most one in flight -----------------------------------------------------------------------------

    def tick(self) -> None:
        """Let one tick pass."""
        self._save_ticks += 1
        self._quiet_ticks += 1
        if self._quiet_ticks == self.config.quiet_save_ticks:
            self._quiet_ticks = 0
            if not 0 <= self.free_bytes < QUIET_SAVE_BYTES:
                self.remember()

    def remember(self) -> int:
        """Have a save say what none has said yet: what is committed, and what is known of the others' disks.

        Returns:
            The number of the save that says the last of it.
        """
        if self._said != self._memory():
            self._must_say = True
            return self._save_number + 1
        return self._save_number

    @property
    def is_saving(self) -> bool:
        """Whether a save is in flight."""
        return self._save is not None

    @property
    def saved_number(self) -> int:
        """The number of the last save that is durable."""
        return self._save_number - (self._save is not None)

    def _memory(self) -> tuple[int, tuple[PeerMark, ...]]:
        return self.log.commit_index, (*self.marks.past.values(), *self.marks.present.values())

    @property
    def is_disk_stalled(self) -> bool:
        """Whether the save in flight takes too long: such a server could commit nothing."""
        timeout = self.config.save_timeout_ticks or self.config.election_timeout_ticks
        return self._save is not None and self._save_ticks >= timeout

    def saved(self, number: int) -> None:
        """Note that the save with this number is durable.

        Raises:
            InvariantViolatedError: it is not in flight.
        """
        if self._save is None or number != self._save.number:
            raise InvariantViolatedError(f"save {number} is not in flight")
        save, self._save = self._save, None
        self._durable = save.hard_state
        self._is_hard_state_durable = self._durable == HardState(self.current_term, self.voted_for)
        snapshot = save.snapshot
        if snapshot is not None and self._snapshot_to_save is None and snapshot.last_index > self._restored_index:
            self._snapshot_to_restore = snapshot
        self.log.saved()

    @property
    def _restored_index(self) -> int:
        """What the state machine has, or will have once it has restored the snapshot that waits for that."""
        waiting = self._snapshot_to_restore
        return max(self.log.applied_index, waiting.last_index if waiting is not None else 0)

    def _begin_save(self) -> Save | None:
        is_log_saved = self._snapshot_to_save is None and not self.log.has_unsaved()
        if self._is_hard_state_durable and is_log_saved and not self._must_say:
            return None
        self._save_number += 1
        self._save_ticks = 0
        self._quiet_ticks = 0
        self._must_say = False
        hard_state = HardState(self.current_term, self.voted_for)
        entries = self.log.take_unsaved(self.config.save_bytes_max)
        # As in _memory(): a call is worth sparing here.
        marks = (*self.marks.past.values(), *self.marks.present.values())
        self._said = self.log.commit_index, marks
        self._save = Save(
            self._save_number, hard_state, entries, self._snapshot_to_save, marks, commit_index=self.log.commit_index
        )
        self._snapshot_to_save = None
        return self._save

    # --- Snapshots of others: fetched, then adopted, then saved, then restored -------------------------------------

    @property
    def is_restoring(self) -> bool:
        """Whether the log begins with a snapshot that is not durable yet."""
        is_saving = self._save is not None and self._save.snapshot is not None
        return is_saving or self._snapshot_to_save is not None

    def commit_covered(self, snapshot: Snapshot) -> bool:
        """Commit what the snapshot covers if the log holds it. Return whether it does.

        Raises:
            CommitsLostError: the snapshot contradicts what is committed here.
        """
        log = self.log
        if log.matches(snapshot.last_index, snapshot.last_term):
            log.commit_to(snapshot.last_index)
        elif snapshot.last_index <= log.commit_index and log.term(snapshot.last_index) is not None:
            raise CommitsLostError(
                f"a snapshot at {snapshot.last_index} is of term {snapshot.last_term}, "
                f"yet an entry of term {log.term(snapshot.last_index)} is committed there"
            )
        else:
            theirs, ours = snapshot.term_at(log.commit_index), log.term(log.commit_index)
            if theirs is not None and theirs != ours:
                raise CommitsLostError(
                    f"a snapshot at {snapshot.last_index} follows from an entry {log.commit_index} of term {theirs}, "
                    f"yet one of term {ours} is committed"
                )
        return snapshot.last_index <= log.commit_index

    def begin_fetch(self, fetch: Fetch) -> None:
        """Have the driver fetch this snapshot, unless another fetch is under way: a later offer will be taken then."""
        if self._fetching is None:
            self._fetching = self._fetch_to_begin = fetch

    def end_fetch(self, snapshot: Snapshot) -> None:
        """Note that the fetch under way has ended.

        Raises:
            InvariantViolatedError: it is of another snapshot, or there is none.
        """
        if self._fetching is None or self._fetching.snapshot != snapshot:
            raise InvariantViolatedError(f"no fetch of the snapshot at {snapshot.last_index} is under way")
        self._fetching = self._fetch_to_begin = None

    def restore(self, snapshot: Snapshot) -> None:
        """Hand the snapshot over in the place of the entries up to its end, which the log holds."""
        self._snapshot_to_restore = snapshot

    def adopt(self, snapshot: Snapshot) -> None:
        """Replace the log by this snapshot; the next save carries it, and no older one will be restored."""
        self.log.restore(snapshot.last_index, snapshot.last_term)
        self.configurations.restore(snapshot.last_index, snapshot.configuration)
        self.snapshot = self._snapshot_to_save = snapshot
        self._snapshot_to_restore = None

    # --- Entries that are only on the disk -------------------------------------------------------------------------

    def loaded(self, entries: Sequence[Entry]) -> None:
        """Take what the load under way has read.

        Raises:
            InvariantViolatedError: there is none, or the entries are not those of this log.
        """
        if self._load is None:
            raise InvariantViolatedError("no load is under way")
        self._load = None
        self.log.loaded(entries)

    def _begin_load(self) -> Load | None:
        wanted = self.log.take_wanted() if self._load is None else None
        if wanted is not None:
            self._load = Load(*wanted, self.config.load_bytes_max)
            return self._load
        return None

    # --- What there is to do --------------------------------------------------------------------------------------

    def ready(self) -> Ready | None:
        """Hand over everything there is to do now; None when there is nothing. See :class:`Ready`."""
        log = self.log
        save = self._begin_save() if self._save is None else None
        messages, self._messages = tuple(self._messages), []
        after_save: tuple[Message, ...] = ()
        if save is not None:
            # What does not fit into this save is in a later one, and what waits for that cannot leave with this one.
            if not save.entries or save.entries[-1].index == log.last_index:
                after_save, self._messages_after_save = tuple(self._messages_after_save), []
        elif self._messages_after_save and self._save is None:
            # Everything is durable by now: these need not wait for another save.
            messages, self._messages_after_save = (*messages, *self._messages_after_save), []
        restore, self._snapshot_to_restore = self._snapshot_to_restore, None
        if restore is not None:
            log.applied_index = restore.last_index
            self.is_holding = False
        committed: tuple[Entry, ...] = ()
        if log.applied_index < log.commit_index and not self.is_holding:
            committed = log.take_applicable(self.config.committed_bytes_max)
        reads, refused = self.reads.take(log.applied_index)
        fetch, self._fetch_to_begin = self._fetch_to_begin, None
        load = self._begin_load() if log.wanted_index else None
        if not (save or messages or restore or committed or reads or refused or fetch or load):
            return None
        has_more = bool(committed) and log.applied_index < min(log.commit_index, log.saved_index)
        return Ready(save, messages, after_save, restore, committed, reads, refused, fetch, load, has_more)
