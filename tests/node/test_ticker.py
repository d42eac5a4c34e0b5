"""Ticks come on time on average: log time passes by at most one tick in each of them."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

from kvorum.node.ticker import Ticker
from kvorum.telemetry.counters import Counters


class Timers:
    """A clock, and an event loop that is late by as much as a test says."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.delays_s: list[float] = []
        self._call: Callable[[], None] = lambda: None

    def monotonic(self) -> float:
        return self.now_s

    def call_later(self, delay_s: float, call: Callable[[], None]) -> object:
        self.delays_s.append(delay_s)
        self._call = call
        return SimpleNamespace(cancel=lambda: None)

    def fire(self, late_s: float) -> None:
        """Call what is due, so late."""
        self.now_s += self.delays_s[-1] + late_s
        self._call()


def ticking(ticks_s: list[float]) -> Timers:
    """Return the timers of a ticker of 0.5 s that has begun, and notes when it ticks."""
    timers = Timers()
    Ticker(500, lambda: ticks_s.append(timers.now_s), cast(Any, timers), cast(Any, timers), Counters()).start()
    return timers


def test_a_late_tick_does_not_delay_those_after_it() -> None:
    ticks_s: list[float] = []
    timers = ticking(ticks_s)
    for late_s in (0.125, 0.25, 0.0, 0.375):
        timers.fire(late_s)
    assert ticks_s == [1000.0, 1000.625, 1001.25, 1001.5, 1002.375]


def test_ticks_that_were_missed_are_not_made_up_for() -> None:
    ticks_s: list[float] = []
    timers = ticking(ticks_s)
    timers.fire(60.0)
    assert timers.delays_s[-1] == 0.5
    timers.fire(0.0)
    assert ticks_s[-1] == 1061.0
