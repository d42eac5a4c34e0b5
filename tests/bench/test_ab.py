"""Two versions side by side: the arithmetic of ratios, and a short run that leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from bench.ab import Comparison, Pair, order, parse, report, rows
from bench.cells import Cell, Measured, Settings
from bench.checkouts import ROOT, Checkout
from bench.generators import Load

PUT_1, GET_64 = Cell("http", "put", 1), Cell("http", "get", 64)
needs_git = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs the git repository")


def measured(label: str, ops: int, p50_ms: float = 1.0, us: float = 100.0, cell: Cell = PUT_1) -> Measured:
    load = Load(ops, 0, 1.0, p50_ms, p50_ms, p50_ms, p50_ms, p50_ms, 0.1)
    return Measured(label, 0, cell, load, ops * us / 2e6, ops * us / 2e6, 0.1, 0.0, us)


def pair(base: Measured, head: Measured) -> Pair:
    return Pair(base, head)


def test_a_ratio_is_the_median_over_the_pairs_with_its_range() -> None:
    # The machine slows down by half in the second pair, for both: only ratios within pairs are steady.
    made = rows(
        [
            pair(measured("base", 1000), measured("head", 1100)),
            pair(measured("base", 500), measured("head", 600)),
            pair(measured("base", 1000), measured("head", 1300)),
        ]
    )
    ops = made[0]
    assert (ops.figure, ops.base, ops.head) == ("ops/s", 1000, 1100)
    assert (ops.ratio, ops.lowest, ops.highest) == (1.2, 1.1, 1.3)
    assert ops.best == 1.3


def test_the_best_latency_is_the_lowest() -> None:
    made = rows(
        [
            pair(measured("base", 1, p50_ms=2.0), measured("head", 1, p50_ms=4.0)),
            pair(measured("base", 1, p50_ms=8.0), measured("head", 1, p50_ms=3.0)),
        ]
    )
    assert made[1].figure == "p50, ms"
    assert made[1].best == 1.5


def test_the_processor_time_of_the_leader_is_its_own() -> None:
    base, head = measured("base", 1000, us=100.0), measured("head", 1000, us=80.0)
    by_figure = {row.figure: row for row in rows([pair(base, head)])}
    assert by_figure["us/op, three servers"].ratio == pytest.approx(0.8)
    assert by_figure["us/op, leader"].base == pytest.approx(50.0)
    assert by_figure["us/op, leader"].head == pytest.approx(40.0)


@pytest.mark.parametrize(
    ("ops", "p50_ms", "expected"),
    [
        (((100, 110), (100, 120)), ((2.0, 1.0), (2.0, 1.9)), ("better", "better")),
        (((100, 90), (100, 99)), ((2.0, 2.1), (2.0, 3.0)), ("worse", "worse")),
        (((100, 90), (100, 110)), ((2.0, 1.0), (2.0, 3.0)), ("-", "-")),
        (((100, 100), (100, 110)), ((2.0, 2.0), (2.0, 1.0)), ("-", "-")),
    ],
)
def test_a_verdict_is_given_only_if_all_pairs_agree(
    ops: tuple[tuple[int, int], ...], p50_ms: tuple[tuple[float, float], ...], expected: tuple[str, str]
) -> None:
    made = rows(
        [pair(measured("base", o[0], p[0]), measured("head", o[1], p[1])) for o, p in zip(ops, p50_ms, strict=True)]
    )
    assert (made[0].verdict, made[1].verdict) == expected


def test_a_busy_machine_gives_no_verdict() -> None:
    busy = msgspec.structs.replace(measured("head", 200), others_cores=1.0)
    quiet = pair(measured("base", 100), measured("head", 200))
    assert rows([pair(measured("base", 100), busy), quiet])[0].verdict == "better"
    assert rows([pair(busy, busy), pair(quiet.base, busy)])[0].verdict == "noisy"


def test_cells_are_kept_apart_and_noise_is_said() -> None:
    noisy = msgspec.structs.replace(measured("head", 10, cell=GET_64), others_cores=0.5)
    pairs = (pair(measured("base", 10), measured("head", 20)), pair(measured("base", 10, cell=GET_64), noisy))
    side = Checkout("base", "abc", "/a", "python", "/a/service/kvorum/__init__.py", "1", "3.11")
    text = "\n".join(report(Comparison(side, side, Settings(), {"cores": "2"}, "loadgen", pairs)))
    [put] = [line for line in text.splitlines() if line.startswith("put, 1") and "ops/s" in line]
    [get] = [line for line in text.splitlines() if line.startswith("linearizable get, 64") and "ops/s" in line]
    assert put.split()[3:6] == ["10", "20", "2.000"]
    assert get.split()[4:7] == ["10", "10", "1.000"]
    assert "NOISY: in 1 of 4" in text
    assert "/a/service/kvorum/__init__.py" in text


def test_versions_take_turns_at_being_first() -> None:
    firsts = [order(number)[0] for number in range(8)]
    assert firsts == ["base", "head", "head", "base"] * 2
    assert all(set(order(number)) == {"base", "head"} for number in range(4))


@pytest.mark.parametrize(
    "arguments",
    [[], ["--base", "x", "--ops", "delete"], ["--base", "x", "--clients", "0"], ["--base", "x", "--seconds", "0"]],
)
def test_a_wrong_command_line_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        parse(arguments)


def marked(mark: str) -> set[int]:
    """The live processes that have this in their environment."""
    found = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if mark.encode() in (folder / "environ").read_bytes():
                    found.add(int(folder.name))
            except OSError:
                continue
    return found


def start(tmp_path: Path, *options: str) -> subprocess.Popen[str]:
    (tmp_path / "tmp").mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp"), "AB_TEST_MARK": str(tmp_path)}
    command = [sys.executable, "-m", "bench.ab", "--base", "HEAD", "--rounds", "1", "--keys", "50"]
    return subprocess.Popen(
        [*command, "--out", str(tmp_path / "out"), *options],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def left_in(folder: Path) -> list[str]:
    """Return what is left there, but for the file by which every process of a user knows which ports are taken."""
    return [each.name for each in folder.iterdir() if each.name != f"kvorum-ports-{os.getuid()}"]


@needs_git
def test_a_short_run_compares_two_clusters_and_leaves_its_report_only(tmp_path: Path) -> None:
    with start(tmp_path, "--seconds", "0.5", "--warmup", "0.1", "--ops", "put", "--clients", "1") as process:
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert sum(line.startswith("put, 1") for line in output.splitlines()) == 4
    [raw] = (tmp_path / "out").glob("ab-*.json")
    comparison = msgspec.json.decode(raw.read_bytes(), type=Comparison)
    assert len(comparison.pairs) == 2
    assert comparison.base.imported != comparison.head.imported
    assert all(m.load.ops and m.server_us_per_op for p in comparison.pairs for m in (p.base, p.head))
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == [".json", ".txt"]
    assert left_in(tmp_path / "tmp") == []
    assert marked(str(tmp_path)) == set()


@needs_git
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_run_that_is_interrupted_ends_its_processes_and_removes_its_files(
    tmp_path: Path, number: signal.Signals
) -> None:
    with start(tmp_path, "--seconds", "60") as process:
        deadline = time.monotonic() + 60
        while len(marked(str(tmp_path))) < 8:  # the run, six servers, a generator
            assert time.monotonic() < deadline
            assert process.poll() is None, process.stderr
            time.sleep(0.05)
        process.send_signal(number)
        process.communicate(timeout=60)
    assert process.returncode == 130
    assert marked(str(tmp_path)) == set()
    assert left_in(tmp_path / "tmp") == []
    assert list((tmp_path / "out").iterdir()) == []
