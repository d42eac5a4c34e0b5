"""Leases, locks and elections, as methods of the client."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from kvorum_client.arguments import check_whole_number
from kvorum_client.elections import ELECTIONS, Election
from kvorum_client.errors import LeaseExistsError, LeaseNotFoundError, RefusedError
from kvorum_client.leases import (
    LOCK_DELAY_S_MAX,
    TTL_S_MAX,
    Lease,
    LeaseGranted,
    LeaseInfo,
    check_id,
    draw_id,
    granted_of,
    id_of_lease,
    info_of,
    shown_id,
)
from kvorum_client.locks import LOCKS, TTL_S, Lock, LockInfo, path_of
from kvorum_client.locks import info_of as lock_info_of
from kvorum_client.transport import Answer
from kvorum_client.watch import Connect
from kvorum_client.wire import decode, decode_write
from kvorum_wire import leases as wire

_Page = TypeVar("_Page", wire.LockList, wire.ElectionList)

LEASES = "/v1/leases"
LEASES_A_PAGE = 1000


class Coordination:
    """The part of the client for leases, locks and elections. They need feature level 5."""

    leases_kept: set[Lease]
    _timeout_s: float
    _stream: Connect

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
    ) -> Answer:
        """Make a call that may be repeated, without a turn.

        Args:
            method: of HTTP; all but GET are writes.
            path: of the URL.
            body: of the request.
            parameters: of the URL.
            timeout_s: the deadline; None: the client's.
            attempt_s: how long one attempt may take; None: as the client's calls do.
            wait_until: until when (of the monotonic clock) a node may wait for a lock, on top of that; 0: not at all.
            settled_by: codes of refusals that say all there is to know, whatever became of earlier attempts.
        """
        raise NotImplementedError

    # Leases.

    def lease(
        self,
        ttl_s: int,
        *,
        id: int | None = None,
        lock_delay_s: int = 0,
        on_lost: Callable[[str], object] | None = None,
    ) -> Lease:
        """Return a lease that is kept alive in the background: ``async with kv.lease(30) as lease``.

        Args:
            ttl_s: for how long it lives without a renewal, in seconds; at least 2. It is renewed each time a third of
                that has passed.
            id: a 64-bit number, but 0. None: the client draws one.
            lock_delay_s: how much longer its keys stay if it was not renewed in time; 0 to 60.
            on_lost: called with the reason when the lease is lost.
        """
        _check_times(ttl_s, lock_delay_s)
        return Lease(self, ttl_s, id=id, lock_delay_s=lock_delay_s, on_lost=on_lost)

    async def grant_lease(
        self, ttl_s: int, *, id: int | None = None, lock_delay_s: int = 0, timeout_s: float | None = None
    ) -> LeaseGranted:
        """Grant a lease that nobody renews by himself. Arguments as :meth:`lease`.

        Raises:
            LeaseExistsError: there is a lease with the id already.
            RefusedError, UnavailableError: not granted.
            OutcomeUnknownError: perhaps granted. With an ``id`` of your own you can repeat the call.
        """
        _check_times(ttl_s, lock_delay_s)
        number = draw_id() if id is None else check_id(id)
        body = msgspec.json.encode(wire.GrantLease(ttl_s, shown_id(number), lock_delay_s))
        try:
            answer = await self._coordinate(
                "POST", LEASES, body=body, timeout_s=timeout_s, settled_by=frozenset({"lease_exists"})
            )
        except LeaseExistsError as error:
            # Nobody else draws this id; and if it was given, an earlier attempt of this call may have got through.
            if not (error.perhaps_ours or id is None) or error.ttl_s not in (0, max(ttl_s, 2)):
                raise
            return LeaseGranted(number, error.ttl_s or max(ttl_s, 2), lock_delay_s, 0)
        return granted_of(answer.body)

    async def keep_lease_alive(self, lease: Lease | int, *, timeout_s: float | None = None) -> int:
        """Renew a lease once, and return for how long it lives from then on, in seconds.

        Raises:
            LeaseNotFoundError: it does not exist, or its time is over.
            UnavailableError: not renewed.
            OutcomeUnknownError: perhaps renewed.
        """
        return await self._renew(id_of_lease(lease), timeout_s, None)

    async def renew_lease(self, id: int, timeout_s: float, attempt_s: float) -> int:
        """Renew a lease once, for what keeps it alive; each attempt may take ``attempt_s``."""
        return await self._renew(id, timeout_s, attempt_s)

    async def _renew(self, id: int, timeout_s: float | None, attempt_s: float | None) -> int:
        answer = await self._coordinate(
            "POST",
            f"{LEASES}/{shown_id(id)}/keepalive",
            timeout_s=timeout_s,
            attempt_s=attempt_s,
            settled_by=frozenset({"lease_not_found"}),
        )
        return decode_write(answer.body, wire.LeaseRenewed).ttl_s

    async def revoke_lease(self, lease: Lease | int, *, timeout_s: float | None = None) -> int:
        """End a lease, delete its keys, and return how many there were.

        Raises:
            LeaseNotFoundError: it does not exist; perhaps since an earlier attempt of this call ended it.
            UnavailableError: not done.
            OutcomeUnknownError: perhaps done.
        """
        answer = await self._coordinate(
            "DELETE",
            f"{LEASES}/{shown_id(id_of_lease(lease))}",
            timeout_s=timeout_s,
            settled_by=frozenset({"lease_not_found"}),
        )
        return decode_write(answer.body, wire.LeaseRevoked).deleted

    async def lease_info(
        self, lease: Lease | int, *, keys: bool = False, timeout_s: float | None = None
    ) -> LeaseInfo | None:
        """Return for how long a lease lives, and with ``keys`` which keys it has. None: it does not exist.

        Raises:
            RefusedError, UnavailableError: there is no answer.
        """
        path = f"{LEASES}/{shown_id(id_of_lease(lease))}"
        try:
            answer = await self._coordinate(
                "GET", path, parameters={"keys": "true"} if keys else {}, timeout_s=timeout_s
            )
        except LeaseNotFoundError:
            return None
        return info_of(decode(answer.body, wire.LeaseState))

    async def leases(self, *, timeout_s: float | None = None) -> tuple[LeaseInfo, ...]:
        """Return all leases, ascending by id and without their keys.

        Raises:
            RefusedError, UnavailableError: there is no answer.
        """
        found: list[LeaseInfo] = []
        parameters: dict[str, str | bytes] = {"limit": str(LEASES_A_PAGE)}
        while True:
            answer = await self._coordinate("GET", LEASES, parameters=parameters, timeout_s=timeout_s)
            page = decode(answer.body, wire.LeaseList)
            found += map(info_of, page.leases)
            if not (page.more and page.leases):
                return tuple(found)
            parameters["after"] = page.leases[-1].id

    # Locks.

    def lock(
        self,
        name: bytes | str,
        *,
        ttl_s: int = TTL_S,
        wait_s: float | None = None,
        lock_delay_s: int = 0,
        cancel_when_lost: bool = False,
        on_lost: Callable[[str], object] | None = None,
    ) -> Lock:
        """Return a lock, to be entered: ``async with kv.lock("name") as lock``.

        Args:
            name: up to some 980 bytes; text is encoded as UTF-8.
            ttl_s: for how long the holder keeps the lock without an answer of the cluster, in seconds; at least 2.
            wait_s: give up after so long; 0: at once, if another one holds it. None: wait as long as it takes.
            lock_delay_s: how much longer nobody else gets the lock if the lease was not renewed in time; 0 to 60. It is
                for what the old holder has sent and what arrives late.
            cancel_when_lost: cancel the task of the block when the lock is lost; the block ends with LockLostError.
            on_lost: called with the reason when the lock is lost.
        """
        _check_times(ttl_s, lock_delay_s)
        return Lock(
            self,
            LOCKS,
            name,
            ttl_s=ttl_s,
            wait_s=wait_s,
            lock_delay_s=lock_delay_s,
            cancel_when_lost=cancel_when_lost,
            on_lost=on_lost,
        )

    async def lock_info(self, name: bytes | str, *, timeout_s: float | None = None) -> LockInfo:
        """Return who holds a lock, and who waits for it.

        Raises:
            RefusedError, UnavailableError: there is no answer.
        """
        answer = await self._coordinate("GET", path_of(LOCKS, name), timeout_s=timeout_s)
        return lock_info_of(decode(answer.body, wire.LockState))

    async def locks(self, *, timeout_s: float | None = None) -> tuple[LockInfo, ...]:
        """Return all locks that somebody holds, by name and without who waits.

        Raises:
            RefusedError, UnavailableError: there is no answer.
        """
        return await self._list(LOCKS, wire.LockList, lambda page: page.locks, timeout_s)

    async def _list(
        self, path: str, kind: type[_Page], states: Callable[[_Page], Sequence[wire.LockState]], timeout_s: float | None
    ) -> tuple[LockInfo, ...]:
        """Return all locks or elections, page by page; ``states``: what a page has."""
        found: list[LockInfo] = []
        more = True
        while more:
            parameters: dict[str, str | bytes] = {"after": found[-1].name} if found else {}
            answer = await self._coordinate("GET", path, parameters=parameters, timeout_s=timeout_s)
            page = decode(answer.body, kind)
            found += [lock_info_of(each, page.revision) for each in states(page)]
            more = page.more and bool(states(page))
        return tuple(found)

    # Elections.

    def election(
        self,
        name: bytes | str,
        value: bytes | str = b"",
        *,
        ttl_s: int = TTL_S,
        wait_s: float | None = None,
        lock_delay_s: int = 0,
        cancel_when_lost: bool = False,
        on_lost: Callable[[str], object] | None = None,
    ) -> Election:
        """Return an election: ``async with kv.election("name", "me") as election``, or call its methods.

        Args:
            name: as of :meth:`lock`.
            value: what the candidate says of itself, its address for example; up to 64 KiB.
            ttl_s: as of :meth:`lock`, and likewise the others.
            wait_s: likewise.
            lock_delay_s: likewise.
            cancel_when_lost: likewise.
            on_lost: likewise.
        """
        _check_times(ttl_s, lock_delay_s)
        return Election(
            self,
            name,
            value,
            ttl_s=ttl_s,
            wait_s=wait_s,
            lock_delay_s=lock_delay_s,
            cancel_when_lost=cancel_when_lost,
            on_lost=on_lost,
        )

    async def election_info(self, name: bytes | str, *, timeout_s: float | None = None) -> LockInfo | None:
        """Return who leads and which candidates wait; None: nobody takes part.

        Raises:
            RefusedError, UnavailableError: there is no answer.
        """
        try:
            answer = await self._coordinate("GET", path_of(ELECTIONS, name), timeout_s=timeout_s)
        except RefusedError as error:
            if error.code != "not_elected":
                raise
            return None
        return lock_info_of(decode(answer.body, wire.LockState))

    async def elections(self, *, timeout_s: float | None = None) -> tuple[LockInfo, ...]:
        """Return all elections that somebody has won, by name and without who waits.

        Raises:
            RefusedError, UnavailableError: there is no answer.
        """
        return await self._list(ELECTIONS, wire.ElectionList, lambda page: page.elections, timeout_s)


def _check_times(ttl_s: int, lock_delay_s: int) -> None:
    check_whole_number(ttl_s, "ttl_s, in seconds,", 1, TTL_S_MAX)
    check_whole_number(lock_delay_s, "lock_delay_s, in seconds,", 0, LOCK_DELAY_S_MAX)
