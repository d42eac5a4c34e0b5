"""Locks and elections: queues of leases, whose first one holds the lock, or is elected.

Theory of operation. A place in a queue is a key, ``_locks/NAME/LEASE`` or ``_elections/NAME/LEASE`` with the id of the
lease in hex, which belongs to the lease and ends with it. Places are ordered by the revision that created the key. This
revision is the *fencing token*: each holder has a higher one than those before it. Whoever waits, waits for the place
before its own to go; nobody else is woken.

Every attempt puts the key again. So its ``mod_revision`` names the attempt, and its ``create_revision``, the place,
stays: an attempt that is repeated, here or at another node, takes the place over, and the earlier one, should it give
up later, does not remove it any more. Nor does any attempt remove a place that may be the first one by then, because
another one may have been told that the lease holds the lock. If the two revisions are equal, there was no other one.

A lock is granted by a state in which the place is the first one and its lease lives, and which was reached during the
attempt: as a put was committed, or behind a read that a quorum has confirmed. So two leases never hold a lock at one
point of the log. A holder that has lost its lease may not know it yet: what it writes must carry the token, or the
lease a lock-delay.

A key counts only if it ends with the id of its own lease: the lock ``a`` does not wait for the lock ``a/b``.

A queue is read by its keys alone, whatever their values, and once for all attempts that look at it at one revision.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Callable
from contextlib import suppress
from itertools import groupby
from typing import NamedTuple

from kvorum.errors import (
    CallerError,
    InvalidRequestError,
    InvariantViolatedError,
    LockError,
    OverloadedError,
    RevisionCompactedError,
    TooLargeError,
)
from kvorum.kv.limits import KEY_BYTES_MAX, TXN_ANSWER_BYTES_MAX
from kvorum.kv.operations import PutOpResult, RangeOpResult
from kvorum.kv.records import Record
from kvorum.kv.watch import EventBatch, Interest
from kvorum.service.access import Principal
from kvorum.service.leases import lease_not_found, leases_barrier
from kvorum.service.limits import (
    LOCK_PLACES_LISTED_MAX,
    LOCK_QUEUE_KEYS_MAX,
    LOCK_WAIT_MS_MAX,
    LOCK_WAITERS_LISTED_MAX,
)
from kvorum.service.node_port import NodePort, StoreView
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
from kvorum.service.results import LockGrant, LockHolder, LockList, LockRelease, LockState, TxnResult
from kvorum.service.transactions import Transactions

PREFIXES: dict[LockKind, bytes] = {"lock": b"_locks/", "election": b"_elections/"}
"""Where the keys of each kind are."""


class _Place(NamedTuple):
    """A place in a queue; the order of the tuples is that of the queue."""

    token: int
    """The revision that created the key."""
    key: bytes
    lease: int


class Locks:
    """The locks and elections of one node's clients.

    Args:
        node: the node.
        now: a monotonic clock, in seconds.
        transactions: what makes the changes.
        withdrawals: what removes places, wherever the leader is: a place that stays would hold the lock one day.
        check_leads: raises an error unless this node can execute writes.
    """

    def __init__(
        self,
        node: NodePort,
        now: Callable[[], float],
        transactions: Transactions,
        withdrawals: Transactions,
        check_leads: Callable[[], None],
    ) -> None:
        self._node = node
        self._now = now
        self._transactions = transactions
        self._withdrawals = withdrawals
        self._check_leads = check_leads
        self._last_read: tuple[StoreView, bytes, int, list[_Place]] | None = None
        """The queue that was read last: where, its prefix, at which revision, and its places."""

    async def acquire(self, principal: Principal, request: AcquireLock) -> LockGrant:
        """Wait until the lease holds the lock."""
        if not 0 <= request.wait_ms <= LOCK_WAIT_MS_MAX:
            raise InvalidRequestError(f"wait_ms must be a whole number from 0 to {LOCK_WAIT_MS_MAX:,}")
        attempt = _Attempt(request)
        deadline_s = self._now() + request.wait_ms / 1000
        if not request.wait_ms and (granted := await self._try(principal, attempt)) is not None:
            return granted
        await self._put(principal, attempt)
        try:
            return await self._wait(principal, attempt, deadline_s)
        except (asyncio.CancelledError, TooLargeError):
            with suppress(CallerError):
                await self._withdraw(principal, attempt, is_abandoned=True)
            raise

    async def release(self, principal: Principal, request: ReleaseLock) -> LockRelease:
        """Give up a place."""
        key = _key(request.kind, request.name, request.lease)
        compare = Compare(key, "version", ">", 0)
        if request.mod_revision:
            compare = Compare(key, "mod_revision", "=", request.mod_revision)
        txn = Txn((compare,), (DeleteRangeOp(key),), timeout_ms=request.timeout_ms)
        result = await self._transactions.txn(principal, txn)
        if not result.succeeded:
            raise _not_held(request.kind, request.name, request.lease)
        return LockRelease(result.revision)

    async def proclaim(self, principal: Principal, request: ProclaimLeader) -> LockGrant:
        """Change the value of an election. Whoever is first stays that until its key goes."""
        key = _key("election", request.name, request.lease)
        self._check_leads()
        await leases_barrier(self._node, "a lock", request.timeout_ms)
        queue = self._queue("election", request.name)
        if not queue or queue[0].key != key:
            raise _not_held("election", request.name, request.lease)
        token = queue[0].token
        txn = Txn(
            (Compare(key, "create_revision", "=", token),),
            (LeasedPutOp(key, request.value, lease=request.lease),),
            timeout_ms=request.timeout_ms,
        )
        result = await self._transactions.txn(principal, txn)
        if not result.succeeded:
            raise _not_held("election", request.name, request.lease)
        return LockGrant(request.name, key, request.lease, token, result.revision, result.revision)

    async def get(self, request: GetLock) -> LockState:
        """Return who holds a lock, and who waits."""
        _check_name(request.name)
        await leases_barrier(self._node, "a lock", request.timeout_ms)
        queue = self._queue(request.kind, request.name)
        if request.kind == "election" and not queue:
            raise LockError(
                "not_elected", f"nobody is elected in {_shown(request.name)}", revision=self._node.store.revision
            )
        return self._state(request.name, queue, LOCK_WAITERS_LISTED_MAX)

    async def list_all(self, request: ListLocks) -> LockList:
        """Return all that somebody holds."""
        await leases_barrier(self._node, "a lock", request.timeout_ms)
        prefix = PREFIXES[request.kind]
        places = self._places(prefix, LOCK_PLACES_LISTED_MAX, f"of the {request.kind}s")
        # A prefix orders names otherwise than a name does: those of `a/b` come before those of `a0`, and after `a`.
        places.sort(key=_name_of)
        locks = tuple(self._state(name[len(prefix) :], sorted(queue), 0) for name, queue in groupby(places, _name_of))
        if sum(len(each.holder.value) for each in locks if each.holder) > TXN_ANSWER_BYTES_MAX:
            raise TooLargeError(
                f"the values of the {request.kind}s are too large for one answer (bytes); ask for them by their names",
                TXN_ANSWER_BYTES_MAX,
            )
        return LockList(locks, self._node.store.revision)

    # --- An attempt ---------------------------------------------------------------------------------------------

    async def _try(self, principal: Principal, attempt: _Attempt) -> LockGrant | None:
        """Take the lock if nobody has a place; None: somebody may have it, and perhaps this lease.

        Raises:
            LockError: another lease holds it. Nothing was changed.
        """
        bounds = attempt.prefix, prefix_end(attempt.prefix)
        compare = Compare(bounds[0], "create_revision", "=", 0, bounds[1])
        try:
            result = await self._do(principal, attempt, (compare,), (RangeOp(*bounds, keys_only=True),))
        except TooLargeError:  # more keys than a transaction visits: in this queue, or in those of longer names
            return None
        match result.results:
            case (PutOpResult(revision, create_revision),):
                attempt.mod_revision, attempt.token = revision, create_revision
                return attempt.granted(result.revision)
            case (RangeOpResult(records=records),):
                found = (each for each in records if _is_in_queue(attempt.prefix, each.key))
                queue = sorted(map(_place, filter(_is_place, found)))
                if queue and all(each.key != attempt.key for each in queue):
                    raise self._held(attempt, queue[0])
        return None

    async def _put(self, principal: Principal, attempt: _Attempt) -> None:
        """Take a place, or keep the one that the lease has."""
        result = await self._do(principal, attempt)
        match result.results:
            case (PutOpResult(revision, create_revision),):
                attempt.mod_revision, attempt.token = revision, create_revision
            case _:
                raise InvariantViolatedError(f"a put was answered with {result}")

    async def _do(
        self,
        principal: Principal,
        attempt: _Attempt,
        compares: tuple[Compare, ...] = (),
        otherwise: tuple[RangeOp, ...] = (),
    ) -> TxnResult:
        put = LeasedPutOp(attempt.key, attempt.request.value, lease=attempt.request.lease)
        txn = Txn(compares, (put,), otherwise, timeout_ms=attempt.request.timeout_ms)
        return await self._transactions.txn(principal, txn)

    async def _wait(self, principal: Principal, attempt: _Attempt, deadline_s: float) -> LockGrant:
        request = attempt.request
        is_confirmed = True  # by the quorum that committed the put
        while True:
            self._node.check_serves()
            queue = self._queue(request.kind, request.name)
            place = bisect_left(queue, attempt.token, key=_token)
            is_there = place < len(queue) and queue[place].token == attempt.token
            if not is_there or self._node.store.leases.living(request.lease) is None:
                raise lease_not_found(request.lease, self._node.store.revision)
            if place:
                before = attempt.before = queue[place - 1]
                left_s = deadline_s - self._now()
                if left_s > 0:
                    await self._gone(before, attempt, left_s)
                elif await self._withdraw(principal, attempt):
                    raise self._held(attempt, queue[0])
                is_confirmed = False
            elif is_confirmed:
                return attempt.granted(self._node.store.revision)
            else:
                await leases_barrier(self._node, "a lock", request.timeout_ms)
                is_confirmed = True

    async def _gone(self, before: _Place, attempt: _Attempt, left_s: float) -> None:
        """Return when the place before that of the attempt is gone, or its own, or the time is over."""
        gone = asyncio.get_running_loop().create_future()
        first = self._node.store.revision + 1
        watches = []
        try:
            for key in (before.key, attempt.key):
                interest = Interest(key, key + b"\0", puts=False)
                watches.append(self._node.watch(interest, _Wake(gone), first))
            with suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await gone
        finally:
            for watch in watches:
                watch.close()

    async def _withdraw(self, principal: Principal, attempt: _Attempt, *, is_abandoned: bool = False) -> bool:
        """Give the place up; return False if it stays because it may be the first one now.

        Then another attempt of the lease may have been told already that it holds the lock. The place stays as well if
        another attempt has taken it over. An attempt that is abandoned, and was the only one, gives up the first place
        too: nobody was told, and nobody will be.

        Raises:
            CallerError: nobody knows whether the place is gone. If it is not, it ends with its lease.
        """
        before, key = attempt.before, attempt.key
        compares = [Compare(key, "mod_revision", "=", attempt.mod_revision)]
        if not is_abandoned or attempt.mod_revision != attempt.token:
            if before is None:
                return True
            compares.append(Compare(before.key, "create_revision", "=", before.token))
        txn = Txn(tuple(compares), (DeleteRangeOp(key),), (RangeOp(key, keys_only=True),))
        result = await self._withdrawals.txn(principal, txn)
        match result.results:
            case (RangeOpResult(records=(record,)),):
                return record.mod_revision != attempt.mod_revision
            case _:
                return True

    def _held(self, attempt: _Attempt, holder: _Place) -> LockError:
        request = attempt.request
        what = "holds the lock" if request.kind == "lock" else "is elected in"
        remaining_ms = self._remaining_ms(holder)
        return LockError(
            "lock_held",
            f"the lease {holder.lease:x} {what} {_shown(request.name)}, with the fencing token {holder.token}; "
            f"its lease lives for {remaining_ms / 1000:.1f} s more unless it is renewed",
            lease=f"{holder.lease:x}",
            fencing_token=holder.token,
            remaining_ms=remaining_ms,
            revision=self._node.store.revision,
        )

    # --- Reading ------------------------------------------------------------------------------------------------

    def _queue(self, kind: LockKind, name: bytes) -> list[_Place]:
        """Return the places of a queue, the holder's first, as this node has applied them."""
        store, prefix = self._node.store, queue_prefix(kind, name)
        if self._last_read is not None:
            last_store, last_prefix, revision, places = self._last_read
            if store is last_store and prefix == last_prefix and revision == store.revision:
                return places
        places = sorted(self._places(prefix, LOCK_QUEUE_KEYS_MAX, f"of {_shown(name)}", is_one_queue=True))
        self._last_read = store, prefix, store.revision, places
        return places

    def _places(self, prefix: bytes, keys_max: int, whose: str, *, is_one_queue: bool = False) -> list[_Place]:
        """Return the places below a prefix, in the order of their keys."""
        versions = self._node.store.versions
        keys = versions.keys_from(prefix, prefix_end(prefix), keys_max + 1, has_dead=False)
        if len(keys) > keys_max:
            raise TooLargeError(
                f"there are too many keys in the queues {whose}, and in those of longer names", keys_max
            )
        if is_one_queue:
            keys = [key for key in keys if _is_in_queue(prefix, key)]
        return list(map(_place, filter(_is_place, map(versions.records.__getitem__, keys))))

    def _state(self, name: bytes, queue: list[_Place], waiters_max: int) -> LockState:
        holders: list[LockHolder] = []
        bytes_left = TXN_ANSWER_BYTES_MAX
        for place in queue[: 1 + waiters_max]:
            holder = self._holder(place)
            bytes_left -= len(holder.value)
            if holders and bytes_left < 0:
                break
            holders.append(holder)
        return LockState(
            name,
            holders[0] if holders else None,
            tuple(holders[1:]),
            max(len(queue) - 1, 0),
            self._node.store.revision,
        )

    def _holder(self, place: _Place) -> LockHolder:
        record = self._node.store.get(place.key)
        value = b"" if record is None else record.value
        return LockHolder(place.lease, place.token, self._remaining_ms(place), value)

    def _remaining_ms(self, place: _Place) -> int:
        lease = self._node.store.leases.get(place.lease)
        return 0 if lease is None else lease.remaining_ms(self._node.now_ms())


class _Attempt:
    """One attempt to get a lock."""

    __slots__ = ("before", "key", "mod_revision", "prefix", "request", "token")

    def __init__(self, request: AcquireLock) -> None:
        self.request = request
        self.prefix = queue_prefix(request.kind, request.name)
        self.key = _key(request.kind, request.name, request.lease)
        self.mod_revision = 0
        """Of the key, as this attempt has put it."""
        self.token = 0
        self.before: _Place | None = None
        """The place before its own, for which it waits."""

    def granted(self, revision: int) -> LockGrant:
        """Return what the lease has got."""
        return LockGrant(self.request.name, self.key, self.request.lease, self.token, revision, self.mod_revision)


class _Wake:
    """The sink of a watch that only wakes a waiter."""

    is_full = False

    def __init__(self, gone: asyncio.Future[None]) -> None:
        self._gone = gone

    def take(self, batch: EventBatch) -> None:
        """The key is gone."""
        if not self._gone.done():
            self._gone.set_result(None)

    def end(self, error: CallerError) -> None:
        """The watch is over: what it has missed is in the state, or this node serves nobody any more."""
        if self._gone.done():
            return
        if isinstance(error, RevisionCompactedError | OverloadedError):
            self._gone.set_result(None)
        else:
            self._gone.set_exception(error)


def queue_prefix(kind: LockKind, name: bytes) -> bytes:
    """Return what the keys of a queue begin with.

    Raises:
        InvalidRequestError: there is no name.
        TooLargeError: the name is too long.
    """
    _check_name(name)
    return PREFIXES[kind] + name + b"/"


def _key(kind: LockKind, name: bytes, lease: int) -> bytes:
    """Return the key of a lease's place.

    Raises:
        InvalidRequestError: there is no name, or no lease.
        TooLargeError: the name is too long.
    """
    if not lease:
        raise InvalidRequestError("say which lease: its keys are the places in the queue")
    return queue_prefix(kind, name) + b"%x" % lease


def _check_name(name: bytes) -> None:
    if not name:
        raise InvalidRequestError("the name is empty")
    longest = KEY_BYTES_MAX - len(PREFIXES["election"]) - 1 - 17
    if len(name) > longest:
        raise TooLargeError(f"the name has {len(name)} bytes", longest)


def _is_in_queue(prefix: bytes, key: bytes) -> bool:
    """Tell whether a key is in the queue with a prefix, and not in that of a name that begins with its name."""
    return key.find(b"/", len(prefix)) < 0


def _is_place(record: Record) -> bool:
    return bool(record.lease) and record.key.endswith(b"/%x" % record.lease)


def _place(record: Record) -> _Place:
    return _Place(record.create_revision, record.key, record.lease)


def _token(place: _Place) -> int:
    return place.token


def _name_of(place: _Place) -> bytes:
    return place.key.rpartition(b"/")[0]


def _not_held(kind: LockKind, name: bytes, lease: int) -> LockError:
    what = "hold the lock, nor wait for it" if kind == "lock" else "take part in the election, or is not elected in"
    where = _shown(name)
    return LockError("lock_not_held", f"the lease {lease:x} does not {what}: {where}")


def _shown(name: bytes) -> str:
    return repr(name[:64].decode("utf-8", "backslashreplace"))
