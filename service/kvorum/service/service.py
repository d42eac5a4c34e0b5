"""``execute``: authorize, check, wait, and say what came of it."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Awaitable, Callable
from copy import copy
from functools import partial
from types import MappingProxyType
from typing import assert_never, overload

import kvorum
from kvorum.errors import (
    CompareFailedError,
    InvalidRequestError,
    InvariantViolatedError,
    NoLeaderError,
    NoSpaceError,
    NotLeaderError,
    NotServingError,
    ReadTimeoutError,
    RevisionCompactedError,
    RevisionInFutureError,
    TooStaleError,
    WrongClusterError,
)
from kvorum.kv import commands
from kvorum.kv.commands import (
    CompactRefused,
    CompareFailed,
    FeatureLevelRaised,
    FeatureLevelRefused,
    HandedOverDone,
    LeaseGranted,
    LeaseRefused,
    LeaseRenewed,
    LeaseRevoked,
    NoSpace,
    OriginOpened,
    OriginRefused,
    QuotaSet,
    SessionEnded,
    SessionRefused,
    TxnRefused,
)
from kvorum.kv.cursors import decode_cursor
from kvorum.kv.features import HISTORY_LEVEL, check_level
from kvorum.kv.limits import check_client_id, check_command
from kvorum.kv.ranges import check_range
from kvorum.kv.scan import Scan
from kvorum.service import limits
from kvorum.service.access import Principal, authorize
from kvorum.service.leases import Leases, draw_id
from kvorum.service.locks import Locks
from kvorum.service.node_port import NodePort
from kvorum.service.past import read_past
from kvorum.service.queues import Queues
from kvorum.service.refusals import Refusals, session_error
from kvorum.service.requests import (
    AcquireLock,
    AddMember,
    Batch,
    CheckLiveness,
    CheckReadiness,
    Compact,
    Delete,
    EndSession,
    FinalizeUpgrade,
    Get,
    GetHistory,
    GetLeader,
    GetLease,
    GetLock,
    GetMetrics,
    GetQuota,
    GetStateHash,
    GetStatus,
    GetVersion,
    GrantLease,
    ListLeases,
    ListLocks,
    ListMembers,
    ProclaimLeader,
    PromoteMember,
    Put,
    PutWithOptions,
    Range,
    ReleaseLock,
    RemoveMember,
    RenewLease,
    Request,
    RevokeLease,
    SetQuota,
    Snapshot,
    TransferLeadership,
    Txn,
    Watch,
)
from kvorum.service.results import (
    Backup,
    BatchResult,
    Checks,
    Compacted,
    DeleteResult,
    FeatureLevel,
    GetResult,
    History,
    Leader,
    LeaseGrant,
    LeaseList,
    LeaseRenewal,
    LeaseRevocation,
    LeaseState,
    LockGrant,
    LockList,
    LockRelease,
    LockState,
    Members,
    Metrics,
    NewLeader,
    NodeStatus,
    PutResult,
    PutWithPrevious,
    Quota,
    RangeScan,
    Result,
    StateHash,
    TxnResult,
    Version,
    WatchStart,
)
from kvorum.service.scans import Scans
from kvorum.service.transactions import Transactions

RenderMetrics = Callable[[], tuple[bytes, str]]
"""Returns the metrics of the node, and their content type."""

_NOT_ENDED = MappingProxyType(
    {
        "unknown": "there is no such session: it was never opened, it gave way to another one, or it was ended more "
        "than an hour ago",
        "full": "too many sessions were ended within the hour; this one stays until it was idle for an hour",
    }
)
"""Why a session was not ended: the state machine's reason -> the sentence for the client."""

_METRICS_SHARED_S = 1.0
"""A rendering takes milliseconds of the event loop: a few scrapers in a tight loop would cost a leader its place."""


class Service:
    """The requests of one node's clients.

    Args:
        node: the node.
        now: a monotonic clock, in seconds.
        render_metrics: renders the metrics; by default there are none.
        draw_lease_id: draws the id of a lease whose client leaves it to the node.
        hands_over: a node that does not lead hands writes to the leader, from feature level 6 on.
    """

    def __init__(
        self,
        node: NodePort,
        now: Callable[[], float],
        render_metrics: RenderMetrics = lambda: (b"", "text/plain"),
        draw_lease_id: Callable[[], int] = draw_id,
        *,
        hands_over: bool = False,
    ) -> None:
        self._node = node
        self._draw_lease_id = draw_lease_id
        self._render_metrics = render_metrics
        self._metrics: Metrics | None = None
        self._metrics_since_s = 0.0
        self._counters = node.counters
        self._timeout_max_ms = node.config.request_timeout_ms
        self._now = now
        self._refusals = Refusals(node)
        self._scans = Scans(node, now)
        self._queues = Queues(node)
        self._lease_lists = asyncio.Lock()
        self._compose(hands_over=hands_over)

    def _compose(self, *, hands_over: bool) -> None:
        node, now = self._node, self._now
        self._hands_over = hands_over
        self._transactions = Transactions(node, now, self._refusals, hands_over=hands_over)
        self._leases = Leases(node, self._refusals, self._draw_lease_id, self._lease_lists, hands_over=hands_over)
        handing_over = self._transactions if hands_over else Transactions(node, now, self._refusals, hands_over=True)
        self._locks = Locks(node, now, self._queues, self._transactions, handing_over, self.check_leads)

    def handing_over(self) -> Service:
        """Return the same, which hands writes to the leader: what is left of NotLeaderError is what only it can do.

        Both count towards the same bounds of ranges and lists that are being read.
        """
        other = copy(self)
        other._compose(hands_over=True)
        return other

    # fmt: off
    @overload
    def execute(self, principal: Principal, request: Put) -> Awaitable[PutResult]: ...
    @overload
    def execute(self, principal: Principal, request: PutWithOptions) -> Awaitable[PutWithPrevious]: ...
    @overload
    def execute(self, principal: Principal, request: Get) -> Awaitable[GetResult]: ...
    @overload
    def execute(self, principal: Principal, request: GetHistory) -> Awaitable[History]: ...
    @overload
    def execute(self, principal: Principal, request: Range) -> Awaitable[RangeScan]: ...
    @overload
    def execute(self, principal: Principal, request: Delete) -> Awaitable[DeleteResult]: ...
    @overload
    def execute(self, principal: Principal, request: Txn) -> Awaitable[TxnResult]: ...
    @overload
    def execute(self, principal: Principal, request: Batch) -> Awaitable[BatchResult]: ...
    @overload
    def execute(self, principal: Principal, request: Compact) -> Awaitable[Compacted]: ...
    @overload
    def execute(self, principal: Principal, request: EndSession) -> Awaitable[SessionEnded]: ...
    @overload
    def execute(self, principal: Principal, request: Watch) -> Awaitable[WatchStart]: ...
    @overload
    def execute(self, principal: Principal, request: GrantLease) -> Awaitable[LeaseGrant]: ...
    @overload
    def execute(self, principal: Principal, request: RenewLease) -> Awaitable[LeaseRenewal]: ...
    @overload
    def execute(self, principal: Principal, request: RevokeLease) -> Awaitable[LeaseRevocation]: ...
    @overload
    def execute(self, principal: Principal, request: GetLease) -> Awaitable[LeaseState]: ...
    @overload
    def execute(self, principal: Principal, request: ListLeases) -> Awaitable[LeaseList]: ...
    @overload
    def execute(self, principal: Principal, request: AcquireLock | ProclaimLeader) -> Awaitable[LockGrant]: ...
    @overload
    def execute(self, principal: Principal, request: ReleaseLock) -> Awaitable[LockRelease]: ...
    @overload
    def execute(self, principal: Principal, request: GetLock) -> Awaitable[LockState]: ...
    @overload
    def execute(self, principal: Principal, request: ListLocks) -> Awaitable[LockList]: ...
    @overload
    def execute(self, principal: Principal, request: GetStatus) -> Awaitable[NodeStatus]: ...
    @overload
    def execute(self, principal: Principal, request: GetStateHash) -> Awaitable[StateHash]: ...
    @overload
    def execute(self, principal: Principal, request: GetLeader) -> Awaitable[Leader]: ...
    @overload
    def execute(
        self, principal: Principal, request: ListMembers | AddMember | PromoteMember | RemoveMember
    ) -> Awaitable[Members]: ...
    @overload
    def execute(self, principal: Principal, request: TransferLeadership) -> Awaitable[NewLeader]: ...
    @overload
    def execute(self, principal: Principal, request: FinalizeUpgrade) -> Awaitable[FeatureLevel]: ...
    @overload
    def execute(self, principal: Principal, request: GetQuota | SetQuota) -> Awaitable[Quota]: ...
    @overload
    def execute(self, principal: Principal, request: Snapshot) -> Awaitable[Backup]: ...
    @overload
    def execute(self, principal: Principal, request: CheckLiveness | CheckReadiness) -> Awaitable[Checks]: ...
    @overload
    def execute(self, principal: Principal, request: GetMetrics) -> Awaitable[Metrics]: ...
    @overload
    def execute(self, principal: Principal, request: GetVersion) -> Awaitable[Version]: ...
    # fmt: on

    def execute(self, principal: Principal, request: Request) -> Awaitable[Result]:
        """Execute the request: ``await`` what this returns. The only way in for every front.

        This is no coroutine of its own, since each one on the way is paid for by every request.

        Returns:
            What :mod:`kvorum.service.results` has for the request. A Backup and a RangeScan must be closed.

        Raises:
            CallerError: it is refused, or its outcome is unknown; see :mod:`kvorum.service.outcomes`.
                NotLeaderError names a leader elsewhere and its client URL.
        """
        authorize(principal, request)
        match request:
            case Put():
                put = commands.Put(
                    request.key, request.value, request.prev_revision, request.client_id, request.sequence
                )
                return self._write(principal, put, request.timeout_ms)
            case Get():
                return self._get(request)
            case GetHistory():
                return self._get_history(request)
            case Range():
                return self._range(request)
            case Delete():
                delete = commands.Delete(request.key, request.prev_revision, request.client_id, request.sequence)
                return self._write(principal, delete, request.timeout_ms)
            case PutWithOptions():
                return self._transactions.put(principal, request)
            case Txn():
                return self._transactions.txn(principal, request)
            case Batch():
                return self._transactions.batch(principal, request)
            case Compact():
                return self._compact(request)
            case EndSession():
                return self._end_session(request)
            case Watch():
                return self._watch(request)
            case GrantLease():
                return self._leases.grant(request)
            case RenewLease():
                return self._leases.renew(request)
            case RevokeLease():
                return self._leases.revoke(request)
            case GetLease():
                return self._leases.get(request)
            case ListLeases():
                return self._leases.list_all(request)
            case AcquireLock():
                return self._locks.acquire(principal, request)
            case ReleaseLock():
                return self._locks.release(principal, request)
            case ProclaimLeader():
                return self._locks.proclaim(principal, request)
            case GetLock():
                return self._locks.get(request)
            case ListLocks():
                return self._locks.list_all(request)
            case GetStatus():
                return self._status()
            case GetStateHash():
                return self._state_hash()
            case GetLeader():
                return self._leader()
            case ListMembers():
                return self._members()
            case AddMember() | PromoteMember() | RemoveMember():
                return self._change_members(request)
            case TransferLeadership():
                return self._transfer_leadership(request)
            case FinalizeUpgrade(timeout_ms):
                return self._finalize(timeout_ms)
            case GetQuota():
                return self._get_quota()
            case SetQuota():
                return self._set_quota(request)
            case Snapshot():
                return self._snapshot(request)
            case CheckLiveness() | CheckReadiness():
                return self._check(request)
            case GetMetrics():
                return self._get_metrics()
            case GetVersion():
                return self._get_version()
            case _:
                assert_never(request)

    def check_leads(self) -> None:
        """Check that this node can execute writes; so a front can refuse one before it has read all of it.

        Raises:
            NotLeaderError, NoLeaderError: as :meth:`execute` would.
        """
        try:
            self._node.check_leads(hand_over=self._hands_over)
        except NotLeaderError as error:
            raise self._refusals.elsewhere(error) from None

    @property
    def cluster_id(self) -> str:
        """The id of the node's cluster; empty: it is in none yet."""
        return self._node.cluster_id

    def check_cluster(self, wanted: str) -> None:
        """Check that a request which names its cluster is for this node's.

        Raises:
            WrongClusterError: it is for another one.
            NotServingError: this node is in no cluster yet, and knows nothing of the one that is named.
        """
        cluster_id = self._node.cluster_id
        if not cluster_id:
            raise NotServingError(f"{self._node.config.name} is in no cluster yet, and the request is for one")
        if cluster_id != wanted:
            raise WrongClusterError(self._node.config.name, cluster_id, wanted)

    # Keys: the hot path.

    async def _write(
        self, principal: Principal, command: commands.Command, timeout_ms: int | None
    ) -> PutResult | DeleteResult:
        started = self._now()
        check_command(command)
        timeout_ms = self._timeout_max_ms if timeout_ms is None else self._bounded(timeout_ms)
        try:
            result = await self._node.propose(command, timeout_ms, principal.address, hand_over=self._hands_over)
        except (NotLeaderError, NoSpaceError) as error:
            raise self._refusals.of_proposal(error) from None
        self._counters.writes += 1
        self._counters.write_duration.record(self._now() - started)
        match result:
            case PutResult() | DeleteResult():
                return result
            case CompareFailed(revision, mod_revision):
                raise CompareFailedError(revision, mod_revision, command.prev_revision)
            case SessionRefused(revision, reason):
                raise session_error(revision, reason)
            case NoSpace():
                raise self._refusals.no_space(result)
            case (
                SessionEnded()
                | TxnResult()
                | TxnRefused()
                | QuotaSet()
                | Compacted()
                | CompactRefused()
                | LeaseGranted()
                | LeaseRenewed()
                | LeaseRevoked()
                | LeaseRefused()
                | OriginOpened()
                | HandedOverDone()
                | OriginRefused()
                | FeatureLevelRaised()
                | FeatureLevelRefused()
            ):
                raise InvariantViolatedError(f"a write was answered with {result}")
            case _:
                assert_never(result)

    async def _compact(self, request: Compact) -> Compacted:
        limits.check_revision(request.revision)
        try:
            result = await self._node.compact(
                request.revision, self._bounded(request.timeout_ms), hand_over=self._hands_over
            )
        except NotLeaderError as error:
            raise self._refusals.elsewhere(error) from None
        match result:
            case Compacted():
                self._counters.compactions["request"] += 1
                return result
            case CompactRefused(revision, floor, "compacted"):
                raise RevisionCompactedError(request.revision, floor, revision, is_compaction=True)
            case CompactRefused(revision):
                raise RevisionInFutureError(request.revision, revision)
            case _:
                assert_never(result)

    async def _end_session(self, request: EndSession) -> SessionEnded:
        check_client_id(request.client_id)
        try:
            result = await self._node.propose(
                commands.EndSession(request.client_id),
                self._bounded(request.timeout_ms),
                hand_over=self._hands_over,
            )
        except NotLeaderError as error:
            raise self._refusals.elsewhere(error) from None
        match result:
            case SessionEnded():
                return result
            case SessionRefused(revision, reason):
                raise session_error(revision, reason, _NOT_ENDED)
            case _:
                raise InvariantViolatedError(f"the end of a session was answered with {result}")

    def _get_history(self, request: GetHistory) -> Awaitable[GetResult | History]:
        limits.check_versions(request.limit)
        return self._get(request)

    async def _get(self, request: Get | GetHistory) -> GetResult | History:
        if not request.key:
            raise InvalidRequestError("the key is empty")
        timeout_ms = self._timeout_max_ms if request.timeout_ms is None else self._bounded(request.timeout_ms)
        if request.max_staleness_ms is not None:
            limits.check_staleness(request.consistency, request.max_staleness_ms)
        if request.revision:
            limits.check_revision(request.revision)
        staleness_ms = None
        if request.consistency == "stale":
            staleness_ms = await self._prepare_stale(request, request.revision, timeout_ms)
        else:
            await self._node.read_barrier(timeout_ms)
            self._counters.reads += 1
        # No await between the barrier and the read, and the store is asked for anew: a snapshot may have replaced it.
        store = self._node.store
        if request.revision == 0 and isinstance(request, Get):
            return GetResult(store.get(request.key), store.revision, staleness_ms)
        return read_past(request, store, staleness_ms)

    async def _range(self, request: Range) -> RangeScan:
        query = request.query
        check_range(query)
        limits.check_staleness(request.consistency, request.max_staleness_ms)
        timeout_ms = self._bounded(request.timeout_ms)
        cursor = decode_cursor(request.cursor, query) if request.cursor else None
        revision = query.revision if cursor is None else cursor.revision
        staleness_ms = None
        if request.consistency == "stale":
            staleness_ms = await self._prepare_stale(request, revision, timeout_ms)
        else:
            await self._node.read_barrier(timeout_ms)
            self._counters.reads += 1
        store = self._node.store
        if query.revision:
            check_level("a read of the past", HISTORY_LEVEL, store.feature_level)
        scan = Scan(query, revision or store.revision, cursor, is_whole=request.is_whole)
        return await self._scans.begin(
            scan, is_whole=request.is_whole, timeout_ms=timeout_ms, staleness_ms=staleness_ms
        )

    async def _prepare_stale(self, request: Get | GetHistory | Range, revision: int, timeout_ms: int) -> int | None:
        """Return the bound on the age of the state once a stale read may take it. It has reached the revision then."""
        try:
            staleness_ms = self._staleness_ms(request.max_staleness_ms)
        except TooStaleError as error:
            await self._refresh(timeout_ms, error)
            staleness_ms = 0
        if revision > self._node.store.revision:
            staleness_ms = await self._catch_up(timeout_ms)
        self._counters.stale_reads += 1
        return staleness_ms

    def _staleness_ms(self, limit_ms: int | None) -> int | None:
        self._node.check_serves()
        staleness_ms = self._node.staleness_ms()
        if limit_ms is not None and (staleness_ms is None or staleness_ms > limit_ms):
            raise TooStaleError(self._node.config.name, staleness_ms, limit_ms)
        return staleness_ms

    async def _catch_up(self, timeout_ms: int) -> int:
        """Return how old the state is once it holds all that was committed, and so a revision that is not here yet."""
        await self._node.read_barrier(timeout_ms)
        return 0

    async def _refresh(self, timeout_ms: int, too_stale: TooStaleError) -> None:
        """Return when the state holds everything that was committed before the request.

        Raises:
            TooStaleError: no quorum confirmed it in time.
            OverloadedError: too many reads wait.
        """
        try:
            await self._node.read_barrier(timeout_ms)
        except (NoLeaderError, ReadTimeoutError):
            raise too_stale from None

    async def _watch(self, request: Watch) -> WatchStart:
        interest = limits.watch_interest(request)
        limits.check_revision(request.from_revision)
        # Before the answer begins: one that has begun can only say in its last line what is wrong.
        self._node.check_watchers()
        # Also with a revision: a node that is cut off would have nothing to deliver, and not say so.
        await self._node.read_barrier(self._bounded(request.timeout_ms))
        store = self._node.store
        check_level("a watch", HISTORY_LEVEL, store.feature_level)
        first = request.from_revision or store.revision + 1
        if first < store.floor:
            raise RevisionCompactedError(first, store.floor, store.revision)
        return WatchStart(store.revision, first, partial(self._node.watch, interest, first=first))

    # The cluster.

    async def _status(self) -> NodeStatus:
        return self._node.status()

    async def _state_hash(self) -> StateHash:
        status = self._node.status()
        return StateHash(status.name, status.applied_index, status.revision, status.state_hash)

    async def _leader(self) -> Leader:
        return Leader(self._node.leader_name(), self._node.leader_client_url())

    async def _members(self) -> Members:
        members = self._node.status().members
        if not members:
            raise NotServingError(f"{self._node.config.name} knows no members yet; ask another node")
        return Members(members)

    async def _change_members(self, request: AddMember | PromoteMember | RemoveMember) -> Members:
        limits.check_member_name(request.name)
        timeout_ms = self._bounded(request.timeout_ms)
        try:
            match request:
                case AddMember(name, peer_url, client_url):
                    limits.check_member_url(peer_url, "peer_url")
                    if client_url:
                        limits.check_member_url(client_url, "client_url")
                    await self._node.add_member(name, peer_url, client_url, timeout_ms)
                case PromoteMember(name):
                    await self._node.promote_member(name, timeout_ms)
                case RemoveMember(name):
                    await self._node.remove_member(name, timeout_ms)
                case _:
                    assert_never(request)
        except NotLeaderError as error:
            raise self._refusals.elsewhere(error) from None
        return Members(self._node.status().members)

    async def _transfer_leadership(self, request: TransferLeadership) -> NewLeader:
        timeout_ms = self._bounded(request.timeout_ms)
        if request.target == "":
            raise InvalidRequestError(
                "the target is empty: name a member, or leave it out for the most caught-up voter"
            )
        try:
            return NewLeader(await self._node.transfer_leadership(request.target, timeout_ms))
        except NotLeaderError as error:
            raise self._refusals.elsewhere(error) from None

    async def _finalize(self, timeout_ms: int | None) -> FeatureLevel:
        try:
            return FeatureLevel(await self._node.finalize(self._bounded(timeout_ms)))
        except NotLeaderError as error:
            raise self._refusals.elsewhere(error) from None

    async def _get_quota(self) -> Quota:
        self._node.check_serves()
        return self._quota()

    async def _set_quota(self, request: SetQuota) -> Quota:
        limits.check_quota(request.limit_bytes)
        try:
            await self._node.set_quota(
                request.limit_bytes, self._bounded(request.timeout_ms), hand_over=self._hands_over
            )
        except NotLeaderError as error:
            raise self._refusals.elsewhere(error) from None
        return self._quota()

    def _quota(self) -> Quota:
        store = self._node.store
        return Quota(store.quota.limit_bytes, store.counted_bytes, store.quota.is_full)

    async def _snapshot(self, request: Snapshot) -> Backup:
        timeout_ms = self._bounded(request.timeout_ms)
        if request.stale:
            self._node.check_serves()
        else:
            await self._node.read_barrier(timeout_ms)
        return await self._node.begin_backup(stale=request.stale)

    async def _check(self, request: CheckLiveness | CheckReadiness) -> Checks:
        node = self._node
        return Checks(tuple(node.liveness() if isinstance(request, CheckLiveness) else node.readiness()))

    async def _get_metrics(self) -> Metrics:
        """Return the metrics. All that ask within a second of a rendering share it."""
        now = self._now()
        if self._metrics is None or now - self._metrics_since_s >= _METRICS_SHARED_S:
            self._metrics = Metrics(*self._render_metrics())
            self._metrics_since_s = now
        return self._metrics

    async def _get_version(self) -> Version:
        return Version(kvorum.__version__, platform.python_version())

    def _bounded(self, timeout_ms: int | None) -> int:
        return limits.bounded_timeout_ms(timeout_ms, self._timeout_max_ms)
