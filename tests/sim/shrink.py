"""Making a failing plan smaller while it still fails in the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec
from sim.plan import MS, Plan, S
from sim.run import simulate

SIMPLER: tuple[tuple[str, tuple[int | bool, ...]], ...] = (
    ("clients", (0, 1, 2)),
    ("operations", (1, 3, 10, 20)),
    ("keys", (1,)),
    ("voters", (1, 2, 3)),
    ("duration_us", (1 * S, 2 * S, 4 * S, 8 * S)),
    ("drop_per_mille", (0,)),
    ("duplicate_per_mille", (0,)),
    ("slow_per_mille", (0,)),
    ("client_duplicate_per_mille", (0,)),
    ("holders", (0,)),
    ("tick_skew_per_mille", (0,)),
    ("turn_us", (0,)),
    ("snapshot_every", (0,)),
    ("unreachable_hints", (False,)),
    ("removed_keep_running", (False,)),
    ("append_bytes_max", (1 << 20,)),
    ("committed_bytes_max", (1 << 20,)),
    ("inflight_messages_max", (64,)),
    ("jitter_us", (1,)),
    ("disk_jitter_us", (1,)),
    ("read_per_mille", (0,)),
    ("delete_per_mille", (0,)),
    ("compare_per_mille", (0,)),
    ("session_per_mille", (0, 1000)),
    ("value_bytes", (8,)),
    ("tick_us", (100 * MS, 50 * MS)),
    ("heartbeat_timeout_ticks", (2,)),
    ("think_us", (1 * MS, 20 * MS)),
    ("timeout_us", (500 * MS,)),
    ("deadline_us", (1 * S,)),
    ("disk_us", (300,)),
    ("latency_us", (500,)),
)
"""Fields of a plan, and values that make the story shorter, the simplest first."""


def shrink(
    plan: Plan,
    *,
    attempts_max: int = 1500,
    progress: Callable[[str], None] | None = None,
) -> Plan:
    """Return a smaller plan that breaks the same promise; the plan itself if it breaks none.

    Args:
        plan: one that fails.
        attempts_max: how many plans may be tried.
        progress: told about each success.
    """
    first = simulate(plan).violation
    if first is None:
        return plan
    attempts = 0
    is_smaller = True
    while is_smaller:
        is_smaller = False
        for candidate in _candidates(plan):
            attempts += 1
            if attempts > attempts_max:
                return plan
            violation = simulate(candidate).violation
            if violation is not None and violation.check == first.check:
                plan, is_smaller = candidate, True
                if progress is not None:
                    progress(
                        f"{len(plan.faults)} faults, {plan.clients} clients x {plan.operations}: {violation.check}"
                    )
                break
    return plan


def _candidates(plan: Plan) -> Iterator[Plan]:
    """Yield simpler plans: fewer faults first, halves before single ones."""
    size = len(plan.faults)
    while size >= 1:
        for start in range(0, len(plan.faults), size):
            rest = plan.faults[:start] + plan.faults[start + size :]
            if len(rest) < len(plan.faults):
                yield msgspec.structs.replace(plan, faults=rest)
        size //= 2
    yield from _earlier(plan)
    for field, values in SIMPLER:
        current = getattr(plan, field)
        for value in values:
            if value == current:
                break
            yield msgspec.structs.replace(plan, **{field: value})


def _earlier(plan: Plan) -> Iterator[Plan]:
    """Yield plans in which less time passes before a fault, between two, and after the last."""
    faults = plan.faults
    for position, fault in enumerate(faults):
        gap = fault.at_us - (faults[position - 1].at_us if position else 0)
        for cut in (gap, gap // 2, gap // 8):
            if cut > 10 * MS:
                later = (msgspec.structs.replace(f, at_us=f.at_us - cut) for f in faults[position:])
                duration_us = plan.duration_us - cut
                yield msgspec.structs.replace(plan, faults=(*faults[:position], *later), duration_us=duration_us)
        if fault.duration_us > 10 * MS:
            shorter = msgspec.structs.replace(fault, duration_us=fault.duration_us // 2)
            yield msgspec.structs.replace(plan, faults=(*faults[:position], shorter, *faults[position + 1 :]))
    last = faults[-1].at_us if faults else 0
    for rest in (500 * MS, (plan.duration_us - last) // 2):
        if last + rest < plan.duration_us - 10 * MS:
            yield msgspec.structs.replace(plan, duration_us=last + rest)
