"""The dashboard obeys the rules that let it work in any Grafana: nothing to fill in, nothing retired, all explained."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from telemetry.prometheus_tools import DASHBOARD, RULES

from kvorum.telemetry.bridge import prometheus_name
from kvorum.telemetry.instruments import Kind, all_instruments

MODEL: dict[str, Any] = json.loads(DASHBOARD.read_text())
PANELS: list[dict[str, Any]] = [panel for panel in MODEL["panels"] if panel["type"] != "row"]
TARGETS = [(f"{panel['title']} {target['refId']}", target) for panel in PANELS for target in panel["targets"]]
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
CURRENT_TYPES = {"timeseries", "stat", "state-timeline"}
UNITS = {"none", "s", "bytes", "Bps", "percentunit", "ops", "reqps", "wps", "iops", "cps", "mps"}
"""Ids of Grafana's units (packages/grafana-data/src/valueFormats); an unknown one would be shown as a suffix."""

panels = pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])


def metrics_of(expr: str) -> set[str]:
    """Return the metrics' names in a query."""
    return set(re.findall(r"\b(?:kvorum|process|python)_[a-z_]+\b", expr))


def known_metrics() -> Iterator[str]:
    for instrument in all_instruments():
        name = prometheus_name(instrument)
        yield from (f"{name}_bucket", f"{name}_sum", f"{name}_count") if instrument.kind is Kind.HISTOGRAM else (name,)
    for name in ("cpu_seconds_total", "resident_memory_bytes", "start_time_seconds", "open_fds", "max_fds"):
        yield f"process_{name}"
    yield "python_gc_collections_total"


def test_it_can_be_provisioned_anywhere() -> None:
    assert MODEL["id"] is None
    assert MODEL["uid"] == "kvorum-cluster"
    assert 39 <= MODEL["schemaVersion"] <= 41
    assert "__inputs" not in MODEL
    assert "__requires" not in MODEL


def test_its_variables_choose_the_datasource_and_the_cluster() -> None:
    variables = {variable["name"]: variable for variable in MODEL["templating"]["list"]}
    assert list(variables) == ["datasource", "namespace", "job", "pod"]
    assert variables["datasource"]["type"] == "datasource"
    for name in ("namespace", "job", "pod"):
        assert variables[name]["datasource"] == DATASOURCE
    # The figures of two clusters together would be wrong, each of them: "3 voters, 6 of them up".
    for name in ("namespace", "job"):
        assert not variables[name]["multi"]
        assert not variables[name]["includeAll"]
    assert variables["pod"]["allValue"] == ".*"


def test_a_figure_is_of_this_moment_and_a_graph_of_a_time() -> None:
    """Over a time, *Leader* would name everybody who has led within it."""
    for panel in PANELS:
        for target in panel["targets"]:
            assert target["instant"] == (panel["type"] == "stat")
            assert target["range"] != target["instant"]


def test_a_rate_is_of_a_counter() -> None:
    """Of a gauge that falls, rate() and increase() make a mountain: the fall counts as a new beginning."""
    for name, target in TARGETS:
        for metric in re.findall(r"\b(?:rate|increase)\((\w+)", target["expr"]):
            assert re.search(r"_(total|bucket|count|sum)$", metric), name


def test_each_row_of_panels_fills_the_width() -> None:
    widths: dict[int, int] = {}
    for panel in PANELS:
        widths[panel["gridPos"]["y"]] = widths.get(panel["gridPos"]["y"], 0) + panel["gridPos"]["w"]
    assert set(widths.values()) == {24}


def test_the_state_of_each_pod_is_on_top() -> None:
    first = min(PANELS, key=lambda panel: (panel["gridPos"]["y"], panel["gridPos"]["x"]))
    assert first["type"] == "state-timeline"
    assert first["gridPos"]["w"] == 24


def test_rows_are_those_of_the_design() -> None:
    rows = [panel["title"] for panel in MODEL["panels"] if panel["type"] == "row"]
    assert rows == ["Overview", "Consensus", "Replication", "Clients", "Storage", "Process"]


@panels
def test_a_panel_is_explained_and_of_a_current_type(panel: dict[str, Any]) -> None:
    assert panel["type"] in CURRENT_TYPES
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
    assert panel["datasource"] == DATASOURCE
    for target in panel["targets"]:
        assert target["datasource"] == DATASOURCE
        assert target["legendFormat"]
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_panels_have_ids_and_titles_of_their_own_and_do_not_overlap() -> None:
    ids = [panel["id"] for panel in MODEL["panels"]]
    assert len(set(ids)) == len(ids)
    titles = [panel["title"] for panel in MODEL["panels"]]
    assert len(set(titles)) == len(titles)
    taken: set[tuple[int, int]] = set()
    for panel in MODEL["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


@pytest.mark.parametrize(("name", "target"), TARGETS, ids=[name for name, _ in TARGETS])
def test_a_query_is_of_this_cluster_and_follows_the_scrape_interval(name: str, target: dict[str, Any]) -> None:
    expr = target["expr"]
    assert "$S" not in expr
    selected = re.findall(r"\b[A-Za-z_]+\{([^}]*)\}", expr)
    assert selected
    for selector in selected:
        assert 'namespace=~"$namespace"' in selector
        assert 'job=~"$job"' in selector
    for window in re.findall(r"\[([^\]]*)\]", expr):
        assert window == "$__rate_interval"


@pytest.mark.parametrize(("name", "target"), TARGETS, ids=[name for name, _ in TARGETS])
def test_a_query_asks_for_metrics_that_a_node_has(name: str, target: dict[str, Any]) -> None:
    assert metrics_of(target["expr"]) <= set(known_metrics())


def test_alerts_ask_for_metrics_that_a_node_has() -> None:
    expressions = "\n".join(line for line in RULES.read_text().splitlines() if not line.lstrip().startswith("#"))
    named = {name for name in metrics_of(expressions) if not name.startswith("kvorum_alerts")}
    assert named <= set(known_metrics())


def test_each_instrument_is_on_the_dashboard_or_in_an_alert() -> None:
    shown = DASHBOARD.read_text() + RULES.read_text()
    unseen = {
        instrument.name
        for instrument in all_instruments()
        if not re.search(rf"\b{prometheus_name(instrument)}(_bucket)?\b", shown)
    }
    # These serve whoever looks closer: the dashboard shows what follows from them, or the log says it.
    assert unseen == {
        "kvorum.log.lines.dropped",
        "kvorum.raft.healthy_voters",
        "kvorum.raft.saved.index",
        "kvorum.raft.peer.messages.received",
    }
