"""A wrong state is replaced whatever stands in the way, and nothing of it is kept."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from node.local_cluster import running
from waiting import until

from kvorum.errors import FatalError
from kvorum.node import Node
from kvorum.node import integrity as integrity_module
from kvorum.node.snapshots import load_store


def spoil(node: Node) -> None:
    """Let the state be wrong, and the node find out."""
    node.store.state_hash ^= 1
    node.parts.state.hashes.applied(node.store.applied_index, node.store.digest)
    node.parts.integrity.investigate(node.store.applied_index)


def test_a_snapshot_that_was_being_taken_of_the_wrong_state_is_not_the_newest(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            victim = cluster.others(await cluster.leader())[0]
            await cluster.put(b"a", b"1")
            await cluster.converge()
            snapshots = victim.ports.storage.snapshots
            go_on = threading.Event()
            create = snapshots.create

            def slow(*arguments: Any) -> Any:
                go_on.wait(20)
                return create(*arguments)

            snapshots.create = slow  # type: ignore[assignment, method-assign]
            victim.store.state_hash ^= 1
            victim.parts.snapshots.begin()
            victim.store.state_hash ^= 1
            asked: list[str] = []
            rebuild = victim.parts.integrity._rebuild

            async def recorded(source: str) -> bool:
                asked.append(source)
                return await rebuild(source)

            victim.parts.integrity._rebuild = recorded  # type: ignore[method-assign]
            spoil(victim)
            await until("quarantine", lambda: victim.quarantined)
            for _ in range(100):
                await asyncio.sleep(0)
            assert not asked, "the snapshot of the wrong state would be the newest after the rebuild"
            go_on.set()
            await until("it is rebuilt", lambda: victim.quarantined is None)
            assert asked

            right = (await cluster.leader()).store
            newest = snapshots.kept()[0].snapshot
            kept = await asyncio.to_thread(load_store, snapshots, newest)
            assert (kept.applied_index, kept.state_hash) == (right.applied_index, right.state_hash)

    asyncio.run(scenario())


def test_every_member_that_is_right_is_asked_for_its_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integrity_module, "RETRY_S", 0.01)

    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            victim = cluster.others(await cluster.leader())[0]
            await cluster.put(b"a", b"1")
            await cluster.converge()
            asked: set[str] = set()

            async def refused(source: str) -> bool:
                asked.add(source)
                return len(asked) > 1

            victim.parts.integrity._rebuild = refused  # type: ignore[method-assign]
            spoil(victim)
            await until("both others are asked", lambda: len(asked) > 1)
            await until("it is over", lambda: victim.quarantined is None)

    asyncio.run(scenario())


def test_a_bug_in_the_investigation_ends_the_node(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            victim = cluster.others(await cluster.leader())[0]

            async def broken(source: str) -> bool:
                raise ZeroDivisionError

            victim.parts.integrity._rebuild = broken  # type: ignore[method-assign]
            running_node = asyncio.create_task(victim.run())
            spoil(victim)
            await until("the node ends", running_node.done)
            with pytest.raises(FatalError, match="ZeroDivisionError"):
                await running_node

    asyncio.run(scenario())
