"""A real Prometheus scrapes a real cluster while leaders are killed: all that is shown, alerted and documented exists.

One run serves all tests here: three nodes and a Prometheus, traffic, then a killed leader, a follower that needs a
snapshot, and a leader that is told to stop. ``make observe`` runs it; KVORUM_OBSERVE_OUT keeps the panels' data, from
which the dashboard's picture is drawn.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from acceptance.processes import Cluster, EndedByItselfError
from telemetry.live import (
    DEADLINE_S,
    KEY,
    VALUE,
    Prometheus,
    fill_in,
    nodes_job,
    running_cluster,
    running_prometheus,
    scraping,
    traffic,
)
from telemetry.prometheus_tools import DASHBOARD, ROOT, RULES, tool
from waiting import eventually, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

MODEL: dict[str, Any] = json.loads(DASHBOARD.read_text())
TARGETS = [(panel, target) for panel in MODEL["panels"] for target in panel.get("targets", [])]
ALERTS = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
STEADY_SCRAPES = 12
"""How often each node is scraped between two events: often enough for each rate."""
FLAGS = (
    "--snapshot-entries",
    "300",
    "--log-retain-entries",
    "50",
    "--log-format",
    "json",
    "--metrics-log-interval",
    "5",
)

Series = list[dict[str, Any]]


class Run(NamedTuple):
    """What the run has left behind."""

    exposition: str
    """The ``/metrics`` of all nodes, one after the other, at the end."""
    panels: dict[str, Series]
    """(title, refId) -> the query's series over the whole run."""
    annotations: Series
    snapshots: Series
    """Snapshots that went well, by op, over the whole run."""
    selected: dict[str, Series]
    """A selector of an alert's expression -> its series over the whole run."""
    rules: list[dict[str, Any]]
    """Prometheus's own account of its rules."""
    fired: set[str]
    logs: dict[str, list[dict[str, str]]]
    """What each node has logged, a JSON object a line."""
    statuses: dict[int, int]
    leaders: list[str]
    variables: dict[str, list[str]]
    started: float
    ended: float


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    tool("prometheus")
    try:
        return asyncio.run(_run(tmp_path_factory.mktemp("observe")))
    except EndedByItselfError as error:
        ended = str(error)
    # All tests here need the run: what happened is told in their place, without a traceback for each of them.
    pytest.fail(ended, pytrace=False)


async def _run(folder: Path) -> Run:
    async with (
        running_cluster(folder, *FLAGS) as cluster,
        running_prometheus(folder, scraping(nodes_job(cluster.addresses))) as prometheus,
    ):
        started = time.time()
        stopping = asyncio.Event()
        flowing = asyncio.create_task(traffic(cluster, stopping))
        try:
            leaders = await _story(cluster, prometheus)
        finally:
            stopping.set()
            statuses = await flowing
        return await _collect(cluster, prometheus, started, leaders, statuses)


async def _story(cluster: Cluster, prometheus: Prometheus) -> list[str]:
    """Let happen what the panels show; return the leaders in turn."""
    await _watched(cluster, prometheus)
    leaders = [await asyncio.to_thread(cluster.settled)]
    cluster.kill(leaders[-1])
    leaders.append(await asyncio.to_thread(cluster.leader))
    await _watched(cluster, prometheus)
    cluster.start(leaders[0])
    await asyncio.to_thread(cluster.settled)
    await _watched(cluster, prometheus)
    leader = await asyncio.to_thread(cluster.settled)
    follower = next(name for name in cluster.names if name != leader)
    cluster.kill(follower)
    await asyncio.to_thread(_outgrow, cluster, follower)
    cluster.start(follower)
    await asyncio.to_thread(cluster.settled)
    await _watched(cluster, prometheus)
    leaders.append(await asyncio.to_thread(cluster.settled))
    assert await asyncio.to_thread(cluster.stop, leaders[-1]) == 0
    leaders.append(await asyncio.to_thread(cluster.leader))
    await _watched(cluster, prometheus)
    cluster.start(leaders[-2])
    await asyncio.to_thread(cluster.settled)
    await _watched(cluster, prometheus)
    return leaders


async def _watched(cluster: Cluster, prometheus: Prometheus) -> None:
    """Let the traffic flow until Prometheus has seen enough of every node that runs."""
    since = time.time()
    wanted = f"{STEADY_SCRAPES} scrapes of each node that runs"
    await until(wanted, lambda: prometheus.has_scraped(cluster.running(), STEADY_SCRAPES, since), DEADLINE_S)


def _outgrow(cluster: Cluster, absent: str) -> None:
    """Wait until the others have forgotten the entries that the absent node will ask for."""
    leader = cluster.leader()
    status = cluster.status(leader)
    assert status is not None
    last_index = status["last_index"]

    def forgotten() -> bool:
        now = cluster.status(leader)
        return now is not None and now["first_index"] > last_index + 1

    eventually(f"the log has moved on without {absent}", forgotten, deadline_s=180)


async def _collect(
    cluster: Cluster, prometheus: Prometheus, started: float, leaders: list[str], statuses: dict[int, int]
) -> Run:
    ended = time.time()
    panels = {
        f"{panel['title']} {target['refId']}": await prometheus.over(fill_in(target["expr"]), started, ended)
        for panel, target in TARGETS
    }
    fired = await prometheus.over('count by (alertname) (ALERTS{alertstate="firing"})', started, ended)
    groups = (await prometheus.api("rules"))["groups"]
    annotation = fill_in(MODEL["annotations"]["list"][0]["expr"]).replace("offset 1m", "offset 5s")
    found = Run(
        exposition="".join(cluster.request(name, "GET", "/metrics").body.decode() for name in cluster.names),
        panels=panels,
        annotations=await prometheus.over(annotation, started, ended),
        snapshots=await prometheus.over('max by (op) (kvorum_raft_snapshots_total{result="ok"})', started, ended),
        selected={
            selector: await prometheus.over(selector, started, ended)
            for rule in ALERTS
            for selector in _selectors(rule["expr"])
        },
        rules=[rule for group in groups for rule in group["rules"]],
        fired={series["metric"]["alertname"] for series in fired},
        logs={
            name: [json.loads(line) for line in cluster.log_file(name).read_text().splitlines()]
            for name in cluster.names
        },
        statuses=statuses,
        leaders=leaders,
        variables={label: await prometheus.api(f"label/{label}/values") for label in ("namespace", "job", "pod")},
        started=started,
        ended=ended,
    )
    _keep(found)
    return found


def _keep(run: Run) -> None:
    """Leave the panels' data where the picture is drawn from."""
    out = os.environ.get("KVORUM_OBSERVE_OUT")
    if out:
        kept = {"started": run.started, "ended": run.ended, "panels": run.panels, "annotations": run.annotations}
        Path(out).mkdir(parents=True, exist_ok=True)
        (Path(out) / "panels.json").write_text(json.dumps(kept))


def _selectors(expr: str) -> list[str]:
    return re.findall(r"\b(?:kvorum|process)_[a-z_]+(?:\{[^}]*\})?", expr)


def _finite(series: Series) -> list[float]:
    values = [float(value) for one in series for _, value in one.get("values", [one.get("value")])]
    return [value for value in values if math.isfinite(value)]


def test_the_run_was_worth_watching(run: Run) -> None:
    """Otherwise the tests below would say little: leaders changed, and traffic went on."""
    assert len(set(run.leaders[:2])) == 2
    assert len(set(run.leaders[2:])) == 2
    assert run.statuses[200] > 1000
    assert 500 not in run.statuses


@pytest.mark.parametrize(
    ("panel", "target"), TARGETS, ids=[f"{panel['title']} {target['refId']}" for panel, target in TARGETS]
)
def test_each_query_of_the_dashboard_returns_figures(run: Run, panel: dict[str, Any], target: dict[str, Any]) -> None:
    assert _finite(run.panels[f"{panel['title']} {target['refId']}"])


def test_each_documented_metric_is_on_a_live_node(run: Run) -> None:
    documented = re.findall(r"^\| `(\w+)` \| (\w+)", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE)
    assert len(documented) > 40
    for name, kind in documented:
        sample = f"{name}_count" if kind == "histogram" else name
        assert re.search(rf"^{sample}[{{ ]", run.exposition, re.MULTILINE), name


def test_each_live_metric_of_ours_is_documented(run: Run) -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    for name in re.findall(r"^# TYPE (kvorum_\w+)", run.exposition, re.MULTILINE):
        assert f"`{name}`" in page, name


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_each_selector_of_an_alert_finds_series(run: Run, alert: dict[str, Any]) -> None:
    """A misspelt metric or label evaluates without an error, to nothing: the alert would be silent for ever."""
    selectors = _selectors(alert["expr"])
    assert selectors
    for selector in selectors:
        assert _finite(run.selected[selector]), selector


def test_prometheus_evaluates_every_alert_without_an_error(run: Run) -> None:
    assert {rule["name"] for rule in run.rules} == {rule["alert"] for rule in ALERTS}
    for rule in run.rules:
        assert rule["health"] == "ok", rule
        assert not rule.get("lastError"), rule


def test_no_alert_about_a_broken_promise_fires_in_a_sound_cluster(run: Run) -> None:
    assert not run.fired & {
        "KvorumMultipleLeaders",
        "KvorumQuarantined",
        "KvorumDistrusted",
        "KvorumIdentityRejected",
        "KvorumClusterDown",
        "KvorumNoLeader",
        "KvorumInsufficientMembers",
        "KvorumMembershipMismatch",
    }


def test_the_state_timeline_shows_the_killed_leader_down_and_its_successor_leading(run: Run) -> None:
    states = {
        one["metric"]["pod"]: [int(float(value)) for _, value in one["values"]]
        for one in run.panels["State of each pod A"]
    }
    killed, successor = run.leaders[:2]
    assert 6 in states[killed]
    assert 0 in states[killed]
    assert 3 in states[killed][states[killed].index(0) :]
    assert 6 in states[successor]


def test_a_leader_change_is_annotated(run: Run) -> None:
    assert set(run.leaders[1:]) <= {one["metric"]["pod"] for one in run.annotations}


def test_the_variables_of_the_dashboard_find_the_cluster(run: Run) -> None:
    assert run.variables == {"namespace": ["default"], "job": ["kv"], "pod": ["n1", "n2", "n3"]}


def test_a_snapshot_was_taken_sent_and_installed(run: Run) -> None:
    # The node that sent it may have been started anew since, and counts from 0: Prometheus remembers.
    done = {one["metric"]["op"]: max(_finite([one])) for one in run.snapshots}
    assert done.keys() == {"create", "send", "install"}
    assert all(done.values()), done


def test_no_key_and_no_value_is_in_a_metric_or_in_a_log(run: Run) -> None:
    everything = run.exposition + json.dumps(run.logs)
    assert KEY not in everything
    assert VALUE.decode() not in everything


def test_every_line_of_a_log_is_an_object_with_a_sentence(run: Run) -> None:
    for name, lines in run.logs.items():
        assert lines
        for line in lines:
            assert line.keys() - {"traceback"} == {"time", "level", "logger", "message", "node"}
            assert line["node"] == name
            assert line["message"].strip()


@pytest.mark.parametrize(
    "sentence",
    [
        r"n\d@\w+ is a candidate in term \d+",
        r"n\d@\w+ was elected leader of term \d+",
        r"n\d@\w+ follows n\d@\w+ in term \d+",
        r"members are now: n1@\w+, n2@\w+, n3@\w+ \(index \d+\)",
        r"took a snapshot at index \d+: \d+ keys, \d+ bytes, [\d.]+ s",
        r"fetched the snapshot at \d+ from n\d@\w+: \d+ bytes, [\d.]+ s",
        r"n\d@\w+ installed the snapshot at index \d+",
        r"transferred the leadership to n\d",
        r"connected to n\d@\w+ at http://127.0.0.1:\d+",
        r"writes [1-9]\d* \([\d.]+/s\), reads [1-9]\d* \([\d.]+/s\), write latency p50 [\d.]+ m?s p99 [\d.]+ m?s, "
        r"elections won \d+ lost \d+, leader changes \d+, term \d+, leader n\d",
    ],
)
def test_what_happened_is_told_in_one_sentence(run: Run, sentence: str) -> None:
    messages = [line["message"] for lines in run.logs.values() for line in lines]
    assert any(re.fullmatch(sentence, message) for message in messages), sentence


def test_each_elected_leader_is_logged_once_per_term(run: Run) -> None:
    elected = [
        match[1]
        for lines in run.logs.values()
        for line in lines
        if (match := re.search(r"was elected leader of (term \d+)", line["message"]))
    ]
    assert elected
    assert len(set(elected)) == len(elected)


def test_a_fault_that_lasts_does_not_fill_the_log(run: Run) -> None:
    """Nodes were down for many seconds, and retried ten times a second; the others say so once or twice."""
    for lines in run.logs.values():
        complaints = [line["message"] for line in lines if "cannot reach" in line["message"]]
        for message in set(complaints):
            assert complaints.count(message) <= 3, message
