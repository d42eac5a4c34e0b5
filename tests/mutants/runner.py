"""Put a mutant into a copy of the package, and see which test and which seed of the simulator notice it.

The checkout is never changed. A kill counts only if the same tests, or seeds, pass on a copy without a mutant. They run
there first, and so do the tests that :mod:`mutants.killers` remembers.

Limits: a seed hangs after 20 s, a test after 60 s, a whole run of pytest after ten times what it takes without a mutant
(60 s at least). Tests and seeds that hang have noticed the mutant. When pytest or the simulator cannot run at all, the
mutant is not judged; that is an error, not a kill.
"""

from __future__ import annotations

import compileall
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
from mutants.mutant import Mutant
from mutants.source import Source

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "service" / "kvorum"
CLIENT = ROOT / "client" / "kvorum_client"
TEST_TIMEOUT_S = 60
TESTS_TIMEOUT_S = 600
HANGING = 10
SEED_TIMEOUT_S = 20
SEEDS_TIMEOUT_S = 240

REMEMBERED = "the remembered killers"

_OK, _FAILED, _USAGE_ERROR = 0, 1, 4  # of pytest


class HarnessError(Exception):
    """The tests or seeds could not be run, or fail without any mutant."""


class _MissingTestsError(HarnessError):
    """Tests that pytest does not find."""

    def __init__(self, missing: set[str]) -> None:
        super().__init__(f"no such tests: {', '.join(sorted(missing))}")
        self.missing = missing


class Outcome(msgspec.Struct, frozen=True):
    """What became of a mutant.

    Attributes:
        mutant: the row.
        by_test: the first test that failed, as pytest names it; empty: none did.
        by_seed: the first seed that failed, and its check; empty: none did.
        error: why the mutant could not be judged; empty: it was.
    """

    mutant: Mutant
    by_test: str = ""
    by_seed: str = ""
    error: str = ""

    @property
    def is_killed(self) -> bool:
        """Whether something noticed it."""
        return not self.error and bool(self.by_test or self.by_seed)


class Runner:
    """Judges mutants. Threads may share it.

    Args:
        folder: an empty folder for the copies.
        root: the checkout.
        seeds: how many seeds of the simulator a simulated mutant must live through.
        killers: for each mutant's name the test that is tried first.
    """

    def __init__(self, folder: Path, seeds: int, killers: Mapping[str, str], root: Path = ROOT) -> None:
        self._folder = folder
        self._root = root
        packages = [each for each in (root / each.relative_to(ROOT) for each in (PACKAGE, CLIENT)) if each.exists()]
        self._seeds = seeds
        self._killers = dict(killers)
        self._source = Source(*packages)
        self._limits: dict[str, float] = {}
        self._lock = threading.Lock()
        self._unchanged = folder / "unchanged"
        for package in packages:
            shutil.copytree(package, self._unchanged / package.name, ignore=shutil.ignore_patterns("__pycache__"))
        compileall.compile_dir(self._unchanged, quiet=1)

    def prepare(self, mutants: Sequence[Mutant]) -> None:
        """Run the remembered killers and the seeds on the copy without a mutant.

        Raises:
            HarnessError: one of them fails, or the tests do not import the copy.
        """
        for path in dict.fromkeys(self._source.find(mutant)[0].path for mutant in mutants):
            # As a mutant's file is printed, without the mutant: the printing must not be what the tests notice.
            _write(_file(self._unchanged, path), self._source.text(path))
        where = [sys.executable, "-c", "import kvorum; print(kvorum.__file__)"]
        found = subprocess.run(
            where, env=self._environment(self._unchanged), cwd=self._root, capture_output=True, text=True, check=False
        )
        if not found.stdout.startswith(str(self._unchanged)):
            raise HarnessError(f"not the copy is tested, but {found.stdout}{found.stderr}")
        self._check_killers(mutants)
        if any(mutant.is_simulated for mutant in mutants):
            failed = self._first_seed(self._unchanged)
            if failed:
                raise HarnessError(f"the simulator fails without any mutant: {failed}")

    def judge(self, mutant: Mutant) -> Outcome:
        """Run the tests, and the seeds if there are any, against one mutant."""
        try:
            with self._copy(mutant) as copy:
                by_seed = self._first_seed(copy) if mutant.is_simulated else ""
                return Outcome(mutant, self._killing_test(mutant, copy), by_seed)
        except HarnessError as error:
            return Outcome(mutant, error=str(error))

    def _killing_test(self, mutant: Mutant, copy: Path) -> str:
        killer = self._killers.get(mutant.name)
        if killer:
            failed = self._first_test([killer], copy, self._limits[REMEMBERED])
            if failed:
                return failed
        tests = shlex.split(mutant.judged_by)
        with self._lock:
            if mutant.judged_by not in self._limits:
                self._check_unchanged(mutant.judged_by, tests)
        return self._first_test(tests, copy, self._limits[mutant.judged_by])

    def _check_unchanged(self, name: str, tests: Sequence[str]) -> None:
        started = time.monotonic()
        failed = self._first_test(tests, self._unchanged, TESTS_TIMEOUT_S)
        if failed:
            raise HarnessError(f"{name}: {failed} fails without any mutant")
        self._limits[name] = max(float(TEST_TIMEOUT_S), HANGING * (time.monotonic() - started))

    def _check_killers(self, mutants: Sequence[Mutant]) -> None:
        killers = list(dict.fromkeys(self._killers[m.name] for m in mutants if m.name in self._killers))
        if not killers:
            return
        try:
            self._check_unchanged(REMEMBERED, killers)
        except _MissingTestsError as error:
            # A test that was renamed is no killer any more; the mutant's other tests will find a new one.
            # Of a test with a parameter that is gone, pytest names the test only.
            kept = {
                name: killer
                for name, killer in self._killers.items()
                if not error.missing & {killer, killer.partition("[")[0]}
            }
            if kept == self._killers:
                raise
            self._killers = kept
            self._check_killers(mutants)

    def _first_test(self, tests: Sequence[str], copy: Path, timeout_s: float) -> str:
        """Return the first test that fails, or an empty string.

        Raises:
            HarnessError: pytest ended in another way than by passing or failing tests.
        """
        try:
            done = self._pytest(tests, copy, timeout_s)
        except subprocess.TimeoutExpired:
            return "the tests hang"
        if done.returncode == _OK:
            return ""
        if done.returncode == _USAGE_ERROR and "not found: " in done.stderr:
            raise _MissingTestsError(
                {line.rpartition(f"not found: {self._root}/")[2] for line in done.stderr.splitlines()}
            )
        if done.returncode != _FAILED:
            end = f"{done.stdout[-2000:]}{done.stderr[-2000:]}"
            raise HarnessError(f"pytest {shlex.join(tests)} ended with {done.returncode}:\n{end}")
        # The lines of a log that a failed test wrote may begin with ERROR as well: only the summary counts.
        summary = done.stdout.rpartition("short test summary info")[2]
        failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", summary, re.MULTILINE)
        return failed.group(1) if failed else "a test"

    def _pytest(self, tests: Sequence[str], copy: Path, timeout_s: float) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
        command += ["-p", "mutants.order", "-m", "not slow and not e2e", "--timeout", str(TEST_TIMEOUT_S), *tests]
        return subprocess.run(
            command,
            cwd=self._root,
            env=self._environment(copy),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def _first_seed(self, copy: Path) -> str:
        """Return the first seed that fails, and why. A core that raises anything, or hangs, is noticed as well."""
        if not self._seeds:
            return ""
        command = [sys.executable, "-m", "mutants", "--run-seeds", str(self._seeds)]
        try:
            done = subprocess.run(
                command,
                cwd=self._root,
                env=self._environment(copy),
                capture_output=True,
                text=True,
                timeout=SEEDS_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return ""
        if done.returncode not in (0, 1):
            raise HarnessError(f"the seeds ended with {done.returncode}: {done.stderr[-2000:]}")
        return done.stdout.strip()

    def _environment(self, copy: Path) -> dict[str, str]:
        # Compiled tests are kept: without them every run of pytest takes two seconds longer.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPATH"] = f"{copy}:{self._root / 'tests'}:{ROOT / 'tests'}"
        environment["HYPOTHESIS_STORAGE_DIRECTORY"] = str(self._folder / "hypothesis")
        return environment

    @contextmanager
    def _copy(self, mutant: Mutant) -> Iterator[Path]:
        mutated = self._source.mutate(mutant)
        with tempfile.TemporaryDirectory(dir=self._folder, prefix="mutant-") as name:
            copy = Path(name)
            shutil.copytree(self._unchanged, copy, dirs_exist_ok=True)
            _write(_file(copy, mutated.path), mutated.text)
            yield copy


def _file(copy: Path, path: Path) -> Path:
    """Return where a module is in a copy; ``path`` is as :class:`Source` has it."""
    return copy / path if path.parts[0] == CLIENT.name else copy / PACKAGE.name / path


def _write(file: Path, text: str) -> None:
    """Write a module, and delete what was compiled from the text before."""
    file.write_text(text, encoding="utf-8")
    for compiled in (file.parent / "__pycache__").glob(f"{file.stem}.*.pyc"):
        compiled.unlink()


def run_seeds(seeds: int) -> int:
    """In the process that imports the mutant: print the first seed that fails, and why; return 1 if one does."""
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
