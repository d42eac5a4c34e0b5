"""Real nodes in one process and one event loop: real disks, real sockets, and a hand on every message."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from bench.processes import free_ports
from waiting import until

from kvorum.cluster.bootstrap import bootstrap
from kvorum.commands.node import running_node
from kvorum.config import Config, parse_peers, resolve
from kvorum.identity import name_of
from kvorum.kv.commands import Command, Delete, Put, PutResult, Result
from kvorum.kv.features import QUOTA_LEVEL
from kvorum.kv.snapshot_iterator import SnapshotIterator
from kvorum.node import Node
from kvorum.raft import Role
from kvorum.raft.messages import Message

TIMEOUT_MS = 5000


class LocalCluster:
    """Nodes ``n1 .. nN``, some of them running."""

    def __init__(self, folder: Path, size: int, **options: int) -> None:
        self.folder = folder
        self.options = options
        self.names = [f"n{i}" for i in range(1, size + 1)]
        self.ports = dict(zip(self.names, free_ports(size), strict=True))
        self.nodes: dict[str, Node] = {}
        self.cut: set[tuple[str, str]] = set()
        """(sender's name, recipient's name) of messages that are lost."""
        self._joining: list[asyncio.Task[None]] = []
        self._running: dict[str, AsyncExitStack] = {}

    def config(self, name: str) -> Config:
        """Return a node's configuration."""
        peers = parse_peers(",".join(f"{each}=127.0.0.1:{port}" for each, port in self.ports.items()))
        wanted = Config(
            name=name,
            peers=peers,
            listen_peer=f"127.0.0.1:{self.ports[name]}",
            data_dir=str(self.folder / name),
            **self.options,  # type: ignore[arg-type]
        )
        return resolve(wanted, host_name=name)

    async def start(self, *names: str) -> None:
        """Start nodes; those that are empty bootstrap in the background."""
        for name in names:
            self._running[name] = stack = AsyncExitStack()
            self.nodes[name] = node = await stack.enter_async_context(running_node(self.config(name)))
            self._intercept(node)
            self._joining.append(asyncio.create_task(bootstrap(node)))

    async def start_new(self, name: str) -> Node:
        """Start a node that is none of the cluster's, and whose address the others do not know."""
        self.names.append(name)
        [self.ports[name]] = free_ports(1)
        await self.start(name)
        return self.nodes[name]

    async def stop(self, *names: str) -> None:
        """Stop nodes without a goodbye to the others."""
        for name in names:
            del self.nodes[name]
            await self._running.pop(name).aclose()

    async def close(self) -> None:
        """Stop everything."""
        for task in self._joining:
            task.cancel()
        await asyncio.gather(*self._joining, return_exceptions=True)
        await self.stop(*self.nodes)

    def _intercept(self, node: Node) -> None:
        send = node.peers.send

        def lossy(messages: Iterable[Message]) -> None:
            send([m for m in messages if (name_of(m.sender), name_of(m.recipient)) not in self.cut])

        node.peers.send = lossy  # type: ignore[method-assign]

    def isolate(self, name: str) -> None:
        """Cut a node off, both ways."""
        for other in self.names:
            self.cut |= {(name, other), (other, name)}

    def heal(self) -> None:
        """Let every message through."""
        self.cut.clear()

    async def leader(self, among: Iterable[str] | None = None) -> Node:
        """Wait for a leader that a majority follows."""
        names = list(among or self.nodes)

        def find() -> Node | None:
            for name in names:
                node = self.nodes[name]
                followers = [n for n in self.nodes.values() if n.raft.leader == node.raft.id]
                is_ready = node.raft.can_change_membership
                if node.raft.role is Role.LEADER and is_ready and len(followers) > len(self.names) // 2:
                    return node
            return None

        return await until("a leader", find)

    async def settled(self) -> Node:
        """Wait for a leader that every running node follows and that has heard from each of them; return it.

        It has applied all that it holds, so the feature level is that of the log, and it has nothing more of its own to
        propose: a new cluster's quota is set.
        """

        def find() -> Node | None:
            for node in self.nodes.values():
                if node.store.applied_index < node.raft.log.last_index:
                    continue
                if node.store.feature_level >= QUOTA_LEVEL and not node.store.quota.limit_bytes:
                    continue
                peers = [progress.match_index for progress in node.raft.status().progress.values()]
                follows = all(other.raft.leader == node.raft.id for other in self.nodes.values())
                if node.raft.role is Role.LEADER and follows and set(peers) <= {node.raft.log.last_index}:
                    return node
            return None

        await self.leader()
        return await until("every node follows one leader, and has answered it", find)

    def others(self, node: Node) -> list[Node]:
        """Return the running nodes but this one."""
        return [other for other in self.nodes.values() if other is not node]

    async def put(self, key: bytes, value: bytes) -> PutResult:
        """Put at whoever leads."""
        leader = await self.leader()
        result = await leader.propose(Put(key, value), TIMEOUT_MS)
        assert isinstance(result, PutResult)
        return result

    async def converge(self) -> None:
        """Wait until all running nodes have applied the same."""

        def same() -> bool:
            return len({(n.store.applied_index, n.store.state_hash) for n in self.nodes.values()}) == 1

        await until("all nodes agree", same)


@asynccontextmanager
async def running(folder: Path, size: int = 3, **options: int) -> AsyncIterator[LocalCluster]:
    """A cluster of real nodes that has settled under a leader."""
    cluster = LocalCluster(folder, size, **options)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(cluster.close)
        await cluster.start(*cluster.names)
        await cluster.settled()
        yield cluster


@asynccontextmanager
async def running_with_learner(folder: Path) -> AsyncIterator[tuple[LocalCluster, Node, Node]]:
    """A cluster of one voter and one learner, which has caught up; both of them."""
    async with running(folder, 1) as cluster:
        voter = cluster.nodes["n1"]
        learner = await cluster.start_new("n2")
        await voter.add_member("n2", learner.config.advertise_peer_url, "", TIMEOUT_MS)
        await cluster.settled()
        await cluster.converge()
        yield cluster, voter, learner


async def change_in_memory(node: Node, key: bytes) -> None:
    """Let a value change in memory, though no entry says so.

    From now on the state is swept only when the test says so: the sweep in the background would find it at any moment.
    """
    await node.parts.sweeps.close()
    record = node.store.get(key)
    assert record is not None
    record.value = b"x"  # In the event log, too: it is the same object.


def keep_snapshots_of_changed_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let snapshots be kept that do not have their sum, as version 0.2.0 and before kept them."""
    monkeypatch.setattr(SnapshotIterator, "mismatch", property(lambda _: None, lambda _, mismatch: None))


__all__ = [
    "TIMEOUT_MS",
    "Command",
    "Delete",
    "LocalCluster",
    "Put",
    "Result",
    "change_in_memory",
    "keep_snapshots_of_changed_memory",
    "running",
    "running_with_learner",
]
