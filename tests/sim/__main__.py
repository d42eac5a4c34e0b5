"""``python -m sim``: run one seed with a readable transcript, or many; see ``make sim``."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import msgspec
from sim.plan import Plan, S, draw_plan
from sim.run import Verdict, simulate, simulate_seed
from sim.shrink import shrink


def main() -> int:
    """Parse the arguments, run, and return the exit status: 1 if anything was broken."""
    parser = argparse.ArgumentParser(prog="python -m sim", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this one, and print what happens")
    parser.add_argument("--plan", type=Path, help="run the plan in this file (what --seed and --shrink print)")
    parser.add_argument("--seeds", type=int, default=500, help="run so many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--quiet", action="store_true", help="with --seed or --plan: the verdict only")
    parser.add_argument(
        "--shrink", action="store_true", help="with --seed or --plan: first make it smaller while it fails likewise"
    )
    arguments = parser.parse_args()
    if arguments.plan is not None:
        plan = msgspec.json.decode(arguments.plan.read_bytes(), type=Plan)
        return _run_one(plan, arguments.quiet, arguments.shrink)
    if arguments.seed is not None:
        return _run_one(draw_plan(arguments.seed), arguments.quiet, arguments.shrink)
    return _run_many(range(arguments.first, arguments.first + arguments.seeds), arguments.jobs)


def _run_one(plan: Plan, is_quiet: bool, is_to_shrink: bool) -> int:
    if is_to_shrink:
        plan = shrink(plan, progress=lambda text: print(text, file=sys.stderr))
    print(msgspec.json.encode(plan).decode())
    verdict = simulate(plan, transcript=None if is_quiet else print)
    print(verdict)
    return 0 if verdict.is_clean else 1


def _verdicts(seeds: Iterable[int], jobs: int) -> Iterator[Verdict]:
    if jobs <= 1:
        yield from map(simulate_seed, seeds)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(simulate_seed, seeds, chunksize=5)


def _run_many(seeds: range, jobs: int) -> int:
    started = time.monotonic()
    failed: list[Verdict] = []
    total: Counter[str] = Counter()
    simulated_us = 0
    for done, verdict in enumerate(_verdicts(seeds, jobs), start=1):
        simulated_us += verdict.simulated_us
        total.update(verdict.counts)
        total["elections"] += verdict.elections
        total["operations"] += verdict.operations
        total["events"] += verdict.events
        if verdict.violation is not None:
            failed.append(verdict)
            print(f"seed {verdict.seed}: {verdict.violation.check}: {verdict.violation.detail}", flush=True)
        if done % 100 == 0 or done == len(seeds):
            minutes = (time.monotonic() - started) / 60
            hours = simulated_us / S / 3600
            rate = f"{hours:.2f} simulated hours, {hours / minutes:.2f} a minute"
            print(f"{done} of {len(seeds)} seeds, {len(failed)} failed; {rate}", flush=True)
    print(", ".join(f"{count} {what}" for what, count in sorted(total.items())))
    if failed:
        print("failing seeds:", " ".join(str(verdict.seed) for verdict in sorted(failed, key=lambda v: v.seed)))
        print(f"look at one with: make sim SEED={failed[0].seed}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
