"""Writes in flight: queued, proposed, committed, answered.

The writes of one turn of the loop become one log entry. The callers wait by the index and term of that entry; the entry
that is later applied at that index decides their answer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, assert_never

from kvorum.errors import (
    CallerError,
    NoSpaceError,
    NotLeaderError,
    NotServingError,
    OutcomeUnknownError,
    OverloadedError,
    SessionError,
)
from kvorum.kv.commands import (
    Compact,
    Delete,
    EndSession,
    HandedOver,
    LeaseGrant,
    LeaseRenew,
    LeaseRevoke,
    OpenOrigin,
    ProposedCommand,
    Put,
    QueuedCommand,
    Result,
    SetQuota,
    Txn,
    encode_batch,
)
from kvorum.kv.features import LEASE_LEVEL, check_command_level
from kvorum.kv.limits import BATCH_COMMANDS_MAX, TXN_KEYS_MAX
from kvorum.kv.store import Store
from kvorum.kv.txn import visited_keys
from kvorum.kv.txn_check import has_put, transaction_bytes
from kvorum.kv.txn_own import check_own
from kvorum.node.deadlines import Deadlines
from kvorum.node.log_time import LogTime
from kvorum.node.ports import Clock
from kvorum.node.session_shares import SessionShares
from kvorum.node.space import DiskSpace
from kvorum.node.state import State
from kvorum.raft import Raft
from kvorum.raft.messages import Entry
from kvorum.telemetry.counters import Counters

if TYPE_CHECKING:
    from kvorum.telemetry.tracing import Tracer

Waiter = asyncio.Future[Result]


class DoesNotFitError(Exception):
    """A frame that was handed over visits more keys than one entry may: it was not proposed.

    Attributes:
        fits: so many of its commands, from the first on, may be proposed as one frame; at least one, and not all.
        count: how many commands it has.
    """

    def __init__(self, fits: int, count: int) -> None:
        super().__init__(f"only the first {fits} of the {count} commands of the frame fit into an entry")
        self.fits = fits
        self.count = count


KEEPING_SHARE = 2
"""Renewals and revocations of leases are refused only when so many times as many writes wait as otherwise: a full queue
must not end leases whose holders live. This holds for writes that are proposed, handed over, or taken from others."""
_COMMAND_OVERHEAD_BYTES = 64


class Proposals:
    """The leader's writes, from :meth:`submit` to :meth:`applied`.

    Args:
        raft: the consensus server.
        state: whose feature level says what may be proposed.
        counters: where proposals are counted.
        pending_max: writes queued or waiting for a quorum; more are refused.
        batch_bytes_max: the most that one log entry carries.
        clock: by which writes expire.
        log_time: the time that entries carry.
        session_shares: who may open a session.
        space: whether the disks have room for a put.
        tracer: records the spans of traced writes; None: there are no traces.
    """

    def __init__(
        self,
        raft: Raft,
        state: State,
        counters: Counters,
        pending_max: int,
        batch_bytes_max: int,
        clock: Clock,
        log_time: LogTime,
        session_shares: SessionShares,
        space: DiskSpace,
        tracer: Tracer | None = None,
    ) -> None:
        self._raft = raft
        self._state = state
        self._counters = counters
        self._pending_max = pending_max
        self._batch_bytes_max = batch_bytes_max
        self._clock = clock
        self._log_time = log_time
        self._session_shares = session_shares
        self._space = space
        self._tracer = tracer
        self.queue: deque[tuple[ProposedCommand, Waiter, int]] = deque()
        """Not proposed yet: the command, its caller, and how many bytes of an entry it takes."""
        self.is_holding_back = False
        """What is queued waits until a save is done, or until others are applied."""
        self.pending = 0
        """Writes that are queued or wait for a quorum."""
        self._proposed: dict[int, tuple[int, list[Waiter], float]] = {}  # index -> (term, waiters, since)
        self._visited: dict[int, tuple[int, int]] = {}
        """Index of a proposed entry that visits many keys -> its term, and about how many."""
        self._deadlines: Deadlines[Result] = Deadlines(clock)
        self._idle: list[tuple[float, asyncio.Future[None]]] = []
        """(deadline, future) of those that wait until no caller waits."""

    def idle(self, deadline_s: float) -> asyncio.Future[None]:
        """Return a future that completes once no caller waits for a write, at the latest at ``deadline_s``.

        A write whose caller has the answer "unknown", or has gone, is not waited for. The latter is noticed
        at the next tick.
        """
        waiter: asyncio.Future[None] = asyncio.Future()
        self._idle.append((deadline_s, waiter))
        self._complete_idle()
        return waiter

    def _complete_idle(self) -> None:
        waiting = (waiter for _, waiters, _ in self._proposed.values() for waiter in waiters)
        is_idle = all(waiter.done() for waiter in (*(waiter for _, waiter, _ in self.queue), *waiting))
        now_s = self._clock.monotonic()
        for deadline_s, waiter in self._idle:
            if (is_idle or now_s >= deadline_s) and not waiter.done():
                waiter.set_result(None)
        self._idle = [each for each in self._idle if not each[1].done()]

    def check_leads(self) -> None:
        """Check that this node leads.

        Raises:
            NotLeaderError: it does not.
        """
        if self._raft.leader != self._raft.id:
            raise NotLeaderError(self._raft.leader)

    def submit(self, command: QueuedCommand, timeout_s: float, address: str = "") -> Waiter:
        """Queue a write within the limits (:func:`kvorum.kv.limits.check_command`); return the future of its result.

        ``address``: the client's, if it is known; what one address may hold of a nearly full table is limited.

        Raises:
            NotLeaderError, OverloadedError, FeatureUnavailableError, NoSpaceError, SessionError: nothing was queued.
            TooLargeError: a transaction that no node would bound at this feature level; likewise.
        """
        self.check_leads()
        size_bytes = weight(command)
        self.check(command, size_bytes, address)
        return self.enqueue(command, size_bytes, timeout_s)

    def check(self, command: QueuedCommand, size_bytes: int, address: str) -> None:
        """Check that there is room for a write, which takes so many bytes of an entry.

        Raises:
            OverloadedError, FeatureUnavailableError, NoSpaceError, SessionError: there is none.
        """
        store = self._state.store
        check_command_level(command, store.feature_level)
        if store.feature_level < LEASE_LEVEL and isinstance(command, Txn):
            check_own(command)
        if self.pending >= self._pending_max * share(command):
            self._counters.proposals["refused"] += 1
            raise OverloadedError(f"{self.pending} writes are already waiting")
        if isinstance(command, Put | Delete | Txn | LeaseGrant):
            try:
                # Refused when it is applied, a put would only fill the log.
                store.check_room(command)
                if isinstance(command, Put | LeaseGrant) or (isinstance(command, Txn) and has_put(command)):
                    self._space.check(size_bytes)
            except (NoSpaceError, SessionError):
                self._counters.proposals["refused"] += 1
                raise
        if address and isinstance(command, Put | Delete | Txn) and command.sequence == 1:
            self._session_shares.admit(address, command.client_id)

    def enqueue(self, command: ProposedCommand, size_bytes: int, timeout_s: float) -> Waiter:
        """Queue a command that was checked; return the future of its result."""
        waiter: Waiter = asyncio.Future()
        self.queue.append((command, waiter, size_bytes))
        self._deadlines.add(waiter, timeout_s)
        self.pending += 1
        return waiter

    def flush(self) -> None:
        """Propose the queued writes. They wait during a leadership transfer, and while the log time is unknown.

        They also wait while this node saves, if an earlier write waits for a quorum. The disks save one after the
        other, so what is proposed now would not be durable sooner, and cost an entry of its own.
        """
        self.is_holding_back = bool(self._proposed) and self._raft.is_saving
        if self.is_holding_back:
            return
        while self.queue and not self._raft.is_transferring and not self._log_time.is_unknown:
            queued = len(self.queue)
            commands, waiters, keys = self._take_batch()
            if not commands:
                if len(self.queue) == queued:
                    self.is_holding_back = True
                    return
                continue
            try:
                index, term = self._raft.propose([encode_batch(self._log_time.now_ms(), commands)])
            except CallerError as error:
                self._refuse(waiters, error)
            else:
                self._fail_replaced(index)
                self._proposed[index] = (term, waiters, self._clock.monotonic())
                if keys:
                    self._visited[index] = (term, keys)
                if self._tracer is not None:
                    self._tracer.proposed(index, term, waiters)

    def advance(self) -> None:
        """Propose an entry that changes nothing, so that a snapshot may be taken at a later index than the last."""
        if not self._log_time.is_unknown:
            with suppress(CallerError):
                self._raft.propose([encode_batch(self._log_time.now_ms(), [])])

    def _fail_replaced(self, index: int) -> None:
        """Fail the writes proposed at this index in an earlier term: their entry was truncated and is never applied."""
        if index in self._proposed:
            self._visited.pop(index, None)
            _, waiters, _ = self._proposed.pop(index)
            self.pending -= len(waiters)
            self._fail(waiters, OutcomeUnknownError("another entry replaced the entry of this write"))

    def _take_batch(self) -> tuple[list[ProposedCommand], list[Waiter], int]:
        """Return the commands of the next entry, their callers, and about how many keys they visit.

        All that is proposed and not applied yet may be applied in one turn of the loop, so the keys that its
        transactions visit, and that its revocations delete, are bounded together (one alone may always be proposed).
        The waiter of a frame that needs more entries than one gets a :class:`DoesNotFitError`.
        """
        commands: list[ProposedCommand] = []
        waiters: list[Waiter] = []
        size = keys = carried = 0
        # An entry of an earlier term may have been replaced, and is never applied then.
        in_flight = 0
        for term, visited in self._visited.values():
            if term == self._raft.current_term:
                in_flight += visited
        while self.queue and len(commands) + carried < BATCH_COMMANDS_MAX and size < self._batch_bytes_max:
            command, waiter, size_bytes = self.queue[0]
            if commands and size + size_bytes > self._batch_bytes_max:
                break
            self.queue.popleft()
            if waiter.done():  # Its caller gave up before the proposal: the write was certainly not done.
                self.pending -= 1
                continue
            if isinstance(command, HandedOver):
                if commands and len(commands) + carried + len(command.commands) >= BATCH_COMMANDS_MAX:
                    self.queue.appendleft((command, waiter, size_bytes))
                    break
                carried += len(command.commands)
            if isinstance(command, Txn | LeaseRevoke | HandedOver):
                visited = visits(command, self._state.store)
                if visited > TXN_KEYS_MAX and isinstance(command, HandedOver) and len(command.commands) > 1:
                    # Its origin lags behind, and could not count them.
                    self.pending -= 1
                    carried -= len(command.commands)
                    self._counters.proposals["refused"] += 1
                    fits = fitting(command.commands, self._state.store)
                    waiter.set_exception(DoesNotFitError(fits, len(command.commands)))
                    continue
                if in_flight + keys > 0 and in_flight + keys + visited > TXN_KEYS_MAX:
                    self.queue.appendleft((command, waiter, size_bytes))
                    break
                keys += visited
            size += size_bytes
            commands.append(command)
            waiters.append(waiter)
        return commands, waiters, keys

    def applied(self, entry: Entry, results: list[Result]) -> None:
        """Answer the callers that wait for this entry, which was applied."""
        waiting = self._proposed.pop(entry.index, None)
        if waiting is None:
            return
        self._visited.pop(entry.index, None)
        term, waiters, since = waiting
        self.pending -= len(waiters)
        if term != entry.term:
            self._fail(waiters, OutcomeUnknownError("an entry of another leader replaced the entry of this write"))
            return
        self._counters.commit_duration.record(self._clock.monotonic() - since)
        answered = 0
        for waiter, result in zip(waiters, results, strict=True):
            if not waiter.done():
                waiter.set_result(result)
            elif not waiter.cancelled():
                answered += 1  # "Unknown", at its deadline, and counted as such.
        self._counters.proposals["committed"] += len(waiters) - answered
        if self._idle:
            self._complete_idle()

    def restored(self, index: int) -> None:
        """Fail the writes up to ``index``: a snapshot replaced their entries, and their results are not known."""
        for at in [at for at in self._proposed if at <= index]:
            self._visited.pop(at, None)
            _, waiters, _ = self._proposed.pop(at)
            self.pending -= len(waiters)
            self._fail(waiters, OutcomeUnknownError("a snapshot replaced the entry of this write"))

    def expire(self) -> None:
        """Answer the callers whose deadline has passed; called once a tick.

        A write that is still queued was certainly not done. The outcome of a proposed one is unknown.
        """
        expired = list(self._deadlines.expired())
        # Thousands may expire at once, with thousands in the queue.
        queued = {waiter for _, waiter, _ in self.queue} if expired else set()
        for waiter in expired:
            if waiter in queued:
                self._refuse(
                    [], OverloadedError("the write was still queued at its deadline; it was not applied"), waiter
                )
            else:
                self._fail([waiter], OutcomeUnknownError("no quorum answered in time; the write may still be done"))
        if self._idle:
            self._complete_idle()

    def _refuse(self, waiters: list[Waiter], error: CallerError, *more: Waiter) -> None:
        self.pending -= len(waiters)
        self._tell((*waiters, *more), error, "refused")

    def _fail(self, waiters: list[Waiter], error: OutcomeUnknownError) -> None:
        self._tell(waiters, error, "unknown")

    def _tell(self, waiters: Sequence[Waiter], error: CallerError, outcome: str) -> None:
        """Answer the callers. Each write is counted once: by the answer, or by its fate if the caller has gone."""
        for waiter in waiters:
            if waiter.done() and not waiter.cancelled():
                continue
            self._counters.proposals[outcome] += 1
            if not waiter.done():
                waiter.set_exception(error)

    def stop(self, reason: str) -> None:
        """Answer every caller: the node stops, or its state is wrong."""
        queued = [waiter for _, waiter, _ in self.queue]
        self.queue.clear()
        self._refuse(queued, NotServingError(reason))
        for _, waiters, _ in self._proposed.values():
            self.pending -= len(waiters)
            self._fail(waiters, OutcomeUnknownError(f"{reason}; the write may still be applied"))
        self._proposed.clear()
        self._visited.clear()
        self._complete_idle()


def visits(command: ProposedCommand, store: Store) -> int:
    """Return about how many keys a command visits that may visit many; 0 of the others."""
    match command:
        case Txn():
            return visited_keys(command, store.versions)
        case LeaseRevoke(id):
            lease = store.leases.get(id)
            return 0 if lease is None else len(lease.keys)
        case HandedOver():
            return sum(visits(each, store) for each in command.commands)
        case _:
            return 0


def share(command: ProposedCommand) -> int:
    """Return how many times a limit of what may wait holds for a command: see :data:`KEEPING_SHARE`."""
    return KEEPING_SHARE if isinstance(command, LeaseRenew | LeaseRevoke) else 1


def fitting(commands: Sequence[QueuedCommand], store: Store) -> int:
    """Return how many commands, from the first on, one entry may carry by the keys that they visit; at least one."""
    keys = 0
    for number, command in enumerate(commands):
        keys += visits(command, store)
        if number and keys > TXN_KEYS_MAX:
            return number
    return len(commands)


def weight(command: ProposedCommand) -> int:
    """Return how many bytes of an entry a command takes, about."""
    match command:
        case Put():
            return len(command.key) + len(command.value) + _COMMAND_OVERHEAD_BYTES
        case Delete():
            return len(command.key) + _COMMAND_OVERHEAD_BYTES
        case Txn():
            return _COMMAND_OVERHEAD_BYTES + transaction_bytes(command, _COMMAND_OVERHEAD_BYTES)
        case EndSession():
            return len(command.client_id) + _COMMAND_OVERHEAD_BYTES
        case SetQuota() | Compact() | LeaseGrant() | LeaseRenew() | LeaseRevoke() | OpenOrigin():
            return _COMMAND_OVERHEAD_BYTES
        case HandedOver():
            return _COMMAND_OVERHEAD_BYTES + sum(map(weight, command.commands))
        case _:
            assert_never(command)
