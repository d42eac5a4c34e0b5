"""The real clock, tasks and threads, on the running asyncio event loop."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

from kvorum.errors import FatalError, InvariantViolatedError
from kvorum.node.supervisor import Supervisor

T = TypeVar("T")

THREAD_ENDS_S = 5.0
"""Who is cancelled waits so long for a function that still uses a file."""


class SystemClock:
    """This machine's time."""

    def __init__(self) -> None:
        # The functions themselves: they are called for every request.
        self.monotonic = time.monotonic
        self.boottime: Callable[[], float] = time.monotonic
        if sys.platform == "linux":
            # CLOCK_MONOTONIC stands still while the machine is suspended. CLOCK_BOOTTIME goes on.
            self.boottime = partial(time.clock_gettime, time.CLOCK_BOOTTIME)

    def wall_ms(self) -> int:
        """Return milliseconds since 1970."""
        return int(time.time() * 1000)


class LoopTasks:
    """Tasks and timers of the running event loop.

    Args:
        supervisor: receives the exceptions that leave a task.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        loop = asyncio.get_running_loop()
        self._supervisor = supervisor
        self._running: set[asyncio.Task[Any]] = set()
        # The loop's own methods: one of them is called in every turn.
        self.call_soon = loop.call_soon
        self.call_later = loop.call_later

    def spawn(self, coroutine: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """Run a coroutine as a task; what leaves it ends the process."""
        task = asyncio.create_task(coroutine, name=name)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if not isinstance(error, FatalError):
            error = InvariantViolatedError(f"{task.get_name()} failed: {error!r}")
        self._supervisor.fail(error)

    async def sleep(self, delay_s: float) -> None:
        """Return after ``delay_s`` seconds."""
        await asyncio.sleep(delay_s)


class LoopThreads:
    """The event loop's thread pool."""

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """Return what the function returns in a thread."""
        return await asyncio.to_thread(function, *args)

    async def finish(self, function: Callable[..., T], *args: Any) -> T:
        """Return what the function returns in a thread; do not leave before it has ended."""
        work = asyncio.ensure_future(asyncio.to_thread(function, *args))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            # A disk that hangs does not hold up a shutdown for ever.
            await asyncio.wait([work], timeout=THREAD_ENDS_S)
            raise
