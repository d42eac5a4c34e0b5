"""Leases of the client: kept alive in the background, and never taken for alive when they are not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from client.test_client import run
from fronts.fake_node import FakeNode, Server, serving
from waiting import until

from kvorum.errors import KvorumError, NoLeaderError
from kvorum.errors import OutcomeUnknownError as ServerOutcomeUnknown
from kvorum.kv.commands import ClientCommand, LeaseCommand, LeaseGrant, LeaseRenew, Result
from kvorum_client import (
    Client,
    InvalidArgumentError,
    LeaseExistsError,
    LeaseId,
    LeaseLostError,
    LeaseNotFoundError,
    Put,
    RefusedError,
    SyncClient,
    leases,
)


def with_node(scenario: Callable[[Server, Client], Awaitable[None]], level: bool = True) -> None:
    """Run the scenario with a node, and a client of it that has one turn only."""

    async def main() -> None:
        node = FakeNode()
        record_leases(node)
        if level:
            node.raise_feature_level()
        async with serving(node) as server, Client([server.url], timeout_s=4, concurrent_calls_max=1) as kv:
            node.leader = ("n1", server.url)
            await scenario(server, kv)

    run(main)


def record_leases(node: FakeNode) -> None:
    """Write down the commands about leases, with the calls of the node."""
    propose = node.propose

    async def recorded(
        command: ClientCommand,
        timeout_ms: int,
        address: str = "",
        *,
        hand_over: bool = False,
        batch: object | None = None,
    ) -> Result:
        node.calls.append(("lease", command))
        return await propose(command, timeout_ms, address, hand_over=hand_over)

    node.propose = recorded  # type: ignore[method-assign]


def lease_commands(server: Server, kind: type[LeaseCommand]) -> int:
    """How many commands of a kind there were."""
    return sum(name == "lease" and isinstance(command, kind) for name, *rest in server.node.calls for command in rest)


def renewals(server: Server) -> int:
    return lease_commands(server, LeaseRenew)


async def renewed(server: Server, count: int) -> None:
    """Wait until leases were renewed so often."""
    await until(f"{count} renewals", lambda: renewals(server) >= count)


class Clock:
    """What leases take for the time; timers go on by the real one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        monkeypatch.setattr(leases, "now", lambda: self.now_s)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases are renewed as soon as a thousandth of their time is over."""
    monkeypatch.setattr(leases, "RENEWALS", 1000)
    monkeypatch.setattr(leases, "RENEWAL_S_MIN", 20.0)


def lose_a_grant(server: Server) -> None:
    """Grant the next lease, and answer as if nobody knew."""
    propose, lost = server.node.propose, list[ClientCommand]()

    async def lossy(
        command: ClientCommand,
        timeout_ms: int,
        address: str = "",
        *,
        hand_over: bool = False,
        batch: object | None = None,
    ) -> Result:
        result = await propose(command, timeout_ms, address, hand_over=hand_over)
        if isinstance(command, LeaseGrant) and not lost:
            lost.append(command)
            raise ServerOutcomeUnknown("the leader lost its quorum")
        return result

    server.node.propose = lossy  # type: ignore[method-assign]


@pytest.mark.usefixtures("often")
def test_a_lease_is_kept_alive_until_its_block_ends_and_takes_its_keys_with_it() -> None:
    async def scenario(server: Server, kv: Client) -> None:
        async with kv.lease(10) as lease:
            await kv.put("k", "v", lease=lease)
            for _ in range(4):
                before = renewals(server)
                server.node.pass_time(6000)
                await renewed(server, before + 2)
            assert lease.is_alive and 0 < lease.remaining_s <= 10
            record = await kv.get("k")
            assert record is not None and record.lease == lease.id
        assert await kv.get("k") is None
        assert not lease.is_alive and lease.remaining_s == 0 and not lease.lost.is_set()

    with_node(scenario)


@pytest.mark.usefixtures("often")
def test_a_renewal_counts_from_when_it_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)

    async def scenario(server: Server, kv: Client) -> None:
        lease = await kv.lease(30)
        assert lease.remaining_s == 30
        server.node.gate, asked = asyncio.Event(), len(server.node.timeouts_ms)
        clock.now_s += 10
        await until("a renewal is on its way", lambda: len(server.node.timeouts_ms) > asked)
        clock.now_s += 15
        assert lease.remaining_s == 5
        gate, server.node.gate = server.node.gate, asyncio.Event()  # for the next renewal
        gate.set()
        await until("renewed", lambda: lease.remaining_s > 5)
        assert lease.remaining_s == 15
        server.node.gate.set()
        server.node.gate = None
        await lease.revoke()

    with_node(scenario)


@pytest.mark.usefixtures("often")
def test_a_lease_whose_time_is_over_by_the_local_clock_is_lost_whatever_is_answered_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)

    async def scenario(server: Server, kv: Client) -> None:
        told: list[str] = []
        lease = await kv.lease(30, on_lost=told.append)
        server.node.gate, asked = asyncio.Event(), len(server.node.timeouts_ms)
        clock.now_s += 1
        await until("a renewal is on its way", lambda: len(server.node.timeouts_ms) > asked)
        clock.now_s += 28.99
        assert lease.is_alive
        clock.now_s += 0.01
        assert not lease.is_alive  # before the event loop could notice anything
        server.node.gate.set()
        await lease.lost.wait()
        assert "was not renewed in time (30 s)" in lease.lost_reason
        assert told == [lease.lost_reason]
        clock.now_s -= 20
        assert not lease.is_alive
        await lease.revoke()
        assert await kv.lease_info(lease.id) is None

    with_node(scenario)


@pytest.mark.parametrize("error", [NoLeaderError("no leader"), ServerOutcomeUnknown("lost")])
def test_without_a_cluster_a_lease_is_lost_by_the_end_of_its_time(error: KvorumError) -> None:
    async def scenario(server: Server, kv: Client) -> None:
        lease = await kv.lease(1)
        assert lease.ttl_s == 2
        end = leases.now() + lease.remaining_s
        server.node.error = error
        with pytest.raises(LeaseLostError, match="was not renewed in time"):
            async with lease:
                while not lease.lost.is_set():
                    before = leases.now()
                    assert before < end or not lease.is_alive
                    await asyncio.sleep(0.005)
                assert not lease.is_alive
                server.node.error = None

    with_node(scenario)


@pytest.mark.usefixtures("often")
def test_a_lease_that_somebody_revoked_is_lost_and_the_block_ends_with_an_error() -> None:
    async def scenario(server: Server, kv: Client) -> None:
        with pytest.raises(LeaseLostError, match="does not exist, or its time is over"):
            async with kv.lease(30) as lease:
                server.node.revoke(lease.id)
                await lease.lost.wait()
        with pytest.raises(ZeroDivisionError):
            async with kv.lease(30) as lease:
                server.node.revoke(lease.id)
                await lease.lost.wait()
                raise ZeroDivisionError
        with pytest.raises(InvalidArgumentError, match="has ended"):
            await lease

    with_node(scenario)


@pytest.mark.usefixtures("often")
def test_a_callback_that_fails_hides_no_loss() -> None:
    async def scenario(server: Server, kv: Client) -> None:
        lease = await kv.lease(30, on_lost=lambda _: 1 / 0)
        server.node.revoke(lease.id)
        await lease.lost.wait()
        await lease.revoke()

    with_node(scenario)


@pytest.mark.usefixtures("often")
def test_renewals_need_no_turn() -> None:
    async def scenario(server: Server, kv: Client) -> None:
        async with kv.lease(30), kv._turns.turn(float("inf")):
            await renewed(server, renewals(server) + 2)

    with_node(scenario)


def test_closing_the_client_loses_its_leases() -> None:
    async def scenario(server: Server, kv: Client) -> None:
        async with Client([server.url]) as other:
            lease = await other.lease(30)
        assert lease.lost.is_set() and not lease.is_alive and "the client is closed" in lease.lost_reason
        assert await kv.lease_info(lease.id) is not None
        await lease.end()

    with_node(scenario)


def test_a_grant_whose_answer_was_lost_is_done_once() -> None:
    async def scenario(server: Server, kv: Client) -> None:
        lose_a_grant(server)
        granted = await kv.grant_lease(30, id=7)
        assert (granted.id, granted.ttl_s) == (7, 30)
        assert lease_commands(server, LeaseGrant) == 2
        assert [each.id for each in await kv.leases()] == [7]

    with_node(scenario)


def test_an_id_that_is_taken_is_an_error_with_its_time() -> None:
    async def scenario(server: Server, kv: Client) -> None:
        await kv.grant_lease(30, id=7)
        with pytest.raises(LeaseExistsError) as caught:
            await kv.grant_lease(30, id=7)
        assert caught.value.ttl_s == 30
        lose_a_grant(server)
        with pytest.raises(LeaseExistsError):
            await kv.grant_lease(31, id=7)

    with_node(scenario)


def test_plain_calls() -> None:
    async def scenario(server: Server, kv: Client) -> None:
        granted = await kv.grant_lease(30, lock_delay_s=5)
        await kv.put("b", "1", lease=granted.id)
        await kv.put(b"a\xff", "1", lease=granted.id)
        server.node.pass_time(10_000)
        info = await kv.lease_info(granted.id, keys=True)
        assert info is not None
        assert (info.ttl_s, info.key_count, info.lock_delay_s, info.keys) == (30, 2, 5, (b"a\xff", b"b"))
        assert 19_000 < info.remaining_ms <= 20_000
        assert await kv.keep_lease_alive(granted.id) == 30
        [listed] = await kv.leases()
        assert listed.keys is None and listed.remaining_ms > 29_000
        assert await kv.revoke_lease(granted.id) == 2
        for call in (kv.revoke_lease, kv.keep_lease_alive):
            with pytest.raises(LeaseNotFoundError):
                await call(granted.id)
        with pytest.raises(LeaseNotFoundError):
            await kv.put("b", "1", lease=granted.id)
        assert await kv.lease_info(granted.id) is None
        assert await kv.leases() == ()

    with_node(scenario)


def test_all_leases_are_listed_in_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvorum_client.coordination.LEASES_A_PAGE", 2)

    async def scenario(server: Server, kv: Client) -> None:
        for id in (5, -3, 16, 2**63 - 1, 4):
            await kv.grant_lease(30, id=id)
        assert [each.id for each in await kv.leases()] == [-3, 4, 5, 16, 2**63 - 1]

    with_node(scenario)


def test_every_way_to_read_a_key_tells_its_lease() -> None:
    async def scenario(server: Server, kv: Client) -> None:
        await kv.grant_lease(30, id=-31)
        async with kv.watch("k") as events:
            await kv.put("k", "1", lease=-31)
            await kv.put("k", "2")
            result = await kv.txn().if_(LeaseId("k") == 0).then(Put("k", "3", lease=-31, prev_value=True)).commit()
            assert result.succeeded
            assert [(await anext(events)).lease for _ in range(3)] == [-31, 0, -31]
        kept = await kv.txn().if_(LeaseId("k") == -31).then(Put("k", "4", ignore_lease=True, prev_value=True)).commit()
        assert kept.succeeded and kept.results is not None
        assert kept.results[0].previous.lease == -31  # type: ignore[union-attr]
        record = await kv.get("k")
        assert record is not None and record.lease == -31
        assert [each.lease async for each in kv.range(prefix="k")] == [-31]
        assert [each.lease for each in (await kv.history("k")).versions] == [-31, -31, 0, -31]
        await kv.put("k", "5")
        record = await kv.get("k")
        assert record is not None and record.lease == 0

    with_node(scenario)


def test_below_the_level_a_lease_is_refused() -> None:
    async def scenario(server: Server, kv: Client) -> None:
        with pytest.raises(RefusedError) as caught:
            await kv.lease(30)
        assert caught.value.code == "feature_unavailable"

    with_node(scenario, level=False)


@pytest.mark.parametrize(
    "arguments",
    [{"ttl_s": 0}, {"ttl_s": "30"}, {"ttl_s": 9_000_000_001}, {"lock_delay_s": 61}, {"id": 0}, {"id": 2**63}],
)
def test_impossible_arguments_are_refused_before_anything_is_sent(arguments: dict[str, Any]) -> None:
    async def scenario(server: Server, kv: Client) -> None:
        with pytest.raises(InvalidArgumentError):
            kv.lease(**{"ttl_s": 30, **arguments})
        with pytest.raises(InvalidArgumentError):
            await kv.grant_lease(**{"ttl_s": 30, **arguments})
        assert server.node.calls == []

    with_node(scenario)


@pytest.mark.usefixtures("often")
def test_the_synchronous_twin() -> None:
    async def scenario(server: Server, kv: Client) -> None:
        await asyncio.to_thread(use, server)

    def use(server: Server) -> None:
        with SyncClient([server.url], timeout_s=4) as kv:
            with kv.lease(30) as lease:
                kv.put("k", "v", lease=lease)
                assert lease.is_alive and 0 < lease.remaining_s <= lease.ttl_s == 30
                info = kv.lease_info(lease, keys=True)
                assert info is not None and info.keys == (b"k",)
                assert kv.keep_lease_alive(lease) == 30
                assert [each.id for each in kv.leases()] == [lease.id]
                assert not lease.wait_lost(0.01)
            assert kv.get("k") is None
            with pytest.raises(LeaseLostError), kv.lease(30) as lease:
                assert kv.revoke_lease(lease) == 0
                assert lease.wait_lost(20) and lease.lost_reason
            begun = kv.lease(30).begin()
            begun.revoke()
            assert not begun.is_alive and kv.lease_info(begun) is None
            assert kv.grant_lease(30, id=9).id == 9

    with_node(scenario)
