"""Polls with a deadline, for what happens in another process, thread or task."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

T = TypeVar("T")
DEADLINE_S = 30.0


def eventually(what: str, check: Callable[[], Any], deadline_s: float = DEADLINE_S) -> Any:
    """Return the first true value of ``check``; fail when there is none in time. Blocks this thread."""
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline:
        if value := check():
            return value
        time.sleep(0.02)
    raise AssertionError(f"not in {deadline_s} s: {what}")


@overload
async def until(what: str, check: Callable[[], Awaitable[T | None]], deadline_s: float = DEADLINE_S) -> T: ...
@overload
async def until(what: str, check: Callable[[], T | None], deadline_s: float = DEADLINE_S) -> T: ...
async def until(what: str, check: Callable[[], Any], deadline_s: float = DEADLINE_S) -> Any:
    """Return the first true value of ``check``, which may be a coroutine function; fail when there is none in time."""
    try:
        async with asyncio.timeout(deadline_s):
            while True:
                value = check()
                if inspect.isawaitable(value):
                    value = await value
                if value:
                    return value
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"not in {deadline_s} s: {what}") from None
