"""A Prometheus beside the cluster scrapes the pods, and sees them come and go."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from bench.processes import free_ports
from e2e.kube import eventually
from e2e.system import CHART, Scenario, System
from helm.operator_schemas import PLURALS, definition
from telemetry.live import DEADLINE_S, Prometheus, fill_in, running_prometheus, scraping
from telemetry.prometheus_tools import DASHBOARD, tool
from waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

TARGETS: dict[str, str] = {
    f"{panel['title']} {target['refId']}": target["expr"]
    for panel in json.loads(DASHBOARD.read_text())["panels"]
    for target in panel.get("targets", [])
}
RARE = {"Snapshot duration, p99 A"}
"""What a short run need not show: nothing is snapshotted within it."""
SCRAPES = 10

Series = list[dict[str, Any]]


@contextmanager
def api_proxy(system: System) -> Iterator[str]:
    """Make the API server answer on loopback, with the rights of whoever runs the suite; yield its address."""
    (port,) = free_ports(1)
    command = system.kube.kubectl_command("proxy", f"--port={port}", "--address=127.0.0.1")
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=30)


def pods_job(targets: Path) -> dict[str, Any]:
    """Return a job that scrapes the pods that are written to a file. Debian's Prometheus cannot ask Kubernetes."""
    return {
        "job_name": "kv",
        "scrape_interval": "2s",
        "scrape_timeout": "2s",
        "file_sd_configs": [{"files": [str(targets)]}],
    }


async def discover(system: System, targets: Path, proxy: str) -> None:
    """Write down which pods there are, once a second, until cancelled; they are reached through the API server."""
    while True:
        pods = await asyncio.to_thread(system.kube.pods, system.release)
        found = [
            {
                "targets": [proxy],
                "labels": {
                    "__metrics_path__": f"/api/v1/namespaces/{system.kube.namespace}/pods/{name}:{port}/proxy/metrics",
                    "instance": name,
                    "pod": name,
                    "namespace": system.kube.namespace,
                },
            }
            for name, pod in pods.items()
            for port in _metrics_ports(pod)
        ]
        # Prometheus watches the file: it must never see half of it.
        fresh = targets.with_suffix(".new")
        fresh.write_text(json.dumps(found))
        fresh.rename(targets)
        await asyncio.sleep(1)


def _metrics_ports(pod: Any) -> list[int]:
    ports = [port for container in pod.spec.containers for port in container.ports or []]
    return [port.container_port for port in ports if port.name == "metrics"]


@asynccontextmanager
async def discovery(system: System, targets: Path, proxy: str) -> AsyncIterator[None]:
    """Discover pods in the background."""
    running = asyncio.create_task(discover(system, targets, proxy))
    try:
        yield
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def watch(system: System, scenario: Scenario, folder: Path, proxy: str) -> tuple[dict[str, Series], set[str]]:
    """Delete the leader's pod and then a follower's under a Prometheus; return the panels' series, and what fired."""
    targets = folder / "targets.json"
    async with (
        discovery(system, targets, proxy),
        running_prometheus(folder, scraping(pods_job(targets))) as prometheus,
    ):
        started = time.time()
        await until("all pods are scraped", lambda: scraped(prometheus, 3), DEADLINE_S)
        for find in (system.leader, system.follower):
            pod = await asyncio.to_thread(find)
            scenario.fault("delete", pod)
            await asyncio.to_thread(system.kube.delete_pod, pod)
            await asyncio.to_thread(scenario.recovered, 30)
            await asyncio.to_thread(system.wait_ready, 3)
            await until("all pods are scraped again", lambda: scraped(prometheus, 3), DEADLINE_S)
        ended = time.time()
        found = {
            name: await prometheus.over(fill_in(expr).replace("[4s]", "[10s]"), started, ended)
            for name, expr in TARGETS.items()
        }
        fired = await prometheus.over('count by (alertname) (ALERTS{alertstate="firing"})', started, ended)
        return found, {series["metric"]["alertname"] for series in fired}


async def scraped(prometheus: Prometheus, pods: int) -> bool:
    """Tell whether so many pods have been scraped ``SCRAPES`` times in a row."""
    steady = f"sum_over_time(kvorum_build_info[{2 * SCRAPES + 2}s]) >= {SCRAPES}"
    return len(await prometheus.instant(f"{steady} and kvorum_build_info")) >= pods


def test_the_dashboard_has_data_while_pods_are_deleted(system: System, tmp_path: Path) -> None:
    tool("prometheus")
    with system.scenario("Prometheus watches pods go", terms_max=4) as scenario, api_proxy(system) as proxy:
        found, fired = asyncio.run(watch(system, scenario, tmp_path, proxy))
    for name, series in found.items():
        values = [float(value) for one in series for _, value in one["values"]]
        assert name in RARE or any(map(math.isfinite, values)), name
    pods = {one["metric"]["pod"] for one in found["State of each pod A"]}
    assert pods == {system.pod(ordinal) for ordinal in range(3)}
    leaders = [one for one in found["Leader A"] if one["values"]]
    assert len(leaders) >= 2, "the leader's pod was deleted, and the dashboard shows one leader only"
    assert not fired & {"KvorumMultipleLeaders", "KvorumQuarantined", "KvorumNoLeader"}


def is_established(system: System, name: str) -> bool:
    """Tell whether the API server serves a kind."""
    path = "jsonpath={.status.conditions[?(@.type=='Established')].status}"
    return system.kube.kubectl("get", "crd", name, "-o", path) == "True"


@contextmanager
def operator_kinds(system: System) -> Iterator[None]:
    """Let the API server know the Prometheus operator's kinds; those that it did not know before it then forgets."""
    names = {f"{plural}.monitoring.coreos.com": definition(kind) for kind, plural in PLURALS.items()}
    known = system.kube.kubectl("get", "crd", "-o", "name")
    missing = {name: file for name, file in names.items() if f"/{name}" not in known}
    try:
        for name, file in missing.items():
            system.kube.kubectl("create", "-f", str(file))
            # `kubectl wait` fails while the kind has no conditions at all.
            eventually(f"{name} is established", partial(is_established, system, name), 30)
        yield
    finally:
        for name in missing:
            system.kube.kubectl("delete", "crd", name, "--ignore-not-found")


@pytest.mark.parametrize("monitor", ["podMonitor", "serviceMonitor"])
def test_the_api_server_takes_what_the_chart_renders_for_prometheus_and_grafana(system: System, monitor: str) -> None:
    """Strictly: an unknown field is an error, and the operator's rules in CEL are asked, which no schema here can."""
    switches = [f"--set=monitoring.{name}.enabled=true" for name in (monitor, "prometheusRule", "dashboard")]
    rendered = system.kube.helm(
        *("template", system.release, str(CHART), "--kube-version", "1.34"),
        *("--show-only", "templates/monitoring.yaml", *switches),
    )
    with operator_kinds(system):
        taken = system.kube.kubectl("create", "--dry-run=server", "--validate=strict", "-f", "-", stdin=rendered)
    for kind in (monitor.lower(), "prometheusrule", "configmap"):
        assert kind in taken, taken
