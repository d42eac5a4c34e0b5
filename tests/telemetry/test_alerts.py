"""The alert rules: promtool accepts them, each alert is shown to fire and to stay silent, and each has a runbook."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from telemetry.alert_cases import CASES, HOLDS_MIN, Case
from telemetry.prometheus_tools import ROOT, RULES, promtool

GROUPS: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"]
ALERTS: dict[str, dict[str, Any]] = {rule["alert"]: rule for group in GROUPS for rule in group["rules"]}
CLUSTER = 'namespace="default",job="kv"'


def _with_cluster(series: str) -> str:
    return series.replace("{", "{" + CLUSTER + ",", 1)


def _unit_test(cases: tuple[Case, ...], path: Path, **checks: Any) -> Path:
    """Write promtool's test file: one test a case."""
    tests = [
        {
            "interval": "1m",
            "name": f"{case.alert}: {case.why}",
            "input_series": [{"series": _with_cluster(name), "values": values} for name, values in case.series],
            **{check: [make(case)] for check, make in checks.items()},
        }
        for case in cases
    ]
    path.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
    return path


def _firing(case: Case) -> dict[str, Any]:
    # A sum over nothing is nothing: the case that stays silent expects no sample at all.
    return {
        "expr": f'max(ALERTS{{alertname="{case.alert}", alertstate="firing"}})',
        "eval_time": f"{case.minute}m",
        "exp_samples": [{"labels": "{}", "value": 1}] if case.fires else [],
    }


def test_promtool_accepts_the_rules() -> None:
    result = promtool("check", "rules", RULES)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{len(ALERTS)} rules found" in result.stdout


def test_each_alert_fires_and_stays_silent_as_it_should(tmp_path: Path) -> None:
    result = promtool("test", "rules", _unit_test(CASES, tmp_path / "cases.yaml", promql_expr_test=_firing))
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_case_with_the_wrong_expectation_is_noticed(tmp_path: Path) -> None:
    wrong = tuple(case._replace(fires=not case.fires) for case in CASES)
    result = promtool("test", "rules", _unit_test(wrong, tmp_path / "wrong.yaml", promql_expr_test=_firing))
    assert result.returncode != 0
    assert (result.stdout + result.stderr).count("expr: ") == len(CASES)


def test_no_alert_fires_before_its_condition_has_lasted(tmp_path: Path) -> None:
    too_early = tuple(
        case._replace(fires=False, minute=HOLDS_MIN[case.alert] - 1)
        for case in CASES
        if case.fires and HOLDS_MIN[case.alert]
    )
    result = promtool("test", "rules", _unit_test(too_early, tmp_path / "early.yaml", promql_expr_test=_firing))
    assert result.returncode == 0, result.stdout + result.stderr
    assert {case.alert for case in too_early} == {alert for alert, rule in ALERTS.items() if "for" in rule}


def test_an_outage_of_days_is_told_until_it_ends_and_for_a_week_at_most(tmp_path: Path) -> None:
    """Once an hour: eight days of minutes take promtool minutes."""
    down = 'max(ALERTS{alertname="KvorumClusterDown", alertstate="firing"})'
    expected = {"6h": True, "2d": True, "6d": True, "8d": False}
    test = {
        "interval": "1h",
        "input_series": [{"series": _with_cluster('kvorum_build_info{pod="kv-0"}'), "values": "1x3 stale"}],
        "promql_expr_test": [
            {"expr": down, "eval_time": time, "exp_samples": [{"labels": "{}", "value": 1}] if fires else []}
            for time, fires in expected.items()
        ],
    }
    path = tmp_path / "outage.yaml"
    path.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1h", "tests": [test]}))
    result = promtool("test", "rules", path)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_has_a_case_that_fires_and_one_that_does_not(alert: str) -> None:
    assert {case.fires for case in CASES if case.alert == alert} == {True, False}


def test_no_case_is_about_an_alert_that_is_not_there() -> None:
    assert {case.alert for case in CASES} == set(ALERTS)


def test_what_an_alert_says_is_complete(tmp_path: Path) -> None:
    """With nothing expected, promtool prints the alerts that fire, with their texts filled in."""
    firing = tuple(case for case in CASES if case.fires)
    unexpected = _unit_test(
        firing,
        tmp_path / "texts.yaml",
        alert_rule_test=lambda case: {"eval_time": f"{case.minute}m", "alertname": case.alert, "exp_alerts": []},
    )
    result = promtool("test", "rules", unexpected)
    said = result.stdout + result.stderr
    summaries = re.findall(r'summary="([^"]*)"', said)
    assert len(summaries) >= len(ALERTS)
    for forbidden in ("<no value>", "<error", "map[", "NaN"):
        assert forbidden not in said
    for case in firing:
        assert f'alertname="{case.alert}"' in said
    assert 'summary="kv has 2 leaders in term 7"' in said
    assert 'summary="10% of the proposals to kv fail"' in said


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_says_what_and_how_bad_and_what_to_do(alert: str) -> None:
    rule = ALERTS[alert]
    assert alert.startswith("Kvorum")
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    runbook = ROOT / rule["annotations"]["runbook_url"]
    text = runbook.read_text()
    for heading in ("## What it means", "## Look at", "## Do"):
        assert heading in text, runbook.name
    assert f"`{alert}`" in text, runbook.name


def test_no_runbook_is_without_an_alert() -> None:
    named = {Path(rule["annotations"]["runbook_url"]).name for rule in ALERTS.values()}
    assert {path.name for path in (ROOT / "docs" / "runbooks").glob("Kvorum*.md")} == named


@pytest.mark.parametrize("alert", ALERTS)
def test_the_size_of_the_cluster_is_never_counted_from_up(alert: str) -> None:
    assert not re.search(r"\bup\b", ALERTS[alert]["expr"])
