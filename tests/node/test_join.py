"""Being called into a cluster: durable before it counts, and nothing else begins meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from node.local_cluster import LocalCluster
from waiting import until

from kvorum.cluster.bootstrap import obstacle
from kvorum.commands.node import running_node
from kvorum.errors import IdentityRejectedError, MembershipRefusedError, StorageError
from kvorum.identity import Identity
from kvorum.node import Node
from kvorum.transport import Greeting

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
