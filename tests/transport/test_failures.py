"""Why a call failed, in words that an operator knows."""

from __future__ import annotations

import asyncio
import socket
from typing import NoReturn

import aiohttp
import pytest
from aiohttp.abc import AbstractResolver
from bench.processes import free_ports

from kvorum.transport.failures import reason_of


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:{port}/", "connection refused"),
    ],
)
def test_a_failed_call_is_told_without_the_words_of_the_library(url: str, reason: str) -> None:
    async def scenario() -> None:
        [port] = free_ports(1)
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:
            with pytest.raises(aiohttp.ClientError) as raised:
                await session.get(url.format(port=port))
        assert reason_of(raised.value) == reason

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (socket.EAI_NONAME, "there is no such name (NXDOMAIN)"),
        (socket.EAI_NODATA, "the name has no address"),
        (socket.EAI_AGAIN, "the name server does not answer"),
        (socket.EAI_FAIL, "the name cannot be resolved (it is broken)"),
    ],
)
def test_a_name_that_does_not_exist_is_told_apart_from_a_name_server_that_is_away(number: int, reason: str) -> None:
    """A wrong cluster domain is for the operator, and an outage of the name server is over some day."""

    class OneAnswer(AbstractResolver):
        async def resolve(self, *_: object, **__: object) -> NoReturn:
            raise socket.gaierror(number, "it is broken")

        async def close(self) -> None:
            return

    async def scenario() -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=OneAnswer())) as session:
            with pytest.raises(aiohttp.ClientError) as raised:
                await session.get("http://kv-0.kv-headless.default.svc.cluster.wrong:9001/")
        assert reason_of(raised.value) == reason

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (TimeoutError(), "no answer in time"),
        (ValueError("it is no URL"), "it is no URL"),
        (aiohttp.ClientPayloadError(), "ClientPayloadError"),
    ],
)
def test_a_failure_without_a_number_is_told_as_it_is(error: Exception, reason: str) -> None:
    assert reason_of(error) == reason
