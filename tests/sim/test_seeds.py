"""Seeds: each a cluster of its own, with faults and a workload of its own, held against every invariant."""

from __future__ import annotations

import pytest
from sim.plan import draw_plan
from sim.run import simulate

SEEDS = 500
BLOCK = 10
FOUND_BUGS = {
    15: "a follower behind the log while the window was open: the leader offered the snapshot for ever",
}
"""Seeds that once showed a bug, whatever their number; see docs/bugs.md."""


@pytest.mark.parametrize("first", range(0, SEEDS, BLOCK))
def test_no_promise_is_broken_under_faults(first: int) -> None:
    for seed in range(first, first + BLOCK):
        verdict = simulate(draw_plan(seed))
        assert verdict.violation is None, f"seed {seed}: {verdict.violation}; look at it with: make sim SEED={seed}"


@pytest.mark.parametrize("seed", FOUND_BUGS)
def test_a_bug_that_was_found_stays_fixed(seed: int) -> None:
    verdict = simulate(draw_plan(seed))
    assert verdict.violation is None, f"{FOUND_BUGS[seed]}: {verdict.violation}"
