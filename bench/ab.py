"""``make ab BASE=commit``: two versions of Kvorum side by side, measured in alternation, as ratios.

In each round a three-node cluster of each version runs; the one that is not asked costs next to nothing. Each cell is
measured base, head, head, base (in every other round head first). These are two pairs of neighbours in time, so what
drifts with the hour cancels out within a pair. Each round starts new clusters, because a process keeps for its life
what chance gave it: its hash seed, its memory layout, which node leads. A printed ratio is the median over all pairs.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median

import msgspec

from bench.cells import Cell, Measured, Settings, fill, measure
from bench.checkouts import OUT, Checkout, check_out, end_by_interrupt
from bench.clusters import Cluster, Kvorum
from bench.generators import Generator, http_generator
from bench.processes import BenchError
from bench.runs import machine, retried, tell


class Figure(msgspec.Struct, frozen=True):
    """One thing that is compared."""

    name: str
    of: Callable[[Measured], float]
    more_is_better: bool = False


FIGURES = (
    Figure("ops/s", lambda m: m.ops_per_second, more_is_better=True),
    Figure("p50, ms", lambda m: m.load.p50_ms),
    Figure("us/op, three servers", lambda m: m.server_us_per_op),
    Figure("us/op, leader", lambda m: m.leader_us_per_op),
)
NOISE_CORES_MAX = 0.15


class Pair(msgspec.Struct, frozen=True):
    """One cell, measured on both versions, one right after the other."""

    base: Measured
    head: Measured


class Comparison(msgspec.Struct, frozen=True):
    """Everything that one run measured; this is the JSON file."""

    base: Checkout
    head: Checkout
    settings: Settings
    machine: dict[str, str]
    generator: str
    pairs: tuple[Pair, ...]


class Row(msgspec.Struct, frozen=True):
    """One line of the table: a figure of a cell."""

    cell: Cell
    figure: str
    base: float
    """The median over the pairs; so is head's."""
    head: float
    ratio: float
    """The median of the pairs' ratios, head to base."""
    lowest: float
    highest: float
    best: float
    """The ratio of head's best measurement to base's best: other programs only ever make a measurement worse."""
    verdict: str
    """``better`` or ``worse`` if every pair says so; ``noisy`` if other programs were too busy to tell; else ``-``."""


def main() -> int:
    """Compare two versions from the command line."""
    options = parse()
    end_by_interrupt()
    options.out.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="kvorum-ab-"))
    data = Path(tempfile.mkdtemp(prefix="ab-", dir=options.out.resolve()))
    keep = False
    try:
        run(options, scratch, data)
    except BenchError as error:
        keep = any(data.iterdir())
        print(f"ab: {error}" + (f"\nab: the nodes' output is in {data}" if keep else ""), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if not keep:
            shutil.rmtree(data, ignore_errors=True)
    return 0


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.ab", description=__doc__.split("\n")[0])
    parser.add_argument("--base", metavar="COMMIT", required=True, help="the commit to compare with")
    parser.add_argument("--head", metavar="COMMIT", help="the commit to judge (default: the working tree)")
    parser.add_argument("--rounds", type=int, default=3, help="of two pairs each (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each cell (default: %(default)s)")
    parser.add_argument("--warmup", type=float, default=0.5, help="seconds (default: %(default)s)")
    parser.add_argument("--ops", default="put,get", help="put, get (linearizable), or both (default: %(default)s)")
    parser.add_argument("--clients", default="1,64", help="connections (default: %(default)s)")
    parser.add_argument("--keys", type=int, default=20_000, help="default: %(default)s")
    parser.add_argument("--value-bytes", type=int, default=200, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of data and results (default: bench/out)")
    options = parser.parse_args(arguments)
    options.ops = options.ops.split(",")
    if not set(options.ops) <= {"put", "get"}:
        parser.error("--ops: put, get, or put,get")
    try:
        options.clients = tuple(int(n) for n in options.clients.split(","))
    except ValueError:
        parser.error("--clients: whole numbers, separated by commas")
    if min(options.rounds, *options.clients, options.keys) < 1 or options.seconds <= 0 or options.warmup < 0:
        parser.error("--rounds, --seconds, --clients and --keys must be positive")
    return options


def run(options: argparse.Namespace, scratch: Path, data: Path) -> None:
    """Measure, print the table, and leave it and all raw figures in the folder ``options.out``."""
    base = check_out("base", options.base, scratch)
    head = check_out("head", options.head, scratch)
    tell(f"{base}\n{head}")
    settings = Settings(
        seconds=options.seconds,
        warmup_seconds=options.warmup,
        rounds=options.rounds,
        failovers=0,
        keys=options.keys,
        value_bytes=options.value_bytes,
        clients=options.clients,
    )
    generator = http_generator()
    cells = [Cell("http", op, clients) for op in options.ops for clients in options.clients]
    pairs: list[Pair] = []
    for round_ in range(settings.rounds):
        pairs += measure_round(base, head, cells, generator, settings, round_, data)
    comparison = Comparison(base, head, settings, machine(options.out), generator.description, tuple(pairs))
    lines = report(comparison)
    written = options.out / time.strftime("ab-%Y%m%d-%H%M%S")
    written.with_suffix(".json").write_bytes(msgspec.json.format(msgspec.json.encode(comparison)))
    written.with_suffix(".txt").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    print(f"\nwritten: {written}.json, .txt")


def measure_round(
    base: Checkout,
    head: Checkout,
    cells: Iterable[Cell],
    generator: Generator,
    settings: Settings,
    round_: int,
    data: Path,
) -> list[Pair]:
    """Start a cluster of each version, and measure two pairs of each cell."""
    tell(f"round {round_ + 1} of {settings.rounds}")
    pairs = []
    with ExitStack() as stack:
        clusters = {}
        for side in (base, head) if round_ % 2 == 0 else (head, base):  # neither is always started and filled first
            kvorum = Kvorum(name=side.label, command=side.command, environment=side.environment)
            clusters[side.label] = stack.enter_context(Cluster(kvorum, data / side.label))
        for cluster in clusters.values():
            retried(partial(fill, cluster, generator, settings))
        for cell in cells:
            for half in (0, 1):
                pair = retried(partial(measure_pair, clusters, generator, cell, settings, 2 * round_ + half))
                pairs.append(pair)
                ratios = "; ".join(f"{f.name} {f.of(pair.head) / f.of(pair.base):.3f}" for f in FIGURES)
                tell(f"  {describe(cell)}: {ratios}")
    return pairs


def order(number: int) -> tuple[str, str]:
    """Return which version a pair measures first: base, head, head, base in one round; the other way in the next."""
    return ("base", "head") if number % 4 in (0, 3) else ("head", "base")


def measure_pair(
    clusters: dict[str, Cluster], generator: Generator, cell: Cell, settings: Settings, number: int
) -> Pair:
    """Measure one cell on both versions, with the same keys in the same order.

    Raises:
        BenchError: an operation failed, a leader changed, or a node ended.
    """
    measured = {}
    for label in order(number):
        measured[label] = measure(clusters[label], generator, cell, settings, number)
        load = measured[label].load
        if load.errors or not load.ops:
            raise BenchError(f"{label}, {describe(cell)}: {load.errors} of {load.ops} failed: {load.first_error}")
    return Pair(measured["base"], measured["head"])


def describe(cell: Cell) -> str:
    """Say in words what a cell is."""
    return f"{'linearizable get' if cell.op == 'get' else cell.op}, {cell.clients}"


def rows(pairs: Sequence[Pair]) -> list[Row]:
    """Return the lines of the table: each figure of each cell, in the order in which the cells came."""
    made = []
    for cell in dict.fromkeys(pair.base.cell for pair in pairs):
        of_cell = [pair for pair in pairs if pair.base.cell == cell]
        noisy = median(m.others_cores for pair in of_cell for m in (pair.base, pair.head)) > NOISE_CORES_MAX
        for figure in FIGURES:
            ratios = [figure.of(pair.head) / figure.of(pair.base) for pair in of_cell]
            best = max if figure.more_is_better else min
            made.append(
                Row(
                    cell=cell,
                    figure=figure.name,
                    base=median(figure.of(pair.base) for pair in of_cell),
                    head=median(figure.of(pair.head) for pair in of_cell),
                    ratio=median(ratios),
                    lowest=min(ratios),
                    highest=max(ratios),
                    best=best(figure.of(pair.head) for pair in of_cell)
                    / best(figure.of(pair.base) for pair in of_cell),
                    verdict="noisy" if noisy else verdict(ratios, figure),
                )
            )
    return made


def verdict(ratios: Sequence[float], figure: Figure) -> str:
    """Say whether all pairs agree that head is better, or worse."""
    if max(ratios) < 1.0:
        return "worse" if figure.more_is_better else "better"
    if min(ratios) > 1.0:
        return "better" if figure.more_is_better else "worse"
    return "-"


def report(comparison: Comparison) -> list[str]:
    """Return the printed report, line by line."""
    settings, pairs = comparison.settings, comparison.pairs
    lines = [
        "",
        str(comparison.base),
        str(comparison.head),
        ", ".join(f"{key} {value}" for key, value in comparison.machine.items() if key != "commit"),
        f"generator: {comparison.generator}; {settings.rounds} rounds of 2 pairs, {settings.seconds:g} s a cell,"
        f" {settings.keys:,} keys, values of {settings.value_bytes} B",
        "",
        "base and head: medians; ratio: head to base, median over the pairs (range); best: head's best to base's best;",
        "better or worse: all pairs agree; noisy: other programs were too busy to tell.",
        "",
        f"{'cell':<22}{'figure':<22}{'base':>9}{'head':>9}{'ratio':>8}  {'range':<15}{'best':>6}",
    ]
    for row in rows(pairs):
        places = 0 if row.figure == "ops/s" else 2 if row.figure.startswith("p50") else 1
        lines.append(
            f"{describe(row.cell):<22}{row.figure:<22}{row.base:>9,.{places}f}{row.head:>9,.{places}f}{row.ratio:>8.3f}"
            f"  {f'({row.lowest:.3f}-{row.highest:.3f})':<15}{row.best:>6.3f}  {row.verdict}"
        )
    measured = [m for pair in pairs for m in (pair.base, pair.head)]
    # The idle cluster counts as a part of the rest of the machine.
    noisy = [m.others_cores for m in measured if m.others_cores > NOISE_CORES_MAX]
    if noisy:
        lines.append(
            f"\nNOISY: in {len(noisy)} of {len(measured)} measurements other programs used more than"
            f" {NOISE_CORES_MAX} cores (median of these: {median(noisy):.2f})."
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
