"""``make mutants``: put known bugs back, one at a time, and see which check notices each.

A copy of the package is changed, never the checkout. A mutant is killed by the tests that its entry names, by a seed of
the simulator, or by both; one that nothing notices, and one whose line is not there any more, fail the run.

First everything runs on a copy that is not changed: tests that fail anyway kill nothing, nor do tests of another copy.
That run also says how long the tests take, and so what hanging means.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import msgspec
from raft.mutants_list import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "service" / "kvorum"
TESTS_TIMEOUT_S = 600
HANGING = 10
"""Tests hang that take so many times as long as on the unchanged copy, and a minute at least."""
SEED_TIMEOUT_S = 20
SEEDS_TIMEOUT_S = 240


class Outcome(msgspec.Struct, frozen=True):
    """What became of a mutant: the first test and the first seed that noticed it (empty: none did)."""

    mutant: Mutant
    by_test: str
    by_seed: str

    @property
    def is_killed(self) -> bool:
        """Something noticed it."""
        return bool(self.by_test or self.by_seed)


def mutated(mutant: Mutant) -> str:
    """Return the changed text of the mutant's file.

    Raises:
        LookupError: its line is not in the file, or more than once.
    """
    text = (PACKAGE / mutant.file).read_text(encoding="utf-8")
    count = text.count(mutant.old)
    if count != 1:
        raise LookupError(f"{mutant.bug}: found {count} times in {mutant.file}: {mutant.old!r}")
    return text.replace(mutant.old, mutant.new)


@contextmanager
def _copy(mutant: Mutant | None) -> Iterator[dict[str, str]]:
    """Yield an environment in which ``kvorum`` is a copy, with one bug put into it or none.

    Raises:
        RuntimeError: it is not.
    """
    with tempfile.TemporaryDirectory(prefix="kvorum-mutant-") as folder:
        copy = Path(folder) / "kvorum"
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        if mutant is not None:
            (copy / mutant.file).write_text(mutated(mutant), encoding="utf-8")
        environment = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT / 'tests'}", "PYTHONDONTWRITEBYTECODE": "1"}
        where = [sys.executable, "-c", "import kvorum; print(kvorum.__file__)"]
        found = subprocess.run(where, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
        if mutant is None and not found.stdout.startswith(folder):
            raise RuntimeError(f"not the copy in {folder} is tested, but {found.stdout}{found.stderr}")
        yield environment


def run_unchanged(mutants: Iterable[Mutant], seeds: int) -> dict[str, float]:
    """Run what the mutants will be held against on the unchanged code; return how long each set of tests took, in s.

    Raises:
        RuntimeError: something fails without any mutant: it would kill whatever it was shown.
    """
    took: dict[str, float] = {}
    with _copy(None) as environment:
        for tests in dict.fromkeys(mutant.tests for mutant in mutants):
            started = time.monotonic()
            failed = _first_test(tests, environment, TESTS_TIMEOUT_S)
            took[tests] = time.monotonic() - started
            if failed:
                raise RuntimeError(f"pytest {tests} fails without any mutant: {failed}")
        failed = _first_seed(environment, seeds)
        if failed:
            raise RuntimeError(f"the simulator fails without any mutant: {failed}")
    return took


def run(mutant: Mutant, seeds: int, took_s: float) -> Outcome:
    """Put one bug into a copy of the package, and see what notices."""
    with _copy(mutant) as environment:
        by_seed = _first_seed(environment, seeds) if mutant.simulated else ""
        return Outcome(mutant, _first_test(mutant.tests, environment, max(60.0, HANGING * took_s)), by_seed)


def _first_test(tests: str, environment: dict[str, str], timeout_s: float) -> str:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--timeout", "60"]
    # These compare the lists with the code, which is changed here.
    lists = ("tests/raft/test_mutants.py", "tests/raft/test_mutation_list.py")
    command += [*shlex.split(tests), *(f"--deselect={path}" for path in lists)]
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return "the tests hang"
    if done.returncode == 0:
        return ""
    if done.returncode != 1:
        raise RuntimeError(f"pytest {tests} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr}")
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    return failed.group(1).split("::", 1)[-1] if failed else "a test"


def _first_seed(environment: dict[str, str], seeds: int) -> str:
    """Run seeds until one fails; a core that raises anything else, or that hangs, is noticed as well."""
    command = [sys.executable, "-m", "raft.mutants", "--run-seeds", str(seeds)]
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SEEDS_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return ""
    if done.returncode not in (0, 1):
        raise RuntimeError(f"the seeds ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout.strip()


def run_seeds(seeds: int) -> int:
    """In the process that has the mutant: print the first seed that fails, and why; return 1 if one does."""
    import signal

    from sim.plan import draw_plan
    from sim.run import simulate

    def hangs(number: int, frame: object) -> None:
        raise TimeoutError("it hangs")

    signal.signal(signal.SIGALRM, hangs)
    for seed in range(seeds):
        signal.alarm(SEED_TIMEOUT_S)
        try:
            violation = simulate(draw_plan(seed)).violation
        except Exception as error:  # noqa: BLE001 - whatever a broken core raises, it was noticed
            print(f"seed {seed}: {type(error).__name__}")
            return 1
        if violation is not None:
            print(f"seed {seed}: {violation.check}")
            return 1
    return 0


def described(mutant: Mutant) -> str:
    """Return the change as ``old -> new``, in one line."""
    old, new = (" ".join(text.split()) for text in (mutant.old, mutant.new))
    return f"`{_shortened(old)}` -> `{_shortened(new)}`" if new else f"`{_shortened(old)}` removed"


def _shortened(text: str) -> str:
    return text if len(text) <= 70 else f"{text[:67]}..."


def table(outcomes: Iterable[Outcome]) -> str:
    """Return the outcomes as a table in Markdown."""
    lines = ["| bug | file | mutant | killed by a test | killed by a seed |", "| --- | --- | --- | --- | --- |"]
    for outcome in outcomes:
        mutant = outcome.mutant
        by_seed = outcome.by_seed or ("-" if mutant.simulated else "not simulated")
        change = described(mutant).replace("|", "\\|")
        lines.append(f"| {mutant.bug} | {mutant.file} | {change} | {outcome.by_test or '-'} | {by_seed} |")
    return "\n".join(lines)


def choose(only: str, one_a_bug: bool) -> list[Mutant]:
    """Return the mutants whose bug, file or change contains ``only``; of each bug only the first if told so."""
    chosen = [m for m in MUTANTS if only in f"{m.bug} {m.file} {m.old}"]
    if not one_a_bug:
        return chosen
    first: dict[str, Mutant] = {}
    for mutant in chosen:
        first.setdefault(mutant.bug, mutant)
    return list(first.values())


def main() -> int:
    """Run all mutants, or those that were chosen; return 1 if one survives."""
    parser = argparse.ArgumentParser(prog="python -m raft.mutants", description=__doc__)
    parser.add_argument("--only", default="", help="those whose bug, file or change contains this")
    parser.add_argument("--seeds", type=int, default=60, help="how many seeds each mutant must live through")
    parser.add_argument("--one-a-bug", action="store_true", help="the first of each bug; what CI runs, with --seeds 0")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--run-seeds", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run_seeds is not None:
        return run_seeds(arguments.run_seeds)
    chosen = choose(arguments.only, arguments.one_a_bug)
    for mutant in MUTANTS:
        mutated(mutant)
    took = run_unchanged(chosen, arguments.seeds)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        outcomes = []
        for outcome in pool.map(lambda mutant: run(mutant, arguments.seeds, took[mutant.tests]), chosen):
            outcomes.append(outcome)
            verdict = "killed" if outcome.is_killed else "SURVIVES"
            print(
                f"{len(outcomes)} of {len(chosen)}: {verdict}: {outcome.mutant.bug} {described(outcome.mutant)}",
                file=sys.stderr,
                flush=True,
            )
    print(table(outcomes))
    survivors = [outcome for outcome in outcomes if not outcome.is_killed]
    print(f"\n{len(outcomes) - len(survivors)} of {len(outcomes)} mutants killed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
