"""``make mutants``: put known bugs back, one at a time, and see which test and which seed notices each.

Fails if a mutant survives, does not apply, or cannot be judged. The table is :mod:`mutants.table`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mutants import killers
from mutants.mutant import Mutant
from mutants.runner import CLIENT, PACKAGE, HarnessError, Outcome, Runner, run_seeds
from mutants.source import Source, UnmatchedError
from mutants.table import MUTANTS


def choose(mutants: Iterable[Mutant], only: str, modules: Sequence[str], one_a_bug: bool) -> list[Mutant]:
    """Return the mutants of ``modules`` that contain ``only``; with ``one_a_bug`` the first of each bug."""
    chosen = [
        mutant
        for mutant in mutants
        if only in f"{mutant.name} {mutant.fault}"
        and (not modules or any(f"{mutant.module}.".startswith(f"{module}.") for module in modules))
    ]
    if not one_a_bug:
        return chosen
    first: dict[str, Mutant] = {}
    for mutant in chosen:
        first.setdefault(mutant.bug, mutant)
    return list(first.values())


def unmatched(mutants: Iterable[Mutant]) -> list[str]:
    """Return why mutants do not apply to the package, one text for each that does not."""
    source = Source(PACKAGE, CLIENT)
    reasons = []
    for mutant in mutants:
        try:
            source.mutate(mutant)
        except UnmatchedError as error:
            reasons.append(str(error))
    return reasons


def table(outcomes: Iterable[Outcome]) -> str:
    """Return the outcomes as a table in Markdown."""
    lines = ["| bug | where | fault | killed by a test | killed by a seed |", "| --- | --- | --- | --- | --- |"]
    for outcome in outcomes:
        mutant = outcome.mutant
        by_test = outcome.by_test.rpartition("::")[2] or "-"
        by_seed = outcome.by_seed or ("-" if mutant.is_simulated else "not simulated")
        cells = [mutant.bug, mutant.where, mutant.fault, by_test, by_seed]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def run(mutants: Sequence[Mutant], seeds: int, jobs: int) -> list[Outcome]:
    """Judge the mutants; print a line for each as it ends.

    Raises:
        HarnessError: tests or seeds fail without any mutant.
    """
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="kvorum-mutants-") as folder, ThreadPoolExecutor(jobs) as pool:
        runner = Runner(Path(folder), seeds, killers.load())
        runner.prepare(mutants)
        for outcome in pool.map(runner.judge, mutants):
            outcomes.append(outcome)
            verdict = "NOT JUDGED" if outcome.error else "killed" if outcome.is_killed else "SURVIVES"
            line = f"{len(outcomes)} of {len(mutants)}: {verdict}: {outcome.mutant.name}"
            print(f"{line}\n{outcome.error}" if outcome.error else line, file=sys.stderr, flush=True)
    return outcomes


def main() -> int:
    """Run all mutants, or those that were chosen; return 1 unless all of them are killed."""
    parser = argparse.ArgumentParser(prog="python -m mutants", description=__doc__)
    parser.add_argument("--only", default="", help="those whose bug, function, code or fault contains this")
    parser.add_argument("--module", action="append", default=[], help="those of a module or package: raft.log, storage")
    parser.add_argument("--one-a-bug", action="store_true", help="the first of each bug; what CI runs, with --seeds 0")
    parser.add_argument("--seeds", type=int, default=60, help="how many seeds a mutant must live through (default: 60)")
    parser.add_argument("--jobs", type=int, default=2, help="how many mutants to judge at once (default: 2)")
    parser.add_argument("--list", action="store_true", help="print the chosen rows, and run nothing")
    parser.add_argument("--remember", action="store_true", help="write the tests that killed to mutants/killers.json")
    parser.add_argument("--run-seeds", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run_seeds is not None:
        return run_seeds(arguments.run_seeds)
    chosen = choose(MUTANTS, arguments.only, arguments.module, arguments.one_a_bug)
    if arguments.list:
        print("\n".join(f"{mutant.name}\n    {mutant.fault}" for mutant in chosen))
        return 0
    reasons = unmatched(chosen)
    if reasons or not chosen:
        print("\n".join(reasons) or "no mutant was chosen", file=sys.stderr)
        return 1
    started = time.monotonic()
    try:
        outcomes = run(chosen, arguments.seeds, arguments.jobs)
    except HarnessError as error:
        print(error, file=sys.stderr)
        return 1
    if arguments.remember:
        killers.remember(outcomes, [mutant.name for mutant in MUTANTS])
    killed = sum(outcome.is_killed for outcome in outcomes)
    print(table(outcomes))
    print(f"\n{killed} of {len(outcomes)} mutants killed in {time.monotonic() - started:.0f} s")
    return 0 if killed == len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
