"""Locks and elections: queues of leases, whose first one holds the lock, or is elected.

Theory of operation. A place in a queue is a key, ``_locks/NAME/LEASE`` or ``_elections/NAME/LEASE`` with the id of the
lease in hex, which belongs to the lease and ends with it. Places are ordered by the revision that created the key. This
revision is the *fencing token*: each holder has a higher one than those before it. Whoever waits, waits for the place
before its own to go; nobody else is woken.

Every attempt puts the key again. So its ``mod_revision`` names the attempt, and its ``create_revision``, the place,
stays: an attempt that is repeated, here or at another node, takes the place over, and the earlier one, should it give
up later, does not remove it any more. Nor does any attempt remove a place that may be the first one by then: another
one may have been told that the lease holds the lock. If the two revisions are equal, there was no other attempt; then
one whose client has gone removes the place also if it is the first one, since nobody knows of it.

A lock is granted by a state in which the place is the first one and its lease lives, and which was reached during the
attempt: as a put was committed, or behind a read that a quorum has confirmed. So two leases never hold a lock at one
point of the log. A holder that has lost its lease may not know it yet: what it writes must carry the token, or the
lease a lock-delay.

A key counts only if it ends with the id of its own lease: the lock ``a`` does not wait for the lock ``a/b``. A key
that others put, without its lease, is no place and never becomes one: the next attempt of its lease deletes it first.
So nobody gets an old place, which may be before that of a holder.

An attempt that fails after its put gives its place up. If that is not known to be done, or must not be done, its
outcome is unknown: the place may become the first one later.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Literal, TypeVar

import msgspec

from kvorum.errors import (
    CallerError,
    InvalidRequestError,
    InvariantViolatedError,
    LeaseError,
    LockError,
    NotServingError,
    OutcomeUnknownError,
    OverloadedError,
    RevisionCompactedError,
    TooLargeError,
)
from kvorum.kv.operations import DeleteRangeOpResult, PutOpResult, RangeOpResult, TxnOp, TxnOpResult
from kvorum.kv.watch import EventBatch, Interest
from kvorum.service.access import Principal
from kvorum.service.leases import lease_not_found, leases_barrier
from kvorum.service.limits import ELECTION_VALUE_BYTES_MAX, LOCK_PLACES_MAX, LOCK_WAIT_MS_MAX
from kvorum.service.node_port import NodePort
from kvorum.service.queues import Place, Queues, queue_prefix, rank, shown
from kvorum.service.requests import (
    AcquireLock,
    Compare,
    DeleteRangeOp,
    GetLock,
    LeasedPutOp,
    ListLocks,
    LockKind,
    ProclaimLeader,
    RangeOp,
    ReleaseLock,
    Txn,
    prefix_end,
)
from kvorum.service.results import LockGrant, LockList, LockRelease, LockState, TxnResult
from kvorum.service.transactions import Transactions

T = TypeVar("T")

_PUTS_MAX = 3
"""How often an attempt puts its key, if others put it without its lease meanwhile."""
_SHOWN_MS_MIN = 50
"""What remains of a lease and is less would be shown as 0.0 s."""


class Locks:
    """The locks and elections of one node's clients.

    Args:
        node: the node.
        now: a monotonic clock, in seconds.
        queues: the queues as this node has applied them.
        transactions: what makes the changes.
        handing_over: the same, also where the node does not lead; places are given up through it.
        check_leads: raises an error unless this node can execute writes.
    """

    def __init__(
        self,
        node: NodePort,
        now: Callable[[], float],
        queues: Queues,
        transactions: Transactions,
        handing_over: Transactions,
        check_leads: Callable[[], None],
    ) -> None:
        self._node = node
        self._now = now
        self._transactions = transactions
        self._handing_over = handing_over
        self._queues = queues
        self._check_leads = check_leads

    async def acquire(self, principal: Principal, request: AcquireLock) -> LockGrant:
        """Wait until the lease holds the lock."""
        _check_value(request.value)
        if not 0 <= request.wait_ms <= LOCK_WAIT_MS_MAX:
            raise InvalidRequestError(f"wait_ms must be a whole number from 0 to {LOCK_WAIT_MS_MAX:,}")
        attempt = _Attempt(request)
        deadline_s = self._now() + request.wait_ms / 1000
        if not request.wait_ms:
            granted = await self._to_its_end(principal, attempt, self._try(principal, attempt))
            if granted is not None:
                return granted
        await self._to_its_end(principal, attempt, self._put(principal, attempt))
        attempt.forget_value()
        if request.on_placed is not None:
            request.on_placed()
        del request  # It has the value.
        try:
            return await self._wait(principal, attempt, deadline_s)
        except (LockError, LeaseError, OutcomeUnknownError):
            raise  # It is settled what became of the place.
        except CallerError as error:
            raise await self._failed(principal, attempt, error) from None
        except asyncio.CancelledError:
            await self._abandon(principal, attempt)
            raise

    async def release(self, principal: Principal, request: ReleaseLock) -> LockRelease:
        """Give up a place."""
        key = _key(request.kind, request.name, request.lease)
        compare, transactions = Compare(key, "version", ">", 0), self._transactions
        if request.mod_revision:
            compare, transactions = Compare(key, "mod_revision", "=", request.mod_revision), self._handing_over
        txn = Txn((compare,), (DeleteRangeOp(key),), timeout_ms=request.timeout_ms)
        result = await transactions.txn(principal, txn)
        if not result.succeeded:
            raise _not_held(request.kind, request.name, request.lease)
        return LockRelease(result.revision)

    async def proclaim(self, principal: Principal, request: ProclaimLeader) -> LockGrant:
        """Change the value of an election. Whoever is first stays that until its key goes."""
        key = _key("election", request.name, request.lease)
        _check_value(request.value)
        self._check_leads()
        await leases_barrier(self._node, "a lock", request.timeout_ms)
        queue = self._queues.read("election", request.name)
        if not queue or queue[0].key != key:
            raise _not_held("election", request.name, request.lease)
        token = queue[0].create_revision
        txn = Txn(
            (Compare(key, "create_revision", "=", token), Compare(key, "lease", "=", request.lease)),
            (LeasedPutOp(key, request.value, lease=request.lease),),
            timeout_ms=request.timeout_ms,
        )
        result = await self._transactions.txn(principal, txn)
        if not result.succeeded:
            raise _not_held("election", request.name, request.lease)
        return LockGrant(request.name, key, request.lease, token, result.revision, result.revision)

    async def get(self, request: GetLock) -> LockState:
        """Return who holds a lock, and who waits."""
        queue_prefix(request.kind, request.name)
        await leases_barrier(self._node, "a lock", request.timeout_ms)
        state = self._queues.state(request.kind, request.name)
        if request.kind == "election" and state.holder is None:
            raise LockError(
                "not_elected", f"nobody is elected in {shown(request.name)}", revision=self._node.store.revision
            )
        return state

    async def list_all(self, request: ListLocks) -> LockList:
        """Return a page of all that somebody holds."""
        await leases_barrier(self._node, "a lock", request.timeout_ms)
        return await self._queues.list_all(request)

    # --- An attempt ---------------------------------------------------------------------------------------------

    async def _to_its_end(
        self, principal: Principal, attempt: _Attempt, put: Coroutine[object, object, LockGrant | None]
    ) -> LockGrant | None:
        """Await what puts the key of an attempt, also if the attempt is cancelled meanwhile: its put may be on its way.

        Then the place is given up once it is known. A request's timeout bounds each put.
        """
        task = asyncio.ensure_future(put)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            with suppress(CallerError):
                await _whole(task)
            if attempt.mod_revision:
                await self._abandon(principal, attempt)
            raise

    async def _abandon(self, principal: Principal, attempt: _Attempt) -> None:
        """Give the place of a cancelled attempt up, also if it took the place over and has not waited yet."""
        if not attempt.ahead:
            with suppress(CallerError):
                attempt.ahead = self._ahead(attempt)
        await _whole(asyncio.ensure_future(self._withdraw(principal, attempt, is_abandoned=True)))

    async def _try(self, principal: Principal, attempt: _Attempt) -> LockGrant | None:
        """Take the lock if nobody has a place; None: somebody may have it, and perhaps this lease.

        Raises:
            LockError: another lease holds it. Nothing was changed.
        """
        request, bounds = attempt.request, (attempt.prefix, prefix_end(attempt.prefix))
        self._check_leads()
        if self._queues.is_empty(attempt.prefix):
            result = await self._do(principal, attempt, Compare(bounds[0], "create_revision", "=", 0, bounds[1]))
            match result.results:
                case (PutOpResult() as done,):
                    attempt.placed(done)
                    return attempt.granted(result.revision)
        else:
            await leases_barrier(self._node, "a lock", request.timeout_ms)
        queue = self._queues.read(request.kind, request.name)
        if queue and all(each.key != attempt.key for each in queue):
            raise self._held(attempt, queue[0])
        return None

    async def _put(self, principal: Principal, attempt: _Attempt) -> None:
        """Take a place, or keep the one that the lease has.

        A key that is there and does not have its lease is no place, whatever its revision: it goes first, and the place
        is a new one.

        Raises:
            TooLargeError: the queue is full. Nothing was done.
            OverloadedError: somebody else puts the key without its lease, again and again. Nothing was done.
        """
        queue = self._queues.read(attempt.request.kind, attempt.request.name)
        if len(queue) >= LOCK_PLACES_MAX and all(each.key != attempt.key for each in queue):
            raise TooLargeError(
                f"there is no place left in the queue of {shown(attempt.request.name)}", LOCK_PLACES_MAX
            )
        put = attempt.put
        keep = TxnOp((Compare(put.key, "lease", "=", put.lease),), (put,), (DeleteRangeOp(put.key),))
        for _ in range(_PUTS_MAX):
            result = await self._do(principal, attempt, Compare(put.key, "create_revision", "=", 0), keep)
            match result.results:
                case (PutOpResult() as done,) | (TxnOpResult(results=(PutOpResult() as done,)),):
                    attempt.placed(done)
                    return
                case (TxnOpResult(results=(DeleteRangeOpResult(),)),):
                    continue
                case _:
                    raise InvariantViolatedError(f"a put was answered with {result}")
        raise OverloadedError(
            f"somebody else puts the key {shown(put.key)} without its lease all the time: only this API may put it"
        )

    async def _do(self, principal: Principal, attempt: _Attempt, compare: Compare, *otherwise: TxnOp) -> TxnResult:
        txn = Txn((compare,), (attempt.put,), otherwise, timeout_ms=attempt.request.timeout_ms)
        return await self._transactions.txn(principal, txn)

    async def _wait(self, principal: Principal, attempt: _Attempt, deadline_s: float) -> LockGrant:
        request = attempt.request
        is_confirmed = True  # by the quorum that committed the put
        while True:
            self._node.check_serves()
            if self._node.store.leases.living(request.lease) is None:
                raise lease_not_found(request.lease, self._node.store.revision)
            ahead = self._ahead(attempt)
            if ahead:
                attempt.ahead = ahead
                left_s = deadline_s - self._now()
                if left_s > 0:
                    await self._gone(ahead[0], attempt, left_s)
                else:
                    withdrawal = await self._withdraw(principal, attempt)
                    if withdrawal == "done":
                        raise self._held(attempt, ahead[-1])
                    if withdrawal == "unknown":
                        raise _unknown(attempt, "the time to wait is over, and the place could not be given up")
                is_confirmed = False
            elif is_confirmed:
                return attempt.granted(self._node.store.revision)
            else:
                await leases_barrier(self._node, "a lock", request.timeout_ms)
                is_confirmed = True

    def _ahead(self, attempt: _Attempt) -> tuple[Place, ...]:
        """Return the place before that of the attempt, and the first one, if that is another; none: it is the first.

        Raises:
            LockError: the attempt has no place any more.
            TooLargeError: there are too many keys between the places.
        """
        request, own = attempt.request, attempt.place
        queue = self._queues.read(request.kind, request.name)
        place = bisect_left(queue, rank(own), key=rank)
        if queue[place : place + 1] != [own]:
            raise _not_held(request.kind, request.name, request.lease)
        return (queue[place - 1], queue[0]) if place > 1 else tuple(queue[:place])

    async def _gone(self, before: Place, attempt: _Attempt, left_s: float) -> None:
        """Return when the place before that of the attempt is gone, or its own, or the time is over."""
        gone = asyncio.get_running_loop().create_future()
        first = self._node.store.revision + 1
        watches = []
        try:
            for key, lease in ((before.key, before.lease), (attempt.key, attempt.request.lease)):
                watches.append(self._node.watch(Interest(key, key + b"\0"), _Wake(gone, lease), first))
            with suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await gone
        finally:
            for watch in watches:
                watch.close()

    async def _failed(self, principal: Principal, attempt: _Attempt, error: CallerError) -> CallerError:
        """Give the place up after an error, and return what to answer.

        At a node that ends, the place stays: the attempt is repeated at another node, and keeps it.
        """
        if not isinstance(error, NotServingError) and await self._withdraw(principal, attempt) == "done":
            return error
        return _unknown(attempt, str(error))

    async def _withdraw(
        self, principal: Principal, attempt: _Attempt, *, is_abandoned: bool = False
    ) -> Literal["done", "first", "unknown"]:
        """Give the place up, also where this node does not lead any more; say what came of it.

        ``done``: the place is gone, or another attempt of the lease has taken it over. ``first``: it stays, since it
        may be the first one now. Then another attempt may have been told already that its lease holds the lock. An
        attempt that is abandoned, and was the only one, gives up the first place too: nobody was told, or will be.
        """
        key, deletes = attempt.key, (DeleteRangeOp(attempt.key),)
        is_own = Compare(key, "mod_revision", "=", attempt.mod_revision)
        conditions: list[tuple[Compare, ...]] = [(is_own,)]
        if not is_abandoned or attempt.mod_revision != attempt.token:
            if not attempt.ahead:
                return "first"
            conditions = [(is_own, *_stands(place)) for place in attempt.ahead]
        otherwise: tuple[TxnOp | RangeOp, ...] = (RangeOp(key, keys_only=True),)
        for condition in reversed(conditions[1:]):
            otherwise = (TxnOp(condition, deletes, otherwise),)
        txn = Txn(conditions[0], deletes, otherwise)
        try:
            result = await self._handing_over.txn(principal, txn)
        except CallerError:
            return "unknown"
        match result.results:
            case (RangeOpResult(records=(record,)),) | (TxnOpResult(results=(RangeOpResult(records=(record,)),)),) if (
                record.mod_revision == attempt.mod_revision
            ):
                return "first"
            case _:
                return "done"

    def _held(self, attempt: _Attempt, holder: Place) -> LockError:
        request = attempt.request
        what = "holds the lock" if request.kind == "lock" else "is elected in"
        seen = self._queues.holder(holder)
        left = f"lives for {seen.remaining_ms / 1000:.1f} s more unless it is renewed"
        return LockError(
            "lock_held",
            f"the lease {holder.lease:x} {what} {shown(request.name)}, with the fencing token {seen.fencing_token}; "
            f"its lease {left if seen.remaining_ms >= _SHOWN_MS_MIN else 'is ending'}",
            lease=f"{holder.lease:x}",
            fencing_token=seen.fencing_token,
            remaining_ms=seen.remaining_ms,
            revision=self._node.store.revision,
        )


class _Attempt:
    """One attempt to get a lock."""

    __slots__ = ("ahead", "key", "mod_revision", "prefix", "request", "token")

    def __init__(self, request: AcquireLock) -> None:
        self.request = request
        self.prefix = queue_prefix(request.kind, request.name)
        self.key = _key(request.kind, request.name, request.lease)
        self.mod_revision = 0
        """Of the key, as this attempt has put it."""
        self.token = 0
        self.ahead: tuple[Place, ...] = ()
        """Places before its own: the one for which it waits, and the first one, if that is another.

        Its own is not the first while either stands. Of many whose time ends together, each gives its place up in one
        step, whether the one before has done so or not.
        """

    @property
    def put(self) -> LeasedPutOp:
        """The put of its key, as long as it knows the value."""
        return LeasedPutOp(self.key, self.request.value, lease=self.request.lease)

    @property
    def place(self) -> Place:
        """The place, once it is put."""
        return Place(self.key, self.request.lease, self.token)

    def placed(self, done: PutOpResult) -> None:
        """Take note of what the put of its key gave."""
        self.mod_revision, self.token = done.revision, done.create_revision

    def forget_value(self) -> None:
        """Let go of the value, which is in the key: a wait is long, and those who wait may be many."""
        self.request = msgspec.structs.replace(self.request, value=b"")

    def granted(self, revision: int) -> LockGrant:
        """Return what the lease has got."""
        return LockGrant(self.request.name, self.key, self.request.lease, self.token, revision, self.mod_revision)


class _Wake:
    """The sink of the watch of a place, which wakes a waiter when there is none any more.

    Args:
        gone: what the waiter awaits.
        lease: whose place it is.
    """

    is_full = False

    def __init__(self, gone: asyncio.Future[None], lease: int) -> None:
        self._gone = gone
        self._lease = lease

    def take(self, batch: EventBatch) -> None:
        """The key was put again, or it is gone, or it has lost its lease."""
        if not self._gone.done() and any(not each.version or each.lease != self._lease for each, _ in batch.events):
            self._gone.set_result(None)

    def end(self, error: CallerError) -> None:
        """The watch is over: what it has missed is in the state, or this node serves nobody any more."""
        if self._gone.done():
            return
        if isinstance(error, RevisionCompactedError | OverloadedError):
            self._gone.set_result(None)
        else:
            self._gone.set_exception(error)


async def _whole(task: asyncio.Future[T]) -> T:
    """Await a task to its end, however often the caller is cancelled meanwhile. Only for one that is cancelled already.

    Raises:
        CallerError: the task did.
    """
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait({task})
    return task.result()


def _key(kind: LockKind, name: bytes, lease: int) -> bytes:
    """Return the key of a lease's place.

    Raises:
        InvalidRequestError: there is no name, or no lease.
        TooLargeError: the name is too long.
    """
    if not lease:
        raise InvalidRequestError("say which lease: its keys are the places in the queue")
    return queue_prefix(kind, name) + b"%x" % lease


def _stands(place: Place) -> tuple[Compare, ...]:
    """Return the conditions on which a place is still one."""
    return (
        Compare(place.key, "create_revision", "=", place.create_revision),
        Compare(place.key, "lease", "=", place.lease),
    )


def _check_value(value: bytes) -> None:
    if len(value) > ELECTION_VALUE_BYTES_MAX:
        raise TooLargeError(
            f"the value of an election has {len(value):,} bytes; put what is longer under a key of the lease",
            ELECTION_VALUE_BYTES_MAX,
        )


def _not_held(kind: LockKind, name: bytes, lease: int) -> LockError:
    what = "hold the lock, nor wait for it" if kind == "lock" else "take part in the election, or is not elected in"
    where = shown(name)
    return LockError("lock_not_held", f"the lease {lease:x} does not {what}: {where}")


def _unknown(attempt: _Attempt, why: str) -> OutcomeUnknownError:
    request = attempt.request
    return OutcomeUnknownError(
        f"the lease {request.lease:x} may have its place in {shown(request.name)} still, and may get the lock: {why}; "
        "ask again, release the place, or revoke the lease"
    )
