"""A link outlives every stream that breaks (found by deleting the leader's pod on kind, docs/bugs.md)."""

from __future__ import annotations

import asyncio
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import aiohttp

from kvorum.identity import Identity
from kvorum.telemetry.counters import Counters
from kvorum.transport.link import Link
from kvorum.transport.settings import Dialling


class BreakingStream:
    """A stream whose peer hangs up at once."""

    _response = SimpleNamespace(headers=dict[str, str](), connection=None)

    async def receive(self) -> aiohttp.WSMessage:
        return aiohttp.WSMessage(aiohttp.WSMsgType.CLOSED, None, None)

    async def send_bytes(self, data: bytes) -> None:
        return

    async def close(self) -> bool:
        return True

    def get_extra_info(self, _: str) -> None:
        return


def test_a_broken_stream_leaves_no_cancellation_behind_for_the_next_dial() -> None:
    """While it is not 0, aiohttp re-raises a CancelledError that is not ours, and the link would end silently."""
    found: list[int] = []
    enough = asyncio.Event()

    async def ws_connect(*_: Any, **__: Any) -> BreakingStream:
        task = asyncio.current_task()
        assert task is not None
        found.append(task.cancelling())
        if len(found) == 3:
            enough.set()
        return BreakingStream()

    async def scenario() -> None:
        session = cast("aiohttp.ClientSession", SimpleNamespace(ws_connect=ws_connect))
        dialling = Dialling(
            lambda: Identity("n1", "1" * 16, "c" * 32), "http://n1:1", "", lambda: session, Counters(), Random(1)
        )
        link = asyncio.create_task(Link("n2@2", "http://n2:1", dialling, lambda _: None).run())
        try:
            await asyncio.wait_for(enough.wait(), 20)
            assert not link.done()
        finally:
            link.cancel()
            await asyncio.gather(link, return_exceptions=True)

    asyncio.run(scenario())
    assert found == [0, 0, 0]
