"""A real cluster of ``kvorum serve`` processes, traffic against it, and a real Prometheus that scrapes it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import SystemRandom
from typing import Any

import aiohttp
from telemetry.prometheus_tools import RULES, tool

DEADLINE_S = 60.0
POLL_S = 0.05
SCRAPE_INTERVAL_S = 1
LAST_LINES = 5
"""How much of a log is told of a process that ended by itself."""
KEY, VALUE = "customer-4711", b"a-secret-value"
"""What the traffic writes: nothing of it may show in logs or metrics."""


def free_ports(count: int) -> list[int]:
    """Return ports of the loopback that nobody listens on, from below those that outgoing connections get.

    A node is started anew on its port: meanwhile nothing else may have been given it.
    """
    ports: list[int] = []
    while len(ports) < count:
        port = 20_000 + SystemRandom().randrange(10_000)
        with socket.socket() as candidate:
            try:
                candidate.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in ports:
            ports.append(port)
    return ports


async def until(what: str, holds: Callable[[], Awaitable[object]], deadline_s: float = DEADLINE_S) -> Any:
    """Poll until ``holds`` returns something true, and return that; fail with ``what`` at the deadline."""
    try:
        async with asyncio.timeout(deadline_s):
            while not (found := await holds()):  # noqa: ASYNC110 - What is polled is another process.
                await asyncio.sleep(POLL_S)
            return found
    except TimeoutError as error:
        raise AssertionError(f"not within {deadline_s} s: {what}") from error


class EndedByItselfError(AssertionError):
    """A process that the test still needs has ended; whatever is waited for would be waited for in vain."""

    def __init__(self, name: str, status: int, log: Path) -> None:
        how = (
            f"killed by {signal.Signals(-status).name}, and not by this test" if status < 0 else f"exit status {status}"
        )
        lines = log.read_text(errors="replace").splitlines()[-LAST_LINES:]
        super().__init__(f"{name} ended by itself: {how}. The end of {log}:\n" + "\n".join(lines))


class Cluster:
    """Three nodes on loopback, each a process of its own.

    Args:
        folder: where their data and logs go.
        session: to ask them.
        flags: more flags for each node.
    """

    def __init__(self, folder: Path, session: aiohttp.ClientSession, *flags: str) -> None:
        ports = free_ports(6)
        self.names = ("n1", "n2", "n3")
        self.client = dict(zip(self.names, (f"127.0.0.1:{port}" for port in ports[:3]), strict=True))
        self._peer = dict(zip(self.names, (f"127.0.0.1:{port}" for port in ports[3:]), strict=True))
        self._folder = folder
        self._session = session
        self._flags = flags
        self._processes: dict[str, asyncio.subprocess.Process] = {}

    async def start(self, name: str) -> None:
        """Start a node, or start it again on its data."""
        peers = ",".join(f"{peer}={address}" for peer, address in self._peer.items())
        command = ["-m", "kvorum", "serve", "--name", name, "--peers", peers, "--data-dir", str(self._folder / name)]
        command += ["--listen-client", self.client[name], "--listen-peer", self._peer[name], *self._flags]
        with (self._folder / f"{name}.log").open("ab") as log:
            self._processes[name] = await asyncio.create_subprocess_exec(
                sys.executable, *command, stdout=log, stderr=log
            )

    async def stop(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a running node a signal, and wait until it is gone."""
        self.running()
        await self._end(name, number)

    async def _end(self, name: str, number: signal.Signals) -> None:
        process = self._processes.pop(name)
        if process.returncode is None:
            process.send_signal(number)
        async with asyncio.timeout(DEADLINE_S):
            await process.wait()

    def running(self) -> list[str]:
        """The nodes that were started and not stopped.

        Raises:
            EndedByItselfError: one of them has ended.
        """
        for name, process in self._processes.items():
            if process.returncode is not None:
                raise EndedByItselfError(name, process.returncode, self._folder / f"{name}.log")
        return list(self._processes)

    async def close(self) -> None:
        """Kill what is left."""
        for name in list(self._processes):
            await self._end(name, signal.SIGKILL)

    def log(self, name: str) -> list[str]:
        """Return the lines that a node has written, over all its lives."""
        return (self._folder / f"{name}.log").read_text().splitlines()

    async def status(self, name: str) -> dict[str, Any] | None:
        """Return a node's ``/v1/cluster``; None if it does not answer."""
        try:
            async with self._session.get(f"http://{self.client[name]}/v1/cluster") as response:
                return await response.json() if response.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None

    async def leader(self) -> str | None:
        """Return the node that leads, as it says itself."""
        for name in self.running():
            status = await self.status(name)
            if status and status["state"] == "leader":
                return name
        return None

    async def settled(self) -> str:
        """Return the leader once every running node follows it and has applied what was committed."""

        async def same() -> str | None:
            leader = await self.leader()
            found = [await self.status(name) for name in self.running()]
            if leader is None or any(status is None or status["leader_name"] != leader for status in found):
                return None
            return leader if all(status and status["caught_up"] for status in found) else None

        leader: str = await until("one leader that all follow", same)
        return leader

    async def metrics(self, name: str) -> str:
        """Return a node's ``/metrics``."""
        async with self._session.get(f"http://{self.client[name]}/metrics") as response:
            response.raise_for_status()
            return await response.text()

    async def request(self, method: str, name: str, target: str, body: bytes | None = None) -> int:
        """Send one request, follow one redirect, and return the status; 0 if nobody answered."""
        url = f"http://{self.client[name]}{target}"
        try:
            async with self._session.request(method, url, data=body, allow_redirects=True) as response:
                await response.read()
                return response.status
        except (aiohttp.ClientError, TimeoutError, OSError):
            return 0


@asynccontextmanager
async def running_cluster(folder: Path, *flags: str) -> AsyncIterator[Cluster]:
    """Start three nodes, wait for a leader, and kill them in the end."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2.0)) as session:
        cluster = Cluster(folder, session, *flags)
        try:
            for name in cluster.names:
                await cluster.start(name)
            await cluster.settled()
            yield cluster
        finally:
            await cluster.close()


async def traffic(cluster: Cluster, stopping: asyncio.Event, callers: int = 4) -> dict[int, int]:
    """Put, get, get stale and delete through every node until told to stop; return the answers' statuses."""
    statuses: dict[int, int] = {}

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
                status = await cluster.request(method, node, target, body)
                statuses[status] = statuses.get(status, 0) + 1
            await asyncio.sleep(0.01)

    async with asyncio.TaskGroup() as tasks:
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
                await until("Prometheus is ready", ready_or_ended)
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
