"""What the tests of writes that are handed over share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from kv.kv_support import CONFIGURATION, MEMBERS, apply, configured, raise_to

from kvorum.kv.commands import Put
from kvorum.kv.store import Store
from kvorum.node.proposals import Waiter

ME, LEADER, OTHER = MEMBERS
PUT = Put(b"a", b"v")


def store_at(level: int) -> Store:
    store = Store()
    store.apply(configured(CONFIGURATION))
    for each in range(2, level + 1):
        apply(store, raise_to(each))
    return store


def in_loop(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    def run() -> None:
        async def inside() -> None:
            await test()

        asyncio.run(inside())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


def error(waiter: Waiter) -> BaseException | None:
    return waiter.exception() if waiter.done() else None
