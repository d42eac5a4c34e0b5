"""The staleness that a node tells is a bound: everything that was committed so long ago is applied there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from node.local_cluster import TIMEOUT_MS, Put, running
from waiting import until

from kvorum.node import Node
from kvorum.raft import Role
from kvorum.raft.messages import AppendEntries, Message
from kvorum.transport import SnapshotChunk

FRESH_MS = 500


def is_fresh(node: Node) -> bool:
    staleness_ms = node.staleness_ms()
    return staleness_ms is not None and staleness_ms < FRESH_MS


def lose(node: Node, is_lost: Callable[[Message], bool]) -> None:
    """Lose some of the messages that this node sends."""
    send = node.peers.send

    def lossy(messages: Iterable[Message]) -> None:
        send([message for message in messages if not is_lost(message)])

    node.peers.send = lossy  # type: ignore[method-assign]


def test_every_node_of_an_idle_cluster_is_fresh_again_and_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            for node in cluster.nodes.values():
                await until("it is fresh", partial(is_fresh, node))
                as_of_s = node.parts.state.current_as_of_s
                assert as_of_s is not None
                await until(
                    "it is fresher",
                    lambda node=node, as_of_s=as_of_s: node.parts.state.current_as_of_s > as_of_s,  # type: ignore[misc]
                )

    asyncio.run(scenario())


def test_a_leader_that_was_paused_does_not_call_its_state_fresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            leader = await cluster.leader()
            await until("it is fresh", lambda: is_fresh(leader))
            # It wakes up: nothing that arrived meanwhile has been read yet.
            boottime = leader.clock.boottime
            monkeypatch.setattr(leader.clock, "boottime", lambda: boottime() + 3.0)

            assert leader.raft.role is Role.LEADER
            staleness_ms = leader.staleness_ms()
            assert staleness_ms is not None
            assert staleness_ms >= 3000

    asyncio.run(scenario())


def test_a_leader_that_is_cut_off_grows_stale_although_it_still_leads(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, election_timeout_ms=4000) as cluster:
            leader = await cluster.leader()
            await until("it is fresh", lambda: is_fresh(leader))
            cluster.isolate(leader.config.name)

            await until("it is stale", lambda: (leader.staleness_ms() or 0) > 2000)
            assert leader.raft.role is Role.LEADER

    asyncio.run(scenario())


def test_a_follower_that_lags_is_stale_although_it_hears_its_leader(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            leader = await cluster.leader()
            lagging = cluster.others(leader)[0]
            await until("it is fresh", lambda: is_fresh(lagging))
            lose(leader, lambda m: isinstance(m, AppendEntries) and m.recipient == lagging.raft.id)
            await leader.propose(Put(b"a", b"1"), TIMEOUT_MS)

            def is_stale_and_hears() -> bool:
                contact_ms = lagging.status().last_contact_ms
                return (lagging.staleness_ms() or 0) > 2 * FRESH_MS and contact_ms is not None and contact_ms < FRESH_MS

            # On a busy machine there are moments in which it hears nothing either.
            await until("it is stale although it hears its leader", is_stale_and_hears)
            assert lagging.raft.leader == leader.raft.id

    asyncio.run(scenario())


@asynccontextmanager
async def fetching_a_snapshot(folder: Path) -> AsyncIterator[tuple[Node, asyncio.Event]]:
    """A node whose fetch of a snapshot stands still until the event is set; it hears its leader meanwhile."""
    async with running(folder, snapshot_entries=20, log_retain_entries=5) as cluster:
        leader = await cluster.leader()
        name = cluster.others(leader)[0].config.name
        await cluster.stop(name)
        for number in range(60):
            await leader.propose(Put(b"k", b"%d" % number), TIMEOUT_MS)
        await until("the log was cut", lambda: leader.raft.log.first_index > 30)
        await cluster.start(name)
        fetching = cluster.nodes[name]
        asked, go_on = asyncio.Event(), asyncio.Event()
        snapshot_chunk = fetching.peers.snapshot_chunk

        async def held(node: str, last_index: int, offset_bytes: int, at_least: int = 0) -> SnapshotChunk:
            asked.set()
            await go_on.wait()
            return await snapshot_chunk(node, last_index, offset_bytes, at_least)

        fetching.peers.snapshot_chunk = held  # type: ignore[method-assign]
        await asyncio.wait_for(asked.wait(), 20)
        await until("it hears its leader", lambda: fetching.status().last_contact_ms is not None)
        yield fetching, go_on


def test_a_follower_that_fetches_a_snapshot_tells_no_staleness(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with fetching_a_snapshot(tmp_path) as (node, go_on):
            assert node.staleness_ms() is None

            go_on.set()
            await until("it is fresh", lambda: is_fresh(node))
            assert node.store.applied_index >= 60

    asyncio.run(scenario())


def test_a_node_that_fetches_a_snapshot_is_not_ready(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with fetching_a_snapshot(tmp_path) as (node, go_on):
            # Its leader tells it to commit no more than it is known to hold, and that is applied.
            assert node.store.applied_index >= node.raft.log.commit_index

            def fails() -> list[str]:
                return [check.name for check in node.readiness() if not check.ok]

            # On a busy machine the leader is not always heard in time; the fetch waits for this test.
            await until("nothing else is missing", lambda: fails() == ["caught-up"])
            assert not node.hello().is_serving
            assert not node.status().caught_up

            go_on.set()
            await until("it is ready", lambda: node.hello().is_serving)
            assert node.store.applied_index >= 60
            assert node.status().caught_up

    asyncio.run(scenario())


def test_a_node_that_was_caught_up_and_lags_is_not_ready(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            leader = await cluster.leader()
            lagging = cluster.others(leader)[0]
            await until("it is ready", lambda: lagging.hello().is_serving)
            lose(leader, lambda m: isinstance(m, AppendEntries) and m.recipient == lagging.raft.id)
            await leader.propose(Put(b"a", b"1"), TIMEOUT_MS)

            await until("it is not ready", lambda: not lagging.hello().is_serving)
            assert lagging.raft.leader == leader.raft.id
            assert leader.hello().is_serving

    asyncio.run(scenario())
