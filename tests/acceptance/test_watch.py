"""Watches on real processes: a watcher sees every revision once, whoever is killed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from acceptance.processes import Cluster

from kvorum_client import Client, ClientError, WatchEvent

KILLS = 3
WRITES_A_KILL = 40


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path) as cluster:
        yield cluster


def test_a_watcher_sees_every_revision_once_while_leaders_are_killed(cluster: Cluster) -> None:
    written: dict[int, bytes] = {}
    seen: list[WatchEvent] = []

    async def write(kv: Client, number: int) -> None:
        result = await kv.put(f"job/{number % 7}", b"%d" % number)
        written[result.revision] = b"%d" % number

    async def watch(kv: Client, begun: asyncio.Event) -> None:
        async with kv.watch(prefix="job/") as events:
            begun.set()
            async for event in events:
                seen.append(event)

    async def scenario() -> None:
        addresses = list(cluster.addresses.values())
        async with Client(addresses, timeout_s=30) as kv, Client(addresses, timeout_s=30) as watching:
            begun = asyncio.Event()
            watcher = asyncio.create_task(watch(watching, begun))
            await begun.wait()
            for kill in range(KILLS):
                first = kill * WRITES_A_KILL
                writing = asyncio.gather(*(write(kv, first + number) for number in range(WRITES_A_KILL)))
                leader = await asyncio.to_thread(cluster.leader)
                cluster.kill(leader)
                await writing
                cluster.start(leader)
                await asyncio.to_thread(cluster.leader)
            last = max(written)
            async with asyncio.timeout(60):
                while not seen or seen[-1].mod_revision < last:
                    assert not watcher.done()
                    await asyncio.sleep(0.02)
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError, ClientError):
                await watcher

    asyncio.run(scenario())
    revisions = [event.mod_revision for event in seen]
    assert revisions == sorted(set(revisions)), "an event came twice, or out of order"
    assert {event.mod_revision: event.value for event in seen} == written
