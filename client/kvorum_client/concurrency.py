"""How many calls of one client are in progress at once.

Thousands of calls at once would share the processor and the nodes so thinly that all of their attempts time out. So a
client makes a bounded number of calls, and the others wait for their turn, first come, first served. Waiting is no
attempt: it uses up the caller's deadline, and not the time that an attempt may take.

Reads that any node answers have turns of their own: they must not wait for writes that wait for a quorum.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from kvorum_client.arguments import check_whole_number
from kvorum_client.errors import UnavailableError


class Turns:
    """The turns of the calls of one kind; for one event loop.

    Args:
        calls_max: how many have theirs at once.

    Raises:
        InvalidArgumentError: it is no whole number, or less than 1.
    """

    def __init__(self, calls_max: int) -> None:
        self._calls_max = check_whole_number(calls_max, "concurrent_calls_max", 1)
        self._semaphore = asyncio.Semaphore(self._calls_max)

    @contextlib.asynccontextmanager
    async def turn(self, deadline: float) -> AsyncIterator[None]:
        """Wait for a turn, and keep it for the length of the context.

        Raises:
            UnavailableError: it did not come before the deadline (of the monotonic clock).
        """
        if self._semaphore.locked():
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    await self._semaphore.acquire()
            except TimeoutError:
                raise UnavailableError(
                    f"{self._calls_max} calls of this client are in progress already; nothing was sent"
                ) from None
        else:
            await self._semaphore.acquire()
        try:
            yield
        finally:
            self._semaphore.release()
