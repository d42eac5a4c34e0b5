"""The one place where it is decided that the process must end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from kvorum.errors import FatalError


class Supervisor:
    """Takes note of the first failure that cannot be survived. Made inside a running event loop."""

    def __init__(self) -> None:
        self._failure: asyncio.Future[FatalError] = asyncio.Future()

    def fail(self, error: FatalError) -> None:
        """The process must end: going on could break a promise. Only the first failure counts."""
        if not self._failure.done():
            self._failure.set_result(error)

    @property
    def has_failed(self) -> bool:
        """Whether the process is about to end."""
        return self._failure.done()

    def on_failure(self, act: Callable[[], None]) -> None:
        """Call this, in a later turn of the loop, when the process must end."""
        self._failure.add_done_callback(lambda _: act())

    async def wait(self) -> FatalError:
        """Return the failure, once there is one. Cancelling the caller changes nothing."""
        return await asyncio.shield(self._failure)
