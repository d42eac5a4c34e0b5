"""promtool and prometheus: found, or skipped with one line that says how to get them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "deploy" / "helm" / "rules" / "kvorum-alerts.yaml"
DASHBOARD = ROOT / "deploy" / "helm" / "dashboards" / "kvorum.json"


def tool(name: str) -> str:
    """Return the path of ``prometheus`` or ``promtool``; skip the test without it."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: apt-get install prometheus (make observe does it when it is root)")
    return found


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run promtool, bounded in time; the caller judges its exit status."""
    command = [tool("promtool"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
