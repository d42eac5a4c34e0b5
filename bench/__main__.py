"""``python -m bench``: measure Kvorum and etcd in turn and print, write and draw what came out."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

import msgspec

from bench import million
from bench.cells import CLIENTS, Cell, Idle, Measured, Settings, fill, grpc_cells, http_cells, measure, measure_idle
from bench.clusters import Cluster, Etcd, Kvorum, System
from bench.failover import Failover, measure_failovers
from bench.generators import Generator, etcd_generator, http_generator
from bench.plot import svg
from bench.processes import BenchError
from bench.report import Run, print_report
from bench.runs import machine, retried, tell
from bench.watch import measure_watches

OUT = Path(__file__).parent / "out"
RESTARTS = 3
"""Of a follower of each system that has a million keys."""


def main() -> int:
    """Run the benchmark from the command line."""
    options = parse()
    signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        if options.million:
            return million.run(options.seconds, RESTARTS, options.out.resolve())
        bench = Bench(options)
        bench.run()
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 1 if bench.incomplete or any(m.load.errors for m in bench.measured) else 0


def parse() -> argparse.Namespace:
    """Read the command line."""
    defaults = Settings()
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--systems", default="etcd,kvorum", help="which to measure (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=defaults.seconds, help="of each cell (default: %(default)s)")
    parser.add_argument("--warmup", type=float, default=defaults.warmup_seconds, help="seconds (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=defaults.rounds, help="default: %(default)s")
    parser.add_argument("--failovers", type=int, default=defaults.failovers, help="of each (default: %(default)s)")
    parser.add_argument("--keys", type=int, default=defaults.keys, help="default: %(default)s")
    parser.add_argument("--value-bytes", type=int, default=defaults.value_bytes, help="default: %(default)s")
    parser.add_argument("--clients", default=",".join(map(str, CLIENTS)), help="default: %(default)s")
    parser.add_argument("--stalls-keys", type=int, default=1_000_000, help="of a store; 0: none (default: %(default)s)")
    parser.add_argument("--million", action="store_true", help="measure clusters of a million keys, and nothing else")
    parser.add_argument("--no-grpc", action="store_true", help="leave out etcd's own client")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of data and results (default: bench/out)")
    options = parser.parse_args()
    options.systems = options.systems.split(",")
    options.clients = tuple(int(n) for n in options.clients.split(","))
    if not set(options.systems) <= {"etcd", "kvorum"}:
        parser.error("--systems: etcd, kvorum, or both")
    if options.rounds < 1 or options.seconds <= 0 or options.warmup < 0 or min(options.clients) < 1:
        parser.error("--rounds, --seconds and --clients must be positive")
    return options


class Bench:
    """One run of the whole benchmark."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.settings = Settings(
            seconds=options.seconds,
            warmup_seconds=options.warmup,
            rounds=options.rounds,
            failovers=options.failovers,
            keys=options.keys,
            value_bytes=options.value_bytes,
            clients=options.clients,
        )
        self.out: Path = options.out.resolve()
        self.out.mkdir(parents=True, exist_ok=True)
        self.skipped: list[str] = []
        self.incomplete = False
        self.measured: list[Measured] = []
        self.failovers: list[Failover] = []
        self.idle: list[Idle] = []
        self.http = http_generator()
        self.systems = self._find_systems()
        self.grpc = self._find_grpc()

    def _find_systems(self) -> list[System]:
        systems: list[System] = []
        if "etcd" in self.options.systems:
            etcd = Etcd.find()
            if etcd is None:
                self._skip("etcd: neither $ETCD nor etcd on the PATH; Kvorum alone, without ratios")
            else:
                systems.append(etcd)
        if "kvorum" in self.options.systems:
            systems.append(Kvorum())
        if not systems:
            raise BenchError("nothing to measure")
        return systems

    def _find_grpc(self) -> Generator | None:
        if self.options.no_grpc or not any(system.name == "etcd" for system in self.systems):
            return None
        generator = etcd_generator()
        if generator is None:
            self._skip("etcd over gRPC: bench/etcdclient is not built and could not be (it needs go)")
        return generator

    def _skip(self, reason: str) -> None:
        self.skipped.append(reason)
        tell(f"SKIPPED: {reason}")

    def run(self) -> None:
        """Measure everything, print it, and leave JSON and a plot."""
        for round_ in range(self.settings.rounds):
            # Every other round begins with the other system, so that neither always has the warmer machine.
            for system in self.systems if round_ % 2 == 0 else reversed(self.systems):
                self._round(system, round_)
        if self.settings.failovers:
            for system in self.systems:
                with Cluster(system, self.out / f"{system.name}-failover") as cluster:
                    self.failovers += measure_failovers(cluster, self.settings.failovers, tell)
        self._watch()
        self._large_store()
        self._finish()

    def _watch(self) -> None:
        """Print how watches fan out: a figure without a goal, and without a peer."""
        if not any(system.name == "kvorum" for system in self.systems):
            return
        try:
            with tempfile.TemporaryDirectory(dir=self.out) as folder:
                tell(measure_watches(Path(folder)).row())
        except (BenchError, TimeoutError) as error:
            self._skip(f"watches: {error}")

    def _large_store(self) -> None:
        """Print what a store of a million keys costs, and the stalls while it is read: in a process of its own."""
        if not any(system.name == "kvorum" for system in self.systems) or not self.options.stalls_keys:
            return
        command = [sys.executable, "-m", "bench.stalls", str(self.options.stalls_keys)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            self._skip(f"a store of {self.options.stalls_keys:,} keys: {done.stderr[-200:]}")
        for line in done.stdout.splitlines():
            tell(line)

    def _round(self, system: System, round_: int) -> None:
        tell(f"round {round_ + 1} of {self.settings.rounds}: {system.name}")
        with Cluster(system, self.out / system.name) as cluster:
            load = retried(lambda: fill(cluster, self.http, self.settings))
            tell(f"  {system.name}: filled {load.ops:,} keys, {load.ops / load.seconds:,.0f}/s")
            cells = [(cell, self.http) for cell in http_cells(self.settings.clients)]
            if self.grpc is not None and system.name == "etcd":
                cells += [(cell, self.grpc) for cell in grpc_cells(self.settings.clients)]
            for cell, generator in cells:
                m = self._measure(cluster, generator, cell, round_)
                if m is None:
                    continue
                self.measured.append(m)
                tell(
                    f"  {system.name}: {cell.name}: {m.ops_per_second:,.0f}/s, p50 {m.load.p50_ms:.2f} ms,"
                    f" p99 {m.load.p99_ms:.2f} ms, {m.server_us_per_op:.0f} us/op"
                    + (f", {m.load.errors} ERRORS: {m.load.first_error}" if m.load.errors else "")
                )
            self.idle.append(measure_idle(cluster, round_))

    def _measure(self, cluster: Cluster, generator: Generator, cell: Cell, round_: int) -> Measured | None:
        """Measure one cell; what cannot be measured is said, and does not cost what was."""
        try:
            return retried(lambda: measure(cluster, generator, cell, self.settings, round_))
        except BenchError as error:
            self.incomplete = True
            self._skip(f"{cluster.system.name}, {cell.name}, round {round_ + 1}: {error}")
            return None

    def _finish(self) -> None:
        generators = {"HTTP": self.http.description}
        if self.grpc is not None:
            generators["gRPC"] = self.grpc.description
        run = Run(
            settings=self.settings,
            machine=machine(self.out),
            versions={system.name: system.version() for system in self.systems},
            generators=generators,
            skipped=tuple(self.skipped),
            measured=tuple(self.measured),
            failovers=tuple(self.failovers),
            idle=tuple(self.idle),
        )
        name = time.strftime("bench-%Y%m%d-%H%M%S")
        lines: list[str] = []
        print_report(run, lines.append)
        (self.out / f"{name}.json").write_bytes(msgspec.json.format(msgspec.json.encode(run)))
        (self.out / f"{name}.svg").write_text(svg(run))
        (self.out / f"{name}.txt").write_text("\n".join(lines) + "\n")
        print("\n".join(lines))
        print(f"\nwritten: {self.out}/{name}.json, .svg, .txt")


def _on_sigterm(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
