"""Why a call failed, in words that an operator knows."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from bench.processes import free_ports

from kvorum.transport.failures import reason_of


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:{port}/", "connection refused"),
        ("http://no-such-host.invalid:{port}/", "the name cannot be resolved"),
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
    ("error", "reason"),
    [
        (TimeoutError(), "no answer in time"),
        (ValueError("it is no URL"), "it is no URL"),
        (aiohttp.ClientPayloadError(), "ClientPayloadError"),
    ],
)
def test_a_failure_without_a_number_is_told_as_it_is(error: Exception, reason: str) -> None:
    assert reason_of(error) == reason
