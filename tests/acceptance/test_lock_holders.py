"""Locks on real processes: no two leases hold one at the same point of the log, whatever happens to anybody."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import aiohttp
import pytest
from acceptance.processes import Cluster
from waiting import until

WORKERS = 5
TTL_S = 2
GRANTS = 40
FAULTS = 3
QUEUE = "_locks/a/"


class Grant(NamedTuple):
    """What a worker was told."""

    lease: str
    token: int
    revision: int


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path) as cluster:
        yield cluster


class Worker:
    """Takes the lock again and again; now and then it forgets to renew its lease, as if it were paused."""

    def __init__(self, number: int, urls: list[str], http: aiohttp.ClientSession) -> None:
        self._random = Random(number)
        self._urls = urls
        self._http = http
        self.grants: list[Grant] = []
        self.lost = 0

    async def run(self, is_over: asyncio.Event) -> None:
        """Work until it is over."""
        while not is_over.is_set():
            lease = await self._ask("POST", "/v1/leases", {"ttl_s": TTL_S})
            if lease is None:
                continue
            id = lease["id"]
            granted = await self._ask("POST", f"/v1/locks/a?lease={id}&wait_ms=1500")
            if granted is None:
                await self._ask("DELETE", f"/v1/leases/{id}")
                continue
            self.grants.append(Grant(id, granted["fencing_token"], granted["revision"]))
            if self._random.random() < 0.2:
                # Paused: others must get the lock although it was never released.
                self.lost += 1
                await asyncio.sleep(0.1)
            else:
                await self._ask("POST", f"/v1/leases/{id}/keepalive")
                await self._ask("DELETE", f"/v1/leases/{id}")

    async def _ask(self, method: str, path: str, body: Any = None) -> dict[str, Any] | None:
        """Ask any node; None: it could not be done. What was granted and not heard of ends with its lease."""
        with suppress(aiohttp.ClientError, TimeoutError):
            url = self._random.choice(self._urls)
            async with self._http.request(
                method, url + path, data=None if body is None else json.dumps(body)
            ) as answer:
                if answer.ok:
                    return dict(await answer.json(content_type=None))
        await asyncio.sleep(0.05)
        return None


def test_no_two_leases_hold_a_lock_at_one_revision_under_kills_and_pauses(cluster: Cluster) -> None:
    urls = [f"http://{address}" for address in cluster.addresses.values()]

    async def strike(workers: list[Worker]) -> None:
        for number in range(FAULTS):
            wanted = (number + 1) * GRANTS // FAULTS
            await until("so many grants", partial(have, workers, wanted), 120)
            leader = await asyncio.to_thread(cluster.leader)
            if number % 2:
                await asyncio.to_thread(pause, cluster, leader)
            else:
                cluster.kill(leader)
                await asyncio.sleep(1)
                cluster.start(leader)
            await asyncio.to_thread(cluster.settled)

    async def scenario() -> list[Worker]:
        is_over = asyncio.Event()
        timeout = aiohttp.ClientTimeout(total=4)
        async with aiohttp.ClientSession(timeout=timeout) as http:
            workers = [Worker(number, urls, http) for number in range(WORKERS)]
            async with asyncio.TaskGroup() as tasks:
                for worker in workers:
                    tasks.create_task(worker.run(is_over))
                try:
                    await strike(workers)
                finally:
                    is_over.set()
            return workers

    workers = asyncio.run(scenario())
    holders = asyncio.run(holders_by_revision(urls))
    grants = sorted((grant for worker in workers for grant in worker.grants), key=lambda grant: grant.revision)
    assert len(grants) >= GRANTS
    assert sum(worker.lost for worker in workers) > 0, "nobody was paused"
    for grant in grants:
        assert holders[grant.revision] == grant.token, f"{grant} was granted while {holders[grant.revision]} held it"
    tokens = [grant.token for grant in grants]
    assert tokens == sorted(set(tokens)), "a token was granted twice, or after a higher one"


def have(workers: list[Worker], wanted: int) -> bool:
    """Tell whether the workers have heard of so many grants."""
    return sum(len(worker.grants) for worker in workers) >= wanted


def pause(cluster: Cluster, name: str) -> None:
    """Stop a node for longer than an election takes, and for longer than the leases live."""
    cluster.pause(name)
    try:
        cluster.leader(among=cluster.others(name))
    finally:
        cluster.resume(name)


async def holders_by_revision(urls: list[str]) -> dict[int, int]:
    """Return for each revision which token was the lowest one in the queue, by the events of its keys."""
    queue: dict[str, int] = {}
    holders: dict[int, int] = {}
    async with aiohttp.ClientSession() as http:
        async with http.get(urls[0] + "/v1/kv?prefix=nothing") as answer:
            last = int(answer.headers["X-Kvorum-Revision"])
        async with http.get(urls[0] + f"/v1/watch?prefix={QUEUE}&from_revision=2&progress_s=1") as answer:
            before = 1
            async for line in answer.content:
                if not line.strip():
                    continue
                seen = json.loads(line)
                assert "error" not in seen, seen
                for revision in range(before + 1, seen["revision"]):
                    holders[revision] = min(queue.values(), default=0)
                for event in seen.get("events", ()):
                    if event["type"] == "put":
                        queue[event["key"]] = event["create_revision"]
                    else:
                        del queue[event["key"]]
                holders[seen["revision"]] = min(queue.values(), default=0)
                before = seen["revision"]
                if before >= last:
                    return holders
    raise AssertionError("the watch has ended")
