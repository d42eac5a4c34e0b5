"""Leases: keys that are deleted together, unless somebody keeps their lease alive.

Theory of operation. A :class:`Lease` is renewed in the background, each time a third of its time has passed. The
cluster counts its time from when it applies a renewal; the client counts from when it *sent* the last one that
succeeded, which is earlier. So when the client takes the lease for alive, it is. When the client's time is over, the
lease is lost for good, even if the cluster would still renew it: other parts of the program may have been told.

The client's clock goes on while the machine is suspended, where the system has such a clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Generator
from types import TracebackType
from typing import Protocol

import msgspec

from kvorum_client.arguments import INTEGER_MAX, TIMEOUT_S_MAX, check_whole_number
from kvorum_client.errors import (
    ClientError,
    InvalidArgumentError,
    LeaseLostError,
    LeaseNotFoundError,
    OutcomeUnknownError,
)
from kvorum_client.wire import bytes_of, decode, id_of
from kvorum_wire import leases as wire

logger = logging.getLogger("kvorum_client")

TTL_S_MAX = 9_000_000_000
LOCK_DELAY_S_MAX = 60
RENEWALS = 3
"""How many renewals the time of a lease has room for."""
RENEWAL_S_MIN = 1.0
"""Of what one renewal may take."""
PAUSE_MIN_S = 0.02
PAUSE_MAX_S = 0.5
LATE_S = 1.0
"""How long to try to end what has ended already, or is not wanted any more."""


class LeaseGranted(msgspec.Struct, frozen=True):
    """A lease, and the revision of the cluster when it was granted."""

    id: int
    ttl_s: int
    """How long it lives after the grant and after each renewal: what was asked for, but 2 at least."""
    lock_delay_s: int
    revision: int


class LeaseInfo(msgspec.Struct, frozen=True):
    """A lease as the cluster sees it."""

    id: int
    ttl_s: int
    remaining_ms: int
    """For how long it lives unless it is renewed; 0: it is over, and its keys are deleted ``lock_delay_s`` later."""
    key_count: int
    lock_delay_s: int
    keys: tuple[bytes, ...] | None = None
    """In their order; None: they were not asked for."""


class Calls(Protocol):
    """What a lease needs of a client."""

    leases_kept: set[Lease]

    async def grant_lease(self, ttl_s: int, *, id: int | None, lock_delay_s: int) -> LeaseGranted:
        """Grant one."""

    async def renew_lease(self, id: int, timeout_s: float, attempt_s: float) -> int:
        """Renew it, ahead of other calls, and return its time to live."""

    async def revoke_lease(self, id: int, *, timeout_s: float | None) -> int:
        """End it."""


def now() -> float:
    """Return the time of a clock that is never set; in seconds."""
    return time.clock_gettime(_CLOCK)


_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def draw_id() -> int:
    """Return an id that no lease has, but for chance."""
    return 1 + secrets.randbelow(INTEGER_MAX)


def check_id(id: int) -> int:
    """Return the id of a lease.

    Raises:
        InvalidArgumentError: it is none.
    """
    if check_whole_number(id, "the id of a lease", -(2**63)) == 0:
        raise InvalidArgumentError("the id of a lease is not 0")
    return int(id)


def shown_id(id: int) -> str:
    """Return the id of a lease as the API, ``kv`` and etcdctl write it: in hex."""
    return f"{id:x}"


def id_of_lease(lease: Lease | int) -> int:
    """Return the id of a lease that is given by itself, or by its id.

    Raises:
        InvalidArgumentError: it is neither, or has not been granted.
    """
    return check_id(lease.id if isinstance(lease, Lease) else lease)


def info_of(state: wire.LeaseState) -> LeaseInfo:
    """Return what an answer says of a lease."""
    keys = None if state.keys is None else tuple(bytes_of(each.key, each.key_base64) for each in state.keys)
    return LeaseInfo(id_of(state.id), state.ttl_s, state.remaining_ms, state.key_count, state.lock_delay_s, keys)


def granted_of(body: bytes) -> LeaseGranted:
    """Return what the answer to a grant says."""
    answer = decode(body, wire.LeaseGranted)
    return LeaseGranted(id_of(answer.id), answer.ttl_s, answer.lock_delay_s, answer.revision)


class Lease:
    """A lease that is kept alive in the background: ``async with kv.lease(ttl_s=30) as lease``.

    It is granted when it is entered or awaited (``lease = await kv.lease(ttl_s=30)``), and revoked, with its keys, at
    the end of the block or by :meth:`revoke`. The end of the block raises LeaseLostError if the lease was lost.

    Attributes:
        id: chosen when it was made; 0 is no lease's.
        ttl_s: its time to live, in seconds.
        lost: set when the lease is lost: it was not renewed in time, or somebody revoked it, or the client was closed.
    """

    def __init__(
        self,
        calls: Calls,
        ttl_s: int,
        *,
        id: int | None = None,
        lock_delay_s: int = 0,
        on_lost: Callable[[str], object] | None = None,
        check: Callable[[], Awaitable[str]] | None = None,
    ) -> None:
        self._calls = calls
        self.id = draw_id() if id is None else check_id(id)
        self._is_own_id = id is None
        self.ttl_s = check_whole_number(ttl_s, "ttl_s", 1)
        self._lock_delay_s = check_whole_number(lock_delay_s, "lock_delay_s")
        self._on_lost = on_lost
        self._check = check
        self.lost = asyncio.Event()
        self._reason = ""
        self._deadline = float("-inf")
        self._renewed_at = float("-inf")
        self._keeper: asyncio.Task[None] | None = None
        self._is_over = False
        self._may_exist = False
        """The cluster may have it: it was asked for, and has not been revoked."""

    @property
    def is_alive(self) -> bool:
        """Whether the lease certainly lives, by this machine's clock. It needs no answer of the cluster."""
        return self.remaining_s > 0

    @property
    def remaining_s(self) -> float:
        """For how long the lease certainly lives, unless it is renewed or revoked; 0: perhaps it does not."""
        return 0.0 if self._is_over else max(0.0, self._deadline - now())

    @property
    def renewal_s(self) -> float:
        """How long one renewal may take, over all its attempts, if the lease lives so long."""
        return min(max(self.ttl_s / RENEWALS, RENEWAL_S_MIN), TIMEOUT_S_MAX)

    @property
    def lost_reason(self) -> str:
        """Why the lease is lost; empty: it is not."""
        return self._reason

    def __await__(self) -> Generator[None, None, Lease]:
        return self._begin().__await__()

    async def __aenter__(self) -> Lease:
        return await self._begin()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.end()
        if self._reason and kind is None:
            raise LeaseLostError(self._reason)

    async def revoke(self) -> None:
        """End the lease and delete its keys. It is done if the lease is gone already.

        Raises:
            UnavailableError: not done; call it again, or the lease ends by itself after its time to live.
            OutcomeUnknownError: perhaps done; likewise.
        """
        await self._end(None)

    async def end(self) -> None:
        """Revoke the lease, or log that this failed: it ends by itself then. Short if the lease is lost."""
        try:
            await self._end(LATE_S if self._reason else None)
        except ClientError as error:
            if not self._reason:
                logger.warning("A lease could not be revoked, and ends by itself within %d s: %s", self.ttl_s, error)

    async def abandon(self) -> None:
        """End the lease of something that is not wanted any more, and do not wait for long."""
        with contextlib.suppress(ClientError):
            await self._end(LATE_S)

    def lose(self, reason: str) -> None:
        """Take note that the lease is lost. Only the first reason counts."""
        if self._is_over:
            return
        self._stop()
        self._reason = reason
        self.lost.set()
        if self._on_lost is not None:
            try:
                self._on_lost(reason)
            except Exception:
                logger.exception("A callback failed that was told of a lost lease")

    # --- Being kept alive ---------------------------------------------------------------------------------------

    async def _begin(self) -> Lease:
        if self._is_over:
            raise InvalidArgumentError("this lease has ended: make another one")
        if self._keeper is None:
            sent = now()
            granted = await self._granted()
            self.ttl_s = granted.ttl_s
            self._take_renewal(sent)
            self._calls.leases_kept.add(self)
            self._keeper = asyncio.create_task(self._keep(), name=f"keeps the lease {shown_id(self.id)}")
        return self

    async def _granted(self) -> LeaseGranted:
        """Have it granted. What may be granted although this fails is revoked, unless another program may have it."""
        self._may_exist = True
        try:
            return await self._calls.grant_lease(self.ttl_s, id=self.id, lock_delay_s=self._lock_delay_s)
        except BaseException as error:
            is_refused = isinstance(error, ClientError) and not isinstance(error, OutcomeUnknownError)
            if is_refused or not self._is_own_id:
                self._may_exist = False
            else:
                await self.abandon()
            raise

    def _take_renewal(self, sent: float) -> None:
        self._renewed_at, self._deadline = sent, sent + self.ttl_s

    async def _keep(self) -> None:
        try:
            while not self._is_over:
                await asyncio.sleep(max(0.0, self._renewed_at + self.ttl_s / RENEWALS - now()))
                await self._renew()
                await self._look()
        except Exception as error:
            # Whatever it is, the lease is not renewed any more, and whoever relies on it must know.
            logger.exception("A lease is not kept alive any more")
            self.lose(f"the lease {shown_id(self.id)} is not renewed any more: {error}")

    async def _renew(self) -> None:
        """Renew the lease, or lose it."""
        pause_s, reason = PAUSE_MIN_S, "no renewal was answered"
        while (remaining_s := self.remaining_s) > 0:
            sent = now()
            try:
                async with asyncio.timeout(remaining_s):
                    within_s = min(remaining_s, self.renewal_s)
                    self.ttl_s = await self._calls.renew_lease(self.id, within_s, within_s / 2)
            except LeaseNotFoundError as error:
                return self.lose(str(error))
            except InvalidArgumentError:
                raise  # It would be one the next time, too.
            except ClientError as error:
                reason = str(error)
            except TimeoutError:
                pass
            else:
                if not self.is_alive:
                    break  # The answer came too late: this process stood still, for example.
                return self._take_renewal(sent)
            await asyncio.sleep(min(pause_s, self.remaining_s))
            pause_s = min(2 * pause_s, PAUSE_MAX_S)
        return self.lose(f"the lease {shown_id(self.id)} was not renewed in time ({self.ttl_s} s): {reason}")

    async def _look(self) -> None:
        """See whether what the lease is for is still there."""
        if self._check is None or self._is_over:
            return
        with contextlib.suppress(ClientError, TimeoutError):
            async with asyncio.timeout(self.renewal_s / 2):
                if reason := await self._check():
                    self.lose(reason)

    def _stop(self) -> None:
        self._is_over = True
        self._calls.leases_kept.discard(self)
        if self._keeper is not None and self._keeper is not asyncio.current_task():
            self._keeper.cancel()

    async def _end(self, timeout_s: float | None) -> None:
        """Revoke the lease unless that is done. What failed, or was cancelled, can be tried again."""
        if not self._is_over:
            self._stop()
        if self._keeper is not None:
            await asyncio.wait([self._keeper])
        if not self._may_exist:
            return
        with contextlib.suppress(LeaseNotFoundError):
            await self._calls.revoke_lease(self.id, timeout_s=timeout_s)
        self._may_exist = False
