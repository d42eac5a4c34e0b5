"""``GET /v1/watch``: lines of JSON and server-sent events, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from fronts.fake_node import FakeNode, Server, api_of
from fronts.test_sessions import run
from waiting import until

from kvorum.errors import NotServingError
from kvorum.fronts.http import watch
from kvorum.fronts.http.watch_buffers import Buffers
from kvorum.fronts.http.watch_lines import NDJSON_LINES

SSE = {"Accept": "text/event-stream"}


class Stream:
    """One watch, read as it comes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.head = b""

    async def line(self) -> Any:
        """Return the next line that is not a heartbeat; None at the end."""
        async with asyncio.timeout(10):
            while True:
                text = await self.reader.readline()
                if not text:
                    return None
                if text.strip():
                    return json.loads(text)

    async def event(self) -> dict[str, str]:
        """Return the fields of the next server-sent event; empty at the end. Comments are left out."""
        fields: dict[str, str] = {}
        async with asyncio.timeout(10):
            while text := (await self.reader.readline()).decode():
                name, _, value = text.rstrip("\n").partition(": ")
                if name not in ("", ":"):
                    fields[name] = value
                elif not name and fields:
                    break
        return fields

    async def events(self, count: int) -> list[dict[str, Any]]:
        """Return the next events, of whole revisions."""
        found: list[dict[str, Any]] = []
        while len(found) < count:
            found += (await self.line()).get("events", ())
        return found


@contextlib.asynccontextmanager
async def watching(http: Server, query: str, headers: dict[str, str] | None = None) -> AsyncIterator[Stream]:
    """Begin a watch and read its head."""
    reader, writer = await asyncio.open_connection("127.0.0.1", http.port, limit=1 << 23)
    stream = Stream(reader, writer)
    lines = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    writer.write(f"GET /v1/watch?{query} HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode())
    async with asyncio.timeout(10):
        stream.head = await reader.readuntil(b"\r\n\r\n")
    try:
        yield stream
    finally:
        writer.transport.abort()
        await asyncio.sleep(0)


async def put(http: Server, key: str = "k", value: bytes = b"v") -> None:
    assert (await http("PUT", f"/v1/kv/{key}", value)).status == 200


def test_lines_have_one_revision_each_and_the_first_says_where_the_watch_begins() -> None:
    async def scenario(http: Server) -> None:
        await put(http)
        async with watching(http, "prefix=k&prev_value=true") as stream:
            assert stream.head.startswith(b"HTTP/1.1 200 OK\r\n")
            for expected in (b"application/x-ndjson", b"X-Kvorum-Revision: 2\r\n", b"no-store", b"Connection: close"):
                assert expected in stream.head
            assert b"Content-Length" not in stream.head
            assert await stream.line() == {"revision": 2, "progress": True}
            await put(http, value=b"\xff")
            await put(http, "other")
            await http("DELETE", "/v1/kv/k")
            await put(http, "k%ff")
            lines = [await stream.line() for _ in range(3)]
        assert lines == [
            {
                "revision": 3,
                "events": [
                    {
                        "type": "put", "mod_revision": 3, "create_revision": 2, "version": 2, "key": "k",
                        "value_base64": "/w==", "prev_value": "v",
                    }
                ],
            },
            {
                "revision": 5,
                "events": [{"type": "delete", "mod_revision": 5, "key": "k", "prev_value_base64": "/w=="}],
            },
            {
                "revision": 6,
                "events": [
                    {
                        "type": "put", "mod_revision": 6, "create_revision": 6, "version": 1, "key_base64": "a/8=",
                        "value": "v",
                    }
                ],
            },
        ]  # fmt: skip

    run(scenario)


def test_server_sent_events_carry_ids_from_which_a_browser_resumes() -> None:
    async def scenario(http: Server) -> None:
        await put(http)
        async with watching(http, "key=k", SSE) as stream:
            assert b"Content-Type: text/event-stream\r\n" in stream.head
            assert await stream.event() == {"event": "progress", "id": "2", "data": '{"revision":2,"progress":true}'}
            await put(http, value=b"two\n")
            event = await stream.event()
            assert event["id"] == "3"
            assert json.loads(event["data"])["events"][0]["value"] == "two\n"
        await put(http)
        async with watching(http, "key=k&from_revision=1", SSE | {"Last-Event-ID": "3"}) as stream:
            assert (await stream.event())["id"] == "4"
        async with watching(http, "key=k", SSE | {"Last-Event-ID": "0"}) as stream:
            assert (await stream.event())["id"] == "2"

    run(scenario)


@pytest.mark.parametrize(
    ("query", "keys"),
    [
        ("key=a", ["a"]),
        ("key64=YQ==", ["a"]),
        ("prefix=a", ["a", "ab"]),
        ("prefix64=YQ", ["a", "ab"]),
        ("prefix=%ff", []),
        ("prefix=", ["a", "ab", "b", "c"]),
        ("start=ab", ["ab", "b", "c"]),
        ("end=b", ["a", "ab"]),
        ("start=ab&end=c", ["ab", "b"]),
        ("start64=YWI%3D&end=c", ["ab", "b"]),
    ],
)
def test_what_is_watched_is_a_key_a_prefix_or_a_range(query: str, keys: list[str]) -> None:
    async def scenario(http: Server) -> None:
        for key in ("a", "ab", "b", "c"):
            await put(http, key)
        async with watching(http, f"{query}&from_revision=2") as stream:
            assert [event["key"] for event in await stream.events(len(keys))] == keys

    run(scenario)


@pytest.mark.parametrize(("kind", "revisions"), [("put", [2, 4]), ("delete", [3])])
def test_a_filter_names_the_events_that_are_wanted(kind: str, revisions: list[int]) -> None:
    async def scenario(http: Server) -> None:
        await put(http)
        await http("DELETE", "/v1/kv/k")
        await put(http)
        async with watching(http, f"key=k&from_revision=2&filter={kind}") as stream:
            events = await stream.events(len(revisions))
        assert [event["mod_revision"] for event in events] == revisions
        assert {event["type"] for event in events} == {kind}

    run(scenario)


@pytest.mark.parametrize(
    "query",
    [
        "", "key=", "key=a&prefix=b", "key=a&key=b", "key=a&key64=YQ==", "start=b&end=a", "start=a&end=a", "key=%2",
        "key64=%ff",
        "start=", "end=", "end=%00", "prefix=a&start=b", "prefix64=YQ&prefix=a",
        "key=a&from_revision=0", "key=a&from_revision=x", "key=a&progress_s=0", "key=a&progress_s=31",
        "key=a&filter=all", "key=a&typo=1", "key=a&timeout_ms=0", "key=a&prev_value=x", "key=" + "a" * 1025,
    ],
)  # fmt: skip
def test_a_malformed_watch_is_refused(query: str) -> None:
    async def scenario(http: Server) -> None:
        answer = await http("GET", f"/v1/watch?{query}")
        assert (answer.status, answer.json["code"]) == (400, "invalid_request")
        assert http.node.watches.hub.size == 0

    run(scenario)


def test_what_cannot_be_watched_is_refused_with_its_status() -> None:
    async def scenario(http: Server) -> None:
        for _ in range(3):
            await put(http)
        await http("POST", "/v1/compact", b'{"revision": 3}')
        gone = await http("GET", "/v1/watch?key=k&from_revision=2")
        assert (gone.status, gone.json["code"], gone.json["floor"]) == (410, "compacted", 3)
        assert (await http("POST", "/v1/watch?key=k", b"")).status == 405
        assert (await http("GET", "/v1/watch?key=k", headers={"Last-Event-ID": "x"})).status == 400

    run(scenario)


def test_below_level_4_the_error_names_the_level() -> None:
    async def scenario(http: Server) -> None:
        answer = await http("GET", "/v1/watch?key=k")
        assert (answer.status, answer.json["code"]) == (409, "feature_unavailable")
        assert "level 4" in answer.json["detail"]

    run(scenario, is_raised=False)


def test_a_watch_that_ends_says_why_in_its_last_line() -> None:
    async def scenario(http: Server) -> None:
        async with watching(http, "key=k") as lines, watching(http, "key=k", SSE) as events:
            await lines.line()
            await events.event()
            http.node.watches.end_all(NotServingError("moving"))
            end = await lines.line()
            assert (end["error"]["code"], end["error"]["status"], end["error"]["detail"]) == (
                "not_serving", 503, "moving",
            )  # fmt: skip
            assert await lines.line() is None
            event = await events.event()
            assert (event["event"], json.loads(event["data"])) == ("end", end)
            assert await events.event() == {}

    run(scenario)


def test_one_watcher_too_many_is_refused_before_its_stream_begins() -> None:
    async def scenario(http: Server) -> None:
        http.node.watches._watchers_max = 0
        answer = await http("GET", "/v1/watch?key=k")
        assert (answer.status, answer.json["code"]) == (429, "too_many_watchers")

    run(scenario)


def test_the_last_place_that_is_taken_while_a_stream_begins_is_told_in_its_only_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario(http: Server) -> None:
        http.node.watches._watchers_max = 0
        monkeypatch.setattr(http.node, "check_watchers", lambda: None)
        async with watching(http, "key=k&from_revision=1") as stream:
            assert (await stream.line())["error"]["code"] == "too_many_watchers"
            assert await stream.line() is None

    run(scenario)


def test_a_client_that_hangs_up_is_no_watcher_any_more() -> None:
    async def scenario(http: Server) -> None:
        hub = http.node.watches.hub
        async with watching(http, "key=k") as stream:
            await stream.line()
            assert hub.size == 1
            stream.writer.close()
            await until("the watcher is gone", lambda: hub.size == 0)
        async with watching(http, "key=k") as stream:
            await stream.line()
            stream.writer.transport.abort()
            await until("the watcher is gone", lambda: hub.size == 0)
        assert http.node.counters.watch_ends == {"closed": 2}

    run(scenario)


def test_a_quiet_watch_tells_its_progress_and_lives() -> None:
    async def scenario(http: Server) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(watch, "PROGRESS_S", 0.01)
            async with watching(http, "key=k") as stream, watching(http, "key=k&from_revision=9") as future:
                await stream.line()
                await put(http, "other")
                while (line := await stream.line()) != {"revision": 2, "progress": True}:
                    assert line == {"revision": 1, "progress": True}
                # Below its first revision there is no progress: only signs of life.
                async with asyncio.timeout(10):
                    assert [await future.reader.readline() for _ in range(3)] == [b"\n"] * 3
            async with watching(http, "key=k&from_revision=9", SSE) as events:
                async with asyncio.timeout(10):
                    assert [await events.reader.readline() for _ in range(4)] == [b":\n", b"\n"] * 2

    run(scenario)


def slow_socket(port: int, query: str) -> socket.socket:
    """Begin a watch on a socket that is not read."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    client.connect(("127.0.0.1", port))
    client.sendall(f"GET /v1/watch?{query} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return client


def test_a_client_that_does_not_read_is_behind_and_holds_up_nobody_and_gets_all_in_the_end() -> None:
    async def scenario(http: Server) -> None:
        hub, value = http.node.watches.hub, b"x" * 500_000
        client = await asyncio.to_thread(slow_socket, http.port, "key=k&from_revision=2")
        try:
            await until("it watches", lambda: hub.size == 1)
            count = 0
            while not hub.behind:
                await put(http, value=value)
                count += 1
                assert count < 100, "the buffer of a client is not bounded"
            await put(http, value=value)
            async with watching(http, f"key=k&from_revision={count + 2}") as quick:
                assert len(await quick.events(1)) == 1
            assert http.node.counters.watchers_behind == 1
            client.settimeout(10)

            def read() -> list[int]:
                found: list[int] = []
                with client.makefile("rb") as file:
                    while len(found) < count + 1:
                        line = file.readline()
                        if b'"events"' in line:
                            found.append(json.loads(line)["revision"])
                return found

            assert await asyncio.to_thread(read) == list(range(2, count + 3))
        finally:
            client.close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watch, "PROGRESS_S", 0.02)
        run(scenario)


def test_a_client_that_reads_nothing_for_long_is_disconnected() -> None:
    async def scenario(http: Server) -> None:
        hub = http.node.watches.hub
        client = await asyncio.to_thread(slow_socket, http.port, "key=k&from_revision=2")
        try:
            await until("it watches", lambda: hub.size == 1)
            for _ in range(100):
                await put(http, value=b"x" * 500_000)
                if hub.behind or not hub.size:
                    break
            await until("it is disconnected", lambda: hub.size == 0)
            assert http.node.counters.watch_ends == {"stalled": 1}
        finally:
            client.close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watch, "PROGRESS_S", 0.02)
        patch.setattr(watch, "STALL_S", 0.1)
        run(scenario)


def feeds(http: Server) -> list[watch.Feed]:
    """Return the feeds of all watchers that are not in the future."""
    hub = http.node.watches.hub
    watchers = [*hub._full, *hub._behind, *(each for group in hub._groups.values() for each in group.in_step)]
    return [cast(Any, each.sink)._sink for each in watchers]


async def put_together(http: Server, count: int, size_bytes: int = 1000) -> None:
    """Put k0 and so on at one revision."""
    puts = [{"put": {"key": f"k{number}", "value": "x" * size_bytes}} for number in range(count)]
    assert (await http("POST", "/v1/txn", json.dumps({"then": puts}).encode())).status == 200


def test_a_long_revision_comes_in_fragments_for_those_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "FRAGMENT_BYTES", 1500)

    async def scenario(http: Server) -> None:
        await put(http, "k")
        await put_together(http, 5)
        await put(http, "k")
        async with (
            watching(http, "prefix=k&from_revision=2&fragment=true") as stream,
            watching(http, "prefix=k&from_revision=2&fragment=true", SSE) as events,
            watching(http, "prefix=k&from_revision=2") as whole,
        ):
            lines = [await stream.line() for _ in range(4)]
            found = [(line["revision"], [e["key"] for e in line["events"]], line.get("more")) for line in lines]
            # A fragment may have whole revisions before a part of one.
            assert found == [
                (2, ["k"], None),
                (3, ["k0", "k1"], True),
                (3, ["k2", "k3"], True),
                (3, ["k4"], None),
            ]
            assert (await stream.line())["revision"] == 4
            # A browser that resumes in the middle must not believe that it has all.
            assert [(await events.event()).get("id") for _ in range(5)] == ["2", None, None, "3", "4"]
            assert [len((await whole.line())["events"]) for _ in range(3)] == [1, 5, 1]

    run(scenario)


def test_without_fragments_a_revision_that_is_too_long_ends_the_watch_after_those_before_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch, "REVISION_BYTES_MAX", 4000)

    async def scenario(http: Server) -> None:
        await put(http, "k")
        await put_together(http, 5)
        async with watching(http, "prefix=k&from_revision=2") as stream:
            assert (await stream.line())["revision"] == 2
            error = (await stream.line())["error"]
            assert (error["code"], error["limit"]) == ("too_large", 4000)
            assert "fragment=true" in error["detail"]
            assert await stream.line() is None
            assert http.node.counters.watch_ends == {"too_large": 1}
        async with watching(http, "prefix=k&from_revision=2&fragment=true") as stream:
            assert len(await stream.events(6)) == 6

    run(scenario)


def test_fragments_wait_for_a_client_that_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "FRAGMENT_BYTES", 100_000)

    async def scenario(http: Server) -> None:
        hub = http.node.watches.hub
        for _ in range(30):
            await put_together(http, 100, 10_000)
        query = "prefix=k&from_revision=2&fragment=true"
        client = await asyncio.to_thread(slow_socket, http.port, query)
        try:
            await until("it has much to read", lambda: hub.behind == 1)
            [feed] = feeds(http)
            assert feed.unread_bytes < watch.BUFFER_BYTES_MAX + 2 * watch.FRAGMENT_BYTES
            client.settimeout(10)

            def read() -> int:
                count = 0
                with client.makefile("rb") as file:
                    while count < 3000:
                        line = file.readline()
                        count += len(json.loads(line).get("events", ())) if line.startswith(b"{") else 0
                return count

            assert await asyncio.to_thread(read) == 3000
        finally:
            client.close()

    run(scenario)


class _Transport:
    """A transport whose client reads when it is told to."""

    def __init__(self) -> None:
        self.unread_bytes = 0
        self.is_aborted = False

    def get_write_buffer_size(self) -> int:
        return self.unread_bytes

    def is_closing(self) -> bool:
        return self.is_aborted

    def abort(self) -> None:
        self.is_aborted = True


@pytest.mark.parametrize(("bytes_each", "is_aborted"), [(1, True), (watch.STALL_BYTES - 1, True), (1 << 20, False)])
def test_a_client_that_drips_does_not_keep_its_buffer(bytes_each: int, is_aborted: bool) -> None:
    feed = watch.Feed(cast(Any, None), NDJSON_LINES, 1, Buffers(), is_from_now=True, is_fragmented=True)
    transport = _Transport()
    transport.unread_bytes = 10 << 20
    for turn in range(3):
        feed._judge_stall(cast(Any, transport), turn * watch.STALL_S)
        transport.unread_bytes -= bytes_each
    assert transport.is_aborted == is_aborted


class _Buffer:
    def __init__(self, unread_bytes: int) -> None:
        self.unread_bytes = unread_bytes
        self.calls = 0

    def has_room(self) -> None:
        self.calls += 1


def test_all_watches_together_have_a_bound_and_quick_clients_are_served_beyond_it() -> None:
    async def main() -> None:
        buffers = Buffers(100)
        slow, other, quick = _Buffer(60), _Buffer(39), _Buffer(0)
        for each in (slow, other, quick):
            buffers.note(each)
        assert not buffers.is_full_for(slow)
        other.unread_bytes = 40
        buffers.note(other)
        assert [buffers.is_full_for(each) for each in (slow, other, quick)] == [True, True, False]
        slow.unread_bytes = 160
        buffers.note(slow)
        assert buffers.is_full_for(quick)
        slow.unread_bytes = 30  # It is looked at again in a while.
        await until("they are told", lambda: (slow.calls, other.calls, quick.calls) == (1, 1, 1))
        assert buffers.unread_bytes == 70
        buffers.remove(slow)
        buffers.remove(slow)
        assert buffers.unread_bytes == 40

    asyncio.run(main())


def test_the_buffers_of_a_watch_count_until_it_ends() -> None:
    async def scenario(http: Server) -> None:
        client = await asyncio.to_thread(slow_socket, http.port, "key=k&from_revision=2")
        await until("it watches", lambda: http.node.watches.hub.size == 1)
        [feed] = feeds(http)
        while not http.node.watches.hub.behind:
            await put(http, value=b"x" * 500_000)
        assert feed._buffers.unread_bytes >= watch.BUFFER_BYTES_MAX
        client.close()
        await until("it is gone", lambda: http.node.watches.hub.size == 0)
        await until("its bytes are", lambda: feed._buffers.unread_bytes == 0)

    run(scenario)


def test_watches_are_no_requests_in_flight_and_a_server_that_stops_tells_them_at_once() -> None:

    async def main() -> None:
        node = FakeNode()
        node.raise_feature_level()
        server = api_of(node)
        await server.start()
        http = Server(node, server.addresses[0][1])
        async with watching(http, "key=k") as first, watching(http, "key=k") as second:
            await first.line()
            await second.line()
            assert node.counters.inflight == 0
            server.close_after_answers()
            for stream in (first, second):
                assert (await stream.line())["error"]["code"] == "not_serving"
                assert await stream.line() is None
            async with watching(http, "key=k") as third:
                await third.line()
                stopping = asyncio.create_task(server.stop())
                assert (await third.line())["error"]["code"] == "not_serving"
                await stopping
        assert node.counters.watch_ends == {"not_serving": 3}

    asyncio.run(main())
