"""Bodies in flight: one budget for all of them, and none is read that this node would only redirect."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from fronts.fake_node import FakeNode, Server, make_config, run, serving
from waiting import until

from kvorum.errors import ConfigError

MIB = 1024 * 1024
HEAD = b"PUT /v1/kv/k%s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"


@contextlib.contextmanager
def half_sent(port: int, count: int, query: bytes = b"") -> Iterator[list[socket.socket]]:
    """Open connections that each have sent the head of a put of 1 MiB."""
    with contextlib.ExitStack() as stack:
        connections = []
        for _ in range(count):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            connection.sendall(HEAD % (query, MIB))
            connection.setblocking(False)
            connections.append(connection)
        yield connections


async def send(connections: list[socket.socket]) -> None:
    """Send what they will take of their bodies."""
    body = memoryview(b"v" * (MIB - 1))
    left = dict.fromkeys(connections, body)
    for _ in range(200):
        for connection, rest in list(left.items()):
            try:
                left[connection] = rest[connection.send(rest) :]
            except BlockingIOError:
                continue
            except ConnectionError:
                left[connection] = rest[:0]
            if not left[connection]:
                del left[connection]
        if not left:
            return
        await asyncio.sleep(0)


def resident_bytes() -> int:
    """Return the memory of this process."""
    return int(re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024  # type: ignore[index]


def test_a_follower_that_forwards_reads_the_body_and_one_without_a_leader_does_not() -> None:
    async def main() -> None:
        node = FakeNode(make_config(body_timeout_s=0.5))
        node.leads, node.leader = False, None
        async with asyncio.timeout(20), serving() as leader, serving(node) as http:
            assert (await http.raw(HEAD % (b"", MIB))).startswith(b"HTTP/1.1 503 ")
            node.follow("n2", leader.url)
            assert (await http.raw(HEAD % (b"", MIB))).startswith(b"HTTP/1.1 307 ")
            assert (await http("PUT", "/v1/kv/k?forward=true", b"v" * MIB)).status == 200
            assert len(leader.node.proposed) == 1

    asyncio.run(main())


@pytest.mark.parametrize("leads", [True, False])
def test_hundreds_of_half_sent_bodies_take_no_more_than_the_budget(leads: bool) -> None:
    async def main() -> None:
        node = FakeNode(make_config(body_timeout_s=60, inflight_bytes_max=32 * MIB))
        if not leads:
            node.follow("n2", "http://leader:1")
        async with asyncio.timeout(60), serving(node) as http:
            before = resident_bytes()
            with half_sent(http.port, 300) as connections:
                read = 24 if leads else 0  # Three quarters of the budget.
                answered = ("put", 503 if leads else 307)
                await until("the others are answered", lambda: node.counters.requests[answered] == 300 - read)
                assert node.counters.inflight == read
                await send(connections)
                assert resident_bytes() - before < 100 * MIB
                assert node.proposed == []
                # What arrives at once still finds room.
                assert (await http("PUT", "/v1/kv/small", b"v")).status == (200 if leads else 307)
            await until("nothing is in flight", lambda: node.counters.inflight == 0)
            assert (await http("PUT", "/v1/kv/k", b"v" * MIB)).status == (200 if leads else 307)

    asyncio.run(main())


def test_a_body_for_which_there_is_no_room_is_refused_before_it_is_read() -> None:
    async def scenario(http: Server) -> None:
        with half_sent(http.port, 3) as connections:
            await until("they are read", lambda: http.node.counters.inflight == 3)
            for head in (HEAD % (b"", MIB), HEAD[:-2] % (b"", MIB) + b"Expect: 100-continue\r\n\r\n"):
                answer = await http.raw(head)
                assert answer.startswith(b"HTTP/1.1 503 ")
                for part in (b'"code":"overloaded"', b'"outcome":"refused"', b"Retry-After: 1", b"Connection: close"):
                    assert part in answer
            # One that fails gives back what it took, and so does one that is answered.
            connections[0].close()
            await until("it is over", lambda: http.node.counters.inflight == 2)
            for _ in range(3):
                assert (await http("PUT", "/v1/kv/k", b"v" * MIB)).status == 200

    run(scenario, FakeNode(make_config(inflight_bytes_max=4 * MIB)))


def test_bodies_that_wait_for_their_answer_count() -> None:
    async def main() -> None:
        node = FakeNode(make_config(inflight_bytes_max=2 * MIB))
        node.gate = asyncio.Event()
        async with asyncio.timeout(20), serving(node) as http:
            waiting = asyncio.create_task(http("PUT", "/v1/kv/k", b"v" * MIB))
            await until("it waits for its quorum", lambda: len(node.timeouts_ms) == 1)
            assert (await http("PUT", "/v1/kv/k", b"v" * MIB)).status == 503
            node.gate.set()
            assert (await waiting).status == 200
            assert (await http("PUT", "/v1/kv/k", b"v" * MIB)).status == 200

    asyncio.run(main())


def test_a_budget_that_no_body_fits_into_is_refused() -> None:
    with pytest.raises(ConfigError, match="inflight_bytes_max"):
        make_config(inflight_bytes_max=MIB, body_bytes_max=MIB)
