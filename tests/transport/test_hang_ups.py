"""A caller that has hung up before it is answered: nothing of it remains, and it is no error of ours."""

from __future__ import annotations

import asyncio
import base64
import logging
from typing import NoReturn, cast

import pytest
from aiohttp import ClientConnectionResetError, web
from transport.test_peers import CALLER, FakeNode, port
from waiting import until

from kvorum.identity import Identity
from kvorum.telemetry.counters import Counters
from kvorum.transport import Greeting
from kvorum.transport.server import PeerServer


class Hesitant(FakeNode):
    """Takes its time to join."""

    def __init__(self) -> None:
        super().__init__(Identity("n1", "1" * 16))
        self.asked = asyncio.Event()
        self.may_join = asyncio.Event()

    async def join(self, greeting: Greeting) -> None:
        self.asked.set()
        await self.may_join.wait()
        await super().join(greeting)


def test_a_peer_that_hangs_up_before_its_stream_is_open_is_counted_and_no_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        node = Hesitant()
        async with port(node) as it:
            host, number = it.url.removeprefix("http://").split(":")
            _, writer = await asyncio.open_connection(host, int(number))
            upgrade = {
                "Host": host,
                "Upgrade": "websocket",
                "Connection": "Upgrade",
                "Sec-WebSocket-Version": "13",
                "Sec-WebSocket-Key": base64.b64encode(b"k" * 16).decode(),
            }
            lines = [f"{name}: {value}" for name, value in {**upgrade, **it.headers()}.items()]
            writer.write("\r\n".join(["GET /raft/v1/stream HTTP/1.1", *lines, "", ""]).encode())
            await node.asked.wait()
            writer.transport.abort()
            await writer.wait_closed()
            # The server has to notice it; another whole conversation is proof that it had its turn.
            async with it.session.get(f"{it.url}/raft/v1/hello") as response:
                await response.read()
            node.may_join.set()
            name = CALLER.name
            await until("it is counted", lambda: it.counters.peer_failures[name, "broken"])

            assert node.connected == []
            assert node.disconnected == []

    with caplog.at_level(logging.ERROR):
        asyncio.run(scenario())

    assert [record.getMessage() for record in caplog.records] == []


class HangsUpAfterItsPing:
    """A stream whose ping cannot be answered: the library writes the answer while the stream is read."""

    closed = False

    def __aiter__(self) -> HangsUpAfterItsPing:
        return self

    async def __anext__(self) -> NoReturn:
        raise ClientConnectionResetError("Cannot write to closing transport")

    async def close(self) -> None:
        self.closed = True


def test_a_peer_that_hangs_up_after_its_ping_is_counted_and_no_error() -> None:
    async def scenario() -> None:
        counters = Counters()
        server = PeerServer(FakeNode(), counters, "", 10.0)
        stream = HangsUpAfterItsPing()
        await server._receive(cast("web.WebSocketResponse", stream), f"{CALLER}")
        assert sum(count for (_, reason), count in counters.peer_failures.items() if reason == "broken") == 1
        assert stream.closed

    asyncio.run(scenario())
