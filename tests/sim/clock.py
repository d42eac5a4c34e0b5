"""The virtual clock: events in order of their time, and among equals in the order they were asked for."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any


class Clock:
    """Microseconds since the start of the simulation, and what is still to happen."""

    def __init__(self) -> None:
        self.now = 0
        self.events = 0
        self.error: BaseException | None = None
        """Why the simulation must end."""
        self._heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._asked = 0

    def after(self, delay_us: int, action: Callable[..., None], *arguments: Any) -> None:
        """Call ``action`` in ``delay_us`` microseconds."""
        self._asked += 1
        heappush(self._heap, (self.now + delay_us, self._asked, action, arguments))

    def abort(self, error: BaseException) -> None:
        """End the simulation after the event that is under way; the first error counts."""
        if self.error is None:
            self.error = error

    def run_until(self, time_us: int) -> None:
        """Let everything happen that is due until ``time_us``, and be there.

        Raises:
            BaseException: what :meth:`abort` was told.
        """
        heap = self._heap
        while heap and heap[0][0] <= time_us:
            self.now, _, action, arguments = heappop(heap)
            self.events += 1
            action(*arguments)
            if self.error is not None:
                break
        if self.error is not None:
            raise self.error
        self.now = max(self.now, time_us)
