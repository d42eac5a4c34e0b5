"""The failover's prober acknowledges what a server acknowledged, and nothing else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from bench import failover
from bench.clusters import Kvorum
from bench.failover import first_acknowledged
from bench.processes import BenchError, free_ports
from serving import stop_server


@asynccontextmanager
async def node(answers: list[web.StreamResponse | None]) -> AsyncIterator[tuple[int, list[float]]]:
    """A server that gives these answers in turn, the last one for ever; None: it never answers."""
    asked: list[float] = []
    forever = asyncio.Event()

    async def handle(_request: web.BaseRequest) -> web.StreamResponse:
        asked.append(time.monotonic())
        answer = answers[min(len(asked), len(answers)) - 1]
        if answer is None:
            await forever.wait()
            return web.Response(status=503)
        return web.Response(status=answer.status, headers=answer.headers)

    runner = web.ServerRunner(web.Server(handle), shutdown_timeout=0.05)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield runner.addresses[0][1], asked
    finally:
        await stop_server(runner)


def probe(ports: list[int]) -> asyncio.Task[float]:
    return asyncio.create_task(first_acknowledged(Kvorum(), ports))


def test_a_refusal_is_no_acknowledgement_and_the_next_attempt_is() -> None:
    async def run() -> None:
        async with node([web.Response(status=503), web.Response(status=503), web.Response()]) as (port, asked):
            [dead] = free_ports(1)
            acknowledged_at = await probe([dead, port])
            assert len(asked) >= 3
            assert acknowledged_at >= asked[2]

    asyncio.run(run())


def test_an_attempt_that_hangs_does_not_hold_up_the_next() -> None:
    async def run() -> None:
        async with node([None, web.Response()]) as (port, asked):
            await probe([port])
            assert len(asked) >= 2

    asyncio.run(run())


def test_a_redirect_to_the_new_leader_is_followed() -> None:
    async def run() -> None:
        async with node([web.Response()]) as (leader, asked):
            location = {"Location": f"http://127.0.0.1:{leader}/v1/kv/failover-key"}
            async with node([web.Response(status=307, headers=location)]) as (follower, _):
                await probe([follower])
                assert asked

    asyncio.run(run())


def test_a_cluster_that_never_comes_back_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failover, "GIVE_UP_S", 0.1)

    async def run() -> None:
        async with node([web.Response(status=503)]) as (port, _):
            with pytest.raises(BenchError, match="no write was acknowledged"):
                await probe([port])

    asyncio.run(run())
