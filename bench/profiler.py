"""``make profile``: where the leader's processor time goes under one load, by py-spy, as text and as a flame graph.

py-spy is no dependency: it is put into a virtual environment of its own under bench/out the first time.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from bench.cells import Cell, CpuSample, Settings, fill, measure
from bench.clusters import Cluster, Kvorum
from bench.generators import http_generator
from bench.processes import BenchError

OUT = Path(__file__).parent / "out"
LINES = 40


def main() -> int:
    """Profile one load from the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.profiler", description=__doc__)
    parser.add_argument("--op", choices=("put", "get"), default="put")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--keys", type=int, default=20_000)
    parser.add_argument("--node", choices=("leader", "follower"), default="leader")
    parser.add_argument("--native", action="store_true", help="C frames too (slower)")
    parser.add_argument("--gil", action="store_true", help="only samples that hold the interpreter lock")
    options = parser.parse_args()
    try:
        profile(options)
    except BenchError as error:
        print(f"profile: {error}", file=sys.stderr)
        return 1
    return 0


def profile(options: argparse.Namespace) -> None:
    """Start a cluster, load its leader, sample one node, print the hot functions."""
    spy = py_spy()
    settings = Settings(seconds=options.seconds, warmup_seconds=1.0, keys=options.keys)
    generator = http_generator()
    cell = Cell("http", options.op, options.clients)
    with Cluster(Kvorum(), OUT / "profile") as cluster:
        fill(cluster, generator, settings)
        leader = cluster.wait_until_ready()
        node = leader if options.node == "leader" else (leader + 1) % len(cluster.servers)
        plain = measure(cluster, generator, cell, settings, 0)
        print(
            f"{cell.name}: {plain.ops_per_second:,.0f}/s, p50 {plain.load.p50_ms:.2f} ms, p99 {plain.load.p99_ms:.2f};"
            f" leader {plain.leader_cores:.2f} cores, followers {plain.followers_cores:.2f},"
            f" generator {plain.generator_cores:.2f}, {plain.server_us_per_op:.0f} us/op (without py-spy)"
        )
        folded = OUT / f"profile-{options.op}-{options.clients}-{options.node}.folded"
        command = [
            str(spy),
            "record",
            "--pid",
            str(cluster.servers[node].pid),
            "--format",
            "raw",
            "--output",
            str(folded),
        ]
        command += ["--duration", str(max(1, int(options.seconds) - 1)), "--rate", "500"]
        command += ["--native"] if options.native else ["--nonblocking"]
        command += ["--gil"] if options.gil else []
        load = ["-op", cell.op, "-clients", str(cell.clients), "-seconds", str(settings.seconds + 1), "-api", "kvorum"]
        load += ["-keys", str(settings.keys)]
        running = generator.run(f"127.0.0.1:{cluster.client_ports[leader]}", load)
        try:
            time.sleep(1.0)
            before = CpuSample.take(cluster)
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            after = CpuSample.take(cluster)
        finally:
            running.kill()
            running.communicate()
        if done.returncode != 0:
            raise BenchError(f"py-spy: {done.stderr.strip()}")
        busy = (after.servers[node] - before.servers[node]) / (after.at - before.at)
        print(f"{options.node}: {busy:.2f} cores while sampled")
        print_hot(folded.read_text(), options)


def print_hot(text: str, options: argparse.Namespace) -> None:
    """Print the functions in which, and under which, the samples fell."""
    own: Counter[str] = Counter()
    under: Counter[str] = Counter()
    total = 0
    for line in text.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = [frame for frame in stack.split(";") if not frame.startswith("process ")]
        if not frames:
            continue
        total += int(count)
        own[_function(frames[-1])] += int(count)
        for name in {_function(frame) for frame in frames}:
            under[name] += int(count)
    for title, counts in (("own", own), ("with what it calls", under)):
        print(f"\n% of {total} samples, {title} ({options.op}, {options.clients} clients, {options.node})")
        for name, samples in counts.most_common(LINES):
            print(f"{100 * samples / max(total, 1):6.1f}  {name}")


def _function(frame: str) -> str:
    """Return a frame without its line number, so that a function's lines add up."""
    name, _, place = frame.partition(" (")
    return f"{name} ({place.rsplit(':', 1)[0].removesuffix(')')})" if place else name


def py_spy() -> Path:
    """Return py-spy, installed into an environment of its own if it is not there."""
    environment = OUT / "py-spy"
    program = environment / "bin" / "py-spy"
    if not program.exists():
        OUT.mkdir(exist_ok=True)
        for command in (
            [sys.executable, "-m", "venv", str(environment)],
            [str(environment / "bin" / "pip"), "install", "-q", "py-spy"],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise BenchError(f"py-spy could not be installed: {done.stderr.strip()}")
    return program


if __name__ == "__main__":
    sys.exit(main())
