"""The simulator keeps its own promises: the same seed is the same run, and the faults really happen."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

from sim.plan import FAULT_KINDS, draw_plan
from sim.run import simulate

TESTS = Path(__file__).parent.parent


def hashes_in_a_process(hash_seed: str) -> str:
    code = (
        "from sim.plan import draw_plan\nfrom sim.run import simulate\n"
        "print([simulate(draw_plan(seed)).trace_hash for seed in (1, 8, 12, 40, 41)])"
    )
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(TESTS)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def test_the_same_seed_gives_the_same_trace_under_any_hash_seed() -> None:
    first = hashes_in_a_process("1")
    assert first.count("'") == 10
    assert hashes_in_a_process("2") == first


def test_different_seeds_give_different_traces() -> None:
    assert len({simulate(draw_plan(seed)).trace_hash for seed in range(10)}) == 10


def test_the_transcript_does_not_change_the_run() -> None:
    lines: list[str] = []
    loud = simulate(draw_plan(12), transcript=lines.append)
    assert loud.trace_hash == simulate(draw_plan(12)).trace_hash
    assert any("AppendEntries" in line for line in lines)


def test_every_kind_of_fault_strikes_and_the_workload_gets_through() -> None:
    total: Counter[str] = Counter()
    for seed in range(100, 160):
        verdict = simulate(draw_plan(seed))
        total.update(verdict.counts)
        total["elections"] += verdict.elections
    for kind in FAULT_KINDS:
        assert total[f"fault {kind}"] >= 3, f"{kind} never happens: {total}"
    for what in (
        "crashes", "restores", "snapshots", "transfers", "disks lost", "membership AddLearner", "membership Promote",
        "membership Remove", "leaders asked to remove themselves", "write unknown", "elections",
    ):  # fmt: skip
        assert total[what] >= 3, f"{what} never happens: {total}"
    assert total["write ok"] > 2_000
    assert total["read ok"] > 1_000
