"""Attempts to get a lock whose clients go, or ask again: nobody loses a lock, and none is left that nobody knows of."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from time import perf_counter
from typing import Any

import pytest
from fronts.fake_node import Server
from fronts.lock_support import held, lock, run, waiting
from waiting import until

from kvorum.errors import LockError
from kvorum.fronts.http import locks
from kvorum.service import Service
from kvorum.service.access import ANONYMOUS
from kvorum.service.requests import AcquireLock, ReleaseLock
from kvorum.service.results import LockGrant


def test_a_waiter_whose_client_is_gone_leaves_the_queue() -> None:
    async def scenario(http: Server) -> None:
        await lock(http, 1)
        _, writer = await asyncio.open_connection("127.0.0.1", http.port)
        writer.write(b"POST /v1/locks/a?lease=2&wait_ms=60000 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        await waiting(http, 2)
        writer.transport.abort()
        await until("the place is given up", lambda: held(http) == [b"_locks/a/1"])
        assert not http.node.watches.hub.size

    run(scenario)


def test_a_lock_is_free_again_whose_client_went_before_it_was_granted_at_once() -> None:
    async def scenario(http: Server) -> None:
        propose, may_go_on, asked = http.node.propose, asyncio.Event(), asyncio.Event()

        async def late(*arguments: Any, **options: Any) -> Any:
            asked.set()
            await may_go_on.wait()
            return await propose(*arguments, **options)

        http.node.propose = late  # type: ignore[method-assign]
        _, writer = await asyncio.open_connection("127.0.0.1", http.port)
        writer.write(b"POST /v1/locks/a?lease=2 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        await asked.wait()
        writer.transport.abort()
        await asyncio.sleep(0.05)
        may_go_on.set()
        await until("the place was taken, and given up", lambda: http.node.store.revision >= 3 and not held(http))

    run(scenario)


def test_an_attempt_that_another_one_took_over_does_not_remove_the_place() -> None:
    async def scenario(http: Server) -> None:
        await lock(http, 1)
        early = asyncio.create_task(lock(http, 2, 300))
        await waiting(http, 2)
        late = asyncio.create_task(lock(http, 2, 9000))
        await until("both wait", lambda: http.node.watches.hub.size >= 4)
        assert (await early).status == 409
        assert held(http) == [b"_locks/a/1", b"_locks/a/2"]
        await http("DELETE", "/v1/locks/a?lease=1")
        assert (await late).status == 200

    run(scenario)


def test_a_place_that_is_the_first_one_by_then_is_not_given_up() -> None:
    """Another attempt of the same lease is told that it holds the lock."""

    async def scenario(http: Server) -> None:
        await lock(http, 1)
        service = Service(http.node, perf_counter)
        wanted = AcquireLock("lock", b"a", 2, wait_ms=9000)
        first = asyncio.ensure_future(service.execute(ANONYMOUS, wanted))
        await waiting(http, 2)
        second = asyncio.ensure_future(service.execute(ANONYMOUS, wanted))
        await until("both wait", lambda: http.node.watches.hub.size >= 4)
        http.node.remove(b"_locks/a/1")
        second.cancel()
        granted, ended = await asyncio.gather(first, second, return_exceptions=True)
        assert isinstance(granted, LockGrant)
        assert isinstance(ended, asyncio.CancelledError)
        assert held(http) == [b"_locks/a/2"]

    run(scenario)


def test_the_only_attempt_of_a_lease_does_not_leave_a_lock_that_nobody_knows_to_hold() -> None:
    """Its client goes while its turn comes."""

    async def scenario(http: Server) -> None:
        await lock(http, 1)
        service = Service(http.node, perf_counter)
        attempt = asyncio.ensure_future(service.execute(ANONYMOUS, AcquireLock("lock", b"a", 2, wait_ms=9000)))
        await waiting(http, 2)
        http.node.remove(b"_locks/a/1")
        attempt.cancel()
        await asyncio.wait({attempt})
        assert attempt.cancelled()
        assert not held(http)

    run(scenario)


class Slow:
    """Holds back what the node answers to proposals, and proposals themselves."""

    def __init__(self, http: Server) -> None:
        self._propose = http.node.propose
        self.is_put = asyncio.Event()
        self.answers = asyncio.Event()
        self.proposals = asyncio.Event()
        self.proposals.set()
        self.begun = 0
        http.node.propose = self._slowly  # type: ignore[method-assign]

    async def _slowly(self, *args: Any, **options: Any) -> Any:
        self.begun += 1
        await self.proposals.wait()
        done = await self._propose(*args, **options)
        self.is_put.set()
        await self.answers.wait()
        return done


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize(("wait_ms", "is_held"), [(0, False), (9000, False), (9000, True)])
def test_an_attempt_that_is_given_up_while_its_put_is_on_its_way_leaves_no_place(
    wait_ms: int, is_held: bool, times: int
) -> None:
    async def scenario(http: Server) -> None:
        if is_held:
            await lock(http, 1)
        before, slow = held(http), Slow(http)
        wanted = AcquireLock("lock", b"a", 2, wait_ms=wait_ms)
        attempt = asyncio.ensure_future(Service(http.node, perf_counter).execute(ANONYMOUS, wanted))
        await asyncio.wait_for(slow.is_put.wait(), 10)
        assert b"_locks/a/2" in held(http)
        for _ in range(times):
            attempt.cancel()
            await asyncio.sleep(0)
        slow.answers.set()
        await asyncio.wait({attempt})
        assert attempt.cancelled()
        assert held(http) == before

    run(scenario)


def test_an_attempt_that_took_a_place_over_and_is_given_up_while_its_put_is_on_its_way_leaves_no_place() -> None:
    """A client that waits loses its connection, asks again, and goes."""

    async def scenario(http: Server) -> None:
        for lease in (1, 3):
            http.node.set(b"_locks/a/%d" % lease, lease)
        service = Service(http.node, perf_counter)
        wanted = AcquireLock("lock", b"a", 2, wait_ms=9000)
        first = asyncio.ensure_future(service.execute(ANONYMOUS, wanted))
        await until("it waits", lambda: http.node.watches.hub.size >= 2)
        slow = Slow(http)
        second = asyncio.ensure_future(service.execute(ANONYMOUS, wanted))
        await asyncio.wait_for(slow.is_put.wait(), 10)
        for attempt in (first, second):
            attempt.cancel()
        await asyncio.sleep(0)
        slow.answers.set()
        await asyncio.wait({first, second})
        assert first.cancelled()
        assert second.cancelled()
        assert held(http) == [b"_locks/a/1", b"_locks/a/3"]

    run(scenario)


def test_an_attempt_that_is_cancelled_again_while_it_gives_its_place_up_does_so() -> None:
    async def scenario(http: Server) -> None:
        await lock(http, 1)
        service = Service(http.node, perf_counter)
        attempt = asyncio.ensure_future(service.execute(ANONYMOUS, AcquireLock("lock", b"a", 2, wait_ms=9000)))
        await waiting(http, 2)
        slow = Slow(http)
        slow.proposals.clear()
        attempt.cancel()
        await until("the place is being given up", lambda: slow.begun > 0)
        attempt.cancel()
        await asyncio.sleep(0)
        slow.proposals.set()
        slow.answers.set()
        await asyncio.wait({attempt})
        assert attempt.cancelled()
        assert held(http) == [b"_locks/a/1"]

    run(scenario)


def test_a_lock_that_is_granted_to_a_client_that_is_gone_is_released(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(http: Server) -> None:
        monkeypatch.setattr(locks, "_is_gone", lambda _: True)
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await lock(http, 1, 9000)
        assert not held(http)
        # An attempt before may have told its client that the lease holds the lock.
        with monkeypatch.context() as stays:
            stays.setattr(locks, "_is_gone", lambda _: False)
            assert (await lock(http, 2)).status == 200
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await lock(http, 2, 9000)
        assert held(http) == [b"_locks/a/2"]

    run(scenario)


def test_a_lock_is_taken_back_through_the_leader_and_only_at_its_revision() -> None:
    async def scenario(http: Server) -> None:
        service = Service(http.node, perf_counter)
        granted = await service.execute(ANONYMOUS, AcquireLock("lock", b"a", 1))
        assert granted.mod_revision == granted.fencing_token
        again = await service.execute(ANONYMOUS, AcquireLock("lock", b"a", 1))
        assert again.mod_revision > again.fencing_token == granted.fencing_token
        http.node.hands_over = True
        http.node.follow("n2", "http://n2:8001")
        for each in (granted, again):
            assert held(http) == [b"_locks/a/1"]
            with suppress(LockError):
                await service.execute(ANONYMOUS, ReleaseLock("lock", b"a", 1, mod_revision=each.mod_revision))
        assert not held(http)

    run(scenario)


def test_an_attempt_whose_place_was_released_is_not_told_of_a_later_place_of_its_lease() -> None:
    """Another attempt of the lease has that one, and its answer says what came of it."""

    async def scenario(http: Server) -> None:
        await lock(http, 1)
        service = Service(http.node, perf_counter)
        early = asyncio.ensure_future(service.execute(ANONYMOUS, AcquireLock("lock", b"a", 2, wait_ms=9000)))
        await waiting(http, 2)
        http.node.remove(b"_locks/a/2")
        http.node.set(b"_locks/a/2", 2)
        with pytest.raises(LockError, match="does not hold the lock") as refused:
            await early
        assert refused.value.code == "lock_not_held"
        assert held(http) == [b"_locks/a/1", b"_locks/a/2"]

    run(scenario)
