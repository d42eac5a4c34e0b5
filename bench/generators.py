"""The programs that put the load on: built from their sources when ``go`` is there, or one in Python when it is not.

They share flags and output (one JSON object), so that the benchmark does not care which one runs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from bench.processes import BenchError

BENCH = Path(__file__).parent
BIN = BENCH / "bin"


class Load(msgspec.Struct, frozen=True):
    """What a generator printed: one cell's figures."""

    ops: int
    errors: int
    seconds: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    cpu_seconds: float
    """The generator's own, so that it shows when it is the bottleneck."""
    first_error: str = ""


class Generator(msgspec.Struct, frozen=True):
    """A program that puts load on."""

    command: tuple[str, ...]
    description: str

    def run(self, address: str, options: Sequence[str]) -> subprocess.Popen[str]:
        """Start it against one server."""
        return subprocess.Popen(
            [*self.command, "-address", address, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )


def finish(process: subprocess.Popen[str], within_s: float) -> Load:
    """Wait for a generator and return its figures."""
    try:
        output, errors = process.communicate(timeout=within_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise BenchError(f"the load generator did not end within {within_s:.0f} s") from None
    except BaseException:
        process.kill()
        process.communicate()
        raise
    if process.returncode != 0:
        raise BenchError(f"the load generator failed: {errors.strip()}")
    return msgspec.json.decode(output, type=Load)


def http_generator() -> Generator:
    """Return the HTTP generator: the Go one, or, with neither ``go`` nor a built one, the Python one."""
    binary = build("loadgen")
    if binary is not None:
        return Generator((str(binary),), "bench/loadgen (Go, one thread, epoll)")
    command = (sys.executable, str(BENCH / "pyload.py"))
    return Generator(command, "bench/pyload.py (no go here: dearer an operation, so ratios are damped)")


def etcd_generator() -> Generator | None:
    """Return etcd's own Go client over gRPC, if ``go`` is there to build it."""
    binary = build("etcdclient")
    return Generator((str(binary),), "bench/etcdclient (etcd's Go client, gRPC)") if binary is not None else None


def build(name: str) -> Path | None:
    """Build ``bench/<name>`` into ``bench/bin`` if it is older than its sources; None when it cannot be built."""
    source, binary = BENCH / name, BIN / name
    newest = max(path.stat().st_mtime for path in source.iterdir())
    if binary.exists() and binary.stat().st_mtime >= newest:
        return binary
    go = shutil.which("go")
    if go is None:
        return None
    command = [go, "build", "-trimpath", "-o", str(binary), "."]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, env={**os.environ, "CGO_ENABLED": "0"})
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        print(f"bench: skipped {name}: go build failed: {reason[0]}", file=sys.stderr)
        return None
    return binary
