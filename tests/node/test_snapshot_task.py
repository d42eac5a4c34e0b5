"""What goes wrong in a task of the driver's ends the process, and not the task alone."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from node.local_cluster import Put, running
from waiting import until

from kvorum.errors import FatalError, InvariantViolatedError


def test_a_bug_found_while_a_snapshot_is_taken_ends_the_node(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, size=1) as cluster:
            node = await cluster.leader()

            def broken(*_: object) -> None:
                raise InvariantViolatedError("the log is shorter than the snapshot")

            node.raft.compact = broken  # type: ignore[assignment, method-assign]
            await node.propose(Put(b"a", b"1"), 5000)
            running_node = asyncio.create_task(node.run())
            node.parts.snapshots.begin()

            await until("the node ends", running_node.done)
            with pytest.raises(FatalError, match="shorter than the snapshot"):
                await running_node

    asyncio.run(scenario())


def test_a_snapshot_that_fails_in_an_unforeseen_way_ends_the_node(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, size=1) as cluster:
            node = await cluster.leader()
            await node.propose(Put(b"a", b"1"), 5000)

            def broken(*_: object) -> None:
                raise ZeroDivisionError

            node.ports.storage.snapshots.create = broken  # type: ignore[assignment, method-assign]
            running_node = asyncio.create_task(node.run())
            node.parts.snapshots.begin()

            await until("the node ends", running_node.done)
            with pytest.raises(FatalError, match="ZeroDivisionError"):
                await running_node

    asyncio.run(scenario())
