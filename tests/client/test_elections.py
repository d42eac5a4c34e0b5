"""Elections of the client: one leader, the next one when it goes, and whoever wants to know sees it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import pytest
from client.test_leases import with_node
from client.test_watch import Clock
from fronts.fake_node import Server
from waiting import until

from kvorum.errors import NotServingError
from kvorum.fronts.http import observe
from kvorum_client import (
    Client,
    InvalidArgumentError,
    LockHeldError,
    LockHolder,
    LockLostError,
    RefusedError,
    SyncClient,
    UnavailableError,
    elections,
    leases,
)
from kvorum_client.watch import AttemptEndedError

Leaders = AsyncGenerator[LockHolder | None, None]


@pytest.fixture(autouse=True)
def short_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node notices with the next heartbeat that an observer is gone, and the server of the test waits for that."""
    monkeypatch.setattr(observe, "HEARTBEAT_S", 0.1)


async def value(leaders: Leaders) -> bytes | None:
    """Return what the next leader says of itself."""
    async with asyncio.timeout(10):
        holder = await anext(leaders)
    return None if holder is None else holder.value


def test_a_leader_proclaims_and_hands_over_and_observers_see_all_of_it() -> None:
    async def scenario(server: Server, kv: Client) -> None:
        async with contextlib.aclosing(kv.election("e").observe()) as leaders:
            assert await value(leaders) is None
            first = await kv.election("e", "one").campaign()
            assert await value(leaders) == b"one"
            second = asyncio.create_task(kv.election("e").campaign(b"two\xff"))

            async def waits() -> bool:
                info = await kv.election_info("e")
                return info is not None and info.waiter_count == 1

            await until("the second one waits", waits)
            await first.proclaim("one more")
            assert await value(leaders) == b"one more"
            leader = await kv.election("e").leader()
            assert leader is not None and leader.value == b"one more"
            assert (leader.lease, leader.fencing_token) == (first.lease.id, first.fencing_token)
            assert [(each.name, each.waiter_count) for each in await kv.elections()] == [(b"e", 1)]
            assert first.is_leader and not second.done()
            await first.resign()
            assert await value(leaders) == b"two\xff"
            assert (await second).is_leader and (await second).fencing_token > first.fencing_token
            with pytest.raises(LockLostError):
                await first.proclaim("too late")
            await (await second).resign()
            assert await value(leaders) is None
        assert await kv.election("e").leader() is None
        assert await kv.election_info("e") is None
        assert await kv.elections() == ()

    with_node(scenario)


def test_a_block_leads_and_resigns() -> None:
    async def scenario(server: Server, kv: Client) -> None:
        async with kv.election("e", "me") as election:
            assert election.is_leader
            with pytest.raises(LockHeldError, match="is elected in"):
                await kv.election("e", "you").campaign(wait_s=0)
        assert await kv.elections() == ()
        with pytest.raises(InvalidArgumentError, match="campaign first"):
            await kv.election("e").proclaim("nobody")

    with_node(scenario)


def test_a_leader_learns_that_it_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEWALS", 1000)
    monkeypatch.setattr(leases, "RENEWAL_S_MIN", 20.0)

    async def scenario(server: Server, kv: Client) -> None:
        with pytest.raises(LockLostError):
            async with kv.election("e", "me", cancel_when_lost=True) as election:
                await election.proclaim("still me")  # Its place is as old as before.
                server.node.revoke(election.lease.id)
                await asyncio.Event().wait()
        assert not election.is_leader

    with_node(scenario)


def test_a_leader_that_cannot_proclaim_is_none_any_more() -> None:
    async def scenario(server: Server, kv: Client) -> None:
        election = await kv.election("e", "me").campaign()
        server.node.remove(election.key)
        with pytest.raises(LockLostError):
            await election.proclaim("not me")
        assert not election.is_leader and election.lost.is_set()
        await election.resign()

    with_node(scenario)


def test_an_observer_sees_each_leader_once_and_none_of_before(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = [(5, 3), (4, 2), (6, 3), (7, 6)]

    async def stream(target: str, within_s: float) -> AsyncGenerator[bytes, None]:
        for revision, token in shown:
            leader = f'{{"lease": "{token}", "fencing_token": {token}, "remaining_ms": 1, "value": "same"}}'
            yield f'{{"revision": {revision}, "leader": {leader}}}\n'.encode()

    async def scenario(server: Server, kv: Client) -> None:
        monkeypatch.setattr(kv, "_stream", stream)
        async with contextlib.aclosing(kv.election("e").observe()) as leaders, asyncio.timeout(10):
            seen = [await anext(leaders) for _ in range(2)]
        assert [holder.fencing_token for holder in seen if holder is not None] == [3, 6]

    with_node(scenario)


async def look_again(server: Server, looked: int) -> None:
    """Wait until another connection has asked who leads."""
    await until("it looked", lambda: server.node.barriers > looked and server.node.watches.hub.size > 0)


def test_an_observation_goes_on_at_another_connection_and_repeats_nothing() -> None:
    async def scenario(server: Server, kv: Client) -> None:
        first = await kv.election("e", "one").campaign()
        async with contextlib.aclosing(kv.election("e").observe()) as leaders:
            assert await value(leaders) == b"one"
            following = asyncio.create_task(value(leaders))
            for _ in range(2):
                looked = server.node.barriers
                server.node.watches.end_all(NotServingError("stopping"))
                await look_again(server, looked)
            await first.proclaim("two")
            assert await following == b"two"
        await first.resign()

    with_node(scenario)


def test_below_the_level_there_are_no_elections() -> None:
    async def scenario(server: Server, kv: Client) -> None:
        for call in (kv.election("e").leader(), kv.elections(), anext(kv.election("e").observe())):
            with pytest.raises(RefusedError) as caught:
                await call
            assert caught.value.code == "feature_unavailable"

    with_node(scenario, level=False)


def test_the_synchronous_twin() -> None:
    async def scenario(server: Server, kv: Client) -> None:
        await asyncio.to_thread(use, server)

    def use(server: Server) -> None:
        with SyncClient([server.url], timeout_s=4) as kv:
            leaders = iter(kv.election("e").observe())
            assert next(leaders) is None
            with kv.election("e", "me") as election:
                leader = next(leaders)
                assert leader is not None and leader.value == b"me"
                election.proclaim("still me")
                leader = election.leader()
                assert election.is_leader and leader is not None and leader.value == b"still me"
                info = kv.election_info("e")
                assert info is not None and info.holder is not None and info.holder.value == b"still me"
                assert [each.name for each in kv.elections()] == [b"e"]
            assert kv.election("e").leader() is None
            again = kv.election("e").campaign("again", wait_s=1)
            again.resign()
            assert not again.is_leader
            leaders.close()  # type: ignore[attr-defined]

    with_node(scenario)


def test_an_observation_has_its_time_to_go_on_from_when_it_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, within = Clock(), []
    monkeypatch.setattr(elections, "time", clock)

    async def stream(target: str, within_s: float) -> AsyncGenerator[bytes, None]:
        within.append(within_s)
        if len(within) in (1, 3):
            yield b'{"revision": 1, "leader": {"lease": "1", "fencing_token": 1, "remaining_ms": 1}}\n'
            clock.now_s += 3600
            yield b"\n"
        else:
            clock.now_s += 6
        raise AttemptEndedError("gone")

    async def scenario(server: Server, kv: Client) -> None:
        monkeypatch.setattr(kv, "_stream", stream)
        async with contextlib.aclosing(kv.election("e").observe(timeout_s=10)) as leaders, asyncio.timeout(10):
            assert await anext(leaders) is not None
            with pytest.raises(UnavailableError, match="gone"):
                await anext(leaders)

    with_node(scenario)
    assert within == [10, 10, 4, 10, 4]
