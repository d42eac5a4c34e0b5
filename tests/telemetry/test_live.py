"""The harness itself: a process that somebody else ended is told, and is not waited for."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest
from acceptance.processes import EndedByItselfError
from telemetry.live import nodes_job, running_cluster, running_prometheus, scraping
from telemetry.prometheus_tools import tool


@pytest.mark.slow
def test_a_node_that_the_test_did_not_stop_ends_the_wait_with_its_name_and_its_last_words(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_cluster(tmp_path) as cluster:
            victim = cluster.processes["n2"]
            victim.send_signal(signal.SIGKILL)
            victim.wait()
            await asyncio.to_thread(cluster.settled)

    with pytest.raises(EndedByItselfError) as raised:
        asyncio.run(scenario())
    said = str(raised.value)
    assert said.startswith("n2 ended by itself: killed by SIGKILL, and not by this test. The end of ")
    assert len(said.splitlines()) > 1


@pytest.mark.slow
def test_a_prometheus_that_ended_is_told_in_place_of_a_refused_connection(tmp_path: Path) -> None:
    tool("prometheus")

    async def scenario() -> None:
        async with running_prometheus(tmp_path, scraping(nodes_job({}))) as prometheus:
            prometheus.process.terminate()
            await prometheus.process.wait()
            await prometheus.instant("up")

    with pytest.raises(EndedByItselfError, match="Prometheus ended by itself: exit status 0"):
        asyncio.run(scenario())
