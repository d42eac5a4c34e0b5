"""Locks: one holder at a time, in the order in which they asked, and a token that shows who is the latest.

Theory of operation. Each lock has a lease of its own, which is kept alive in the background, and a place in the queue
of its name at the cluster. A place lives as long as its lease. A request that waits gives the place up when it ends
without success, unless a later request of the same lease has taken the place over. So the client does not wait for one
to end: it sends the next one when half of the time of the last one is over. When a node dies, the lease keeps the place
until another node has the next request.

A holder that stood still may go on when the next one has the lock already, and no lock can prevent that. So the holder
passes the fencing token on with what it changes, and whoever is changed refuses a lower token than it has seen.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

import msgspec

from kvorum_client import leases
from kvorum_client.arguments import TIMEOUT_S_MAX
from kvorum_client.errors import (
    ClientError,
    InvalidArgumentError,
    LeaseNotFoundError,
    LockHeldError,
    LockLostError,
    OutcomeUnknownError,
    RefusedError,
    UnavailableError,
)
from kvorum_client.leases import PAUSE_MAX_S, Lease
from kvorum_client.transport import Answer
from kvorum_client.wire import bytes_of, decode, encoded, id_of, key_parameters, key_path, quote, record_of
from kvorum_wire import leases as wire

LOCKS = "/v1/locks"
TTL_S = 30
"""Of the lease of a lock, unless told otherwise."""
WAIT_S = 20.0
"""How long one request waits at a node. The next one is sent when half of it is over."""
_SETTLED = frozenset({"lock_held", "lock_not_held", "lease_not_found"})


class LockHolder(msgspec.Struct, frozen=True):
    """Who holds a lock or is elected, or waits for it."""

    lease: int
    """The id of the lease."""
    fencing_token: int
    """Higher than that of every holder before."""
    remaining_ms: int
    """For how long the lease lives unless it is renewed."""
    value: bytes = b""
    """Of an election: what the candidate said of itself."""


class LockInfo(msgspec.Struct, frozen=True):
    """A lock, or an election."""

    name: bytes
    holder: LockHolder | None
    """Of an election: the leader. None: there is none."""
    waiter_count: int
    waiters: tuple[LockHolder, ...] = ()
    """The first 100, in the order in which they will have their turn; none in a list."""
    revision: int = 0
    """The cluster's."""


class Calls(leases.Calls, Protocol):
    """What a lock needs of a client."""

    async def _coordinate(
        self,
        method: str,
        path: str,
        *,
        body: bytes = b"",
        parameters: dict[str, str | bytes] | None = None,
        timeout_s: float | None = None,
        attempt_s: float | None = None,
        wait_until: float = 0.0,
        settled_by: frozenset[str] = frozenset(),
    ) -> Answer: ...


def path_of(kind: str, name: bytes | str) -> str:
    """Return the path of a lock or an election.

    Raises:
        InvalidArgumentError: there is no name.
    """
    if not (data := encoded(name, "the name")):
        raise InvalidArgumentError("the name is empty")
    return f"{kind}/{quote(data)}"


def holder_of(holder: wire.LockHolder | None) -> LockHolder | None:
    """Return what an answer says of who holds a lock, or is elected."""
    if holder is None:
        return None
    value = bytes_of(holder.value, holder.value_base64)
    return LockHolder(id_of(holder.lease), holder.fencing_token, holder.remaining_ms, value)


def info_of(state: wire.LockState, revision: int | None = None) -> LockInfo:
    """Return what an answer says of a lock or an election; ``revision``: of the list that it is in."""
    waiters = tuple(each for each in map(holder_of, state.waiters) if each is not None)
    name = bytes_of(state.name, state.name_base64)
    at = state.revision if revision is None else revision
    return LockInfo(name, holder_of(state.holder), state.waiter_count, waiters, at)


class Queueing:
    """A lease of its own, and its place in a queue; what locks and elections have in common.

    Attributes:
        name: of the lock or the election.
        lost: set when it is lost while it is held, or waited for.
    """

    _what = "lock"

    def __init__(
        self,
        calls: Calls,
        kind: str,
        name: bytes | str,
        *,
        ttl_s: int,
        wait_s: float | None,
        lock_delay_s: int,
        cancel_when_lost: bool,
        on_lost: Callable[[str], object] | None,
    ) -> None:
        self.name = encoded(name, "the name")
        self._calls = calls
        self._path = path_of(kind, name)
        self._wait_s = check_wait(wait_s)
        self._cancel_when_lost = cancel_when_lost
        self._on_lost = on_lost
        self._lease = Lease(calls, ttl_s, lock_delay_s=lock_delay_s, on_lost=self._lose, check=self._check)
        self.lost = self._lease.lost
        self._granted: wire.LockGranted | None = None
        self._requests: list[asyncio.Task[Answer]] = []
        self._body: asyncio.Task[object] | None = None
        self._cancels_before = 0
        self._is_cancelled = False

    @property
    def is_held(self) -> bool:
        """Whether it is certainly held now, by this machine's clock. It needs no answer of the cluster."""
        return self._granted is not None and self._lease.is_alive

    @property
    def remaining_s(self) -> float:
        """For how long it is certainly held, unless its lease is renewed or it is released."""
        return 0.0 if self._granted is None else self._lease.remaining_s

    @property
    def fencing_token(self) -> int:
        """Higher than that of every holder before. Pass it on with everything that is changed under the lock.

        Raises:
            InvalidArgumentError: it was never held.
        """
        return self._grant.fencing_token

    @property
    def key(self) -> bytes:
        """The key of its place, whose create_revision is the fencing token.

        Raises:
            InvalidArgumentError: it was never held.
        """
        return bytes_of(self._grant.key, self._grant.key_base64)

    @property
    def _grant(self) -> wire.LockGranted:
        if self._granted is None:
            raise InvalidArgumentError(f"this {self._what} has never been held: enter it first")
        return self._granted

    @property
    def lease(self) -> Lease:
        """Its lease. Keys that are put with it are deleted when the lock is released or lost."""
        return self._lease

    @property
    def lost_reason(self) -> str:
        """Why it was lost; empty: it was not."""
        return self._lease.lost_reason

    async def _acquire(self, value: bytes, wait_s: float | None) -> None:
        """Wait until it is held.

        Raises:
            LockHeldError: another one still holds it after the wait; the place is given up.
            LockLostError: the lease was lost meanwhile, or somebody released the place.
            RefusedError, UnavailableError, OutcomeUnknownError: it is not held; the place is given up.
        """
        await self._lease
        try:
            answer = await self._wait(value, wait_s)
            self._granted = decode(answer.body, wire.LockGranted)
            if not self.is_held:
                raise LockLostError(f"the {self._what} was lost as it was granted: {self.lost_reason}")
        except BaseException:
            for request in self._requests:
                request.cancel()
            await self._leave()
            await self._lease.abandon()
            raise

    async def _release(self) -> None:
        await self._lease.end()
        await self._leave()

    async def _leave(self) -> None:
        """End the requests that are left. Once the lease is gone, they change nothing."""
        for request in self._requests:
            request.cancel()
        await asyncio.gather(*self._requests, return_exceptions=True)
        self._requests.clear()

    # --- The block ----------------------------------------------------------------------------------------------

    async def _enter(self, value: bytes) -> None:
        await self._acquire(value, self._wait_s)
        self._body = asyncio.current_task()
        self._cancels_before = 0 if self._body is None else self._body.cancelling()
        if self.lost.is_set():
            self._cancel_body()

    async def _exit(self, kind: type[BaseException] | None, error: BaseException | None) -> None:
        body, self._body = self._body, None
        was_cancelled = False
        if self._is_cancelled and body is not None:
            was_cancelled = body.uncancel() <= self._cancels_before and kind is asyncio.CancelledError
        await self._release()
        if self.lost.is_set() and (kind is None or was_cancelled):
            raise LockLostError(self.lost_reason) from error

    def _lose(self, reason: str) -> None:
        self._cancel_body()
        if self._on_lost is not None:
            self._on_lost(reason)

    def _cancel_body(self) -> None:
        if self._cancel_when_lost and self._body is not None and not self._is_cancelled:
            self._is_cancelled = True
            self._body.cancel()

    async def _check(self) -> str:
        """Return why it is not held any more; empty: it is, or was not held yet."""
        if self._granted is None:
            return ""
        key = self.key
        attempt_s = self._lease.renewal_s / 2
        parameters: dict[str, str | bytes] = {**key_parameters(key)}
        answer = await self._calls._coordinate(
            "GET", key_path(key), parameters=parameters, timeout_s=attempt_s, attempt_s=attempt_s
        )
        if answer.status == 404 or (record := record_of(key, answer)).create_revision != self.fencing_token:
            return f"the key of the {self._what} is gone: somebody deleted it, or revoked its lease"
        if record.lease != self._lease.id:
            return f"somebody put the key of the {self._what} without its lease, so the next one holds it"
        return ""

    # --- Waiting ------------------------------------------------------------------------------------------------

    async def _wait(self, value: bytes, wait_s: float | None) -> Answer:
        """Send requests that overlap until one is granted."""
        until = float("inf") if wait_s is None else time.monotonic() + wait_s
        next_at = now = time.monotonic()
        failure: ClientError | None = None
        lost = asyncio.create_task(self.lost.wait())
        try:
            while True:
                if now >= next_at and (now < until or (failure is None and not self._requests)):
                    self._requests.append(asyncio.create_task(self._request(value, min(until, now + WAIT_S))))
                    next_at = now + WAIT_S / 2 if until - now > WAIT_S else until
                elif now >= until and not self._requests:
                    raise failure or UnavailableError("no node was asked in time")
                pause_s = next_at - now if now < next_at else WAIT_S
                await asyncio.wait({*self._requests, lost}, timeout=pause_s, return_when=asyncio.FIRST_COMPLETED)
                now = time.monotonic()
                for request in [each for each in self._requests if each.done()]:
                    self._requests.remove(request)
                    try:
                        return request.result()
                    except LeaseNotFoundError as error:
                        self._lease.lose(str(error))
                    except (LockHeldError, UnavailableError, OutcomeUnknownError) as error:
                        failure = error
                        if not self._requests:
                            next_at = min(next_at, now + PAUSE_MAX_S)
                    except RefusedError as error:
                        if error.code != "lock_not_held":
                            raise
                        raise LockLostError(f"the place in the queue is lost: {error}") from None
                if self.lost.is_set():
                    raise LockLostError(f"the place in the queue is lost: {self.lost_reason}")
        finally:
            lost.cancel()

    async def _request(self, value: bytes, until: float) -> Answer:
        parameters: dict[str, str | bytes] = {"lease": leases.shown_id(self._lease.id)}
        return await self._calls._coordinate(
            "POST", self._path, body=value, parameters=parameters, wait_until=until, settled_by=_SETTLED
        )


def check_wait(wait_s: float | None) -> float | None:
    """Return for how long to wait; None: without a limit.

    Raises:
        InvalidArgumentError: it is no number of seconds.
    """
    if wait_s is None:
        return None
    if isinstance(wait_s, bool) or not isinstance(wait_s, int | float) or not 0 <= wait_s <= TIMEOUT_S_MAX:
        raise InvalidArgumentError(
            f"wait_s must be a number of seconds from 0 to {TIMEOUT_S_MAX:,}, or None, not {wait_s!r:.80}"
        )
    return float(wait_s)


class Lock(Queueing):
    """A lock: ``async with kv.lock("name") as lock``. Use it for one block, or one :meth:`acquire`.

    The end of the block releases it, and raises LockLostError if it was lost before.
    """

    async def acquire(self) -> Self:
        """Wait until the lock is held, and return it. The end of a block, or :meth:`release`, releases it.

        Raises:
            LockHeldError: another one still holds it after ``wait_s``; names the holder.
            LockLostError: no node could be reached for as long as the lease of the place lives.
            RefusedError, UnavailableError, OutcomeUnknownError: it is not held.
        """
        await self._acquire(b"", self._wait_s)
        return self

    async def release(self) -> None:
        """Release the lock: end its lease. Idempotent. If no node answers, it is free when its lease has ended."""
        await self._release()

    async def __aenter__(self) -> Self:
        await self._enter(b"")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._exit(kind, error)
