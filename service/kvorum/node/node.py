"""One node: what the fronts and the cluster logic ask of it. Its parts do the work."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from kvorum.config import Config
from kvorum.errors import InvariantViolatedError, NotLeaderError, NotServingError
from kvorum.identity import Identity
from kvorum.kv.commands import (
    Compact,
    Compacted,
    CompactRefused,
    QueuedCommand,
    QuotaSet,
    Result,
    SetQuota,
)
from kvorum.kv.quota import OPERATOR
from kvorum.kv.state_hash import StateDigest
from kvorum.kv.store import Store
from kvorum.kv.watch import Interest, Sink
from kvorum.node.backup import Backup, Backups
from kvorum.node.driver import Driver
from kvorum.node.fetch import Fetcher
from kvorum.node.foreign import ForeignPeers
from kvorum.node.handover_port import HandOverPort
from kvorum.node.incarnation import ClusterIdentity
from kvorum.node.integrity import Integrity
from kvorum.node.levels import FeatureLevels
from kvorum.node.log_time import LogTime
from kvorum.node.membership import Membership
from kvorum.node.peer_requests import PeerRequests
from kvorum.node.ports import Ports
from kvorum.node.proposals import Proposals
from kvorum.node.reads import Reads
from kvorum.node.report import Report
from kvorum.node.set_back import Participation
from kvorum.node.shutdown import Shutdown
from kvorum.node.snapshots import Snapshots
from kvorum.node.space import DiskSpace
from kvorum.node.staleness import Staleness
from kvorum.node.state import State
from kvorum.node.sweeps import Sweeps
from kvorum.node.ticker import Ticker
from kvorum.node.turns import Turns
from kvorum.node.watches import Watch, Watches
from kvorum.raft import Change, Raft
from kvorum.raft.messages import Configuration, Member, NodeId
from kvorum.status import Check, NodeStatus
from kvorum.transport.interface import Hello

log = logging.getLogger("kvorum.node")


INSTALLING = "the node is installing a snapshot, and has given up its old state for it; ask again in a moment"
NO_STATE = "this node holds no state yet: it has applied nothing of a cluster; ask another node"


@dataclass(frozen=True)
class Parts:
    """What a node consists of; :func:`kvorum.node.compose.compose` makes and connects them."""

    identity: ClusterIdentity
    raft: Raft
    state: State
    turns: Turns
    proposals: Proposals
    handover: HandOverPort
    reads: Reads
    membership: Membership
    snapshots: Snapshots
    fetcher: Fetcher
    integrity: Integrity
    participation: Participation
    staleness: Staleness
    levels: FeatureLevels
    log_time: LogTime
    space: DiskSpace
    sweeps: Sweeps
    watches: Watches
    driver: Driver
    ticker: Ticker
    report: Report
    backups: Backups
    shutdown: Shutdown
    foreign: ForeignPeers
    peer_requests: PeerRequests


class Node:
    """A node, from :meth:`start` to :meth:`close`.

    Args:
        config: resolved.
        ports: what it was handed.
        parts: what it consists of.
    """

    def __init__(self, config: Config, ports: Ports, parts: Parts) -> None:
        self.config = config
        self.counters = ports.counters
        self.peers = ports.peers
        self.clock = ports.clock
        self.tasks = ports.tasks
        self.ports = ports
        self.parts = parts
        self.raft = parts.raft
        """The consensus server; to be read, not written."""

    # --- Life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Take part: open the peer port, call the members, tick.

        Raises:
            OSError: the peer port cannot be had.
        """
        self.ports.supervisor.on_failure(self.parts.driver.halt)
        await self.peers.start(self.parts.peer_requests)
        self.parts.membership.follow()
        self.parts.ticker.start()
        self.parts.sweeps.start()
        self.parts.space.start()
        if self.parts.state.suspected_shifts:
            self.parts.integrity.investigate(self.parts.state.store.applied_index)
        log.info(
            "%s is up: cluster %s, term %d, log up to %d, snapshot at %d",
            self.raft.id,
            self.identity.cluster_id or "none yet",
            self.raft.current_term,
            self.raft.log.last_index,
            self.raft.snapshot.last_index if self.raft.snapshot else 0,
        )

    async def run(self) -> None:
        """Return never: raise what ends the node. Cancelling it does not stop the node; :meth:`close` does.

        Raises:
            FatalError: it must end.
        """
        raise await self.ports.supervisor.wait()

    @property
    def stopping(self) -> bool:
        """Whether the node is about to stop: it is not ready any more, and changes no membership."""
        return self.parts.report.is_stopping

    @stopping.setter
    def stopping(self, value: bool) -> None:
        self.parts.report.is_stopping = value

    @property
    def listed_elsewhere(self) -> str:
        """Why no leader calls this node, which is in no cluster yet: it is listed at another address."""
        return self.parts.report.listed_elsewhere

    @listed_elsewhere.setter
    def listed_elsewhere(self, value: str) -> None:
        self.parts.report.listed_elsewhere = value

    async def serve_on(self, deadline_s: float) -> None:
        """Stop being ready, and lead and answer for ``shutdown_delay_s``, or until ``deadline_s`` if that is earlier.

        Args:
            deadline_s: on the monotonic clock.
        """
        self.stopping = True
        await self.parts.shutdown.serve_on(deadline_s)

    async def is_removed(self) -> bool:
        """Ask the other members whether this node, which is stopping, is one no longer; it believes that for good."""
        return await self.parts.shutdown.is_removed()

    async def drain(self, deadline_s: float) -> None:
        """Stop being ready, hand over the leadership, finish what is in flight; clients are still answered.

        Then wait, until ``deadline_s`` on the monotonic clock, while the others would have no quorum without us.
        """
        self.stopping = True
        await self.parts.shutdown.run(deadline_s)

    async def close(self) -> None:
        """Take no more part, and close the peers' connections. The storage is closed by whoever opened it."""
        self.stopping = True
        self.parts.ticker.stop()
        self.parts.driver.halt()
        await self.peers.close()
        parts = self.parts
        for part in (parts.space, parts.sweeps, parts.integrity, parts.participation, parts.fetcher, parts.snapshots):
            await part.close()

    # --- Requests -----------------------------------------------------------------------------------------------

    @property
    def store(self) -> Store:
        """The applied state; a new object after a snapshot was installed."""
        return self.parts.state.store

    def now_ms(self) -> int:
        """Return the log time (Unix, ms) by which leases live: on the leader as it passes, on others the state's."""
        return self.parts.log_time.now_ms()

    def check_serves(self) -> None:
        """Check that this node may answer from its state, stale or not.

        Raises:
            NotServingError: it may not, since it has none yet, its state is wrong or it is about to end; nothing was
                done.
            NotLeaderError: it was removed, and another node leads; nothing was done.
        """
        self._check_works()
        if not self.parts.state.store.applied_index:
            raise NotServingError(NO_STATE)

    def _check_works(self) -> None:
        if self.parts.turns.is_over:
            raise NotServingError("the node is stopping")
        if self.quarantined:
            raise NotServingError(self.quarantined)
        if self.parts.state.is_given_up:
            raise NotServingError(INSTALLING)
        removed_by = self.parts.report.removed_by
        if removed_by is not None:
            raise NotLeaderError(
                removed_by.node_id, leader_name=removed_by.name, leader_client_url=removed_by.client_url
            )

    def check_takes_part(self) -> None:
        """Check that this node may propose, and ask for the commit index.

        Raises:
            NotServingError: its state is wrong, its disk was set back, or it is about to end; nothing was done.
            NotLeaderError: it was removed, and another node leads; nothing was done.
        """
        self._check_works()
        if self.distrusted:
            raise NotServingError(self.distrusted)

    async def propose(
        self,
        command: QueuedCommand,
        timeout_ms: int,
        address: str = "",
        *,
        hand_over: bool = False,
        batch: object | None = None,
    ) -> Result:
        """Replicate a command within the limits (:func:`kvorum.kv.limits.check_command`); return what applying it gave.

        ``hand_over``: a node that does not lead hands it to the leader, from feature level 6 on. ``batch``: the
        commands of one batch, proposed in one turn of the loop, are applied in their order.

        Raises:
            NotLeaderError, NotServingError, OverloadedError, FeatureUnavailableError, NoSpaceError: certainly not
                done.
            OutcomeUnknownError: it may be done, now or later.
        """
        self.check_takes_part()
        parts = self.parts
        if hand_over and self.raft.leader != self.raft.id and parts.handover.origin.is_available:
            waiter = parts.handover.origin.submit(command, timeout_ms / 1000, address, batch)
        else:
            waiter = parts.proposals.submit(command, timeout_ms / 1000, address)
        if self.ports.tracer is not None:
            self.ports.tracer.submitted(waiter)
        parts.turns.schedule()
        return await waiter

    def check_leads(self, *, hand_over: bool = False) -> None:
        """Check that this node can propose commands, or with ``hand_over`` can have them proposed.

        Raises:
            NotLeaderError: it does not lead.
        """
        if not (hand_over and self.raft.leader is not None and self.parts.handover.origin.is_available):
            self.parts.proposals.check_leads()

    async def read_barrier(self, timeout_ms: int) -> None:
        """Return when ``store`` holds everything that was acknowledged, anywhere, before the call.

        Raises:
            NoLeaderError, NotServingError, ReadTimeoutError, OverloadedError: it could not be confirmed in time.
            NotLeaderError: this node was removed; the leader can answer.
        """
        self.check_takes_part()
        waiter = self.parts.reads.submit(timeout_ms / 1000)
        if self.ports.tracer is not None:
            self.ports.tracer.waits("kvorum.read_barrier", waiter)
        self.parts.turns.schedule()
        await waiter
        # The state may have been given up since the barrier was passed.
        if self.parts.state.is_given_up:
            raise NotServingError(INSTALLING)

    def check_watchers(self) -> None:
        """Check that another watch may begin.

        Raises:
            TooManyWatchersError: there are as many as there may be.
        """
        self.parts.watches.check_room()

    def watch(self, interest: Interest, sink: Sink, first: int) -> Watch:
        """Deliver all events from a revision on to a sink, until the watch is closed or its sink is told of its end.

        Args:
            interest: which events; checked.
            sink: where they go. They go there from the next turn on.
            first: the first revision; it may be in the future.

        Raises:
            NotServingError, NotLeaderError: as :meth:`check_serves`; or the node is about to stop.
            FeatureUnavailableError: there is no history below its feature level.
            RevisionCompactedError: the history begins above that revision.
            TooManyWatchersError: there are too many watchers.
        """
        self.check_serves()
        if self.stopping:
            raise NotServingError("the node is stopping")
        return self.parts.watches.open(interest, sink, first)

    async def begin_backup(self, *, stale: bool = False) -> Backup:
        """Return the state as a file, to be read and closed; call it after :meth:`read_barrier`.

        Args:
            stale: there was no read barrier; the file shall say so.

        Raises:
            NoLeaderError, OverloadedError: there is none to be had now.
        """
        return await self.parts.backups.begin(stale=stale)

    # --- What the node says of itself ---------------------------------------------------------------------------

    @property
    def identity(self) -> Identity:
        """Who this node is now."""
        return self.parts.identity.current

    @property
    def cluster_id(self) -> str:
        """The id of this node's cluster; empty: it is in none yet."""
        return self.parts.identity.current.cluster_id

    @property
    def quarantined(self) -> str | None:
        """Why this node serves nothing, or None."""
        return self.parts.integrity.quarantined

    @property
    def distrusted(self) -> str | None:
        """Why this node takes no part in consensus, and what to do about its disk, or None."""
        return self.parts.participation.why_not

    def hello(self) -> Hello:
        """Return what the node says of itself to anybody on the peer port."""
        return self.parts.peer_requests.hello()

    def status(self) -> NodeStatus:
        """Return what the node says of itself to its clients."""
        return self.parts.report.status()

    def staleness_ms(self) -> int | None:
        """Return a bound on the age of ``store`` in milliseconds, or None if there is none (yet).

        Everything that was committed this long ago is applied here.
        """
        return self.parts.staleness.bound_ms()

    def leader_client_url(self) -> str | None:
        """Return the leader's client URL if a leader is known."""
        return self.parts.report.leader_client_url()

    def leader_checks_cluster(self) -> bool:
        """Tell whether the leader understands a request that names its cluster (``?cluster=``)."""
        return self.parts.report.leader_checks_cluster()

    def leader_name(self) -> str | None:
        """Return the leader's name if one is known."""
        return self.parts.report.leader_name()

    def liveness(self) -> list[Check]:
        """Return the checks of ``/livez``: this process works; nothing about quorum, peers or disk space."""
        return self.parts.report.liveness()

    def readiness(self) -> list[Check]:
        """Return the checks of ``/readyz``: this node can serve its clients, as leader or not."""
        return self.parts.report.readiness()

    def state_hash_at(self, index: int) -> StateDigest | None:
        """Return the digest of the state after applying ``index``, if it is remembered."""
        return self.parts.peer_requests.state_hash_at(index)

    # --- The feature level --------------------------------------------------------------------------------------

    async def finalize(self, timeout_ms: int) -> int:
        """Raise the feature level as far as this version goes and return it: no earlier version can be started then.

        Raises:
            NotLeaderError, OverloadedError, FeatureLevelBlockedError: not raised.
            OutcomeUnknownError: it may be.
        """
        self.check_takes_part()
        return await self.parts.levels.finalize(timeout_ms)

    async def set_quota(self, limit_bytes: int, timeout_ms: int, *, hand_over: bool = False) -> None:
        """Set the quota on data, from 1 MiB on; return when it is in force here.

        Raises:
            NotLeaderError, NotServingError, OverloadedError, FeatureUnavailableError: not set.
            OutcomeUnknownError: it may be.
        """
        result = await self.propose(SetQuota(limit_bytes, OPERATOR), timeout_ms, hand_over=hand_over)
        if not isinstance(result, QuotaSet):
            raise InvariantViolatedError(f"a quota was answered with {result}")

    async def compact(self, revision: int, timeout_ms: int, *, hand_over: bool = False) -> Compacted | CompactRefused:
        """Give up the history below a revision, from 0 on; return what applying it gave.

        Raises:
            NotLeaderError, NotServingError, OverloadedError, FeatureUnavailableError: not done.
            OutcomeUnknownError: it may be.
        """
        result = await self.propose(Compact(revision), timeout_ms, hand_over=hand_over)
        if not isinstance(result, Compacted | CompactRefused):
            raise InvariantViolatedError(f"a compaction was answered with {result}")
        return result

    # --- Membership ---------------------------------------------------------------------------------------------

    def bootstrap(
        self, cluster_id: str, members: tuple[Member, ...], levels: Mapping[NodeId, int] | None = None
    ) -> None:
        """Begin a new cluster with these voters; only ever on one node, with an empty disk (docs/internals).

        Args:
            cluster_id: what it is to be called.
            members: the voters.
            levels: the highest feature level that each of them has announced. The cluster begins at the lowest of
                these, or at the first level if that of a member is not known.

        Raises:
            MembershipRefusedError: this node is not empty.
            StorageError: the cluster's id could not be made durable.
        """
        self.parts.identity.begin(cluster_id)
        configuration = Configuration(tuple(sorted(members, key=lambda member: member.id)))
        self.raft.bootstrap(configuration, self.parts.levels.first_entries(configuration, levels or {}))
        self.parts.turns.schedule()
        log.info("bootstrapped cluster %s with members %s", cluster_id, ", ".join(member.id for member in members))

    async def add_member(self, name: str, peer_url: str, client_url: str, timeout_ms: int) -> None:
        """Add the node that answers at ``peer_url`` as a learner.

        Raises:
            NotLeaderError, MembershipRefusedError: not done.
            OutcomeUnknownError: it may be.
        """
        await self.parts.membership.add(name, peer_url, client_url, timeout_ms)

    async def promote_member(self, name: str, timeout_ms: int) -> None:
        """Make a learner a voter. Raises as :meth:`add_member`."""
        await self.parts.membership.promote(name, timeout_ms)

    async def remove_member(self, name: str, timeout_ms: int) -> None:
        """Remove a member. Raises as :meth:`add_member`."""
        await self.parts.membership.remove(name, timeout_ms)

    async def change_membership(self, change: Change, timeout_ms: int) -> None:
        """Make one membership change and wait until it is committed. Raises as :meth:`add_member`."""
        await self.parts.membership.change(change, timeout_ms)

    async def transfer_leadership(self, target_name: str | None, timeout_ms: int) -> str:
        """Hand the leadership to the target (None: the most caught-up voter) and return the new leader's name.

        Raises:
            NotLeaderError, MembershipRefusedError, TransferFailedError: the leadership stays; nothing was begun.
            OutcomeUnknownError: it left, or may still leave.
        """
        return await self.parts.membership.transfer(target_name, timeout_ms)
