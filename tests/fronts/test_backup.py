"""``GET /v1/snapshot``: after a barrier, whole or visibly broken off, and let go of in every case."""

from __future__ import annotations

import asyncio
import http.client
from collections.abc import Awaitable, Callable

import pytest
from fronts.fake_node import Server, serving
from waiting import until

from kvorum.errors import NoLeaderError, OverloadedError


def run(scenario: Callable[[Server], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(30), serving() as server:
            await scenario(server)

    asyncio.run(main())


def test_a_backup_is_the_files_bytes_after_a_read_barrier() -> None:
    async def scenario(server: Server) -> None:
        chunks = [b"a" * 300_000, b"b", b"c" * 300_000]
        server.node.backup_chunks = [*chunks]
        answer = await server("GET", "/v1/snapshot?timeout_ms=100")
        assert answer.status == 200
        assert answer.body == b"".join(chunks)
        assert answer.headers["Content-Type"] == "application/octet-stream"
        assert answer.headers["X-Kvorum-Snapshot-Index"] == "7"
        assert answer.headers["X-Kvorum-Snapshot-Sha256"] == "5" * 64
        assert server.node.barriers == 1, "a backup that no quorum confirmed may lack what was acknowledged"
        assert server.node.timeouts_ms == [100]
        assert server.node.backups[0].closed == 1

    run(scenario)


def test_a_connection_goes_on_after_a_backup() -> None:
    async def scenario(server: Server) -> None:
        server.node.backup_chunks = [b"x" * 100_000]

        def twice() -> list[int]:
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
            sizes = []
            for path in ("/v1/snapshot", "/version", "/v1/snapshot"):
                connection.request("GET", path)
                sizes.append(len(connection.getresponse().read()))
            connection.close()
            return sizes

        first, _, second = await asyncio.to_thread(twice)
        assert (first, second) == (100_000, 100_000)

    run(scenario)


def test_a_backup_that_breaks_off_is_not_taken_for_a_whole_one() -> None:
    async def scenario(server: Server) -> None:
        server.node.backup_chunks = [b"x" * 1000, ConnectionAbortedError("the disk is gone"), b"y"]
        with pytest.raises(http.client.IncompleteRead):
            await server("GET", "/v1/snapshot")
        assert server.node.backups[0].closed == 1

    run(scenario)


def test_a_reader_that_goes_away_costs_nothing_for_long() -> None:
    async def scenario(server: Server) -> None:
        server.node.backup_chunks = [b"x" * 1_000_000] * 100
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /v1/snapshot HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readexactly(1000)
        writer.transport.abort()
        await until("the backup is closed", lambda: server.node.backups[0].closed == 1)

    run(scenario)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (NoLeaderError("no quorum"), 503, "no_leader"),
        (OverloadedError("2 backups are already being read"), 503, "overloaded"),
    ],
)
def test_what_prevents_a_backup_is_said(error: Exception, status: int, code: str) -> None:
    async def scenario(server: Server) -> None:
        server.node.error = error
        answer = await server("GET", "/v1/snapshot")
        assert (answer.status, answer.json["code"]) == (status, code)
        assert server.node.backups == []

    run(scenario)


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("HEAD", "/v1/snapshot", 405),
        ("POST", "/v1/snapshot", 405),
        ("GET", "/v1/snapshot?revision=1", 400),
        ("GET", "/v1/snapshot?timeout_ms=0", 400),
        ("GET", "/v1/snapshot/1", 404),
    ],
)
def test_what_is_no_backup_request_is_refused(method: str, target: str, status: int) -> None:
    async def scenario(server: Server) -> None:
        assert (await server(method, target)).status == status
        assert server.node.backups == []

    run(scenario)
