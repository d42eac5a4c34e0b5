"""The driver: between consensus, the disk, the peers and the replicated state. All of it runs on one event loop.

Nothing here awaits between a check and its use: every input changes consensus synchronously, and one call at the end of
the loop's turn (:meth:`Driver._take_turn`) does everything that consensus then has to do. While a save is in flight,
what arrives fills the next one: group commit comes for free.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from kvorum.errors import (
    ContradictionError,
    FatalError,
    InvariantViolatedError,
    MalformedMessageError,
)
from kvorum.kv.state_hash import STATE_SUM_BYTES, StateDigest
from kvorum.node.compactions import Compactions
from kvorum.node.fetch import Fetcher
from kvorum.node.handover_port import HandOverPort
from kvorum.node.integrity import Integrity
from kvorum.node.leases import LeaseTicks
from kvorum.node.levels import FeatureLevels
from kvorum.node.log_time import LogTime
from kvorum.node.membership import Membership
from kvorum.node.ports import Clock, Peers
from kvorum.node.proposals import Proposals
from kvorum.node.quota import QuotaProposals
from kvorum.node.reads import Reads
from kvorum.node.role_changes import RoleChanges
from kvorum.node.roundtrips import RoundTrips
from kvorum.node.set_back import Participation
from kvorum.node.snapshots import Snapshots
from kvorum.node.space import DiskSpace
from kvorum.node.staleness import Staleness
from kvorum.node.state import State
from kvorum.node.supervisor import Supervisor
from kvorum.node.turns import Turns
from kvorum.node.waits import Waits
from kvorum.node.watches import Watches
from kvorum.raft import Raft
from kvorum.raft.log import entry_bytes
from kvorum.raft.messages import (
    AppendEntriesResponse,
    Entry,
    EntryKind,
    HandOver,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    Message,
    NodeId,
    Read,
    Ready,
    Snapshot,
)
from kvorum.storage.interface import Storage
from kvorum.telemetry.counters import Counters

if TYPE_CHECKING:
    from kvorum.telemetry.tracing import Tracer

log = logging.getLogger("kvorum.raft")

READIES_A_TURN_MAX = 16
"""After this many, the loop gets a turn for its other work."""
APPLY_S = 0.02
"""After so much time of applying, no further entry begins in this turn. One alone may take longer, by what an entry
may visit."""


class Driver:
    """Runs one consensus server; see the module's docstring.

    Args:
        raft: the consensus server.
        state: what committed entries are applied to.
        storage: where saves go.
        peers: where messages go.
        clock: measures time.
        turns: by which it is asked for a turn.
        supervisor: ends the process after a failure that cannot be survived.
        counters: where things are counted.
        proposals: the writes on their way.
        handover: the writes on their way from one node to another.
        reads: the linearizable reads on their way.
        waits: the changes of members and leader on their way.
        membership: what follows the configuration in force.
        snapshots: takes a snapshot when one is due.
        fetcher: brings a snapshot that consensus needs from another member.
        integrity: what investigates a wrong state.
        staleness: what counts how old the state may be.
        levels: what raises the feature level when it is time.
        quota: what proposes the quota on data.
        compactions: what compacts the history.
        leases: what lets log time pass in the state while there are leases.
        watches: what delivers events to those that watch keys.
        log_time: what passes on the leader.
        space: what refuses puts when the disks are full.
        participation: whether consensus takes part.
        tracer: records the spans of traced writes; None: there are no traces.
    """

    def __init__(
        self,
        raft: Raft,
        state: State,
        storage: Storage,
        peers: Peers,
        clock: Clock,
        turns: Turns,
        supervisor: Supervisor,
        counters: Counters,
        *,
        proposals: Proposals,
        handover: HandOverPort,
        reads: Reads,
        waits: Waits,
        membership: Membership,
        snapshots: Snapshots,
        fetcher: Fetcher,
        integrity: Integrity,
        staleness: Staleness,
        levels: FeatureLevels,
        quota: QuotaProposals,
        compactions: Compactions,
        leases: LeaseTicks,
        watches: Watches,
        log_time: LogTime,
        space: DiskSpace,
        participation: Participation,
        tracer: Tracer | None = None,
    ) -> None:
        self._raft = raft
        self._state = state
        self._storage = storage
        self._peers = peers
        self._clock = clock
        self._turns = turns
        self._supervisor = supervisor
        self._counters = counters
        self._proposals = proposals
        self._handover = handover
        self._reads = reads
        self._waits = waits
        self._membership = membership
        self._snapshots = snapshots
        self._fetcher = fetcher
        self._integrity = integrity
        self._staleness = staleness
        self._levels = levels
        self._quota = quota
        self._compactions = compactions
        self._leases = leases
        self._watches = watches
        self._log_time = log_time
        self._space = space
        self._participation = participation
        self._tracer = tracer
        self.apply_s = APPLY_S
        self._applied_s = 0.0  # The time of applying in this turn, over all its Readies.
        self._round_trips = RoundTrips(counters, clock)
        self._role_changes = RoleChanges(raft, counters)
        self._is_transferring = False
        self._is_blank = not raft.log.last_index

    # --- Inputs -------------------------------------------------------------------------------------------------

    def take_turn(self) -> None:
        """Do what consensus has to do. Called by :class:`~kvorum.node.turns.Turns`, once for each turn asked for."""
        if self._turns.is_over:
            return
        try:  # As _guard, without a call: this runs a few times for each request.
            self._take_turn()
        except Exception as error:  # noqa: BLE001 - it ends the process
            self._failed(error)

    def tick(self) -> None:
        """Let one tick of consensus time pass."""
        self._guard(self._tick)
        self._turns.may_have_changed = True
        self._turns.schedule()

    def _tick(self) -> None:
        if self._participation.is_active:
            self._raft.tick()
        else:
            self._participation.tick()
        self._log_time.tick()
        self._space.tick()
        self._free_log()
        self._proposals.expire()
        self._handover.origin.tick()
        self._reads.expire()
        self._waits.expire()
        self._reads.probe()
        self._levels.tick()
        self._quota.tick()
        self._compactions.tick()
        self._leases.tick()
        self._watches.tick()
        self._membership.publish_addresses()
        # A sweep, or another state in the place of this one, may have changed it without an entry.
        self._report_digest()

    def _free_log(self) -> None:
        """Take the snapshots that give a full disk room."""
        self._snapshots.begin_if_low()
        if self._space.is_entry_due():
            self._proposals.advance()

    def on_messages(self, _: NodeId, messages: tuple[Message, ...]) -> None:
        """Take messages from a peer; a node that takes no part (yet) takes none.

        Raises:
            MalformedMessageError: consensus refuses one; it and those after it changed nothing.
        """
        if not self._participation.is_active:
            return
        self._guard(self._step, messages)
        self._turns.schedule()

    def _step(self, messages: tuple[Message, ...]) -> None:
        raft = self._raft
        for message in messages:
            if isinstance(message, HandOver):
                self._handover.on_message(message)
                continue
            raft.step(message)
            if isinstance(message, AppendEntriesResponse):
                continue
            if isinstance(message, HeartbeatResponse):
                self._round_trips.answered(message)
                self._space.reported(message)
                continue
            self._turns.may_have_changed = True
            if isinstance(message, Heartbeat) and message.sender == raft.leader:
                self._staleness.leader_heard()
                if message.state_index:
                    self._state.hashes.reported = (message.state_index, _reported(message))
            elif isinstance(message, InstallSnapshot) and message.sender == raft.leader:
                self._fetcher.offered(message.sender)

    def peer_unreachable(self, node: NodeId) -> None:
        """A stream to or from this peer broke."""
        self._round_trips.forget(node)
        self._guard(self._raft.peer_unreachable, node)
        self._turns.may_have_changed = True
        self._turns.schedule()

    def halt(self) -> None:
        """Take no more input, and answer everybody who waits: consensus stands still from now on."""
        self._turns.is_over = True
        reason = "the node stopped"
        self._proposals.stop(reason)
        self._handover.origin.stop(reason)
        self._reads.stop(reason)
        self._waits.stop(reason)
        self._watches.stop("the node is stopping")

    def _guard(self, act: Callable[..., object], *args: object) -> None:
        """Run a step of consensus; a broken invariant, or a bug that left it halfway, ends the process."""
        if self._turns.is_over:
            return
        try:
            act(*args)
        except MalformedMessageError:
            raise  # The peer's fault: the peer port closes its stream.
        except Exception as error:  # noqa: BLE001 - it ends the process
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        """A step of consensus raised this. Call it where it is handled."""
        if isinstance(error, ContradictionError):
            self._participation.contradicted(error)
        elif isinstance(error, FatalError):
            self._fail(error)
        else:
            log.exception("the driver failed")
            self._fail(InvariantViolatedError(f"the driver failed: {error!r}"))

    def _fail(self, error: FatalError) -> None:
        self.halt()
        self._supervisor.fail(error)

    # --- A turn -------------------------------------------------------------------------------------------------

    def _take_turn(self) -> None:
        turns = self._turns
        turns.is_due = False
        self._applied_s = 0.0
        if self._proposals.queue:
            self._proposals.flush()
        if self._handover.receiver.done:
            self._handover.receiver.settle()
        if self._handover.origin.queued:
            self._handover.origin.flush()
        if self._reads.queue:
            self._reads.flush()
        for _ in range(READIES_A_TURN_MAX):
            ready = self._raft.ready()
            if ready is None:
                break
            is_done = self._handle(ready)
            if ready.reads_refused:
                self._reads.flush()
            if not is_done:
                turns.schedule()
                break
            if not ready.reads_refused and not ready.has_more and ready.restore is None:
                break
            if self._applied_s >= self.apply_s:
                turns.schedule()
                break
        else:
            turns.schedule()
        if self._state.hashes.reported is not None and (index := self._state.hashes.mismatch()) is not None:
            self._integrity.investigate(index)
        self._counters.proposals_pending = self._proposals.pending
        self._counters.handover_pending = self._handover.origin.pending
        if self._watches.advance():
            turns.schedule()
        if turns.may_have_changed:
            turns.may_have_changed = False
            self._note_changes()

    def _handle(self, ready: Ready) -> bool:
        """Do what is to be done; return whether that is all, or entries are left for the next turn."""
        # The leader's entries leave before its own disk is asked for anything (thesis 10.2.1).
        if ready.messages and self._participation.is_active:
            self._peers.send(ready.messages)
            self._round_trips.sent(ready.messages)
        if ready.save is not None:
            if self._tracer is not None:
                self._tracer.saving(ready.save.entries)
            done = partial(self._guard, self._saved, ready.save.number, ready.messages_after_save)
            self._storage.save(ready.save, done)
        if ready.load is not None:
            self._storage.load_entries(ready.load, partial(self._guard, self._loaded))
        if ready.fetch is not None and self._participation.is_active:
            self._fetcher.begin(ready.fetch)
        if ready.restore is not None:
            self._restore(ready.restore)
        is_done = not ready.committed or self._apply(ready.committed)
        reads = ready.reads if is_done else self._give_back(ready.reads)
        if reads or ready.reads_refused:
            self._reads.released(reads, ready.reads_refused)
        return is_done

    def _give_back(self, reads: tuple[Read, ...]) -> tuple[Read, ...]:
        """Give consensus back what was not applied, and the reads that wait for it; return the other reads."""
        index = self._state.store.applied_index
        self._raft.give_back(index, [read for read in reads if read.index > index])
        return tuple(read for read in reads if read.index <= index)

    def _saved(self, number: int, messages: tuple[Message, ...]) -> None:
        if self._tracer is not None:
            self._tracer.saved()
        if messages and self._participation.is_active:
            self._peers.send(messages)
        self._raft.saved(number)
        if self._is_blank:
            # From the first entries on, the members are called (Membership.follow).
            self._is_blank = not self._raft.log.saved_index
            self._turns.may_have_changed = True
        # Not at once: writes that arrive in this turn of the loop go into the same entry.
        self._turns.schedule()

    def _loaded(self, entries: tuple[Entry, ...]) -> None:
        self._raft.loaded(entries)
        self._take_turn()

    def _apply(self, entries: tuple[Entry, ...]) -> bool:
        """Apply entries until :attr:`apply_s` of the turn is over, and at least one; return whether these were all."""
        since = self._clock.monotonic()
        until = since + self.apply_s - self._applied_s
        if self._tracer is not None:
            self._tracer.committed(entries)
        state, proposals, waits = self._state, self._proposals, self._waits
        store, hashes = state.store, state.hashes
        commands, end_before, last = 0, store.versions.end, entries[-1]
        for entry in entries:
            results = store.apply(entry)
            commands += len(results)
            proposals.applied(entry, results)
            if store.handed_over:
                self._handover.origin.applied(store.handed_over)
            hashes.applied(entry.index, store.digest)
            state.bytes_since_snapshot += entry_bytes(entry)
            if entry.kind is not EntryKind.COMMAND:
                self._turns.may_have_changed = True
            if waits.entries:
                waits.applied(entry)
            if entry is not last and self._clock.monotonic() >= until:
                entries = entries[: entry.index - entries[0].index + 1]
                break
        if proposals.is_holding_back or self._handover.origin.queued:
            self._turns.schedule()
        self._compactions.applied(max(commands, store.versions.end - end_before))
        took_s = self._clock.monotonic() - since
        self._applied_s += took_s
        self._counters.apply_duration.record(took_s)
        if self._tracer is not None:
            self._tracer.applied(entries)
        self._report_digest()
        self._snapshots.begin_if_due()
        return entries[-1] is last

    def _restore(self, snapshot: Snapshot) -> None:
        self._state.replace(self._fetcher.take(snapshot))
        self._proposals.restored(snapshot.last_index)
        self._waits.restored(snapshot.last_index)
        log.info("%s installed the snapshot at index %d", self._raft.id, snapshot.last_index)

    # --- What others want to know -------------------------------------------------------------------------------

    def _note_changes(self) -> None:
        raft = self._raft
        is_other_role = self._role_changes.note(raft.role, raft.current_term, raft.leader or "")
        if is_other_role:
            # The first hash of a new leadership is the one that is already there.
            self._report_digest()
        is_transferring = raft.is_transferring
        if self._waits.changes and (is_other_role or is_transferring != self._is_transferring):
            self._waits.changed()
        self._is_transferring = is_transferring
        self._membership.follow_if_changed()

    def _report_digest(self) -> None:
        """Let the heartbeats of a leader report the state's digest."""
        store = self._state.store
        digest = store.digest
        state_sum = b"" if digest.records is None else digest.records.to_bytes(STATE_SUM_BYTES)
        self._raft.set_state_digest(store.applied_index, digest.chain, digest.version, state_sum)


def _reported(heartbeat: Heartbeat) -> StateDigest:
    """Return the digest that a leader reports."""
    records = int.from_bytes(heartbeat.state_sum) if heartbeat.state_sum else None
    return StateDigest(heartbeat.state_hash_version, heartbeat.state_hash, records)
