"""Locks of the client: one holder at a time, in the order of asking, and a holder that learns when it is none."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

import pytest
from client.test_leases import Clock, lease_commands, with_node
from fronts.fake_node import Server
from waiting import until

from kvorum.errors import NoLeaderError, NotServingError
from kvorum.errors import OutcomeUnknownError as ServerOutcomeUnknown
from kvorum.kv.commands import ClientCommand, LeaseGrant, Result, Txn
from kvorum_client import (
    Client,
    ClientError,
    InvalidArgumentError,
    LockHeldError,
    LockLostError,
    RefusedError,
    SyncClient,
    UnavailableError,
    leases,
    locks,
)
from kvorum_client.transport import Answer


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases are renewed, and places looked at, as soon as a thousandth of their time is over."""
    monkeypatch.setattr(leases, "RENEWALS", 1000)
    monkeypatch.setattr(leases, "RENEWAL_S_MIN", 20.0)


async def waiters(kv: Client, count: int, name: str = "a") -> None:
    """Wait until so many wait for the lock."""

    async def enough() -> bool:
        return (await kv.lock_info(name)).waiter_count == count

    await until(f"{count} wait", enough)


def test_five_tasks_hold_a_lock_one_at_a_time_and_each_has_a_higher_token() -> None:
    async def scenario(server: Server, kv: Client) -> None:
        inside, tokens = 0, []

        async def work() -> None:
            nonlocal inside
            async with kv.lock("a/b\xff?") as lock:
                inside += 1
                assert inside == 1 and lock.is_held
                tokens.append(lock.fencing_token)
                await kv.put("k", "v")
                inside -= 1

        await asyncio.gather(*(work() for _ in range(5)))
        assert len(tokens) == 5 and tokens == sorted(set(tokens))
        assert await kv.locks() == () and await kv.leases() == ()

    with_node(scenario)


def test_a_lock_is_given_in_the_order_of_asking_and_waiting_needs_no_turn() -> None:
    async def scenario(server: Server, kv: Client) -> None:
        order: list[int] = []

        async def work(number: int) -> None:
            async with kv.lock("a"):
                order.append(number)

        async with kv.lock("a"):
            tasks = []
            for number in range(3):
                tasks.append(asyncio.create_task(work(number)))
                await waiters(kv, number + 1)
            await kv.put("k", "v")  # The client has one turn only.
        await asyncio.gather(*tasks)
        assert order == [0, 1, 2]

    with_node(scenario)


@pytest.mark.parametrize("wait_s", [0, 0.05])
def test_who_gives_up_learns_who_holds_the_lock_and_leaves_nothing(wait_s: float) -> None:
    async def scenario(server: Server, kv: Client) -> None:
        async with kv.lock("a", ttl_s=30) as lock:
            with pytest.raises(LockHeldError) as caught:
                async with kv.lock("a", wait_s=wait_s):
                    raise AssertionError("two holders")
            assert lock.key == f"_locks/a/{lock.lease.id:x}".encode()
            assert (caught.value.lease, caught.value.fencing_token) == (lock.lease.id, lock.fencing_token)
            assert 0 < caught.value.remaining_ms <= 30_000
            info = await kv.lock_info("a")
            assert info.holder is not None and info.holder.lease == lock.lease.id
            assert (info.name, info.waiter_count, info.waiters) == (b"a", 0, ())
            assert [each.id for each in await kv.leases()] == [lock.lease.id]
            assert [(each.name, each.holder.lease) for each in await kv.locks() if each.holder] == [
                (b"a", lock.lease.id)
            ]
        assert (await kv.lock_info("a")).holder is None

    with_node(scenario)


def test_a_waiter_that_is_cancelled_leaves_the_queue() -> None:
    async def scenario(server: Server, kv: Client) -> None:
        async with kv.lock("a") as lock:
            waiting = asyncio.create_task(kv.lock("a").acquire())
            await waiters(kv, 1)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await waiters(kv, 0)
            assert [each.id for each in await kv.leases()] == [lock.lease.id]

    with_node(scenario)


def test_a_waiter_keeps_its_place_over_many_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "WAIT_S", 0.4)

    async def scenario(server: Server, kv: Client) -> None:
        first = await kv.lock("a").acquire()
        second = asyncio.create_task(kv.lock("a").acquire())
        await waiters(kv, 1)
        third = asyncio.create_task(kv.lock("a").acquire())
        await waiters(kv, 2)
        place = (await kv.lock_info("a")).waiters[0]
        asked = len([each for each in server.node.proposed if isinstance(each, Txn)])
        await until("both asked more often", lambda: count_txns(server) >= asked + 8)
        assert (await kv.lock_info("a")).waiters[0].fencing_token == place.fencing_token
        await first.release()
        assert (await second).fencing_token == place.fencing_token
        await (await second).release()
        await (await third).release()

    with_node(scenario)


def count_txns(server: Server) -> int:
    return sum(isinstance(each, Txn) for each in server.node.proposed)


def test_a_waiter_outlives_a_node_that_ends_its_wait_and_an_outage() -> None:
    async def scenario(server: Server, kv: Client) -> None:
        first = await kv.lock("a").acquire()
        second = asyncio.create_task(kv.lock("a").acquire())
        await waiters(kv, 1)
        place = (await kv.lock_info("a")).waiters[0]
        server.node.error = NoLeaderError("no leader")
        server.node.watches.end_all(NotServingError("stopping"))
        await until("asked again", lambda: any(status == 503 for _, status in server.node.counters.requests))
        server.node.error = None
        await first.release()
        assert (await second).fencing_token == place.fencing_token
        await (await second).release()

    with_node(scenario)


def lose_a_transaction(server: Server) -> list[ClientCommand]:
    """Do the next transaction, and answer as if nobody knew; return a list that all of them are put into."""
    propose, seen = server.node.propose, list[ClientCommand]()

    async def lossy(command: ClientCommand, timeout_ms: int, address: str = "", **options: Any) -> Result:
        result = await propose(command, timeout_ms, address, **options)
        if isinstance(command, Txn):
            seen.append(command)
            if len(seen) == 1:
                raise ServerOutcomeUnknown("the leader lost its quorum")
        return result

    server.node.propose = lossy  # type: ignore[method-assign]
    return seen


def test_a_lock_whose_answer_was_lost_is_held() -> None:
    async def scenario(server: Server, kv: Client) -> None:
        seen = lose_a_transaction(server)
        async with kv.lock("a") as lock:
            info = await kv.lock_info("a")
            assert info.holder is not None and info.holder.fencing_token == lock.fencing_token
            assert len(seen) == 2

    with_node(scenario)


def test_a_refusal_is_one_also_after_a_lost_answer() -> None:
    async def scenario(server: Server, kv: Client) -> None:
        async with kv.lock("a"):
            seen = lose_a_transaction(server)
            with pytest.raises(LockHeldError):
                await kv.lock("a", wait_s=0.3).acquire()
            assert len(seen) >= 2
            info = await kv.lock_info("a")
            assert info.waiter_count == 0

    with_node(scenario)


def test_a_waiter_outlives_an_outage_that_is_longer_than_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "WAIT_S", 0.2)
    request, failures = locks.Queueing._request, list[ClientError]()

    async def counted(self: locks.Queueing, value: bytes, until_s: float) -> Answer:
        try:
            return await request(self, value, until_s)
        except ClientError as error:
            failures.append(error)
            raise

    monkeypatch.setattr(locks.Queueing, "_request", counted)

    async def scenario(server: Server, kv: Client) -> None:
        async with Client([server.url]) as other, kv.lock("a") as first:
            second = asyncio.create_task(other.lock("a").acquire())
            await waiters(kv, 1)
            other._timeout_s = 0.3
            server.node.error = NoLeaderError("no leader")
            await until(
                "two requests failed", lambda: sum(isinstance(each, UnavailableError) for each in failures) >= 2
            )
            server.node.error = None
            await first.release()
            await (await second).release()

    with_node(scenario)


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("cause", ["lease", "key", "replaced"])
def test_a_holder_learns_that_its_lock_is_lost(cause: str) -> None:
    async def scenario(server: Server, kv: Client) -> None:
        told: list[str] = []
        with pytest.raises(LockLostError) as caught:
            async with kv.lock("a", on_lost=told.append) as lock:
                if cause == "lease":
                    server.node.revoke(lock.lease.id)
                else:
                    server.node.remove(lock.key)
                    if cause == "replaced":
                        server.node.set(lock.key, lock.lease.id)
                await lock.lost.wait()
                assert not lock.is_held and lock.remaining_s == 0
        assert told == [str(caught.value)] == [lock.lost_reason]
        gone = "the key of the lock is gone" in lock.lost_reason
        assert gone or (cause == "lease" and "does not exist" in lock.lost_reason)
        assert await kv.leases() == ()

    with_node(scenario)


def test_a_lock_that_is_granted_after_the_time_of_its_lease_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)

    async def scenario(server: Server, kv: Client) -> None:
        lock = kv.lock("a", ttl_s=30)
        await lock.lease
        server.node.gate, asked = asyncio.Event(), len(server.node.timeouts_ms)
        task = asyncio.create_task(lock.acquire())
        await until("the lock is asked for", lambda: len(server.node.timeouts_ms) > asked)
        clock.now_s += 31
        gate, server.node.gate = server.node.gate, None
        gate.set()
        with pytest.raises(LockLostError):
            await task
        assert not lock.is_held

    with_node(scenario)


@pytest.mark.usefixtures("often")
def test_a_holder_learns_that_its_key_was_put_without_its_lease() -> None:
    async def scenario(server: Server, kv: Client) -> None:
        with pytest.raises(LockLostError, match="somebody put the key of the lock without its lease"):
            async with kv.lock("a") as lock:
                await kv.put(lock.key, "note")
                await lock.lost.wait()

    with_node(scenario)


@pytest.mark.usefixtures("often")
def test_a_body_can_be_cancelled_when_the_lock_is_lost() -> None:
    async def scenario(server: Server, kv: Client) -> None:
        with pytest.raises(LockLostError):
            async with kv.lock("a", cancel_when_lost=True) as lock:
                server.node.revoke(lock.lease.id)
                await asyncio.Event().wait()
        task = asyncio.current_task()
        assert task is not None and task.cancelling() == 0
        await asyncio.sleep(0)

    with_node(scenario)


@pytest.mark.usefixtures("often")
def test_a_cancel_from_elsewhere_is_not_taken_for_a_lost_lock() -> None:
    async def scenario(server: Server, kv: Client) -> None:
        inside = asyncio.Event()

        async def work() -> None:
            async with kv.lock("a", cancel_when_lost=True) as lock:
                server.node.revoke(lock.lease.id)
                inside.set()
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.Event().wait()
                await asyncio.Event().wait()

        task = asyncio.create_task(work())
        await inside.wait()
        await until("the lock is lost", lambda: task.cancelling())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with_node(scenario)


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("cause", ["lease", "place"])
def test_a_waiter_whose_place_is_gone_says_so(cause: str) -> None:
    async def scenario(server: Server, kv: Client) -> None:
        async with kv.lock("a"):
            waiting = kv.lock("a")
            task = asyncio.create_task(waiting.acquire())
            await waiters(kv, 1)
            if cause == "lease":
                server.node.revoke(waiting.lease.id)
            else:
                server.node.remove(f"_locks/a/{waiting.lease.id:x}".encode())
            with pytest.raises(LockLostError, match="the place in the queue is lost"):
                await task
            assert waiting.lost.is_set() == (cause == "lease")

    with_node(scenario)


def test_all_pages_of_the_lists_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(server: Server, kv: Client) -> None:
        monkeypatch.setattr("kvorum.service.queues.LOCK_LIST_BYTES_MAX", 1)
        async with kv.lock("a"), kv.lock(b"\xff"), kv.election("x", "me"), kv.election("y", "me"):
            assert [each.name for each in await kv.locks()] == [b"a", b"\xff"]
            assert [each.name for each in await kv.elections()] == [b"x", b"y"]

    with_node(scenario)


def test_an_error_of_the_body_passes_and_the_lock_is_free() -> None:
    async def scenario(server: Server, kv: Client) -> None:
        with pytest.raises(ZeroDivisionError):
            async with kv.lock("a"):
                raise ZeroDivisionError
        assert await kv.locks() == ()

    with_node(scenario)


def test_a_release_that_fails_is_logged_and_the_work_of_the_block_counts(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(server: Server, kv: Client) -> None:
        async with Client([server.url]) as other:
            with caplog.at_level(logging.WARNING, "kvorum_client"):
                async with other.lock("a"):
                    other._timeout_s = 0.3
                    server.node.error = NoLeaderError("no leader")
            assert "could not be revoked, and ends by itself within 30 s" in caplog.text
        server.node.error = None

    with_node(scenario)


def test_a_lock_is_used_once_and_has_no_token_before() -> None:
    async def scenario(server: Server, kv: Client) -> None:
        lock = kv.lock("a")
        with pytest.raises(InvalidArgumentError, match="never been held"):
            assert lock.fencing_token
        await lock.acquire()
        await lock.release()
        await lock.release()
        with pytest.raises(InvalidArgumentError):
            await lock.acquire()
        impossible: list[dict[str, Any]] = [
            {"wait_s": -1},
            {"wait_s": "1"},
            {"wait_s": True},
            {"ttl_s": 0},
            {"lock_delay_s": 61},
        ]
        for arguments in impossible:
            with pytest.raises(InvalidArgumentError):
                kv.lock("a", **arguments)
        with pytest.raises(InvalidArgumentError):
            kv.lock("")

    with_node(scenario)


def test_without_a_cluster_there_is_no_lock() -> None:
    async def scenario(server: Server, kv: Client) -> None:
        server.node.error = NoLeaderError("no leader")
        async with Client([server.url], timeout_s=0.3) as other:
            with pytest.raises(UnavailableError):
                await other.lock("a").acquire()
        assert lease_commands(server, LeaseGrant) > 0 and len(server.node.store.leases) == 0
        server.node.error = None

    with_node(scenario)


def test_below_the_level_a_lock_is_refused() -> None:
    async def scenario(server: Server, kv: Client) -> None:
        for call in (kv.lock("a").acquire(), kv.lock_info("a"), kv.locks()):
            with pytest.raises(RefusedError) as caught:
                await call
            assert caught.value.code == "feature_unavailable"

    with_node(scenario, level=False)


@pytest.mark.usefixtures("often")
def test_the_synchronous_twin() -> None:
    async def scenario(server: Server, kv: Client) -> None:
        await asyncio.to_thread(use, server)

    def use(server: Server) -> None:
        with SyncClient([server.url], timeout_s=4) as kv:
            with kv.lock("a") as lock:
                assert lock.is_held and 0 < lock.remaining_s <= 30 and lock.name == b"a"
                assert kv.get(lock.key) is not None
                holder = kv.lock_info("a").holder
                assert holder is not None and holder.fencing_token == lock.fencing_token
                assert [each.name for each in kv.locks()] == [b"a"]
                with pytest.raises(LockHeldError), kv.lock("a", wait_s=0):
                    raise AssertionError("two holders")
                assert not lock.wait_lost(0.01)
            assert kv.locks() == ()
            with pytest.raises(LockLostError), kv.lock("a") as lock:
                kv.revoke_lease(lock.lease)
                assert lock.wait_lost(20) and lock.lost_reason and not lock.is_held
            taken = kv.lock("a").acquire()
            taken.release()
            assert not taken.is_held

    with_node(scenario)
