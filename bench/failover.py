"""The time from SIGKILL of the leader to the first acknowledged write, as a client that tries everywhere sees it.

Every 10 ms one new attempt goes to each survivor, whatever became of the earlier ones (a lost request may hang until a
server's own time limit, and would hide a cluster that works again). Kvorum's redirects are followed: they are how its
clients find a leader. The same prober asks both systems.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import aiohttp
import msgspec

from bench.clusters import Cluster, System
from bench.processes import BenchError

ATTEMPT_EVERY_S = 0.010
GIVE_UP_S = 30.0
QUIET_S = 1.0
"""Between a cluster that is whole again and the next kill."""


class Failover(msgspec.Struct, frozen=True):
    """One run."""

    system: str
    run: int
    seconds: float


def measure_failovers(cluster: Cluster, runs: int, tell: Callable[[str], None]) -> list[Failover]:
    """Kill the leader ``runs`` times, each time from a whole cluster, and return how long writes were away."""
    results = []
    for run in range(runs):
        leader = cluster.wait_until_ready(60)
        time.sleep(QUIET_S)
        leader = cluster.wait_until_ready(60)
        survivors = [port for i, port in enumerate(cluster.client_ports) if i != leader]
        killed_at = time.monotonic()
        cluster.servers[leader].kill()
        acknowledged_at = asyncio.run(first_acknowledged(cluster.system, survivors))
        results.append(Failover(cluster.system.name, run, acknowledged_at - killed_at))
        tell(f"  {cluster.system.name}: failover {run + 1}: {results[-1].seconds:.3f} s")
        cluster.servers[leader].start()
    cluster.wait_until_ready(60)
    return results


async def first_acknowledged(system: System, ports: list[int]) -> float:
    """Return the moment at which the first put was acknowledged by any of these nodes."""
    loop = asyncio.get_running_loop()
    acknowledged: asyncio.Future[float] = loop.create_future()
    attempts: set[asyncio.Task[None]] = set()
    deadline = time.monotonic() + GIVE_UP_S
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(GIVE_UP_S)) as session:
        try:
            while not acknowledged.done():
                if time.monotonic() > deadline:
                    raise BenchError(f"{system.name}: no write was acknowledged within {GIVE_UP_S:.0f} s")
                for port in ports:
                    task = loop.create_task(_attempt(system, session, port, acknowledged))
                    attempts.add(task)
                    task.add_done_callback(attempts.discard)
                await asyncio.wait([acknowledged], timeout=ATTEMPT_EVERY_S)
        finally:
            pending = list(attempts)
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
    return acknowledged.result()


async def _attempt(
    system: System, session: aiohttp.ClientSession, port: int, acknowledged: asyncio.Future[float]
) -> None:
    method, path, body = system.put("failover-key", b"v" * 200)
    try:
        async with session.request(method, f"http://127.0.0.1:{port}{path}", data=body) as response:
            await response.read()
            if response.status == 200 and not acknowledged.done():
                acknowledged.set_result(time.monotonic())
    except (aiohttp.ClientError, TimeoutError, OSError):
        return  # refused, reset, redirected to the dead leader: the next attempt will tell
