"""What goes wrong in a task of the driver's ends the process, and not the task alone."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from node.local_cluster import Put, running
from waiting import until

from kvorum.errors import FatalError, InvariantViolatedError, StorageError
from kvorum.raft.messages import Snapshot
from kvorum.storage.interface import SnapshotInfo, SnapshotWriter


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


class Slow:
    """A writer whose commit lasts until it is told to end, and that must be left alone meanwhile."""

    def __init__(self, writer: SnapshotWriter, calls: list[str], go_on: threading.Event) -> None:
        self.write = writer.write
        self._writer = writer
        self._calls = calls
        self._go_on = go_on

    def commit(self) -> SnapshotInfo:
        self._calls.append("commit begins")
        self._go_on.wait(20)
        info = self._writer.commit()
        self._calls.append("commit ends")
        return info

    def abort(self) -> None:
        self._calls.append("abort")


def test_a_node_that_stops_waits_for_the_thread_that_writes_its_snapshot(tmp_path: Path) -> None:
    """Otherwise the file is closed and removed while the thread uses it."""

    async def scenario() -> None:
        async with running(tmp_path, size=1) as cluster:
            node = await cluster.leader()
            await node.propose(Put(b"a", b"1"), 5000)
            calls: list[str] = []
            go_on = threading.Event()
            create = node.ports.storage.snapshots.create

            def slow(snapshot: Snapshot) -> SnapshotWriter:
                return Slow(create(snapshot), calls, go_on)

            node.ports.storage.snapshots.create = slow  # type: ignore[method-assign]
            node.parts.snapshots.begin()
            await until("it is being written", lambda: calls)
            closing = asyncio.create_task(node.parts.snapshots.close())
            for _ in range(10):
                await asyncio.sleep(0)
            assert calls == ["commit begins"]
            go_on.set()
            await closing
            assert calls == ["commit begins", "commit ends", "abort"]

    asyncio.run(scenario())


def test_a_snapshot_on_demand_is_taken_only_if_it_is_newer_and_never_of_what_is_not_applied(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, size=1) as cluster:
            node = await cluster.leader()
            await node.propose(Put(b"a", b"1"), 5000)
            applied, chunk = node.store.applied_index, node.parts.snapshots.chunk
            with pytest.raises(StorageError, match="no snapshot"):
                await chunk(0, 0, 1, None)
            for far in (applied + 1, 9 * 10**18):
                with pytest.raises(StorageError, match=f"only {applied} is applied"):
                    await chunk(0, 0, 1, far)
            assert node.counters.snapshots["create", "ok"] == 0
            for at_least in (0, applied, applied):
                assert (await chunk(0, 0, 1, at_least)).last_index == applied
            assert node.counters.snapshots["create", "ok"] == 1

    asyncio.run(scenario())
