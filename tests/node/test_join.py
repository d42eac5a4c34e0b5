"""Being called into a cluster: durable before it counts, and nothing else begins meanwhile."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from bench.processes import free_ports
from node.local_cluster import TIMEOUT_MS, LocalCluster, running
from waiting import until

from kvorum.cluster.bootstrap import obstacle
from kvorum.commands.node import running_node
from kvorum.errors import (
    IdentityRejectedError,
    MembershipRefusedError,
    NotLeaderError,
    NotServingError,
    PeerError,
    StorageError,
)
from kvorum.identity import Identity
from kvorum.node import Node
from kvorum.raft import AddLearner
from kvorum.raft.messages import Member
from kvorum.service import Service
from kvorum.service.access import ANONYMOUS
from kvorum.service.requests import Get, GetQuota, ListMembers, Snapshot
from kvorum.transport import Greeting
from kvorum.transport.interface import Hello

CALL = Greeting("c" * 32, "n9@" + "9" * 16, "http://127.0.0.1:1")


@asynccontextmanager
async def empty_node(folder: Path) -> AsyncIterator[Node]:
    """A node that runs and has no cluster."""
    async with running_node(LocalCluster(folder, 1).config("n1")) as node:
        yield node


def run(folder: Path, scenario: Callable[[Node], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(30), empty_node(folder) as node:
            await scenario(node)

    asyncio.run(main())


def test_a_node_that_is_being_called_into_a_cluster_begins_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(node: Node) -> None:
        durable, writing = threading.Event(), threading.Event()
        write_identity = node.ports.storage.write_identity

        def slow(identity: Identity, *, replace: bool = False) -> None:
            writing.set()
            durable.wait(20)
            write_identity(identity, replace=replace)

        monkeypatch.setattr(node.ports.storage, "write_identity", slow)
        assert obstacle(node.config, node.hello(), {"n1": node.hello()}) is None, "the test shows nothing"
        joining = asyncio.create_task(node.parts.peer_requests.join(CALL))
        await until("the identity is being written", writing.is_set)
        try:
            assert obstacle(node.config, node.hello(), {"n1": node.hello()}) is not None
            with pytest.raises(MembershipRefusedError, match="in cluster that is calling it"):
                node.bootstrap("d" * 32, ())
        finally:
            durable.set()
        await joining
        assert node.identity.cluster_id == CALL.cluster_id

    run(tmp_path, scenario)


def test_a_disk_that_refuses_the_clusters_id_ends_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(node: Node) -> None:
        def full(identity: Identity, *, replace: bool = False) -> None:
            raise StorageError("the disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(node.ports.storage, "write_identity", full)
            with pytest.raises(IdentityRejectedError, match="the disk is full"):
                await node.parts.peer_requests.join(CALL)
        assert node.identity.cluster_id == ""
        with pytest.raises(StorageError, match="the disk is full"):
            await node.run()

    run(tmp_path, scenario)


def test_a_cluster_whose_id_could_not_be_made_durable_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(node: Node) -> None:
        def refused(identity: Identity, *, replace: bool = False) -> None:
            raise StorageError("no room")

        with monkeypatch.context() as patch:
            patch.setattr(node.ports.storage, "write_identity", refused)
            with pytest.raises(StorageError, match="no room"):
                node.parts.identity.begin("d" * 32)
        assert node.identity.cluster_id == ""
        node.parts.identity.begin("e" * 32)
        assert node.identity.cluster_id == "e" * 32

    run(tmp_path, scenario)


def test_a_node_that_has_applied_nothing_answers_nothing_from_its_state(tmp_path: Path) -> None:
    """A disk was lost, and the key is on the other two. In no cluster, or called into it: there is no state to read."""

    async def scenario(node: Node) -> None:
        service = Service(node, node.clock.monotonic)
        from_state: tuple[Get | GetQuota | Snapshot, ...] = (
            Get(b"k", "stale"),
            Get(b"k", "stale", max_staleness_ms=60_000),
            GetQuota(),
            Snapshot(stale=True),
        )
        for request in from_state:
            with pytest.raises(NotServingError, match="holds no state yet"):
                await service.execute(ANONYMOUS, request)
        await node.parts.peer_requests.join(CALL)
        for request in from_state:
            with pytest.raises(NotServingError, match="holds no state yet"):
                await service.execute(ANONYMOUS, request)
        with pytest.raises(NotServingError, match="knows no members yet"):
            await service.execute(ANONYMOUS, ListMembers())
        assert service.cluster_id == CALL.cluster_id, "it is a member, and has applied nothing"

    run(tmp_path, scenario)


def test_a_node_that_has_applied_the_first_entry_serves_what_it_has(tmp_path: Path) -> None:
    async def scenario(node: Node) -> None:
        service = Service(node, node.clock.monotonic)
        node.bootstrap("d" * 32, (Member(node.identity.node_id, True),))
        await until("the beginning is applied", lambda: node.store.applied_index)
        assert (await service.execute(ANONYMOUS, Get(b"k", "stale"))).record is None
        assert len((await service.execute(ANONYMOUS, ListMembers())).members) == 1

    run(tmp_path, scenario)


def test_a_node_that_does_not_lead_asks_nobody_to_be_a_member(tmp_path: Path) -> None:
    """It would say of a peer port of the caller's choice whether it is open, and then only that it does not lead."""

    async def scenario(node: Node) -> None:
        asked: list[str] = []

        async def hello(url: str, timeout_s: float = 2.0) -> Hello:
            asked.append(url)
            raise PeerError("connection refused")

        node.peers.hello = hello  # type: ignore[method-assign]
        with pytest.raises(NotLeaderError):
            await node.add_member("n9", "http://127.0.0.1:1", "", 5000)
        with pytest.raises(NotLeaderError):
            await node.parts.membership.change(AddLearner(Member("n9@99", False, "http://127.0.0.1:1")), 5000)
        assert asked == []

    run(tmp_path, scenario)


def test_a_learner_that_moved_before_it_was_called_says_so_and_can_be_added_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The leader dials where the learner was, and the learner does not know its cluster: it said nothing useful."""

    async def scenario() -> None:
        async with running(tmp_path, 1) as cluster:
            leader = cluster.nodes["n1"]
            old_url = (await cluster.start_new("n2")).config.advertise_peer_url
            ask = leader.peers.hello

            async def last_word(url: str, timeout_s: float = 2.0) -> Hello:
                answer = await ask(url, timeout_s)
                await cluster.stop("n2")
                return answer

            leader.peers.hello = last_word  # type: ignore[method-assign]
            await leader.add_member("n2", old_url, "", TIMEOUT_MS)
            leader.peers.hello = ask  # type: ignore[method-assign]

            cluster.ports["n2"] = free_ports(1)[0]
            await cluster.start("n2")
            learner = cluster.nodes["n2"]
            url = learner.config.advertise_peer_url
            await until("it says so", lambda: f"at {old_url}, and this node serves peers at {url}" in caplog.text)
            assert learner.status().address_mismatches == (learner.listed_elsewhere,)
            assert "add it at its new address" in learner.listed_elsewhere

            await leader.remove_member("n2", TIMEOUT_MS)
            await leader.add_member("n2", url, "", TIMEOUT_MS)
            await until("it is in the cluster", lambda: learner.identity.cluster_id)
            await cluster.settled()
            assert learner.raft.configuration.learners() == (learner.raft.id,)
            assert learner.status().address_mismatches == ()

    with caplog.at_level(logging.INFO, "kvorum.cluster"):
        asyncio.run(scenario())
