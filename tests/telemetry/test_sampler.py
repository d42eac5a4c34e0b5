"""What happens between scrapes: the look at the disk, the line in the log."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from telemetry.fakes import FakeNode
from waiting import until

from kvorum.config import Config
from kvorum.telemetry.counters import Counters, Histogram
from kvorum.telemetry.metrics import Telemetry
from kvorum.telemetry.sampler import Totals, describe, percentile
from kvorum.telemetry.scrape import read_disk


def test_the_files_and_folders_of_the_data_folder_are_measured(tmp_path: Path) -> None:
    (tmp_path / "kvorum.db").write_bytes(b"x" * 1000)
    (tmp_path / "snapshots").mkdir()
    (tmp_path / "snapshots" / "one").write_bytes(b"x" * 20)
    (tmp_path / "snapshots" / "two").write_bytes(b"x" * 3)
    facts = read_disk(tmp_path)
    assert facts is not None
    assert facts.files == (("kvorum.db", 1000), ("snapshots", 23))
    assert 0 < facts.free_bytes <= facts.size_bytes


def test_a_folder_that_cannot_be_read_is_unknown(tmp_path: Path) -> None:
    assert read_disk(tmp_path / "absent") is None


def test_run_looks_at_the_disk_and_stops_when_cancelled(tmp_path: Path) -> None:
    (tmp_path / "kvorum.db").write_bytes(b"x" * 1000)

    async def scenario() -> tuple[bytes, int]:
        node = FakeNode(Config(name="n1", data_dir=str(tmp_path)))
        telemetry = Telemetry(node)
        running = asyncio.create_task(telemetry.run())
        await until("the disk is measured", lambda: b"kvorum_storage_size_bytes{" in telemetry.render()[0])
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        body, _ = telemetry.render()
        telemetry.close()
        return body, len(asyncio.all_tasks()) - 1

    body, left = asyncio.run(scenario())
    assert b'kvorum_storage_size_bytes{file="kvorum.db"} 1000.0' in body
    assert left == 0


def test_a_line_with_the_three_is_logged_every_interval(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="kvorum.metrics")

    async def scenario() -> None:
        node = FakeNode(Config(name="n1", data_dir=str(tmp_path), metrics_log_interval_s=0.01))
        telemetry = Telemetry(node)
        running = asyncio.create_task(telemetry.run())
        await until("two lines", lambda: len(caplog.records) >= 2)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        telemetry.close()

    asyncio.run(scenario())
    line = caplog.records[0].getMessage()
    assert line == (
        "writes 0 (0.0/s), reads 0 (0.0/s), no writes, elections won 0 lost 0, leader changes 0, term 7, leader n1"
    )


def test_each_line_gives_the_rates_since_the_line_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="kvorum.metrics")

    async def scenario() -> None:
        node = FakeNode(Config(name="n1", data_dir=str(tmp_path), metrics_log_interval_s=0.01))
        telemetry = Telemetry(node)
        running = asyncio.create_task(telemetry.run())
        await until("a line", lambda: len(caplog.records) >= 1)
        node.counters.writes = 1000
        seen = len(caplog.records)
        await until("three more lines", lambda: len(caplog.records) >= seen + 3)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        telemetry.close()

    asyncio.run(scenario())
    assert caplog.records[-1].getMessage().startswith("writes 1000 (0.0/s)")


def test_no_line_is_logged_unless_asked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="kvorum.metrics")

    async def scenario() -> None:
        (tmp_path / "kvorum.db").write_bytes(b"x")
        node = FakeNode(Config(name="n1", data_dir=str(tmp_path), metrics_log_interval_s=0))
        telemetry = Telemetry(node)
        running = asyncio.create_task(telemetry.run())
        await until("the disk is measured", lambda: b"kvorum_storage_size_bytes{" in telemetry.render()[0])
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        telemetry.close()

    asyncio.run(scenario())
    assert not caplog.records


def test_the_line_gives_totals_since_the_start_and_rates_of_the_interval() -> None:
    counters = Counters()
    counters.writes, counters.reads = 100, 50
    counters.write_duration.record(4.0, times=100)
    before = Totals.of(counters)
    counters.writes, counters.reads, counters.stale_reads, counters.leader_changes = 300, 55, 5, 2
    counters.elections["won", "timeout"] += 1
    counters.elections["lost", "timeout"] += 3
    counters.write_duration.record(0.0015, times=200)
    assert describe(before, Totals.of(counters), 10.0) == (
        "writes 300 (20.0/s), reads 60 (1.0/s), write latency p50 1.5 ms p99 2.0 ms, "
        "elections won 1 lost 3, leader changes 2"
    )


@settings(deadline=None)
@given(
    st.lists(st.floats(min_value=0.0, max_value=8.0), min_size=1, max_size=200), st.sampled_from([0.01, 0.5, 0.9, 0.99])
)
def test_a_percentile_lies_in_the_bucket_of_the_true_one(durations: list[float], fraction: float) -> None:
    histogram = Histogram()
    for duration in durations:
        histogram.record(duration)
    estimate = percentile(histogram.boundaries, histogram.counts, fraction)
    rank = max(0, -(-int(fraction * 1000) * len(durations) // 1000) - 1)
    true = sorted(durations)[rank]
    bounds = (0.0, *histogram.boundaries)
    bucket = next(index for index, bound in enumerate(bounds[1:]) if true <= bound)
    assert bounds[bucket] - 1e-12 <= estimate <= bounds[bucket + 1] + 1e-12


class Unreadable:
    """An entry like lost+found, which only root may list."""

    name, path = "lost+found", "/data/lost+found"

    def is_dir(self, *, follow_symlinks: bool) -> bool:
        """It is one."""
        return not follow_symlinks


def test_one_folder_that_may_not_be_read_hides_neither_the_others_nor_the_free_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kvorum.db").write_bytes(b"x" * 1000)
    scandir = os.scandir

    def guarded(path: str | Path) -> object:
        if path == Unreadable.path:
            raise PermissionError(13, "Permission denied", path)
        return [*scandir(path), Unreadable()]

    monkeypatch.setattr(os, "scandir", guarded)
    facts = read_disk(tmp_path)
    assert facts is not None
    assert facts.files == (("kvorum.db", 1000),)
    assert facts.free_bytes > 0
