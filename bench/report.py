"""From measurements to rows: medians, ratios, goals, and the printed tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

import msgspec

from bench.cells import Cell, Idle, Measured, Settings
from bench.failover import Failover


class Goal(msgspec.Struct, frozen=True):
    """A ratio of Kvorum to etcd that the project wants to reach (docs/performance.md has the last figures)."""

    figure: str
    """``ops`` or ``p50``."""
    at_least: float | None = None
    at_most: float | None = None

    def met(self, ratio: float) -> bool:
        """Say whether a ratio reaches it."""
        if self.at_least is not None and ratio < self.at_least:
            return False
        return self.at_most is None or ratio <= self.at_most

    def __str__(self) -> str:
        if self.at_least is not None:
            return f">= {self.at_least:g}x"
        return f"<= {self.at_most:g}x"


GOALS = {
    Cell("http", "put", 1): Goal("p50", at_most=0.6),
    Cell("http", "put", 64): Goal("ops", at_least=2.0),
    Cell("http", "put", 256): Goal("ops", at_least=1.5),
    Cell("http", "get", 64): Goal("ops", at_least=3.0),
    Cell("grpc", "put", 1): Goal("p50", at_most=0.6),
}
FAILOVER_GOAL = Goal("median", at_most=0.5)
FAILOVER_P99_MAX_S = 1.5
IDLE_CORES_MAX = 0.02


class Run(msgspec.Struct, frozen=True):
    """Everything that one ``make bench`` measured; this is the JSON file."""

    settings: Settings
    machine: dict[str, str]
    versions: dict[str, str]
    generators: dict[str, str]
    skipped: tuple[str, ...]
    measured: tuple[Measured, ...]
    failovers: tuple[Failover, ...]
    idle: tuple[Idle, ...]


class Row(msgspec.Struct, frozen=True):
    """One line of the table: a cell, and both systems' medians over the rounds."""

    cell: Cell
    etcd: Measured | None
    """The round whose throughput is the median one; its figures belong together."""
    kvorum: Measured | None
    ratio: float | None
    """The median over the rounds of Kvorum's figure divided by etcd's of the same round."""
    ratio_range: tuple[float, float] | None
    goal: Goal | None

    @property
    def verdict(self) -> str:
        """Whether the goal is met; a dash when that cannot be said."""
        if self.goal is None or self.ratio is None:
            return "-"
        return "met" if self.goal.met(self.ratio) else "NOT MET"


def rows(run: Run) -> list[Row]:
    """Return the lines of the table. Kvorum's HTTP figures stand against both of etcd's transports."""
    cells = list(dict.fromkeys(m.cell for m in run.measured))
    made = []
    for cell in sorted(cells, key=lambda c: (c.transport != "http", c.op != "put", c.clients)):
        goal = GOALS.get(cell)
        etcd = _of(run, "etcd", cell)
        kvorum = _of(run, "kvorum", Cell("http", cell.op, cell.clients))
        ratios = paired_ratios(etcd, kvorum, _figure(goal))
        made.append(
            Row(
                cell=cell,
                etcd=_median_round(etcd),
                kvorum=_median_round(kvorum),
                ratio=median(ratios) if ratios else None,
                ratio_range=(min(ratios), max(ratios)) if ratios else None,
                goal=goal,
            )
        )
    return made


def paired_ratios(
    etcd: Sequence[Measured], kvorum: Sequence[Measured], figure: Callable[[Measured], float]
) -> list[float]:
    """Return Kvorum's figure divided by etcd's, for each round that has both: what drifts with the hour cancels out."""
    by_round = {m.round: figure(m) for m in etcd}
    return [figure(m) / by_round[m.round] for m in kvorum if by_round.get(m.round)]


def _figure(goal: Goal | None) -> Callable[[Measured], float]:
    if goal is not None and goal.figure == "p50":
        return lambda m: m.load.p50_ms
    return lambda m: m.ops_per_second


def _of(run: Run, system: str, cell: Cell) -> list[Measured]:
    return [m for m in run.measured if m.system == system and m.cell == cell]


def _median_round(measured: Sequence[Measured]) -> Measured | None:
    ordered = sorted(measured, key=lambda m: m.ops_per_second)
    return ordered[len(ordered) // 2] if ordered else None


def print_report(run: Run, write: Callable[[str], None]) -> None:
    """Write the tables, line by line."""
    write("")
    for name, version in run.versions.items():
        write(f"{name}: {version}")
    for name, description in run.generators.items():
        write(f"{name} generator: {description}")
    write(", ".join(f"{key} {value}" for key, value in run.machine.items()))
    for reason in run.skipped:
        write(f"SKIPPED: {reason}")
    for lines in (_throughput(run), _cpu(run), _failover(run), _idle(run)):
        write("")
        for line in lines:
            write(line)
    for m in run.measured:
        if m.load.errors:
            write(f"ERRORS: {m.system}, {m.cell.name}, round {m.round}: {m.load.errors}, first: {m.load.first_error}")


def _throughput(run: Run) -> list[str]:
    lines = [
        "ops/s, p50 and p99 in ms: the median round; ratio: Kvorum over HTTP to etcd, median of the rounds (range).",
        "",
        f"{'work':<31}{'etcd':>8}{'p50':>8}{'p99':>8} |{'kvorum':>8}{'p50':>8}{'p99':>8} |"
        f"{'ratio':>7} {'':<13}{'of':<5}{'goal':<9}",
    ]
    for row in rows(run):
        ratio = f"{row.ratio:.2f}x" if row.ratio is not None else "-"
        spread = f"({row.ratio_range[0]:.2f}-{row.ratio_range[1]:.2f})" if row.ratio_range else ""
        figure = row.goal.figure if row.goal else "ops"
        goal = str(row.goal) if row.goal else "-"
        lines.append(
            f"{describe(row.cell):<31}{_figures(row.etcd)} |{_figures(row.kvorum)} |"
            f"{ratio:>7} {spread:<13}{figure:<5}{goal:<9}{row.verdict if row.goal else ''}"
        )
    return lines


def describe(cell: Cell) -> str:
    """Say in words what a cell is."""
    what = "put" if cell.op == "put" else "linearizable get"
    return f"{what}, {cell.clients}" + (", etcd gRPC" if cell.transport == "grpc" else ", HTTP")


def _figures(m: Measured | None) -> str:
    if m is None:
        return f"{'-':>8}{'-':>8}{'-':>8}"
    return f"{m.ops_per_second:>8,.0f}{m.load.p50_ms:>8.2f}{m.load.p99_ms:>8.2f}"


def _cpu(run: Run) -> list[str]:
    lines = [
        "Processor: cores in use, and microseconds of the three servers' time an operation (the same rounds); Kvorum's "
        "to etcd's.",
        "",
        f"{'work':<31}{'system':<8}{'leader':>8}{'others2':>8}{'loadgen':>8}{'rest':>8}{'us/op':>8}{'ratio':>8}",
    ]
    for row in rows(run):
        for m in (row.etcd, row.kvorum if row.cell.transport == "http" else None):
            if m is not None:
                ratio = f"{m.server_us_per_op / row.etcd.server_us_per_op:.2f}x" if row.etcd and m is row.kvorum else ""
                lines.append(
                    f"{describe(row.cell):<31}{m.system:<8}{m.leader_cores:>8.2f}{m.followers_cores:>8.2f}"
                    f"{m.generator_cores:>8.2f}{m.others_cores:>8.2f}{m.server_us_per_op:>8.0f}{ratio:>8}"
                )
    noisy = [m for m in run.measured if m.others_cores > 0.15]
    if noisy:
        lines.append(
            f"NOISY: in {len(noisy)} of {len(run.measured)} measurements other programs used more than 0.15 cores."
        )
    return lines


def _failover(run: Run) -> list[str]:
    seconds = {name: sorted(f.seconds for f in run.failovers if f.system == name) for name in ("etcd", "kvorum")}
    lines = ["SIGKILL of the leader to the first acknowledged write, seconds."]
    for name, values in seconds.items():
        if values:
            lines.append(f"{name:<8} median {median(values):.3f}  max {values[-1]:.3f}  ({len(values)} runs)")
    if seconds["kvorum"]:
        worst = seconds["kvorum"][-1]
        lines.append(f"goal: p99 <= {FAILOVER_P99_MAX_S} s: {'met' if worst <= FAILOVER_P99_MAX_S else 'NOT MET'}")
    if seconds["kvorum"] and seconds["etcd"]:
        ratio = median(seconds["kvorum"]) / median(seconds["etcd"])
        verdict = "met" if FAILOVER_GOAL.met(ratio) else "NOT MET"
        lines.append(f"ratio of the medians {ratio:.2f}x, goal {FAILOVER_GOAL}: {verdict}")
    return lines if len(lines) > 1 else []


def _idle(run: Run) -> list[str]:
    lines = ["After the load: resident memory of each node (MiB, leader first), and processor when idle (% of a core)."]
    for system in dict.fromkeys(i.system for i in run.idle):
        of_system = [i for i in run.idle if i.system == system]
        middle = sorted(of_system, key=lambda i: sum(i.idle_cores))[len(of_system) // 2]
        memory = " ".join(f"{value:.0f}" for value in middle.resident_mib)
        idle = " ".join(f"{100 * value:.1f}" for value in middle.idle_cores)
        verdict = ""
        if system == "kvorum":
            met = max(middle.idle_cores) <= IDLE_CORES_MAX
            verdict = f"   goal <= {100 * IDLE_CORES_MAX:g} % each: {'met' if met else 'NOT MET'}"
        lines.append(f"{system:<8} memory {memory}   idle {idle}{verdict}")
    return lines if len(lines) > 1 else []
