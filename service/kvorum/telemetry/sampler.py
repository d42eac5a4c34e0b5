"""What telemetry does between scrapes: it looks at the disk, and writes a line to the log."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from kvorum.telemetry.counters import Counters
from kvorum.telemetry.scrape import DiskFacts, ObservedNode, read_disk

DISK_SAMPLE_INTERVAL_S = 5.0

logger = logging.getLogger("kvorum.metrics")


async def sample_disk(
    data_dir: str | Path, store: Callable[[DiskFacts | None], None], interval_s: float = DISK_SAMPLE_INTERVAL_S
) -> None:
    """Hand the folder's sizes to ``store``, at once and then every ``interval_s``, until cancelled."""
    while True:
        store(await asyncio.to_thread(read_disk, data_dir))
        await asyncio.sleep(interval_s)


async def log_periodically(node: ObservedNode) -> None:
    """Log one line of totals, rates and latencies every ``metrics_log_interval_s``, until cancelled."""
    before = Totals.of(node.counters)
    started = time.monotonic()
    while True:
        await asyncio.sleep(node.config.metrics_log_interval_s)
        now = time.monotonic()
        after = Totals.of(node.counters)
        status = node.status()
        leader = status.leader_name or "unknown"
        logger.info("%s, term %d, leader %s", describe(before, after, now - started), status.term, leader)
        before, started = after, now


class Totals(msgspec.Struct, frozen=True):
    """The figures of a log line at one moment: writes and their latency, reads, elections."""

    writes: int
    write_counts: tuple[int, ...]
    write_boundaries: tuple[float, ...]
    reads: int
    elections_won: int
    elections_lost: int
    leader_changes: int

    @classmethod
    def of(cls, counters: Counters) -> Totals:
        """Return the totals as they are now."""
        return cls(
            counters.writes,
            tuple(counters.write_duration.counts),
            counters.write_duration.boundaries,
            counters.reads + counters.stale_reads,
            sum(count for (result, _), count in counters.elections.items() if result == "won"),
            sum(count for (result, _), count in counters.elections.items() if result == "lost"),
            counters.leader_changes,
        )


def describe(before: Totals, after: Totals, elapsed_s: float) -> str:
    """Return one readable line: totals since the start; rates and percentiles of the time since ``before``."""
    counts = [now - then for now, then in zip(after.write_counts, before.write_counts, strict=True)]
    latency = "no writes"
    if any(counts):
        p50, p99 = (percentile(after.write_boundaries, counts, fraction) for fraction in (0.5, 0.99))
        latency = f"write latency p50 {_duration(p50)} p99 {_duration(p99)}"
    return (
        f"writes {after.writes} ({(after.writes - before.writes) / elapsed_s:.1f}/s), "
        f"reads {after.reads} ({(after.reads - before.reads) / elapsed_s:.1f}/s), {latency}, "
        f"elections won {after.elections_won} lost {after.elections_lost}, leader changes {after.leader_changes}"
    )


def percentile(boundaries: tuple[float, ...], counts: list[int], fraction: float) -> float:
    """Return the value below which ``fraction`` of the samples lie, by Prometheus's rule (linear within a bucket).

    Samples above the last boundary are taken for the last boundary. ``counts`` must hold at least one sample.
    """
    rank = fraction * sum(counts)
    below = 0
    for bucket, count in enumerate(counts[:-1]):
        if count and below + count >= rank:
            lower = boundaries[bucket - 1] if bucket else 0.0
            return lower + (boundaries[bucket] - lower) * (rank - below) / count
        below += count
    return boundaries[-1]


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"
