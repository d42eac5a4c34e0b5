"""Leases: grant, renew, revoke, and how long they still live."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from secrets import randbelow

from kvorum.errors import (
    InvalidRequestError,
    InvariantViolatedError,
    LeaseError,
    NoSpaceError,
    NotLeaderError,
    ReadTimeoutError,
)
from kvorum.kv import commands, leases
from kvorum.kv.commands import LeaseGranted, LeaseRefused, LeaseRenewed, LeaseRevoked, NoSpace, SessionRefused
from kvorum.kv.features import LEASE_LEVEL, check_level
from kvorum.kv.leases import Lease
from kvorum.kv.limits import INTEGER_MAX, INTEGER_MIN, LEASE_DELAY_S_MAX, LEASE_TTL_S_MAX, LEASE_TTL_S_MIN, LEASES_MAX
from kvorum.service.limits import LEASES_LISTED_MAX, bounded_timeout_ms
from kvorum.service.node_port import NodePort
from kvorum.service.refusals import Refusals
from kvorum.service.requests import GetLease, GrantLease, ListLeases, RenewLease, RevokeLease
from kvorum.service.results import LeaseGrant, LeaseList, LeaseRenewal, LeaseRevocation, LeaseState

SLICE_IDS = 10_000
"""Ids that a list looks at before the event loop has a turn: about a millisecond."""
SLICE_LEASES = 1000
"""Leases that it returns before the event loop has a turn: about a millisecond."""

_Done = LeaseGranted | LeaseRenewed | LeaseRevoked


def draw_id() -> int:
    """Return an id that no lease has, but for chance: from 1 to 2^63 - 1."""
    return 1 + randbelow(INTEGER_MAX)


class Leases:
    """The leases of one node's clients.

    Args:
        node: the node.
        refusals: makes the errors for what is not proposed or not applied.
        draw_id: draws the id of a lease whose client leaves it to the node.
        lists: whose turn it is to list leases: each list holds a few hundred bytes for each of them.
        hands_over: a node that does not lead hands the commands to the leader.
    """

    def __init__(
        self,
        node: NodePort,
        refusals: Refusals,
        draw_id: Callable[[], int],
        lists: asyncio.Lock,
        *,
        hands_over: bool = False,
    ) -> None:
        self._node = node
        self._refusals = refusals
        self._draw_id = draw_id
        self._hands_over = hands_over
        self._counters = node.counters
        self._lists = lists

    async def grant(self, request: GrantLease) -> LeaseGrant:
        """Create a lease; a time to live that is too short is taken as the shortest."""
        if not 1 <= request.ttl_s <= LEASE_TTL_S_MAX:
            raise InvalidRequestError(f"ttl_s must be a whole number from 1 to {LEASE_TTL_S_MAX:,} (seconds)")
        if not 0 <= request.delay_s <= LEASE_DELAY_S_MAX:
            raise InvalidRequestError(f"lock_delay_s must be a whole number from 0 to {LEASE_DELAY_S_MAX} (seconds)")
        ttl_s = max(request.ttl_s, LEASE_TTL_S_MIN)
        if request.id:
            _check_id(request.id)
        while True:
            id = request.id or self._draw_id()
            result = await self._propose(commands.LeaseGrant(id, ttl_s, request.delay_s), request.timeout_ms)
            match result:
                case LeaseGranted(revision, granted_s):
                    return LeaseGrant(id, granted_s, request.delay_s, revision)
                case LeaseRefused(revision, leases.EXISTS) if request.id:
                    raise self._exists(id, revision)
                case LeaseRefused(_, leases.EXISTS):
                    continue
                case LeaseRefused(revision, leases.TOO_MANY):
                    raise LeaseError(
                        "too_many_leases",
                        f"there are {LEASES_MAX:,} leases, and no more are granted; give several keys one lease",
                        revision=revision,
                        limit=LEASES_MAX,
                    )
                case _:
                    raise InvariantViolatedError(f"the grant of a lease was answered with {result}")

    async def renew(self, request: RenewLease) -> LeaseRenewal:
        """Let a lease live for its whole time from now on."""
        _check_id(request.id)
        result = await self._propose(commands.LeaseRenew(request.id), request.timeout_ms)
        match result:
            case LeaseRenewed(revision, ttl_s):
                return LeaseRenewal(request.id, ttl_s, revision)
            case LeaseRefused(revision):
                raise lease_not_found(request.id, revision)
            case _:
                raise InvariantViolatedError(f"the renewal of a lease was answered with {result}")

    async def revoke(self, request: RevokeLease) -> LeaseRevocation:
        """End a lease, and delete its keys."""
        _check_id(request.id)
        result = await self._propose(commands.LeaseRevoke(request.id), request.timeout_ms)
        match result:
            case LeaseRevoked(revision, deleted):
                return LeaseRevocation(request.id, deleted, revision)
            case LeaseRefused(revision):
                raise lease_not_found(request.id, revision)
            case _:
                raise InvariantViolatedError(f"the end of a lease was answered with {result}")

    async def get(self, request: GetLease) -> LeaseState:
        """Return how long a lease still lives. One that is over, and has not expired yet, has 0 ms left."""
        _check_id(request.id)
        await leases_barrier(self._node, "a lease", request.timeout_ms)
        store = self._node.store
        lease = store.leases.get(request.id)
        if lease is None:
            raise lease_not_found(request.id, store.revision)
        return self._state(lease, with_keys=request.with_keys)

    async def list_all(self, request: ListLeases) -> LeaseList:
        """Return the leases from an id on.

        The event loop has turns meanwhile. Every lease that exists all the time is there, each as it is at some moment
        of the call, and one that ends or is granted meanwhile may be there.

        Raises:
            ReadTimeoutError: other lists take too long.
        """
        if not 1 <= request.limit <= LEASES_LISTED_MAX:
            raise InvalidRequestError(f"limit must be a whole number from 1 to {LEASES_LISTED_MAX:,}")
        timeout_ms = bounded_timeout_ms(request.timeout_ms, self._node.config.request_timeout_ms)
        deadline_s = asyncio.get_running_loop().time() + timeout_ms / 1000
        await leases_barrier(self._node, "a lease", request.timeout_ms)
        try:
            async with asyncio.timeout_at(deadline_s), self._lists:
                return await self._list(request)
        except TimeoutError:
            raise ReadTimeoutError("the leases could not be listed in time: there are many, or many lists") from None

    async def _list(self, request: ListLeases) -> LeaseList:
        revision, after = self._node.store.revision, request.after
        while True:
            found = await self._lowest(after, request.limit + 1)
            states = await self._states(found[: request.limit])
            has_more = len(found) > request.limit
            if states or not has_more:
                return LeaseList(tuple(states), has_more, revision)
            # All of them ended meanwhile, and who asks goes on after the last one that is returned.
            after = found[request.limit - 1]

    async def _states(self, ids: list[int]) -> list[LeaseState]:
        """Return the leases with these ids that still exist."""
        states: list[LeaseState] = []
        for start in range(0, len(ids), SLICE_LEASES):
            leases = self._node.store.leases
            states.extend(self._state(lease) for id in ids[start : start + SLICE_LEASES] if (lease := leases.get(id)))
            await self._let_others_run()
        return states

    async def _lowest(self, after: int | None, count: int) -> list[int]:
        """Return the lowest ids above that one, ascending, at most so many."""
        above = INTEGER_MIN - 1 if after is None else after
        leases = list(self._node.store.leases)
        lowest: list[int] = []
        for start in range(0, len(leases), SLICE_IDS):
            lowest.extend(each.id for each in leases[start : start + SLICE_IDS] if each.id > above)
            lowest.sort()
            del lowest[count:]
            await self._let_others_run()
        return lowest

    async def _let_others_run(self) -> None:
        await asyncio.sleep(0)
        self._node.check_serves()

    def _state(self, lease: Lease, *, with_keys: bool = False) -> LeaseState:
        keys = tuple(sorted(lease.keys)) if with_keys else None
        remaining_ms = lease.remaining_ms(self._node.now_ms())
        return LeaseState(lease.id, lease.ttl_s, lease.delay_s, remaining_ms, len(lease.keys), keys)

    def _exists(self, id: int, revision: int) -> LeaseError:
        lease = self._node.store.leases.get(id)
        facts = {} if lease is None else {"ttl_s": lease.ttl_s}
        return LeaseError(
            "lease_exists",
            f"there is a lease {id:x} already; take another id, or leave it out",
            revision=revision,
            **facts,
        )

    async def _propose(self, command: commands.LeaseCommand, timeout_ms: int | None) -> _Done | LeaseRefused:
        timeout_ms = bounded_timeout_ms(timeout_ms, self._node.config.request_timeout_ms)
        try:
            result = await self._node.propose(command, timeout_ms, hand_over=self._hands_over)
        except (NotLeaderError, NoSpaceError) as error:
            raise self._refusals.of_proposal(error) from None
        match result:
            case LeaseGranted() | LeaseRenewed() | LeaseRevoked() | LeaseRefused():
                return result
            case NoSpace():
                raise self._refusals.no_space(result)
            case SessionRefused():
                raise InvalidRequestError("the lease exceeds a limit")
            case _:
                raise InvariantViolatedError(f"a command for a lease was answered with {result}")


async def leases_barrier(node: NodePort, what: str, timeout_ms: int | None) -> None:
    """Return when the state holds everything that was acknowledged before the call, and count the read.

    Raises:
        FeatureUnavailableError: there are no leases below their feature level; ``what`` names what needs them.
        CallerError: as :meth:`NodePort.read_barrier`.
    """
    await node.read_barrier(bounded_timeout_ms(timeout_ms, node.config.request_timeout_ms))
    check_level(what, LEASE_LEVEL, node.store.feature_level)
    node.counters.reads += 1


def lease_not_found(id: int, revision: int) -> LeaseError:
    """Return the error for a lease that does not exist, or is over."""
    return LeaseError(
        "lease_not_found", f"the lease {id:x} does not exist, or its time is over; grant a new one", revision=revision
    )


def _check_id(id: int) -> None:
    if id == 0 or not INTEGER_MIN <= id <= INTEGER_MAX:
        raise InvalidRequestError(
            f"the id of a lease is a whole number from {INTEGER_MIN:,} to {INTEGER_MAX:,}, and not 0"
        )
