"""How long a client waits when the leader dies: about an election, never a timeout (a put once took 10 s)."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from acceptance.processes import Cluster
from waiting import eventually

from kvorum_client import Client

KILLS = 6
WAIT_MAX_S = 5.0
"""Far above an election on a busy machine, far below the client's deadline and what a silent stream is borne (10 s)."""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path) as cluster:
        yield cluster


def test_nobody_waits_long_for_a_leader_that_was_killed(cluster: Cluster) -> None:
    """One leader after the other, so that each pair of nodes has to do without the third, over streams that broke."""
    waits = asyncio.run(_waits_while_leaders_are_killed(cluster))

    for who, longest_s in waits.items():
        assert longest_s < WAIT_MAX_S, f"{who} waited {longest_s:.1f} s: {waits}"


async def _waits_while_leaders_are_killed(cluster: Cluster) -> dict[str, float]:
    endpoints = list(cluster.addresses.values())
    waits: dict[str, float] = {}
    tasks = []
    for turn in range(len(endpoints)):
        # Each begins elsewhere: at the dead leader, at the next one, at the third.
        order = endpoints[turn:] + endpoints[:turn]
        for kind in ("put", "get", "first put"):
            tasks.append(asyncio.create_task(_work(kind, f"{kind} {turn}", order, waits)))
    try:
        for _ in range(KILLS):
            await asyncio.to_thread(eventually, "all are ready", lambda: _all_ready(cluster))
            leader = await asyncio.to_thread(cluster.leader)
            cluster.kill(leader)
            await asyncio.to_thread(cluster.leader)
            cluster.start(leader)
        await asyncio.to_thread(eventually, "all are ready", lambda: _all_ready(cluster))
        assert not [task for task in tasks if task.done()], "somebody was refused"
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
    return waits


async def _work(kind: str, who: str, endpoints: list[str], waits: dict[str, float]) -> None:
    async with Client(endpoints) as kept:
        while True:
            since = time.monotonic()
            if kind == "put":
                await kept.put(who, b"x")
            elif kind == "get":
                await kept.get(who)
            else:
                async with Client(endpoints) as fresh:
                    await fresh.put(who, b"x")
            waits[who] = max(waits.get(who, 0.0), time.monotonic() - since)
            await asyncio.sleep(0.01)


def _all_ready(cluster: Cluster) -> bool:
    answers = [cluster.try_request(name, "GET", "/readyz") for name in cluster.names]
    return all(answer is not None and answer.status == 200 for answer in answers)
