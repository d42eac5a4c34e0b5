"""What is generated is what is committed: docs/metrics.md, docs/alerts.md and the dashboard."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from telemetry.prometheus_tools import ROOT

from kvorum.config.sources import options
from kvorum.telemetry.bridge import prometheus_name
from kvorum.telemetry.instruments import all_instruments
from kvorum.telemetry.reference import markdown


def test_the_metrics_page_is_the_one_that_the_instruments_make() -> None:
    assert (ROOT / "docs" / "metrics.md").read_text() == markdown(), "run make metrics-doc"


def test_every_instrument_has_a_row_and_a_whole_sentence() -> None:
    rows = re.findall(r"^\| `kvorum_", markdown(), re.MULTILINE)
    assert len(rows) == len(all_instruments())
    for instrument in all_instruments():
        assert instrument.description[0].isupper() or instrument.description[0].isdigit()
        assert instrument.description.endswith(".")


@pytest.mark.parametrize(
    ("generator", "target"),
    [("alerts_doc.py", "docs/alerts.md"), ("dashboard.py", "deploy/helm/dashboards/kvorum.json")],
)
def test_a_generated_file_is_the_one_that_is_committed(generator: str, target: str) -> None:
    command = [sys.executable, str(ROOT / "deploy" / "observe" / generator)]
    made = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert (ROOT / target).read_text() == made, "run make metrics-doc dashboard"


PAGES = [
    ROOT / "docs" / "observability.md",
    ROOT / "docs" / "alerts.md",
    ROOT / "docs" / "metrics.md",
    *sorted((ROOT / "docs" / "runbooks").glob("*.md")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_metric_that_a_page_names_is_one(page: Path) -> None:
    known = {prometheus_name(instrument) for instrument in all_instruments()}
    for name in re.findall(r"`(kvorum_[a-z_]+)", page.read_text()):
        assert name.removesuffix("_bucket") in known, name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_knob_that_a_page_names_is_one(page: Path) -> None:
    flags = {option.flag for option in options()} | {option.alias for option in options() if option.alias} | {"--once"}
    for flag in re.findall(r"`(--[a-z-]+)", page.read_text()):
        assert flag in flags, flag
