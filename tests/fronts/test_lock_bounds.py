"""What locks and elections take of a node is bounded, whoever waits for them and for how long."""

from __future__ import annotations

import asyncio
import sys
from time import perf_counter

from fronts.fake_node import FakeNode, Server, make_config
from fronts.lock_support import held, lock, run, waiting
from waiting import until

from kvorum.service import Service
from kvorum.service.access import ANONYMOUS
from kvorum.service.requests import AcquireLock

MIB = 1024 * 1024


async def campaign_slowly(http: Server, lease: int) -> asyncio.StreamWriter:
    """Campaign with a value of two bytes, which arrives later and in a chunk: its length is not known before."""
    _, writer = await asyncio.open_connection("127.0.0.1", http.port)
    head = f"POST /v1/elections/a?lease={lease}&wait_ms=60000 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    writer.write(head.encode())
    await until("the body is awaited", lambda: http.body_bytes > 0)
    writer.write(b"2\r\nhi\r\n0\r\n\r\n")
    return writer


def test_a_campaign_that_waits_takes_nothing_of_what_bodies_may_take() -> None:
    async def scenario(http: Server) -> None:
        await lock(http, 1, kind="elections")
        writers = []
        for count, lease in enumerate((2, 3, 4), start=2):
            writers.append(await campaign_slowly(http, lease))
            await waiting(http, count, "_elections")
            assert http.body_bytes == 0
        assert (await http("PUT", "/v1/kv/k", b"v" * MIB)).status == 200
        for writer in writers:
            writer.close()

    run(scenario, FakeNode(make_config(inflight_bytes_max=2 * MIB)))


def test_a_body_without_a_length_keeps_what_it_has_and_no_more() -> None:
    async def scenario(http: Server) -> None:
        http.node.gate = asyncio.Event()
        writer = await campaign_slowly(http, 1)
        await until("only the value counts", lambda: http.body_bytes == 2)
        http.node.gate.set()
        await until("it is elected", lambda: held(http, kind="_elections") != [])
        await until("it is answered", lambda: http.body_bytes == 0)
        writer.close()

    run(scenario)


def test_a_campaign_that_waits_does_not_keep_its_value() -> None:
    async def scenario(http: Server) -> None:
        await lock(http, 1, kind="elections")
        value = b"v" * 1000 + b"%d" % http.port
        before = sys.getrefcount(value)
        service = Service(http.node, perf_counter)
        attempt = asyncio.ensure_future(
            service.execute(ANONYMOUS, AcquireLock("election", b"a", 2, value, wait_ms=60_000))
        )
        await waiting(http, 2, "_elections")
        http.node.proposed.clear()
        assert sys.getrefcount(value) == before
        attempt.cancel()
        await asyncio.wait({attempt})

    run(scenario)
