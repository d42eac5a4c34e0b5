"""``GET /v1/elections/NAME?watch=true``: how an observation begins and ends."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest
from fronts.fake_node import Server
from fronts.lock_support import lock, run
from waiting import until

TARGET = "/v1/elections/a?watch=true"


async def observe(http: Server, method: str = "GET") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Ask for an observation."""
    reader, writer = await asyncio.open_connection("127.0.0.1", http.port)
    writer.write(f"{method} {TARGET} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return reader, writer


def test_head_of_an_observation_has_no_body_and_the_next_request_is_answered() -> None:
    async def scenario(http: Server) -> None:
        await lock(http, 1, kind="elections")
        reader, writer = await observe(http, "HEAD")
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert b"Connection: close" not in head
        writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
        assert not http.node.watches.hub.size
        writer.close()

    run(scenario)


def test_observations_that_cannot_begin_say_why(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(http: Server) -> None:
        http.node.watches._watchers_max = 2
        http.node.gate = asyncio.Event()
        barriers = http.node.barriers
        clients = [await observe(http) for _ in range(5)]
        await until("all are asked for", lambda: http.node.barriers == barriers + 5)
        http.node.gate.set()
        ends = []
        for reader, _ in clients:
            await reader.readuntil(b"\r\n\r\n")
            line = json.loads(await reader.readline())
            if "error" in line:
                ends.append(line["error"]["code"])
                assert await reader.read() == b""
        assert ends == ["too_many_watchers"] * 3
        assert http.node.watches.hub.size == 2
        for _, writer in clients:
            writer.close()
            await writer.wait_closed()
        await until("the others have ended", lambda: http.node.watches.hub.size == 0)

    with caplog.at_level(logging.INFO):
        run(scenario)
    assert not [each for each in caplog.records if each.levelno >= logging.ERROR]


def test_an_observer_that_has_gone_is_forgotten_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvorum.fronts.http.observe.HEARTBEAT_S", 3600.0)

    async def scenario(http: Server) -> None:
        reader, writer = await observe(http)
        await reader.readuntil(b"\n{")
        assert http.node.watches.hub.size == 1
        writer.close()
        await until("its watch has ended", lambda: http.node.watches.hub.size == 0)

    run(scenario)


def test_a_server_that_stops_says_so_to_an_observer() -> None:
    async def scenario(http: Server) -> None:
        reader, writer = await observe(http)
        await reader.readuntil(b"\r\n\r\n")
        await reader.readline()
        assert http.api is not None
        await http.api.stop()
        assert json.loads(await reader.readline())["error"]["code"] == "not_serving"
        writer.close()

    run(scenario)
