"""The garbage collector leaves the state of a node alone."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator

import pytest

from kvorum.commands import garbage
from kvorum.telemetry.counters import Counters


class Cycle:
    """Refers to itself."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()


def test_what_is_frozen_is_not_visited_again_and_what_was_garbage_is_freed_first() -> None:
    kept = [Cycle() for _ in range(1000)]
    gone = weakref.ref(Cycle())
    garbage.freeze()
    assert gone() is None
    assert gc.get_freeze_count() > len(kept)
    assert not any(each is kept for each in gc.get_objects())


def test_the_collector_runs_seldom() -> None:
    garbage.collect_seldom()
    assert gc.get_threshold() == garbage.THRESHOLDS


def test_the_state_is_frozen_whenever_a_snapshot_was_taken_or_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "CHECK_S", 0)
    frozen: list[int] = []
    counters = Counters()
    monkeypatch.setattr(garbage, "freeze", lambda: frozen.append(sum(counters.snapshots.values())))

    async def scenario() -> None:
        task = asyncio.create_task(garbage.freeze_after_snapshots(counters))
        for kind in ("create", "install"):
            for _ in range(3):
                await asyncio.sleep(0)
            counters.snapshots[kind, "ok"] += 1
        for _ in range(3):
            await asyncio.sleep(0)
        task.cancel()

    asyncio.run(scenario())
    assert frozen == [1, 2]
