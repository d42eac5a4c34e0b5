"""A short run of `make chaos` in the slow suite; and what it finds when a promise is broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from chaos.network import Network
from e2e.recording import judge

TIMEOUT_S = 280


@pytest.mark.slow
@pytest.mark.parametrize("size", [3])
def test_a_short_run_breaks_no_promise(tmp_path: Path, size: int) -> None:
    report = tmp_path / "chaos.json"
    options = ["--minutes", "0.7", "--seconds-a-run", "40", "--seed", "7", "--size", str(size), "--report", str(report)]

    ended = subprocess.run(
        [sys.executable, "-m", "chaos", *options],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )

    assert ended.returncode == 0, ended.stdout + ended.stderr
    (run,) = json.loads(report.read_text())
    assert run["violations"] == []
    assert run["acknowledged"] >= 20
    assert sum(run["faults"].values()) >= 2, "without faults it shows nothing"


# --- The judgement can fail ------------------------------------------------------------------------------------------


def _history(*rows: dict[str, Any]) -> list[dict[str, Any]]:
    summary = {"acknowledged": 2, "operations": len(rows), "started": 0, "stopped": 9, "gap_us": 1, "gap_at_us": 0}
    return [*({"operation": row} for row in rows), {"summary": {**summary, "marks": [], "unread": []}}]


PUT_1 = {"kind": "put", "key": "k", "value": "1", "invoked": 1, "completed": 2, "outcome": "ok", "revision": 1}
PUT_2 = {"kind": "put", "key": "k", "value": "2", "invoked": 3, "completed": 4, "outcome": "ok", "revision": 2}
GET = {"kind": "get", "key": "k", "invoked": 5, "completed": 6, "outcome": "ok"}


def test_a_fresh_read_is_accepted_and_a_stale_one_is_not() -> None:
    fresh = {**GET, "value": "2", "revision": 2, "mod_revision": 2}
    stale = {**GET, "value": "1", "revision": 1, "mod_revision": 1}

    assert judge(_history(PUT_1, PUT_2, fresh)).violations == ()
    assert judge(_history(PUT_1, PUT_2, stale)).violations != ()


def test_a_lost_write_is_found() -> None:
    gone = {**GET, "value": None, "revision": 2, "mod_revision": 0}

    assert judge(_history(PUT_1, PUT_2, gone)).violations != ()


def test_two_leaders_of_a_term_are_found() -> None:
    lines = [{"leader": [3, "n1@1", 1]}, {"leader": [3, "n2@2", 2]}, *_history(PUT_1)]

    assert any("term 3" in violation for violation in judge(lines).violations)


def test_every_node_is_told_apart_by_a_group_of_its_own() -> None:
    network = Network({"n1": 1, "n2": 2, "n3": 3})

    assert len({network.group_of(name) for name in ("n1", "n2", "n3")}) == 3
