"""From SIGTERM on: a node serves on for a while, and believes that it was removed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from time import monotonic

import pytest
from node.local_cluster import TIMEOUT_MS, LocalCluster, Put, running
from waiting import until

from kvorum.errors import NotLeaderError
from kvorum.node import Node, compose, shutdown
from kvorum.raft import Role

LONG_S = 60


def deadline_s() -> float:
    return monotonic() + 2 * LONG_S


def test_a_leader_that_stops_leads_and_answers_until_load_balancers_know(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, shutdown_delay_s=LONG_S, shutdown_grace_s=2 * LONG_S) as cluster:
            leader = await cluster.settled()
            stopping = asyncio.create_task(leader.serve_on(deadline_s()))
            await until("it is not ready", lambda: not all(check.ok for check in leader.readiness()))

            for number in range(30):
                await leader.propose(Put(b"k%d" % number, b"v"), TIMEOUT_MS)
                await leader.read_barrier(TIMEOUT_MS)

            assert leader.raft.role is Role.LEADER
            assert not stopping.done()
            stopping.cancel()

    asyncio.run(scenario())


@pytest.mark.parametrize(("delay_s", "grace_s"), [(0.3, 2 * LONG_S), (LONG_S, 0.3)])
def test_the_delay_ends_and_is_part_of_the_grace_period(tmp_path: Path, delay_s: float, grace_s: float) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            leader = await cluster.settled()
            leader.parts.shutdown._delay_s = delay_s

            await asyncio.wait_for(leader.serve_on(monotonic() + grace_s), LONG_S / 2)

            assert leader.raft.role is Role.LEADER
            await asyncio.wait_for(leader.drain(deadline_s()), LONG_S / 2)
            assert leader.raft.role is not Role.LEADER

    asyncio.run(scenario())


def test_a_leader_that_has_handed_over_redirects_those_who_were_on_their_way_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A follower may have sent a client here just before; it would find a closed port."""
    monkeypatch.setattr(shutdown, "REDIRECT_S", LONG_S)

    async def scenario() -> None:
        async with running(tmp_path, shutdown_delay_s=LONG_S, shutdown_grace_s=2 * LONG_S) as cluster:
            leader = await cluster.settled()
            went_on, wait = asyncio.Event(), leader.parts.shutdown._wait_for_quorum_without_us

            async def note(until_s: float) -> bool:
                if leader.raft.role is not Role.LEADER:
                    went_on.set()
                return await wait(until_s)

            monkeypatch.setattr(leader.parts.shutdown, "_wait_for_quorum_without_us", note)
            stopping = asyncio.create_task(leader.drain(deadline_s()))
            await until("it knows its successor", lambda: leader.raft.leader not in (None, leader.raft.id))

            with pytest.raises(NotLeaderError):
                await leader.propose(Put(b"a", b"1"), TIMEOUT_MS)
            assert leader.leader_client_url()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await went_on.wait()
            assert not stopping.done()
            stopping.cancel()

    asyncio.run(scenario())


async def remove_unheard(cluster: LocalCluster, leader: Node, removed: Node) -> None:
    """Remove a follower that does not hear of it: its leader stops calling it once the entry is committed."""
    cluster.isolate(removed.config.name)
    await leader.remove_member(removed.config.name, TIMEOUT_MS)
    assert removed.raft.configuration.get(removed.raft.id) is not None, "the test shows nothing"


def test_a_node_that_was_removed_does_not_wait_for_a_quorum_that_it_is_no_part_of(tmp_path: Path) -> None:
    """Three to one: by the configuration that it knows, the one that stays has no quorum without it."""

    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            leader = await cluster.settled()
            first, second = cluster.others(leader)
            await remove_unheard(cluster, leader, first)
            await leader.remove_member(second.config.name, TIMEOUT_MS)
            await cluster.stop(second.config.name)

            await asyncio.wait_for(first.drain(deadline_s()), LONG_S / 2)

    asyncio.run(scenario())


def test_a_node_that_was_removed_sends_its_clients_to_the_leader_while_it_stops(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, shutdown_delay_s=LONG_S, shutdown_grace_s=2 * LONG_S) as cluster:
            leader = await cluster.settled()
            removed = cluster.others(leader)[0]
            await remove_unheard(cluster, leader, removed)
            assert removed.parts.report.removed_by is None

            stopping = asyncio.create_task(removed.serve_on(deadline_s()))
            await until("it knows", lambda: removed.parts.report.removed_by)

            assert removed.leader_name() == leader.config.name
            assert removed.leader_client_url() == leader.config.advertise_client_url
            with pytest.raises(NotLeaderError):
                await removed.propose(Put(b"a", b"1"), TIMEOUT_MS)
            with pytest.raises(NotLeaderError) as refused:
                await removed.read_barrier(TIMEOUT_MS)
            assert refused.value.leader_client_url == leader.config.advertise_client_url
            assert not stopping.done(), "its clients have not learned yet that it stops"
            stopping.cancel()

    asyncio.run(scenario())


def test_a_node_that_is_only_cut_off_is_not_removed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            leader = await cluster.settled()
            lost = cluster.others(leader)[0]
            cluster.isolate(lost.config.name)
            await until("it knows no leader", lambda: lost.raft.leader is None)

            assert not await lost.is_removed()

    asyncio.run(scenario())


def test_a_clean_stop_saves_what_only_the_process_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the last write before nobody's disk said that it is committed, and who has it: the next save would have."""
    monkeypatch.setattr(compose, "QUIET_SAVE_MS", 1000 * LONG_S)

    async def scenario() -> None:
        async with running(tmp_path, 1) as cluster:
            node = await cluster.settled()
            await node.propose(Put(b"k", b"v"), TIMEOUT_MS)
            await asyncio.wait_for(node.drain(deadline_s()), LONG_S)
            assert node.raft.remember() == node.raft.saved_number

    asyncio.run(scenario())
