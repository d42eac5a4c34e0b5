"""`make chaos`: real processes under faults for some minutes, every history checked for linearizability."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from itertools import count
from pathlib import Path
from random import SystemRandom

import msgspec
from chaos.network import enter_namespace
from chaos.run import Report, run

SECONDS_A_RUN = 60.0


def main(arguments: list[str]) -> int:
    """Run one seed after the other until the time is over; return 1 when any promise was broken."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=SystemRandom().randrange(1_000_000))
    parser.add_argument("--size", type=int, choices=(3, 5), help="default: 3 and 5 in turn")
    parser.add_argument("--seconds-a-run", type=float, default=SECONDS_A_RUN)
    parser.add_argument("--report", type=Path, default=Path("chaos.json"))
    options = parser.parse_args(arguments)
    partitions = enter_namespace("chaos", [*arguments, "--seed", str(options.seed)])
    if not partitions:
        _say("no permission for a network namespace: partitions are left out")
    reports: list[Report] = []
    until = time.monotonic() + 60 * options.minutes
    for seed in count(options.seed):
        left_s = until - time.monotonic()
        if reports and left_s < options.seconds_a_run / 2:
            break
        size = options.size or (3, 5)[seed % 2]
        folder = Path(tempfile.mkdtemp(prefix=f"kvorum-chaos-{seed}-"))
        _say(f"seed {seed}, {size} nodes, {folder}")
        seconds = min(options.seconds_a_run, max(left_s, 1.0))
        report = run(folder, seed=seed, size=size, seconds=seconds, partitions=partitions, say=_say)
        reports.append(report)
        _say(msgspec.json.encode(report).decode())
        options.report.write_bytes(msgspec.json.format(msgspec.json.encode(reports), indent=2) + b"\n")
    broken = sum(bool(report.violations) for report in reports)
    _say(f"{len(reports)} runs, {broken} with broken promises; {options.report}")
    return 1 if broken else 0


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
