"""A crash at every save, every send and every apply of some short stories, one run for each.

The seeds crash where chance wants it; here nothing is left to chance. Each story is run once to count the points at
which a process can die, and then once more for every single one of them.
"""

from __future__ import annotations

import msgspec
import pytest
from sim.plan import MS, Fault, Plan, S
from sim.run import simulate

SHARDS = 4

CALM = Plan(
    seed=1, tick_us=20 * MS, duration_us=1500 * MS, clients=2, operations=6, think_us=60 * MS, timeout_us=300 * MS,
    deadline_us=1 * S, jitter_us=200, disk_jitter_us=200,
)  # fmt: skip

STORIES: dict[str, Plan] = {
    "writes and snapshots": msgspec.structs.replace(CALM, snapshot_every=3, retain=0),
    "a deposed leader with entries of its own": msgspec.structs.replace(
        CALM,
        faults=(
            Fault(500 * MS, "isolate", target=-1, duration_us=450 * MS),
            Fault(1100 * MS, "transfer", target=-1),
        ),
    ),
    "a snapshot is installed, a member joins": msgspec.structs.replace(
        CALM,
        snapshot_every=4,
        retain=0,
        faults=(Fault(600 * MS, "isolate", target=0, duration_us=400 * MS), Fault(700 * MS, "add", target=-1)),
    ),
    "the leader is removed": msgspec.structs.replace(CALM, faults=(Fault(700 * MS, "remove", target=-1),)),
}


def points(plan: Plan) -> int:
    """Return how many crash points the story passes while faults are on."""
    return simulate(plan).crash_points


@pytest.mark.parametrize("shard", range(SHARDS))
@pytest.mark.parametrize("story", STORIES)
def test_a_crash_at_any_point_breaks_no_promise(story: str, shard: int) -> None:
    plan = STORIES[story]
    count = points(plan)
    assert count > 200, "a story in which little is saved and sent"
    for point in range(1 + shard, count + 1, SHARDS):
        verdict = simulate(msgspec.structs.replace(plan, crash_at=point))
        assert verdict.violation is None, f"{story}, crash at {point}: {verdict.violation}"
        assert verdict.counts["crashes"] >= 1, f"{story}: nobody crashed at point {point}"
