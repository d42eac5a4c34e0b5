"""The first moments of ``kv`` and ``kvorum``, before their imports are done."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

SCRIPTS = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["scripts"]
COMMANDS = sorted(SCRIPTS)

INTERRUPTED = """
import signal, sys, weakref

class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == "aiohttp":
            {interrupt}

class Anything:
    pass

def in_a_callback():
    anything = Anything()
    reference = weakref.ref(anything, lambda _: signal.raise_signal(signal.SIGINT))
    del anything

sys.meta_path.insert(0, Interrupts())
"""


def start(command: str, before: str) -> subprocess.CompletedProcess[str]:
    """Run a command as its script does, after some code."""
    module, _, function = SCRIPTS[command].partition(":")
    code = (
        f"{before}\nimport sys\nsys.argv[1:] = ['--version']\nfrom {module} import {function}\nsys.exit({function}())"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("interrupt", ["signal.raise_signal(signal.SIGINT)", "in_a_callback()"])
def test_ctrl_c_during_the_imports_ends_a_command_with_130_and_without_a_traceback(
    command: str, interrupt: str
) -> None:
    result = start(command, INTERRUPTED.format(interrupt=interrupt))
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_whose_sigint_is_ignored_stays_so(command: str) -> None:
    ignored = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    result = start(command, ignored + INTERRUPTED.format(interrupt="signal.raise_signal(signal.SIGINT)"))
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"{command} ")


def test_a_node_without_its_packages_is_one_line_that_says_what_to_install() -> None:
    result = start("kvorum", "import sys\nsys.modules['sqlitedict'] = None")
    assert result.returncode == 2
    assert result.stderr.startswith("kvorum: ") and result.stderr.count("\n") == 1
    assert "sqlitedict" in result.stderr and "pip install" in result.stderr


def test_kv_needs_no_package_of_the_node() -> None:
    result = start("kv", "import sys\nsys.modules['sqlitedict'] = sys.modules['kvorum'] = None")
    assert (result.returncode, result.stderr) == (0, "")
