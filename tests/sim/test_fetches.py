"""A follower that fetches more slowly than its leader takes snapshots."""

from __future__ import annotations

import pytest
from sim.plan import MS, Fault, Plan, S
from sim.run import simulate


@pytest.mark.parametrize("seed", range(3))
def test_a_fetch_that_takes_many_snapshot_intervals_ends_while_clients_write(seed: int) -> None:
    plan = Plan(
        seed=seed,
        snapshot_every=3,
        retain=50,
        operations=300,
        think_us=20 * MS,
        read_per_mille=0,
        session_per_mille=0,
        compare_per_mille=0,
        keys=12,
        duration_us=6 * S,
        faults=(Fault(1 * S, "isolate", 2, 2 * S),),
    )
    lines: list[str] = []
    verdict = simulate(plan, transcript=lines.append)
    assert verdict.violation is None
    calm = next(number for number, line in enumerate(lines) if "the faults end" in line)
    restored = next(number for number, line in enumerate(lines) if "restores the snapshot" in line)
    assert restored < calm, "it was restored only after the clients had stopped"
