"""Seeds: each a cluster of its own, with faults and a workload of its own, held against every invariant."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from sim.plan import Plan, draw_plan
from sim.run import simulate

SEEDS = 500
BLOCK = 10
FOUND = sorted((Path(__file__).parent / "found").glob("*.json"))
"""Plans that once showed a bug (docs/bugs.md), made smaller. A plan stays what it is when seeds come to mean others."""


@pytest.mark.parametrize("first", range(0, SEEDS, BLOCK))
def test_no_promise_is_broken_under_faults(first: int) -> None:
    for seed in range(first, first + BLOCK):
        verdict = simulate(draw_plan(seed))
        assert verdict.violation is None, f"seed {seed}: {verdict.violation}; look at it with: make sim SEED={seed}"


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.stem)
def test_a_bug_that_was_found_stays_fixed(path: Path) -> None:
    verdict = simulate(msgspec.json.decode(path.read_bytes(), type=Plan))
    assert verdict.violation is None, f"{path.stem}: {verdict.violation}"
