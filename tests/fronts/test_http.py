"""What reaches the HTTP front from a careless, broken or hostile client: a clear answer, a bound, never a traceback."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import re
import socket
import sys

import pytest
from fronts.fake_node import FakeNode, Server, api_of, make_config, run, serving
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from waiting import until

from kvorum.errors import InvalidRequestError
from kvorum.fronts.http import ApiServer
from kvorum.fronts.http.parameters import EXCLUDE
from kvorum.fronts.http.problems import TABLE
from kvorum.fronts.http.request import Query, decode_bytes, parse_etags, split_target

STATUS_LINE = re.compile(rb"HTTP/1\.1 (\d\d\d) ")
MISLEADING = {
    "Transfer-Encoding: gzip, chunked": 415,
    "Content-Encoding: identity\r\nContent-Encoding: gzip": 415,
    "Content-Range: bytes 0-0/9": 400,
    "Idempotency-Key: a/1\r\nIdempotency-Key: b/1": 400,
    'If-Match: "1"\r\nIf-Match: "2"': 400,
    "Expect: a-miracle": 417,
}
"""Headers of a write that must not be ignored, nor in part, and what they are answered with."""


@pytest.mark.parametrize(
    "target",
    [
        "/v1/kv/",
        "/v1/kv/%",
        "/v1/kv/%z",
        "/v1/kv/a%2",
        "/v1/kv/k?prev_revision=-1",
        "/v1/kv/k?prev_revision=1.5",
        "/v1/kv/k?prev_revision=99999999999999999999",
        "/v1/kv/k?prev_revision=٣",
        "/v1/kv/k?prev_revision=1&prev_revision=1",
        "/v1/kv/k?prev_revison=1",
        "/v1/kv/k?lease=0",
        "/v1/kv/k?leese=1",
        "/v1/kv/k?timeout_ms=0",
        "/v1/kv/k?forward=%ff",
        "/v1/kv/k?forward=banana",
        "/v1/kv/k#fragment",
        "/v1/kv/k?prev_revision=0#fragment",
        "http://host?x=/v1/kv/k",
        "http://host/v1/kv/k#fragment",
    ],
)
def test_a_malformed_write_is_refused_and_not_proposed(target: str) -> None:
    async def scenario(http: Server) -> None:
        raw = f"PUT {target} HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nConnection: close\r\n\r\nv".encode()
        status = STATUS_LINE.match(await http.raw(raw)).group(1)  # type: ignore[union-attr]
        assert status == (b"404" if target == "http://host?x=/v1/kv/k" else b"400")
        assert http.node.proposed == []

    run(scenario)


@pytest.mark.parametrize("line", MISLEADING, ids=lambda line: line.partition("\r\n")[0])
def test_a_write_that_means_something_else_than_it_seems_is_refused(line: str) -> None:
    async def scenario(http: Server) -> None:
        body = "1\r\nv\r\n0\r\n\r\n" if "chunked" in line else "v"
        length = "" if "chunked" in line else "Content-Length: 1\r\n"
        raw = f"PUT /v1/kv/k HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{length}{line}\r\n\r\n{body}"
        answer = await http.raw(raw.encode())
        assert int(STATUS_LINE.match(answer).group(1)) == MISLEADING[line], answer  # type: ignore[union-attr]
        assert http.node.proposed == []

    run(scenario)


@pytest.mark.parametrize(
    "query",
    [
        "consistency=eventual",
        "forward=banana",
        "max_staleness_ms=5",
        "consistency=stale&max_staleness_ms=-1",
        "prev_revision=1",
        "revision=-3",
    ],
)
def test_a_malformed_read_is_refused(query: str) -> None:
    async def scenario(http: Server) -> None:
        assert (await http("GET", f"/v1/kv/k?{query}")).json["code"] == "invalid_request"
        assert http.node.barriers == 0

    run(scenario)


@pytest.mark.parametrize("key", ["", "c", "c/", "c/0", "c/x", "/1", "c/-1", "a b/1", "é/1", "c/9223372036854775808"])
def test_a_malformed_idempotency_key_is_refused(key: str) -> None:
    async def scenario(http: Server) -> None:
        raw = f"DELETE /v1/kv/k HTTP/1.1\r\nHost: x\r\nIdempotency-Key: {key}\r\nConnection: close\r\n\r\n"
        assert STATUS_LINE.match(await http.raw(raw.encode())).group(1) == b"400"  # type: ignore[union-attr]
        assert http.node.proposed == []

    run(scenario)


def test_a_key_or_client_id_over_the_limit_is_too_large() -> None:
    async def scenario(http: Server) -> None:
        assert (await http("PUT", "/v1/kv/" + "k" * 1025, b"v")).json["limit"] == 1024
        assert (await http("PUT", "/v1/kv/k", b"v", {"Idempotency-Key": "c" * 65 + "/1"})).status == 400
        assert http.node.proposed == []

    run(scenario)


def test_a_body_over_the_limit_is_refused_before_it_is_read() -> None:
    async def scenario(http: Server) -> None:
        raw = b"PUT /v1/kv/k HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999999\r\n\r\nonly this"
        reader, writer = await asyncio.open_connection("127.0.0.1", http.port)
        writer.write(raw)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 413 ")
        assert b"Connection: close" in head
        writer.close()
        await writer.wait_closed()

    run(scenario)


def test_a_chunked_body_is_taken_and_bounded() -> None:
    async def scenario(http: Server) -> None:
        head = b"PUT /v1/kv/k HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        assert (await http.raw(head + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        record = http.node.store.get(b"k")
        assert record is not None and record.value == b"abcde"
        chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        assert (await http.raw(head + chunk * 17 + b"0\r\n\r\n")).startswith(b"HTTP/1.1 413 ")
        assert (await http.raw(head + b"zz\r\n")).startswith(b"HTTP/1.1 400 ")

    run(scenario)


def test_a_body_that_does_not_arrive_is_not_waited_for() -> None:
    async def scenario(http: Server) -> None:
        answer = await http.raw(b"PUT /v1/kv/k HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab")
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert http.node.proposed == []
        assert http.node.counters.inflight == 0

    run(scenario, FakeNode(make_config(body_timeout_s=0.1)))


def test_a_head_that_does_not_arrive_is_not_waited_for() -> None:
    async def scenario(http: Server) -> None:
        # The connection is closed without an answer, long before the test's own deadline.
        assert await http.raw(b"PUT /v1/kv/k HTTP/1.1\r\nHost: x\r\nContent-Le") == b""
        assert await http.raw(b"") == b""

    run(scenario, FakeNode(make_config(keepalive_s=0.1)))


def test_a_client_that_does_not_read_its_answers_is_cut_off() -> None:
    async def main() -> None:
        # With room for one connection, another one is served only when the first one was cut off.
        node = FakeNode(make_config(body_timeout_s=0.2, connections_max=1))
        async with asyncio.timeout(20), serving(node) as http:
            probe = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            await http("PUT", "/v1/kv/k", b"x" * 1024 * 1024)
            connection = socket.socket()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", http.port))
            connection.sendall(b"GET /v1/kv/k HTTP/1.1\r\nHost: x\r\n\r\n" * 50)
            await until("a get is answered", lambda: node.counters.requests["get", 200] > 0)
            assert (await http.raw(probe)).startswith(b"HTTP/1.1 503 ")
            while not (await http.raw(probe)).startswith(b"HTTP/1.1 200 "):
                pass
            # And answers did not pile up in memory until then.
            assert node.counters.requests["get", 200] < 50
            connection.close()

    asyncio.run(main())


def test_who_hangs_up_in_the_middle_of_a_body_sent_no_malformed_http() -> None:
    async def scenario(http: Server) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", http.port)
        writer.write(b"PUT /v1/kv/k HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab")
        await until("the request is in flight", lambda: http.node.counters.inflight == 1)
        writer.close()
        await writer.wait_closed()
        await until("the request is over", lambda: http.node.counters.inflight == 0)
        assert (await http("GET", "/livez")).status == 200
        assert (http.node.counters.malformed_requests, http.node.proposed) == (0, [])

    run(scenario)


def test_a_head_over_a_limit_is_told_so() -> None:
    async def scenario(http: Server) -> None:
        many = "".join(f"X-{i}: y\r\n" for i in range(200))
        for extra, limit in ((many, 128), (f"X: {'y' * 9000}\r\n", 8190), (f"{'X' * 9000}: y\r\n", 8190)):
            answer = await http.raw(f"GET /livez HTTP/1.1\r\nHost: x\r\n{extra}\r\n".encode())
            assert answer.startswith(b"HTTP/1.1 431 ")
            assert b'"limit":%d' % limit in answer

    run(scenario)


def test_a_head_is_bounded_as_a_whole_and_so_is_the_number_of_its_entity_tags() -> None:
    async def scenario(http: Server) -> None:
        await http("PUT", "/v1/kv/k", b"v")
        line = "If-None-Match: " + ", ".join(['"7"'] * 1600) + "\r\n"
        head = f"GET /v1/kv/k HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{line * 5}"
        assert len(head) > 32 * 1024
        for raw in (head + "\r\n", head):  # A complete head, and one whose end never comes.
            answer = await http.raw(raw.encode())
            assert answer.startswith(b"HTTP/1.1 431 ") and b'"limit":32768' in answer
        # A body does not count, neither does what came with its end; what follows does.
        reader, writer = await asyncio.open_connection("127.0.0.1", http.port)
        writer.write(b"PUT /v1/kv/k HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + b"v" * 99_999)
        await until("the request is in flight", lambda: http.node.counters.inflight == 1)
        writer.write(b"v" + b"GET /livez HTTP/1.1\r\nHost: x\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        writer.write("".join(f"X-{i}: {'y' * 4000}\r\n" for i in range(9)).encode())
        assert b"HTTP/1.1 431 " in await reader.read()
        writer.close()
        for count, status in ((64, 200), (65, 400)):
            tags = ", ".join(['"7"'] * count)
            assert (await http("GET", "/v1/kv/k", headers={"If-None-Match": tags})).status == status

    run(scenario)


def test_curl_is_told_to_go_on_before_it_sends_a_long_body() -> None:
    async def scenario(http: Server) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", http.port)
        writer.write(b"PUT /v1/kv/k HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"abc")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        writer.close()
        await writer.wait_closed()

    run(scenario)


@pytest.mark.parametrize(
    "first",
    [
        b"PUT /v1/kv/a HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\nContent-Length: 1\r\n\r\na",
        b"CONNECT localhost:1 HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\na",
    ],
    ids=["h2c", "CONNECT"],
)
def test_what_follows_a_request_to_upgrade_is_not_taken_for_answered(first: bytes) -> None:
    """It was dropped in silence, and the client took the answer to the next request for its own."""

    async def scenario(http: Server) -> None:
        second = b"PUT /v1/kv/b HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nb"
        reader, writer = await asyncio.open_connection("127.0.0.1", http.port)
        writer.write(first + second)
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        assert len(STATUS_LINE.findall(answer)) == 1
        assert b"Connection: close" in answer
        assert b"b" not in http.node.proposed_keys

    run(scenario)


def test_requests_on_one_connection_are_answered_in_order() -> None:
    async def scenario(http: Server) -> None:
        requests = b"".join(
            b"PUT /v1/kv/k%d HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n%d" % (i, i) for i in range(9)
        )
        answer = await http.raw(requests + b"GET /v1/kv/k5 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert STATUS_LINE.findall(answer) == [b"200"] * 10
        assert answer.endswith(b"\r\n\r\n5")

    run(scenario)


class Watched(FakeNode):
    """Records in which task each read runs, and in which turn of the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = 0
        self.reads: list[tuple[object, int]] = []

    async def read_barrier(self, timeout_ms: int) -> None:
        self.reads.append((asyncio.current_task(), self.turn))

    async def count_turns(self) -> None:
        while True:
            await asyncio.sleep(0)
            self.turn += 1


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="aiohttp starts the tasks of requests eagerly")
def test_a_request_needs_no_task_of_its_own() -> None:
    async def main() -> None:
        async with serving(node := Watched()) as http:
            reader, writer = await asyncio.open_connection("127.0.0.1", http.port)
            for _ in range(3):
                writer.write(b"GET /v1/kv/k HTTP/1.1\r\nHost: x\r\n\r\n")
                await reader.readuntil(b"\r\n\r\n")
            writer.close()
        assert len({task for task, _ in node.reads}) == 1

    asyncio.run(main())


def test_a_closed_connection_is_freed_without_the_collector() -> None:
    async def main() -> None:
        async with serving() as http:
            reader, writer = await asyncio.open_connection("127.0.0.1", http.port)
            writer.write(b"PUT /v1/kv/k HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nv")
            await reader.readuntil(b"\r\n\r\n")
            assert connections() == 1
            writer.close()
            await until("the connection is freed", lambda: connections() == 0)

    def all_connections() -> list[object]:
        return [each for each in gc.get_objects() if type(each).__name__ == "_Connection"]

    def connections() -> int:
        return sum(all(each is not other for other in of_others) for each in all_connections())

    gc.collect()
    of_others = all_connections()
    """What other tests of this process still hold."""
    gc.disable()
    try:
        asyncio.run(main())
    finally:
        gc.enable()


def test_requests_that_arrived_together_are_not_answered_in_one_turn_of_the_loop() -> None:
    async def main() -> None:
        async with serving(node := Watched()) as http:
            turns = asyncio.create_task(node.count_turns())
            await http.raw(
                50 * b"GET /v1/kv/k HTTP/1.1\r\nHost: x\r\n\r\n"
                + b"GET /v1/kv/k HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            )
            turns.cancel()
        assert len({turn for _, turn in node.reads}) == 51

    asyncio.run(main())


def test_a_web_page_cannot_use_the_node_under_a_name_of_its_own() -> None:
    async def main() -> None:
        async with asyncio.timeout(20), serving() as http:
            for method, path in (("PUT", "/v1/kv/k"), ("GET", "/v1/kv/k"), ("GET", "/livez"), ("DELETE", "/x")):
                answer = await http(method, path, b"v", {"Host": f"evil.example:{http.port}"})
                assert (answer.status, answer.json["code"]) == (421, "unknown_host")
                assert "option hosts" in answer.json["detail"]
            # A member's name is not known at the start.
            assert (await http("GET", "/livez", headers={"Host": "n3:8001"})).status == 200
            assert (await http("GET", "/livez", headers={"Host": f"localhost:{http.port}"})).status == 200
            assert http.node.proposed == []
            cross_site = {"Sec-Fetch-Site": "cross-site"}
            assert (await http("GET", "/v1/kv/k", headers=cross_site)).json["code"] == "cross_origin"
            for site in ("none", "same-origin"):
                assert (await http("GET", "/livez", headers={"Sec-Fetch-Site": site})).status == 200

    asyncio.run(main())


def test_a_node_that_stops_serves_on_and_ends_each_connection_with_its_next_answer() -> None:
    """A kept connection would go on to the node after every load balancer has turned away from it."""

    async def main() -> None:
        node = FakeNode()
        server = api_of(node)
        await server.start()
        port = server.addresses[0][1]
        request = b"PUT /v1/kv/k HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nv"
        async with asyncio.timeout(20):
            kept = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
            for reader, writer in kept:
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
                assert b"Connection: close" not in head
                await reader.readexactly(int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0]))

            server.close_after_answers()

            for reader, writer in [*kept, await asyncio.open_connection("127.0.0.1", port)]:
                writer.write(request)
                answer = await reader.read()
                assert answer.startswith(b"HTTP/1.1 200 ")
                assert answer.count(b"Connection: close\r\n") == 1
                writer.close()
                await writer.wait_closed()
        assert len(node.proposed) == 7
        await server.stop()

    asyncio.run(main())


def test_old_http_is_served_too() -> None:
    async def scenario(http: Server) -> None:
        await http("PUT", "/v1/kv/k", b"v")
        assert (await http.raw(b"GET /v1/kv/k HTTP/1.0\r\n\r\n")).endswith(b"Connection: close\r\n\r\nv")
        reader, writer = await asyncio.open_connection("127.0.0.1", http.port)
        writer.write(b"GET /v1/kv/k HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert b"Connection: keep-alive\r\n" in await reader.readuntil(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    run(scenario)


def test_old_http_is_not_told_to_go_on_since_it_would_take_that_for_the_answer() -> None:
    async def scenario(http: Server) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", http.port)
        writer.write(b"PUT /v1/kv/k HTTP/1.0\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        await until("the request is in flight", lambda: http.node.counters.inflight == 1)
        writer.write(b"abc")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        writer.close()
        await writer.wait_closed()

    run(scenario)


@pytest.mark.parametrize("method", ["PUT", "GET"])
def test_old_http_has_no_chunked_bodies(method: str) -> None:
    async def scenario(http: Server) -> None:
        head = f"{method} /v1/kv/k HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n"
        smuggled = "PUT /v1/kv/smuggled HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nv"
        answer = await http.raw(f"{head}1\r\nv\r\n0\r\n\r\n{smuggled}".encode())
        assert STATUS_LINE.findall(answer) == [b"400"]
        assert b"Connection: close\r\n" in answer
        assert http.node.proposed == []

    run(scenario)


def test_a_client_that_only_reads_any_more_gets_its_answers() -> None:
    async def main() -> None:
        node = FakeNode()
        async with asyncio.timeout(20), serving(node) as http:
            put = b"PUT /v1/kv/k%d HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nv"
            for count in (1, 3):
                node.gate = asyncio.Event()
                reader, writer = await asyncio.open_connection("127.0.0.1", http.port)
                writer.write(b"".join(put % number for number in range(count)))
                writer.write_eof()
                await until("the first is in flight", lambda: node.counters.inflight == 1)
                await http("GET", "/livez")  # The server has had time to see the end.
                node.gate.set()
                answer = await reader.read()
                assert STATUS_LINE.findall(answer) == [b"200"] * count
                assert answer.count(b"Connection: close\r\n") == 1
                writer.close()
                await writer.wait_closed()
            # A request that will never be complete is not waited for, nor is one that is not there.
            for half in (put[:40], put[:-1] % 1, b""):
                reader, writer = await asyncio.open_connection("127.0.0.1", http.port)
                writer.write(half)
                writer.write_eof()
                assert await reader.read() == b""
                writer.close()
                await writer.wait_closed()
            await until("nothing is in flight", lambda: node.counters.inflight == 0)

    asyncio.run(main())


def test_an_absolute_target_is_a_target() -> None:
    async def scenario(http: Server) -> None:
        await http("PUT", "/v1/kv/a%2Fb", b"v")
        answer = await http.raw(b"GET http://any.host/v1/kv/a%2Fb HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert answer.endswith(b"\r\n\r\nv")

    run(scenario)


def test_one_connection_too_many_is_refused_if_none_is_idle_and_the_others_live_on() -> None:
    async def main() -> None:
        node = FakeNode(make_config(connections_max=2))
        node.gate = asyncio.Event()
        async with asyncio.timeout(20), serving(node) as http:
            first = await asyncio.open_connection("127.0.0.1", http.port)
            second = await asyncio.open_connection("127.0.0.1", http.port)
            for _, writer in (first, second):
                writer.write(b"GET /v1/kv/k HTTP/1.1\r\nHost: x\r\n\r\n")
            await until("both are in flight", lambda: node.counters.inflight == 2)
            refused = await http.raw(b"")
            assert refused.startswith(b"HTTP/1.1 503 ")
            assert b"Retry-After: 1\r\n" in refused
            node.gate.set()
            for reader, _ in (first, second):
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 404 ")
            for _, writer in (first, second):
                writer.close()
                await writer.wait_closed()

    asyncio.run(main())


def test_the_connection_that_is_idle_longest_makes_room_for_a_new_one() -> None:
    async def main() -> None:
        node = FakeNode(make_config(connections_max=3))
        node.gate = asyncio.Event()
        async with asyncio.timeout(20), serving(node) as http:
            connections = [await asyncio.open_connection("127.0.0.1", http.port) for _ in range(3)]
            busy, used, fresh = connections
            busy[1].write(b"GET /v1/kv/k HTTP/1.1\r\nHost: x\r\n\r\n")
            await until("it is in flight", lambda: node.counters.inflight == 1)
            for reader, writer in (fresh, used):  # The one that came last had its request first.
                writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
                assert await reader.readuntil(b"ok\n")
            for closed in (fresh, used):
                newcomer = await asyncio.open_connection("127.0.0.1", http.port)
                newcomer[1].write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
                assert (await newcomer[0].readuntil(b"ok\n")).startswith(b"HTTP/1.1 200 ")
                assert await closed[0].read() == b""
                connections.append(newcomer)
            node.gate.set()
            assert (await busy[0].readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 404 ")
            for _, writer in connections:
                writer.close()

    asyncio.run(main())


def test_what_is_not_http_is_counted_and_logged_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(http: Server) -> None:
        for _ in range(5):
            answer = await http.raw(b"\x00\x01\x02 nonsense \xff\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 400 ")
        assert http.node.counters.malformed_requests == 5

    with caplog.at_level(logging.DEBUG):
        run(scenario)
    lines = [record for record in caplog.records if "Refused malformed HTTP" in record.getMessage()]
    assert len(lines) == 1
    assert all(record.exc_info is None for record in caplog.records)


def test_a_request_smuggled_in_two_lengths_is_refused() -> None:
    async def scenario(http: Server) -> None:
        both = b"PUT /v1/kv/k HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        twice = b"PUT /v1/kv/k HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nvv"
        for raw in (both, twice):
            assert (await http.raw(raw)).startswith(b"HTTP/1.1 400 ")
        assert http.node.proposed == []

    run(scenario)


def test_what_a_client_hung_up_on_is_finished_and_forgotten() -> None:
    async def main() -> None:
        node = FakeNode()
        node.gate = asyncio.Event()
        async with asyncio.timeout(20), serving(node) as http:
            _, writer = await asyncio.open_connection("127.0.0.1", http.port)
            writer.write(b"PUT /v1/kv/k HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nv")
            await until("the request is in flight", lambda: node.counters.inflight == 1)
            writer.close()
            await writer.wait_closed()
            node.gate.set()
            await until("the request is over", lambda: node.counters.inflight == 0)
            assert node.store.get(b"k") is not None

    asyncio.run(main())


def test_a_stopping_server_finishes_what_is_in_flight() -> None:
    async def main() -> None:
        node = FakeNode()
        node.gate = asyncio.Event()
        server = api_of(node)
        await server.start()
        reader, writer = await asyncio.open_connection(*server.addresses[0])
        writer.write(b"PUT /v1/kv/k HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nv")
        await until("the request is in flight", lambda: node.counters.inflight == 1)
        stopping = asyncio.create_task(server.stop())
        await asyncio.sleep(0)
        node.gate.set()
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
        await stopping
        writer.close()
        await writer.wait_closed()

    asyncio.run(main())


# Fuzz: one long-lived server per run of hypothesis, since a thousand of them would take a minute.

_METHODS = st.sampled_from(["GET", "HEAD", "PUT", "DELETE", "POST", "PATCH", "OPTIONS", "TRACE", "FROB"])
_VISIBLE = st.characters(min_codepoint=33, max_codepoint=126)
_KNOWN_PATHS = (
    *("/v1/kv/", "/v1/kv/k", "/v1/cluster", "/v1/cluster/leader", "/v1/cluster/members", "/v1/cluster/members/n1"),
    *("/v1/cluster/members/n1/promote", "/v1/hash", "/livez", "/readyz", "/readyz/x", "/metrics", "/version", "/", "*"),
)
_PATHS = st.one_of(
    st.sampled_from(_KNOWN_PATHS),
    st.text(_VISIBLE, max_size=60).map("/v1/kv/".__add__),
    st.text(_VISIBLE, max_size=30).map("/".__add__),
)
_PARAMETERS = ("prev_revision", "timeout_ms", "consistency", "max_staleness_ms", "forward", "verbose", "exclude")
_ARGUMENTS = ("", "0", "1", "-1", "stale", "true", "99999999999999999999", "%00", "%ff", "leader,storage")
_QUERIES = st.one_of(
    st.just(""),
    st.text(_VISIBLE, max_size=30).map("?".__add__),
    st.builds("?{}={}".format, st.sampled_from(_PARAMETERS), st.sampled_from(_ARGUMENTS)),
)
_NAMES = (
    *("Idempotency-Key", "If-Match", "If-None-Match", "Accept", "Content-Encoding", "Expect", "Origin", "Upgrade"),
    *("Connection", "Transfer-Encoding", "Content-Length", "Range", "X-Kvorum-Forwarded-By", "Host", "Cookie"),
)
_VALUES = ('"1"', "*", "c/1", "application/json", "gzip", "100-continue", "close", "websocket", "chunked", "upgrade")
_NOISE = st.binary(max_size=20).map(lambda data: data.replace(b"\r", b"").replace(b"\n", b"").decode("latin-1"))
_HEADERS = st.lists(st.tuples(st.sampled_from(_NAMES), st.sampled_from(_VALUES) | _NOISE), max_size=4)


def _server_for(node: FakeNode) -> tuple[asyncio.Runner, ApiServer]:
    runner = asyncio.Runner()
    server = api_of(node, lambda: (b"# metrics\n", "text/plain"))
    runner.run(server.start())
    return runner, server


def test_nothing_that_a_client_sends_makes_a_500_or_a_hang() -> None:
    node = FakeNode(make_config(body_timeout_s=0.05, keepalive_s=5, request_timeout_ms=50))
    node.error = None
    runner, server = _server_for(node)
    http = Server(node, server.addresses[0][1])

    @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
    @given(_METHODS, _PATHS, _QUERIES, _HEADERS, st.binary(max_size=40), st.booleans())
    def fuzz(
        method: str, path: str, query: str, headers: list[tuple[str, str]], body: bytes, with_length: bool
    ) -> None:
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
        length = f"Content-Length: {len(body)}\r\n" if with_length else ""
        head = f"{method} {path}{query} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{length}{lines}\r\n"
        answer = runner.run(http.raw(head.encode("latin-1") + body))
        statuses = {int(status) for status in STATUS_LINE.findall(answer)}
        assert 500 not in statuses, answer
        assert b"Traceback" not in answer
        # Silence is an answer to half a request only.
        assert statuses or not head, answer

    try:
        fuzz()
        assert node.counters.inflight == 0
        assert not any(code == 500 for _, code in node.counters.requests)
    finally:
        runner.run(server.stop())
        runner.close()


def test_noise_on_the_socket_makes_no_500_and_no_hang() -> None:
    node = FakeNode(make_config(body_timeout_s=0.05, keepalive_s=0.05))
    runner, server = _server_for(node)
    http = Server(node, server.addresses[0][1])
    good = b'PUT /v1/kv/k?prev_revision=0 HTTP/1.1\r\nHost: x\r\nIf-Match: "1"\r\nContent-Length: 5\r\n\r\nvalue'
    places = st.integers(0, len(good) - 1)

    @settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        st.lists(st.tuples(places, st.integers(0, 255)), max_size=6),
        st.integers(0, len(good)),
    )
    def fuzz(flips: list[tuple[int, int]], cut: int) -> None:
        data = bytearray(good)
        for place, byte in flips:
            data[place] = byte
        assert b" 500 " not in runner.run(http.raw(bytes(data[:cut])))

    try:
        fuzz()
        assert node.counters.inflight == 0
    finally:
        runner.run(server.stop())
        runner.close()


@given(st.binary(max_size=64))
def test_every_byte_string_survives_the_percent_encoding(data: bytes) -> None:
    encoded = "".join(f"%{byte:02x}" for byte in data)
    assert decode_bytes(encoded) == data


@given(st.text(max_size=60))
def test_parsers_refuse_or_take_and_never_do_anything_else(text: str) -> None:
    for parse in (
        split_target,
        decode_bytes,
        lambda t: Query(t, frozenset({EXCLUDE})),
        lambda t: parse_etags(t, "tag"),
    ):
        with contextlib.suppress(InvalidRequestError):
            parse(text)


def test_every_status_of_the_table_can_be_said() -> None:
    assert all(300 <= row.status < 600 for row in TABLE.values())
