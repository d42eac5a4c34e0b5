"""The synchronous twins of leases, locks and elections: the same, without ``await``.

Leases are kept alive by the thread of the client, whatever the program's threads do. It stops doing so when the client
is closed, when the process ends or stands still, and in the child of a fork; and it can do nothing while an extension
keeps the interpreter's lock.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

from kvorum_client.arguments import check_timeout
from kvorum_client.coordination import Coordination
from kvorum_client.elections import Election
from kvorum_client.errors import ClientError
from kvorum_client.leases import Lease, LeaseGranted, LeaseInfo
from kvorum_client.locks import TTL_S, Lock, LockHolder, LockInfo, Queueing

T = TypeVar("T")
Run = Callable[[Coroutine[Any, Any, Any]], Any]
Ended = type[BaseException] | None


class SyncLease:
    """The synchronous twin of :class:`kvorum_client.Lease`: ``with kv.lease(30) as lease``, or :meth:`begin`."""

    def __init__(self, run: Run, lease: Lease) -> None:
        self._run = run
        self._lease = lease

    @property
    def id(self) -> int:
        """See :attr:`Lease.id`."""
        return self._lease.id

    @property
    def ttl_s(self) -> int:
        """See :attr:`Lease.ttl_s`."""
        return self._lease.ttl_s

    @property
    def is_alive(self) -> bool:
        """See :attr:`Lease.is_alive`."""
        return self._lease.is_alive

    @property
    def remaining_s(self) -> float:
        """See :attr:`Lease.remaining_s`."""
        return self._lease.remaining_s

    @property
    def lost_reason(self) -> str:
        """See :attr:`Lease.lost_reason`."""
        return self._lease.lost_reason

    def wait_lost(self, timeout_s: float) -> bool:
        """Wait until the lease is lost, for so long at most; return whether it is. A revoked lease is not lost."""
        return _wait_lost(self._run, self._lease.lost, timeout_s)

    def begin(self) -> Self:
        """Grant the lease, and return this; the twin of awaiting a :class:`Lease`."""
        self._run(self._lease.__aenter__())
        return self

    def revoke(self) -> None:
        """See :meth:`Lease.revoke`."""
        self._run(self._lease.revoke())

    def __enter__(self) -> Self:
        return self.begin()

    def __exit__(self, kind: Ended, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._run(self._lease.__aexit__(kind, error, traceback))


class _SyncQueueing:
    """What the twins of locks and elections have in common."""

    def __init__(self, run: Run, asynchronous: Queueing) -> None:
        self._run = run
        self._queueing = asynchronous

    @property
    def name(self) -> bytes:
        """Of the lock or the election."""
        return self._queueing.name

    @property
    def is_held(self) -> bool:
        """See :attr:`Lock.is_held`."""
        return self._queueing.is_held

    @property
    def remaining_s(self) -> float:
        """See :attr:`Lock.remaining_s`."""
        return self._queueing.remaining_s

    @property
    def fencing_token(self) -> int:
        """See :attr:`Lock.fencing_token`."""
        return self._queueing.fencing_token

    @property
    def key(self) -> bytes:
        """See :attr:`Lock.key`."""
        return self._queueing.key

    @property
    def lost_reason(self) -> str:
        """See :attr:`Lock.lost_reason`."""
        return self._queueing.lost_reason

    @property
    def lease(self) -> SyncLease:
        """See :attr:`Lock.lease`."""
        return SyncLease(self._run, self._queueing.lease)

    def wait_lost(self, timeout_s: float) -> bool:
        """Wait until it is lost, for so long at most; return whether it is. What was released is not lost."""
        return _wait_lost(self._run, self._queueing.lost, timeout_s)


class SyncLock(_SyncQueueing):
    """The synchronous twin of :class:`kvorum_client.Lock`: ``with kv.lock("name") as lock``."""

    def __init__(self, run: Run, lock: Lock) -> None:
        super().__init__(run, lock)
        self._lock = lock

    def acquire(self) -> Self:
        """See :meth:`Lock.acquire`."""
        self._run(self._lock.acquire())
        return self

    def release(self) -> None:
        """See :meth:`Lock.release`."""
        self._run(self._lock.release())

    def __enter__(self) -> Self:
        return self.acquire()

    def __exit__(self, kind: Ended, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._run(self._lock.__aexit__(kind, error, traceback))


class SyncElection(_SyncQueueing):
    """The synchronous twin of :class:`kvorum_client.Election`: ``with kv.election("name", "me") as election``."""

    def __init__(self, run: Run, election: Election) -> None:
        super().__init__(run, election)
        self._election = election

    @property
    def is_leader(self) -> bool:
        """See :attr:`Election.is_leader`."""
        return self._election.is_leader

    def campaign(self, value: bytes | str | None = None, *, wait_s: float | None = None) -> Self:
        """See :meth:`Election.campaign`."""
        self._run(self._election.campaign(value, wait_s=wait_s))
        return self

    def proclaim(self, value: bytes | str, *, timeout_s: float | None = None) -> None:
        """See :meth:`Election.proclaim`."""
        self._run(self._election.proclaim(value, timeout_s=timeout_s))

    def resign(self) -> None:
        """See :meth:`Election.resign`."""
        self._run(self._election.resign())

    def leader(self, *, timeout_s: float | None = None) -> LockHolder | None:
        """See :meth:`Election.leader`."""
        holder: LockHolder | None = self._run(self._election.leader(timeout_s=timeout_s))
        return holder

    def observe(self, *, timeout_s: float | None = None) -> Iterator[LockHolder | None]:
        """See :meth:`Election.observe`."""
        leaders = self._election.observe(timeout_s=timeout_s)
        try:
            while True:
                yield self._run(_next(leaders))
        finally:
            # Whoever leaves it to the garbage collector may have closed the client before.
            with contextlib.suppress(ClientError):
                self._run(leaders.aclose())

    def __enter__(self) -> Self:
        return self.campaign()

    def __exit__(self, kind: Ended, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._run(self._election.__aexit__(kind, error, traceback))


class SyncCoordination:
    """The part of the synchronous client for leases, locks and elections."""

    _client: Coordination

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        raise NotImplementedError

    def lease(
        self,
        ttl_s: int,
        *,
        id: int | None = None,
        lock_delay_s: int = 0,
        on_lost: Callable[[str], object] | None = None,
    ) -> SyncLease:
        """See :meth:`kvorum_client.Client.lease`; ``on_lost`` is called on the client's own thread."""
        return SyncLease(self._run, self._client.lease(ttl_s, id=id, lock_delay_s=lock_delay_s, on_lost=on_lost))

    def grant_lease(
        self, ttl_s: int, *, id: int | None = None, lock_delay_s: int = 0, timeout_s: float | None = None
    ) -> LeaseGranted:
        """See :meth:`kvorum_client.Client.grant_lease`."""
        return self._run(self._client.grant_lease(ttl_s, id=id, lock_delay_s=lock_delay_s, timeout_s=timeout_s))

    def keep_lease_alive(self, lease: SyncLease | int, *, timeout_s: float | None = None) -> int:
        """See :meth:`kvorum_client.Client.keep_lease_alive`."""
        return self._run(self._client.keep_lease_alive(id_of(lease), timeout_s=timeout_s))

    def revoke_lease(self, lease: SyncLease | int, *, timeout_s: float | None = None) -> int:
        """See :meth:`kvorum_client.Client.revoke_lease`."""
        return self._run(self._client.revoke_lease(id_of(lease), timeout_s=timeout_s))

    def lease_info(
        self, lease: SyncLease | int, *, keys: bool = False, timeout_s: float | None = None
    ) -> LeaseInfo | None:
        """See :meth:`kvorum_client.Client.lease_info`."""
        return self._run(self._client.lease_info(id_of(lease), keys=keys, timeout_s=timeout_s))

    def leases(self, *, timeout_s: float | None = None) -> tuple[LeaseInfo, ...]:
        """See :meth:`kvorum_client.Client.leases`."""
        return self._run(self._client.leases(timeout_s=timeout_s))

    def lock(
        self,
        name: bytes | str,
        *,
        ttl_s: int = TTL_S,
        wait_s: float | None = None,
        lock_delay_s: int = 0,
        on_lost: Callable[[str], object] | None = None,
    ) -> SyncLock:
        """See :meth:`kvorum_client.Client.lock`; ``on_lost`` is called on the client's own thread."""
        lock = self._client.lock(name, ttl_s=ttl_s, wait_s=wait_s, lock_delay_s=lock_delay_s, on_lost=on_lost)
        return SyncLock(self._run, lock)

    def lock_info(self, name: bytes | str, *, timeout_s: float | None = None) -> LockInfo:
        """See :meth:`kvorum_client.Client.lock_info`."""
        return self._run(self._client.lock_info(name, timeout_s=timeout_s))

    def locks(self, *, timeout_s: float | None = None) -> tuple[LockInfo, ...]:
        """See :meth:`kvorum_client.Client.locks`."""
        return self._run(self._client.locks(timeout_s=timeout_s))

    def election(
        self,
        name: bytes | str,
        value: bytes | str = b"",
        *,
        ttl_s: int = TTL_S,
        wait_s: float | None = None,
        lock_delay_s: int = 0,
        on_lost: Callable[[str], object] | None = None,
    ) -> SyncElection:
        """See :meth:`kvorum_client.Client.election`; ``on_lost`` is called on the client's own thread."""
        election = self._client.election(
            name, value, ttl_s=ttl_s, wait_s=wait_s, lock_delay_s=lock_delay_s, on_lost=on_lost
        )
        return SyncElection(self._run, election)

    def election_info(self, name: bytes | str, *, timeout_s: float | None = None) -> LockInfo | None:
        """See :meth:`kvorum_client.Client.election_info`."""
        return self._run(self._client.election_info(name, timeout_s=timeout_s))

    def elections(self, *, timeout_s: float | None = None) -> tuple[LockInfo, ...]:
        """See :meth:`kvorum_client.Client.elections`."""
        return self._run(self._client.elections(timeout_s=timeout_s))


def id_of(lease: SyncLease | int) -> int:
    """Return the id of a lease that is given by itself, or by its id."""
    return lease.id if isinstance(lease, SyncLease) else lease


def _wait_lost(run: Run, lost: asyncio.Event, timeout_s: float) -> bool:
    run(_wait(lost, check_timeout(timeout_s)))
    return lost.is_set()


async def _wait(lost: asyncio.Event, timeout_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await lost.wait()


async def _next(leaders: AsyncGenerator[LockHolder | None, None]) -> LockHolder | None:
    return await anext(leaders)
