"""A real cluster of ``kvorum serve`` processes, traffic against it, and a real Prometheus that scrapes it."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from acceptance.processes import Cluster, EndedByItselfError
from bench.processes import free_ports
from telemetry.prometheus_tools import RULES, tool
from waiting import until

DEADLINE_S = 60.0
SCRAPE_INTERVAL_S = 1
KEY, VALUE = "customer-4711", b"a-secret-value"
"""What the traffic writes: nothing of it may show in logs or metrics."""


@asynccontextmanager
async def running_cluster(folder: Path, *flags: str) -> AsyncIterator[Cluster]:
    """Start three nodes that log JSON, wait until they have settled, and kill them in the end."""
    cluster = Cluster(folder, flags=("--log-format", "json", *flags))
    with cluster:
        await asyncio.to_thread(cluster.settled)
        yield cluster


async def traffic(cluster: Cluster, stopping: asyncio.Event, callers: int = 4) -> dict[int, int]:
    """Put, get, get stale and delete through every node until told to stop.

    Returns:
        How often each status was answered; 0: nobody answered.
    """
    statuses: dict[int, int] = {}

    async def status_of(method: str, node: str, target: str, body: bytes | None) -> int:
        try:
            async with session.request(method, f"http://{cluster.addresses[node]}{target}", data=body) as response:
                await response.read()
                return response.status
        except (aiohttp.ClientError, TimeoutError, OSError):
            return 0

    async def caller(number: int) -> None:
        turn = 0
        while not stopping.is_set():
            turn += 1
            key = f"/v1/kv/{KEY}-{number}-{turn % 50}"
            node = cluster.names[(number + turn) % 3]
            requests: list[tuple[str, str, bytes | None]] = [
                ("PUT", key, VALUE),
                ("GET", key, None),
                ("GET", key + "?consistency=stale", None),
            ]
            if turn % 10 == 0:
                requests.append(("DELETE", key, None))
            for method, target, body in requests:
                status = await status_of(method, node, target, body)
                statuses[status] = statuses.get(status, 0) + 1
            await asyncio.sleep(0.01)

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2.0)) as session, asyncio.TaskGroup() as tasks:
        for number in range(callers):
            tasks.create_task(caller(number))
    return statuses


class Prometheus:
    """A running Prometheus server.

    Args:
        url: where it answers.
        process: its process.
        session: to ask it.
    """

    def __init__(self, url: str, process: asyncio.subprocess.Process, session: aiohttp.ClientSession) -> None:
        self.url = url
        self.process = process
        self._session = session

    async def api(self, path: str, **parameters: str) -> Any:
        """Return the ``data`` of an answer of the HTTP API.

        Raises:
            AssertionError: Prometheus says that the question is wrong.
        """
        url = f"{self.url}/api/v1/{path}"
        async with self._session.post(url, data=parameters) if parameters else self._session.get(url) as response:
            answer = json.loads(await response.read())
        assert answer["status"] == "success", f"{path} {parameters}: {answer.get('error')}"
        return answer["data"]

    async def instant(self, expr: str) -> list[dict[str, Any]]:
        """Evaluate an expression now."""
        result: list[dict[str, Any]] = (await self.api("query", query=expr))["result"]
        return result

    async def over(self, expr: str, start: float, end: float, step: float = 1.0) -> list[dict[str, Any]]:
        """Evaluate an expression over a time."""
        data = await self.api("query_range", query=expr, start=str(start), end=str(end), step=str(step))
        result: list[dict[str, Any]] = data["result"]
        return result

    async def has_scraped(self, pods: Sequence[str], times: int, since: float) -> bool:
        """Tell whether it has scraped each of these pods so many times since then (Unix time)."""
        window_s = max(int(time.time() - since), 1)
        wanted = f'count_over_time(kvorum_build_info{{pod=~"{"|".join(pods)}"}}[{window_s}s]) >= {times}'
        return len(await self.instant(wanted)) == len(pods)

    async def is_ready(self) -> bool:
        """Tell whether it answers."""
        try:
            async with self._session.get(f"{self.url}/-/ready") as response:
                return response.status == 200
        except (aiohttp.ClientError, OSError):
            return False


def scraping(*jobs: dict[str, Any]) -> str:
    """Return a configuration of Prometheus with these scrape jobs and our alerts (JSON, which YAML includes)."""
    times = dict.fromkeys(("scrape_interval", "scrape_timeout", "evaluation_interval"), f"{SCRAPE_INTERVAL_S}s")
    return json.dumps({"global": times, "rule_files": [str(RULES)], "scrape_configs": jobs})


def nodes_job(targets: dict[str, str]) -> dict[str, Any]:
    """Return a job that scrapes these nodes, named as Kubernetes would name them."""
    labelled = [
        {"targets": [address], "labels": {"pod": name, "namespace": "default"}} for name, address in targets.items()
    ]
    return {"job_name": "kv", "static_configs": labelled}


@asynccontextmanager
async def running_prometheus(folder: Path, config: str) -> AsyncIterator[Prometheus]:
    """Run a Prometheus on loopback with this configuration, and end it."""
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}"
    (folder / "prometheus.yml").write_text(config)
    with (folder / "prometheus.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            tool("prometheus"),
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address={address}",
            "--query.lookback-delta=3s",
            stdout=log,
            stderr=log,
            env={"PATH": os.environ.get("PATH", ""), "GOMAXPROCS": "1"},
        )
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20.0)) as session:
            prometheus = Prometheus(f"http://{address}", process, session)

            async def ready_or_ended() -> bool:
                return process.returncode is not None or await prometheus.is_ready()

            try:
                await until("Prometheus is ready", ready_or_ended, DEADLINE_S)
                yield prometheus
            finally:
                # Whatever went wrong above, this is why.
                if process.returncode is not None:
                    raise EndedByItselfError("Prometheus", process.returncode, folder / "prometheus.log")
    finally:
        if process.returncode is None:
            process.terminate()
        async with asyncio.timeout(DEADLINE_S):
            await process.wait()


def fill_in(expr: str) -> str:
    """Put values for the dashboard's variables, as Grafana does with *All* chosen."""
    for variable, value in {
        "$__rate_interval": f"{4 * SCRAPE_INTERVAL_S}s",
        "$__interval": f"{SCRAPE_INTERVAL_S}s",
        "$namespace": ".*",
        "$job": ".*",
        "$pod": ".*",
    }.items():
        expr = expr.replace(variable, value)
    return expr
