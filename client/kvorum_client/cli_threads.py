"""Threads that ``kv`` does not wait for at its end: a silent name server must not hold it beyond its deadline."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class DaemonThreads(ThreadPoolExecutor):
    """Runs each call in a thread of its own, which does not live longer than the process. For an event loop.

    The threads of its base class are joined at the end of the event loop and of the interpreter. A lookup of a name
    cannot be cancelled, and the system's resolver takes up to half a minute for it.
    """

    def submit(
        self, fn: Callable[_Arguments, _Result], /, *args: _Arguments.args, **kwargs: _Arguments.kwargs
    ) -> Future[_Result]:
        """Begin the call."""
        future: Future[_Result] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001 - whoever waits for the future raises it
                future.set_exception(error)

        try:
            threading.Thread(target=run, daemon=True).start()
        except RuntimeError as error:  # The system gives no more (ulimit -u): the lookup has failed, and nothing else.
            future.set_exception(OSError(errno.EAGAIN, str(error)))
        return future


def use_daemon_threads(loop: asyncio.AbstractEventLoop) -> None:
    """Let an event loop run its lookups in such threads, and start none to wait for them at its end.

    That thread may not be had (``ulimit -u``), and what was done by then would be called failed.
    """

    async def wait_for_nothing(timeout_s: float | None = None) -> None:
        pass

    loop.set_default_executor(DaemonThreads())
    loop.shutdown_default_executor = wait_for_nothing  # type: ignore[method-assign]
