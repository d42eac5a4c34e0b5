"""Deadlines of many waiting requests, without a timer for each.

A timer would cost more than the request. Requests with the same timeout expire in the order of their arrival, so one
queue for each timeout is enough, and a sweep looks only at the heads of the queues.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

from kvorum.node.ports import Clock

T = TypeVar("T")


class Deadlines(Generic[T]):
    """Futures, ordered by their deadline.

    Args:
        clock: measures the deadlines.
    """

    def __init__(self, clock: Clock) -> None:
        self._monotonic = clock.monotonic
        self._queues: dict[float, deque[tuple[float, asyncio.Future[T]]]] = {}

    def add(self, waiter: asyncio.Future[T], timeout_s: float) -> None:
        """Let this future expire after ``timeout_s`` seconds."""
        queue = self._queues.get(timeout_s)
        if queue is None:
            queue = self._queues[timeout_s] = deque()
        queue.append((self._monotonic() + timeout_s, waiter))

    def expired(self) -> Iterator[asyncio.Future[T]]:
        """Yield once every future that is past its deadline and not done; forget the done ones."""
        now = self._monotonic()
        for timeout_s, queue in list(self._queues.items()):
            while queue and (queue[0][1].done() or queue[0][0] <= now):
                waiter = queue.popleft()[1]
                if not waiter.done():
                    yield waiter
            if not queue:
                del self._queues[timeout_s]
