"""What every run of the benchmark does: measures again what went wrong, says how far it is, and on what it runs."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from bench.processes import BenchError

ATTEMPTS = 3
"""At each measurement."""
T = TypeVar("T")


def retried(act: Callable[[], T]) -> T:
    """Return what ``act`` returns; on an overloaded machine a leader may change under it, and it is tried again."""
    for left in range(ATTEMPTS - 1, -1, -1):
        try:
            return act()
        except BenchError as error:
            if not left:
                raise
            tell(f"  again: {error}")
    raise AssertionError("unreachable")


def machine(folder: Path) -> dict[str, str]:
    """Say what this was measured on."""
    models = [
        line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    filesystem = subprocess.run(["stat", "-f", "-c", "%T", str(folder)], capture_output=True, text=True, check=False)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "cores": str(len(os.sched_getaffinity(0))),
        "cpu": models[0] if models else platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "filesystem": filesystem.stdout.strip(),
        "commit": commit.stdout.strip(),
    }


def tell(line: str) -> None:
    """Say how far we are, on standard error."""
    print(line, file=sys.stderr, flush=True)
