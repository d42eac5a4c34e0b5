"""What is not HTTP, or not what peers send, at the peer port: a short refusal, a count and one line."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path

import pytest
from transport.test_connections import Served, serving
from transport.test_peers import CALLER

from kvorum.kv.state_hash import StateDigest

UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}


async def say(served: Served, request: bytes) -> bytes:
    """Send these bytes on a connection of their own; return everything that comes back until it is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.number)
    answer = bytearray()
    try:
        writer.write(request)
        # A reset after the answer is the kernel's way to say that the rest of our request was not read.
        with contextlib.suppress(ConnectionResetError):
            while chunk := await reader.read(65536):
                answer += chunk
        return bytes(answer)
    finally:
        writer.close()


def head(served: Served, target: str = "/raft/v1/stream", **changed: str) -> bytes:
    """Return a request for a stream, with some of its headers changed; bytes that are not ASCII are kept."""
    headers = {"Host": "127.0.0.1", **UPGRADE, **served.headers(CALLER)}
    headers |= {name.replace("_", "-"): value for name, value in changed.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"GET {target} HTTP/1.1\r\n{lines}\r\n".encode("latin-1")


def is_refused(answer: bytes) -> bool:
    return (
        answer[:13] in {b"HTTP/1.1 400 ", b"HTTP/1.0 400 "} and len(answer) < 300 and b"server:" not in answer.lower()
    )


def test_what_is_not_http_is_refused_with_few_bytes_and_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    garbage = (
        b"\xff" * 100_000,
        b"GET / HTTP/1.1\r\nHost: x\r\n\x00: y\r\n\r\n",
        b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
    )

    async def scenario() -> None:
        async with serving(tmp_path) as served:
            for each in (*garbage, *garbage):
                answer = await say(served, each)
                assert is_refused(answer), answer[:500]
            assert served.counters.malformed_requests == 2 * len(garbage)

    with caplog.at_level(logging.INFO):
        asyncio.run(scenario())
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "Refused malformed HTTP" in caplog.records[0].getMessage()
    assert caplog.records[0].exc_info is None


@pytest.mark.parametrize(
    "name", ["Upgrade", "Connection", "Sec_WebSocket_Key", "Sec_WebSocket_Version", "Expect", "Accept"]
)
def test_headers_that_are_not_ascii_are_malformed(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as served:
            answer = await say(served, head(served, **{name: "\xff"}))
            assert is_refused(answer), answer[:500]
            assert served.counters.malformed_requests == 1
            assert served.node.connected == []

    asyncio.run(scenario())
    assert [record for record in caplog.records if record.exc_info] == []


@pytest.mark.parametrize(
    ("name", "value"), [("Upgrade", "u" * 5000), ("Sec_WebSocket_Key", "k" * 5000), ("Sec_WebSocket_Version", "1")]
)
def test_a_request_for_a_stream_that_is_no_websocket_is_refused_and_not_repeated(
    name: str, value: str, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as served:
            answer = await say(served, head(served, **{name: value}))
            assert is_refused(answer), answer[:500]
            assert served.node.connected == []

    asyncio.run(scenario())


def test_no_answer_says_what_the_port_is_made_of(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as served:
            stream = await served.dial()
            assert "Server" not in stream._response.headers
            await stream.close()
            for target, status in (("hello", 200), ("nothing", 404), ("stream", 403), ("snapshots/7?at_least=x", 403)):
                async with served.session.get(f"{served.url}/{target}") as answer:
                    assert (answer.status, "Server" in answer.headers) == (status, False)
            async with served.session.post(f"{served.url}/hello") as answer:
                assert (answer.status, "Server" in answer.headers) == (405, False)

    asyncio.run(scenario())


def test_a_bug_behind_the_port_is_logged_with_its_traceback_and_not_called_malformed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as served:

            def fails(index: int) -> StateDigest | None:
                raise ZeroDivisionError

            served.node.state_hash_at = fails  # type: ignore[method-assign]
            for _ in range(3):
                async with served.session.get(f"{served.url}/state-hash/1", headers=served.headers(CALLER)) as answer:
                    assert (answer.status, "Server" in answer.headers) == (500, False)
                    assert len(await answer.read()) < 200
            assert served.counters.malformed_requests == 0

    asyncio.run(scenario())
    with_traceback = [record for record in caplog.records if record.exc_info]
    assert [record.levelname for record in with_traceback] == ["ERROR"]
