"""The ticks of consensus time, and how late the event loop takes them."""

from __future__ import annotations

from collections.abc import Callable

from kvorum.node.ports import Clock, Tasks, Timer
from kvorum.telemetry.counters import Counters


class Ticker:
    """Calls ``act`` once a tick, from :meth:`start` to :meth:`stop`.

    A tick that is late does not delay those after it. Ticks that were missed are not made up for.

    Args:
        tick_ms: how long a tick is.
        act: what a tick does.
        clock: measures time.
        tasks: how to be called later.
        counters: where the lag of the loop is counted.
    """

    def __init__(self, tick_ms: int, act: Callable[[], None], clock: Clock, tasks: Tasks, counters: Counters) -> None:
        self._tick_s = tick_ms / 1000
        self._act = act
        self._clock = clock
        self._tasks = tasks
        self._counters = counters
        self._last_s = self._due_s = clock.monotonic()
        self._timer: Timer | None = None

    def start(self) -> None:
        """Tick now, and from now on."""
        self._last_s = self._due_s = self._clock.monotonic()
        self._tick()

    def stop(self) -> None:
        """Tick no more."""
        if self._timer is not None:
            self._timer.cancel()

    @property
    def silent_s(self) -> float:
        """How long ago the last tick was."""
        return self._clock.monotonic() - self._last_s

    def _tick(self) -> None:
        now = self._clock.monotonic()
        self._counters.loop_lag.record(max(now - self._due_s, 0.0))
        self._last_s = now
        self._act()
        now = self._clock.monotonic()
        self._due_s += self._tick_s
        if self._due_s <= now:
            self._due_s = now + self._tick_s
        self._timer = self._tasks.call_later(self._due_s - now, self._tick)
