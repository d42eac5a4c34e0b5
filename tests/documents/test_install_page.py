"""docs/install.md: its commands are pasted into a shell in a copy of the checkout, and its unit is one that starts."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "install.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [block for language, block in BLOCKS if not language]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_wheel_is_built_and_installed_as_it_is_written(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "README.md", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("service", "client"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    script = "set -e\n" + "".join(COMMANDS)
    result = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=580, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"^kvorum \d+\.\d+\.\d+$", result.stdout, re.MULTILINE)
    assert (tmp_path / "dist/venv/bin/kv").exists()
    assert re.search(r"^kv \d+\.\d+\.\d+$", result.stdout, re.MULTILINE)
    node = subprocess.run(
        [tmp_path / "dist/client/bin/kvorum", "version"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (node.returncode, node.stderr.count("\n")) == (2, 1), node


def test_the_client_is_installed_with_the_versions_that_the_project_names() -> None:
    found = re.search(r"^dist/client/bin/pip install (.*==.*)$", PAGE, re.MULTILINE)
    assert found is not None
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(found[1].split()) == {each for each in project["dependencies"] if re.match("aiohttp|msgspec", each)}


def test_the_options_of_the_unit_are_valid() -> None:
    unit = re.search(r"^ExecStart=(.*?[^\\])\n", PAGE, re.MULTILINE | re.DOTALL)
    assert unit is not None
    program, command, *options = shlex.split(unit[1].replace("\\\n", " "))
    assert (Path(program).name, command) == ("kvorum", "serve")
    result = subprocess.run(
        [sys.executable, "-m", "kvorum", "config", *options], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
