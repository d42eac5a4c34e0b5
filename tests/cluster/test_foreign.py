"""Peers of the list that are in another cluster: every node says so, and goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import aiohttp
import pytest
from node.local_cluster import LocalCluster, running
from waiting import until

from kvorum.cluster import observer as observer_module
from kvorum.cluster.observer import Observer
from kvorum.commands.recover import force_new_cluster
from kvorum.identity import Identity
from kvorum.node import Node
from kvorum.node import foreign as foreign_module
from kvorum.raft import Role
from kvorum.transport.handshake import dialling_headers


@asynccontextmanager
async def each_recovered(folder: Path) -> AsyncIterator[LocalCluster]:
    """Three nodes that were one cluster; `kvorum recover` was run on each of them."""
    async with running(folder) as cluster:
        await cluster.settled()
        await cluster.stop(*cluster.names)
        for name in cluster.names:
            await asyncio.to_thread(force_new_cluster, str(folder / name))
        await cluster.start(*cluster.names)
        for node in cluster.nodes.values():
            await until("it leads itself", partial(leads, node))
        yield cluster


def leads(node: Node) -> bool:
    return node.raft.role is Role.LEADER


def is_ready(node: Node) -> bool:
    return all(check.ok for check in node.readiness())


def sees(node: Node, names: set[str]) -> bool:
    return set(seen_by(node)) == names


def seen_by(node: Node) -> dict[str, tuple[str, str]]:
    return {peer.name: (peer.id, peer.cluster_id) for peer in node.status().foreign_peers}


def test_every_node_sees_which_of_its_peers_are_in_another_cluster(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", "kvorum.cluster")

    async def scenario() -> None:
        async with each_recovered(tmp_path) as cluster:
            for node in cluster.nodes.values():
                caplog.clear()
                observer = Observer(node)
                await observer.look()
                others = {
                    other.config.name: (other.raft.id, other.identity.cluster_id) for other in cluster.others(node)
                }
                assert seen_by(node) == others
                await observer.look()
                lines = [text for text in caplog.messages if "belong to another cluster" in text]
                assert len(lines) == 1, "one line a minute"
                assert node.identity.cluster_id in lines[0]
                assert "docs/operations/two-clusters.md" in lines[0]
                await until("a cluster that works goes on", partial(is_ready, node))

    asyncio.run(scenario())


def test_a_follower_looks_as_well_and_the_majority_stays_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observer_module, "LOOK_S", 0.01)
    monkeypatch.setattr(observer_module, "LOOK_RARELY_S", 0.02)

    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            leader = await cluster.settled()
            lost, follower = (node.config.name for node in cluster.others(leader))
            await cluster.stop(lost)
            await asyncio.to_thread(force_new_cluster, str(tmp_path / lost))
            await cluster.start(lost)
            for node in (leader, cluster.nodes[follower]):
                looking = asyncio.create_task(Observer(node).run())
                await until("it sees it", partial(sees, node, {lost}))
                looking.cancel()
                await asyncio.gather(looking, return_exceptions=True)
                await until("it is ready", partial(is_ready, node))
            await cluster.put(b"k", b"v")

    asyncio.run(scenario())


def test_what_a_caller_says_of_its_cluster_raises_no_alarm(tmp_path: Path) -> None:
    """One call every 15 s under a listed name made the status say that data folders are to be emptied."""

    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            cluster = await stack.enter_async_context(running(tmp_path, size=2))
            session = await stack.enter_async_context(aiohttp.ClientSession())
            leader = await cluster.leader()
            [listed] = [other.config.name for other in cluster.others(leader)]
            for name in ("n9", listed):
                headers = dialling_headers(
                    Identity(name, "9" * 16, "d" * 32), leader.identity.node_id, "http://127.0.0.1:1", ""
                )
                with pytest.raises(aiohttp.WSServerHandshakeError):
                    await session.ws_connect(f"{leader.config.advertise_peer_url}/raft/v1/stream", headers=headers)
            assert seen_by(leader) == {}
            assert leader.counters.identity_rejected["cluster"] == 2

    asyncio.run(scenario())


def test_a_sighting_ends_with_the_next_answer_or_with_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with running(tmp_path, size=1) as cluster:
            node = await cluster.leader()
            foreign, own = node.parts.foreign, node.identity.cluster_id
            foreign.answered("n2", "http://n2:1", "n2@2", "d" * 32)
            foreign.answered("n3", "http://n3:1", "n3@3", "e" * 32)
            assert seen_by(node) == {"n2": ("n2@2", "d" * 32), "n3": ("n3@3", "e" * 32)}
            foreign.answered("n2", "http://elsewhere:1", "n2@4", own)
            foreign.answered("n3", "http://n3:1", "n3@5", "")
            assert seen_by(node) == {}
            foreign.answered("n2", "http://n2:1", "n2@2", "d" * 32)
            monkeypatch.setattr(foreign_module, "SEEN_VALID_S", -1.0)
            for number in range(100):
                foreign.answered("n2", f"http://n2:{number}", "n2@2", "d" * 32)
                foreign.answered(f"m{number}", "http://m:1", "m@2", "d" * 32)
            assert len(foreign._seen) <= 2, "what has aged is forgotten"
            assert seen_by(node) == {}

    asyncio.run(scenario())
