"""The client against what is no Kvorum, and in careless hands: a typed error in time, never another."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
from fronts.fake_node import FakeNode, Server, make_config, serving
from serving import stream_server
from waiting import until

from kvorum.kv.commands import SessionRefused
from kvorum_client import (
    Client,
    ClientError,
    InvalidArgumentError,
    OutcomeUnknownError,
    RefusedError,
    SyncClient,
    UnavailableError,
)
from kvorum_client.transport import Answer, Transport, base_of, parse_endpoint


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(30):
            await scenario()

    asyncio.run(main())


@contextlib.asynccontextmanager
async def answering(answer: Callable[[], bytes]) -> AsyncIterator[str]:
    """Serve these bytes to every request, whatever it is."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.LimitOverrunError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer())
            await writer.drain()
        writer.close()

    async with stream_server(serve) as address:
        yield address


def http(status: int, body: bytes = b"", headers: str = "") -> bytes:
    return f"HTTP/1.1 {status} Whatever\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


NONSENSE = [
    http(200),
    http(200, b"\xff\xfe"),
    http(200, b"[" * 100_000),
    http(200, b'{"x":' + b"[" * 100_000),
    http(200, b'{"revision": "many"}'),
    http(404, b'{"code": "\xff"}'),
    http(409, b'{"code": "compare_failed", "detail": ' + b"[" * 100_000),
    http(302, b"", "Location: http://elsewhere/\r\n"),
    http(307),
    http(307, b"", "Location: http://[\r\n"),
    http(307, b"", "Location: http://h:99999/\r\n"),
    http(307, b"", "Location: http://h:x/\r\n"),
    http(307, b"", "Location: http://a..b:1/\r\n"),
    http(307, b"", f"Location: http://{'a' * 70}:1/\r\n"),
    http(307, b"", "Location: http://u:p@h:1/\r\n"),
    http(307, b"", "Location: //h:1/\r\n"),
    http(307, b"", "Location: https://h:1/\r\n"),
    http(307, b"", "Location: http://127.0.0.1:1/v1/kv/other\r\n"),
    b"HTTP/1.1 200 OK\r\nContent-Length: banana\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"SSH-2.0-OpenSSH_9.6\r\n",
    b"\x15\x03\x01\x00\x02\x02\x16",
    b"",
]


@pytest.mark.parametrize("answer", NONSENSE, ids=lambda answer: repr(answer[:80]))
def test_whatever_answers_every_call_ends_in_time_with_an_error_of_the_client(answer: bytes) -> None:
    async def scenario() -> None:
        async with answering(lambda: answer) as endpoint:
            await check_every_call(endpoint)

    run(scenario)


READS: list[Callable[[Client], Awaitable[object]]] = [
    lambda kv: kv.status(),
    lambda kv: kv.status(kv.endpoints[0]),
    lambda kv: kv.members(),
    lambda kv: kv.get("k"),
    lambda kv: kv.get("k", stale=True),
]
WRITES: list[Callable[[Client], Awaitable[object]]] = [
    lambda kv: kv.put("k", "v"),
    lambda kv: kv.delete("k"),
    lambda kv: kv.move_leader(),
    lambda kv: kv.remove_member("n1"),
]


async def check_every_call(endpoint: str) -> None:
    started = time.monotonic()
    ends = await asyncio.gather(*(_end(endpoint, call) for call in READS + WRITES))
    assert time.monotonic() - started < 4
    for error in ends:
        assert isinstance(error, ClientError)
    for error in ends[len(READS) :]:
        # Who did not say in Kvorum's own words that nothing was done has not said so.
        assert isinstance(error, (OutcomeUnknownError, UnavailableError)), error


async def _end(endpoint: str, call: Callable[[Client], Awaitable[object]]) -> ClientError | None:
    async with Client([endpoint], timeout_s=0.25) as kv:
        try:
            await call(kv)
        except ClientError as error:
            return error
    return None


def test_hundreds_of_answers_at_random_raise_nothing_else() -> None:
    chance = random.Random(20)
    words = [
        b"200",
        b"307",
        b"404",
        b"409",
        b"503",
        b"504",
        b"599",
        b"\r\n",
        b"Location: ",
        b"http://",
        b"[",
        b"]",
        b":",
    ]
    words += [
        b'{"code":"no_leader"',
        b'"outcome":',
        b'"refused"',
        b"}",
        b"\xff",
        b"\x00",
        b",",
        b"1",
        b"-",
        b"Content-",
    ]
    words += [b"Length: 3", b"Transfer-Encoding: chunked", b"ETag: x", b"X-Kvorum-Revision: ", b'{"revision":1}']

    def answer() -> bytes:
        head = b"HTTP/1.1 " + chance.choice([b"200", b"204", b"307", b"404", b"409", b"500", b"503"]) + b" X\r\n"
        tail = b"".join(chance.choices(words, k=chance.randrange(12)))
        return head + tail + chance.choice([b"", b"\r\n\r\n", b"\r\n\r\nabc", b"\r\n\r\n{}"])

    async def scenario() -> None:
        async with answering(answer) as endpoint, Client([endpoint], timeout_s=0.05) as kv:
            for _ in range(100):
                calls = (kv.put("k", "v"), kv.get("k"), kv.status(), kv.move_leader("n2"))
                for result in await asyncio.gather(*calls, return_exceptions=True):
                    assert result is None or isinstance(result, ClientError) or not isinstance(result, BaseException)

    run(scenario)


def test_an_answer_without_an_end_is_not_read_to_it() -> None:
    sent = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        with contextlib.suppress(ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            while True:
                writer.write(b"x" * 1024 * 1024)
                await writer.drain()
                sent += 1
        writer.close()

    async def scenario() -> None:
        async with stream_server(serve) as address, Client([address], timeout_s=20) as kv:
            with pytest.raises(UnavailableError, match="longer than any"):
                await kv.metrics(address)
        assert sent < 40

    run(scenario)


@pytest.mark.parametrize(
    "endpoint",
    [
        "a..b:8001",
        "a" * 70,
        "h:8001#x",
        "h:8001?",
        "h:8001?x=1",
        "a b:8001",
        "a\\b:1",
        "h\t:1",
        "@h:1",
        "h\x00:1",
        "\udcff:1",
    ],
)
def test_an_endpoint_that_cannot_be_one_is_refused_at_once(endpoint: str) -> None:
    with pytest.raises(InvalidArgumentError):
        Client([endpoint])


@pytest.mark.parametrize(
    ("text", "base"),
    [
        ("h", "http://h:8001"),
        ("h:1", "http://h:1"),
        ("h:", "http://h:8001"),
        (" http://h:1/ ", "http://h:1"),
        ("HTTP://h:1", "http://h:1"),
        ("[::1]:1", "http://[::1]:1"),
        ("[::1]", "http://[::1]:8001"),
        ("bücher.example:1", "http://bücher.example:1"),
    ],
)
def test_an_endpoint_is_written_in_several_ways(text: str, base: str) -> None:
    assert parse_endpoint(text) == base


def test_a_redirect_without_a_port_leads_to_the_port_of_http() -> None:
    assert base_of("http://h/v1/kv/k") == "http://h:80"
    assert base_of("http://h:8001/v1/kv/k?x=y") == "http://h:8001"


def test_text_that_cannot_be_encoded_is_the_callers_mistake() -> None:
    async def scenario() -> None:
        async with Client(["127.0.0.1:1"]) as kv:
            for call in (kv.put("\ud800", "v"), kv.put("k", "\ud800"), kv.get("\ud800")):
                with pytest.raises(InvalidArgumentError):
                    await call

    run(scenario)


def test_a_name_that_takes_for_ever_to_resolve_does_not_outlast_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async def getaddrinfo(*arguments: object, **options: object) -> list[object]:
            await asyncio.Event().wait()
            return []

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
        async with Client(["some-name:8001"], timeout_s=0.3) as kv:
            for call in (kv.put("k", "v"), kv.get("k"), kv.status()):
                with pytest.raises((UnavailableError, OutcomeUnknownError)):
                    await asyncio.wait_for(call, 3)

    run(scenario)


@contextlib.contextmanager
def black_hole() -> Iterator[str]:
    """A port that takes no connection and refuses none: its queue is full."""
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("timeout_s", [0.2, 0.6, 1.5])
def test_a_node_that_takes_no_connection_has_certainly_done_nothing(timeout_s: float) -> None:
    async def scenario() -> None:
        with black_hole() as endpoint:
            async with Client([endpoint], timeout_s=timeout_s) as kv:
                for call in (kv.put("k", "v"), kv.remove_member("n1")):
                    with pytest.raises(UnavailableError):
                        await call

    run(scenario)


def test_a_loop_that_was_late_for_both_deadlines_does_not_make_it_unknown() -> None:
    async def scenario() -> None:
        with black_hole() as endpoint:
            async with Client([endpoint], timeout_s=1.0) as kv:
                # Long enough for the connection's deadline and the attempt's, which is 0.25 s.
                asyncio.get_running_loop().call_later(0.05, lambda: threading.Event().wait(0.5))
                with pytest.raises(UnavailableError):
                    await kv.put("k", "v")

    run(scenario)


def test_a_write_is_not_made_anew_without_its_session_when_it_may_be_done_already() -> None:
    async def scenario() -> None:
        async with serving(FakeNode(make_config(request_timeout_ms=100))) as server:
            tries = []

            async def first_unknown_then_full(
                command: object, timeout_ms: int, address: str = "", **_: object
            ) -> object:
                tries.append(command)
                if len(tries) == 1:
                    from kvorum.errors import OutcomeUnknownError as ServerOutcomeUnknown

                    raise ServerOutcomeUnknown("who knows")
                return SessionRefused(0, "full")

            server.node.propose = first_unknown_then_full  # type: ignore[method-assign, assignment]
            async with Client([server.url], timeout_s=5) as kv:
                with pytest.raises(OutcomeUnknownError):
                    await kv.put("k", "v")
            assert len(tries) == 2

    run(scenario)


def test_a_refusal_in_kvorums_words_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async def exchange(*arguments: object) -> Answer:
            return Answer(418, {}, b'{"code": "teapot", "outcome": "refused", "detail": "no"}')

        monkeypatch.setattr(Transport, "exchange", exchange)
        async with Client(["127.0.0.1:1"]) as kv:
            with pytest.raises(RefusedError, match="no"):
                await kv.put("k", "v")

    run(scenario)


# Closing.


def test_a_closed_client_sends_nothing_and_says_so() -> None:
    async def scenario() -> None:
        async with serving() as server:
            async with Client([server.url]) as kv:
                await kv.put("k", "v")
            for call in (kv.put("k", "w"), kv.get("k"), kv.status(), kv.status(server.url)):
                with pytest.raises(UnavailableError, match="closed"):
                    await call
            assert len(server.node.proposed) == 1

    run(scenario)


def test_closing_a_client_ends_what_is_under_way() -> None:
    async def scenario() -> None:
        async with serving() as server:
            server.node.gate = asyncio.Event()
            kv = Client([server.url])
            writing = asyncio.create_task(kv.put("k", "v"))
            await until("the node has the request", lambda: bool(server.node.timeouts_ms))
            await kv.close()
            with pytest.raises(OutcomeUnknownError):
                await asyncio.wait_for(writing, 3)
            server.node.gate.set()

    run(scenario)


def test_a_closed_synchronous_client_says_so() -> None:
    kv = SyncClient(["127.0.0.1:1"])
    kv.close()
    kv.close()
    with pytest.raises(UnavailableError, match="closed"):
        kv.put("k", "v")


def test_closing_a_synchronous_client_ends_the_calls_of_other_threads() -> None:
    async def scenario() -> None:
        async with serving() as server:
            server.node.gate = asyncio.Event()
            kv = SyncClient([server.url])
            ends = [asyncio.create_task(_end_of(kv, i)) for i in range(3)]
            await until("the node has the request", lambda: bool(server.node.timeouts_ms))
            closers = [asyncio.create_task(asyncio.to_thread(kv.close)) for _ in range(2)]
            for end in ends:
                assert isinstance(await asyncio.wait_for(end, 8), (OutcomeUnknownError, UnavailableError))
            await asyncio.wait_for(asyncio.gather(*closers), 8)
            server.node.gate.set()
            assert not any(thread.name == "kvorum-client" for thread in threading.enumerate())

    run(scenario)


async def _end_of(kv: SyncClient, number: int) -> BaseException | None:
    try:
        await asyncio.to_thread(kv.put, f"k{number}", "v")
    except ClientError as error:
        return error
    return None


def test_a_synchronous_client_is_shared_by_threads() -> None:
    async def scenario() -> None:
        async with serving() as server:
            await asyncio.to_thread(_use_from_threads, server)
            assert server.node.store.revision == 160

    run(scenario)


def _use_from_threads(server: Server) -> None:
    with SyncClient([server.url]) as kv:
        threads = [threading.Thread(target=lambda i=i: [kv.put(f"k{i}", str(n)) for n in range(20)]) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
