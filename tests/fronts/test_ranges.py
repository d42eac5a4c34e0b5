"""``GET /v1/kv``: pages and streams of a range, and every parameter."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from aiohttp.web import BaseRequest
from fronts.fake_node import FakeNode, Server, run

from kvorum.errors import NotServingError
from kvorum.fronts.http.response import Response
from kvorum.service import scans


def filled(*keys: str, value: bytes = b"v") -> FakeNode:
    """Return a node at the highest feature level with these keys."""
    node = FakeNode()
    node.raise_feature_level()

    async def put() -> None:
        from kvorum.kv.commands import Put

        for key in keys:
            await node.propose(Put(key.encode("utf-8", "surrogateescape"), value), 1000)

    asyncio.run(put())
    return node


def keys_of(body: Any) -> list[str]:
    return [record.get("key", record.get("key_base64")) for record in body["records"]]


@pytest.mark.parametrize(
    ("query", "keys"),
    [
        ("", ["a", "a/b", "a/c", "b"]),
        ("prefix=a/", ["a/b", "a/c"]),
        ("prefix=a%2F", ["a/b", "a/c"]),
        ("prefix64=YS8", ["a/b", "a/c"]),
        ("prefix64=YS8%3D", ["a/b", "a/c"]),
        ("prefix=", ["a", "a/b", "a/c", "b"]),
        ("start=a/c", ["a/c", "b"]),
        ("end=a/b", ["a"]),
        ("start=a/&end=b", ["a/b", "a/c"]),
        ("start=b&end=a", []),
        ("start64=Yg", ["b"]),
        ("end64=YQA", ["a"]),
        ("reverse&limit=2", ["b", "a/c"]),
        ("sort=mod&reverse=true&limit=1", ["b"]),
        ("min_mod_revision=4", ["a/c", "b"]),
        ("max_create_revision=3", ["a", "a/b"]),
        ("revision=3", ["a", "a/b"]),
        ("keys_only=true&prefix=b", ["b"]),
        ("consistency=stale&prefix=b", ["b"]),
    ],
)
def test_a_page_has_what_the_parameters_say(query: str, keys: list[str]) -> None:
    async def scenario(server: Server) -> None:
        answer = await server("GET", f"/v1/kv?{query}")
        assert answer.status == 200, answer.body
        assert keys_of(answer.json) == keys

    node = filled("a", "a/b", "a/c", "b")
    assert node.store.revision == 5
    run(scenario, node)


def test_a_page_says_its_revision_the_count_and_where_to_go_on_and_stays_at_its_revision() -> None:
    async def scenario(server: Server) -> None:
        page = (await server("GET", "/v1/kv?limit=2")).json
        assert (page["revision"], page["count"], page["more"]) == (4, 3, True)
        await server("PUT", "/v1/kv/b0", b"new")
        rest = (await server("GET", f"/v1/kv?limit=9&cursor={page['cursor']}")).json
        assert (rest["revision"], rest["count"], rest["more"]) == (4, 3, False)
        assert "cursor" not in rest and keys_of(page) + keys_of(rest) == ["a", "b", "c"]
        other = await server("GET", f"/v1/kv?prefix=a&cursor={page['cursor']}")
        assert other.status == 400 and "belongs to another range" in other.json["detail"]
        await server("POST", "/v1/compact", b'{"revision": 5}')
        late = await server("GET", f"/v1/kv?limit=9&cursor={page['cursor']}")
        assert (late.status, late.json["code"], late.json["floor"]) == (410, "compacted", 5)

    run(scenario, filled("a", "b", "c"))


def test_keys_and_values_that_are_no_text_are_base64_and_a_level_has_its_prefixes() -> None:
    async def scenario(server: Server) -> None:
        record = (await server("GET", "/v1/kv?prefix=%ff")).json["records"][0]
        assert record["key_base64"] == "/w==" and record["value_base64"] == "/g=="
        level = (await server("GET", "/v1/kv?delimiter=/&keys_only")).json
        assert level["prefixes"] == [{"prefix": "d/", "count": 2}]
        assert [set(record) for record in level["records"]] == [
            {"create_revision", "mod_revision", "version", "key"},
            {"create_revision", "mod_revision", "version", "key_base64"},
        ]
        count = (await server("GET", "/v1/kv?prefix=d/&count_only")).json
        assert count["count"] == 2 and count["records"] == [] and "prefixes" not in count

    run(scenario, filled("a", "d/1", "d/2", "\udcff", value=b"\xfe"))


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("perfix=a", "unknown parameter 'perfix'"),
        ("prefix=a&prefix=b", "prefix is given twice"),
        ("prefix=a&prefix64=YQ", "prefix is given twice"),
        ("prefix=a&start=b", "prefix and start contradict"),
        ("prefix=a&end=b", "prefix and end contradict"),
        ("prefix64=%21", "prefix64 is not base64"),
        ("end=", "end is empty"),
        ("start=", "start is empty"),
        ("end=%00", "no key is below it"),
        ("delimiter=", "delimiter is empty"),
        ("cursor=", "cursor is empty"),
        ("cursor=xyz", "the cursor is damaged"),
        ("start=a&delimiter=/", "needs the range of a prefix"),
        ("delimiter=/&sort=mod", "sort=mod"),
        ("limit=0", "limit must be"),
        ("limit=-1", "limit must be"),
        ("limit=9223372036854775808", "limit must be"),
        ("revision=0", "revision must be"),
        ("revision=x", "revision must be"),
        ("min_mod_revision=3&max_mod_revision=2", "min_mod_revision 3 is above"),
        ("sort=name", "sort is one of: key, create, mod, version, value"),
        ("reverse=2", "reverse must be true or false"),
        ("count_only&limit=1&keys_only", "cannot be combined with limit, keys_only"),
        ("max_staleness_ms=1", "needs consistency=stale"),
        ("timeout_ms=0", "timeout_ms must be"),
    ],
)
def test_what_contradicts_itself_or_is_unknown_is_refused_by_name(query: str, reason: str) -> None:
    async def scenario(server: Server) -> None:
        answer = await server("GET", f"/v1/kv?{query}")
        assert answer.status == 400 and reason in answer.json["detail"], answer.body

    run(scenario, filled("a"))


def test_the_key_of_a_path_is_still_a_key_and_head_reads_no_range() -> None:
    async def scenario(server: Server) -> None:
        assert (await server("GET", "/v1/kv?key=a")).body == b"v"
        assert (await server("GET", "/v1/kv/")).status == 400
        assert (await server("HEAD", "/v1/kv?key=a")).status == 200
        head = await server("HEAD", "/v1/kv")
        assert head.status == 400  # The path takes HEAD, with the parameter key only.

    run(scenario, filled("a"))


async def _lines(server: Server, query: str = "") -> list[Any]:
    answer = await server("GET", f"/v1/kv?{query}", headers={"Accept": "application/x-ndjson"})
    assert answer.status == 200 and answer.headers["Content-Type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.body.splitlines()]


def test_a_stream_has_all_of_the_range_and_says_that_it_is_complete() -> None:
    async def scenario(server: Server) -> None:
        first, *records, last = await _lines(server)
        assert first == {"revision": server.node.store.revision, "count": 1500}
        assert [record["key"] for record in records] == [f"{number:04}" for number in range(1500)]
        assert (last["complete"], last["items"], last["more"]) == (True, 1500, False)
        assert not server.node.store.versions._pins

    run(scenario, filled(*(f"{number:04}" for number in range(1500))))


def test_a_stream_that_ends_early_says_why_instead() -> None:
    async def scenario(server: Server) -> None:
        node = server.node
        checks = 0

        def check_serves() -> None:
            nonlocal checks
            checks += 1
            if checks > 1:
                raise NotServingError("the node is stopping")

        node.check_serves = check_serves  # type: ignore[method-assign]
        lines = await _lines(server)
        assert lines[-1]["error"]["code"] == "not_serving" and not any("complete" in line for line in lines)
        assert not node.store.versions._pins

    run(scenario, filled(*(f"{number:04}" for number in range(1500))))


def test_a_stream_to_a_client_of_http_1_0_ends_with_its_connection() -> None:
    async def scenario(server: Server) -> None:
        answer = await server.raw(b"GET /v1/kv HTTP/1.0\r\nHost: x\r\nAccept: application/x-ndjson\r\n\r\n")
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"chunked" not in head and b"Connection: close" in head
        assert json.loads(body.splitlines()[-1])["complete"]

    run(scenario, filled("a"))


def test_more_ranges_than_there_are_places_are_refused_and_a_small_one_needs_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scans, "PAGES_MAX", 0)

    async def scenario(server: Server) -> None:
        answer = await server("GET", "/v1/kv")
        assert (answer.status, answer.json["code"]) == (503, "overloaded")
        assert (await server("GET", "/v1/kv?limit=3")).status == 200

    run(scenario, filled(*(f"{number:04}" for number in range(100))))


def test_a_page_gives_its_place_back_when_it_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scans, "PAGES_MAX", 1)

    async def scenario(server: Server) -> None:
        for _ in range(3):
            answer = await server("GET", "/v1/kv")
            assert answer.status == 200 and len(answer.json["records"]) == 100
            assert answer.headers["Content-Length"] == str(len(answer.body))
        assert not server.node.store.versions._pins

    run(scenario, filled(*(f"{number:04}" for number in range(100))))


def test_a_page_of_a_client_that_does_not_read_holds_its_place_and_no_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scans, "PAGES_MAX", 1)

    async def scenario(server: Server) -> None:
        waiting = asyncio.Event()
        is_over = asyncio.Event()

        async def drain(self: Response, request: BaseRequest) -> None:
            waiting.set()
            await is_over.wait()

        monkeypatch.setattr(Response, "_drain", drain)
        monkeypatch.setattr(Response, "_write_more", lambda self, request, chunk: True)
        async with asyncio.TaskGroup() as tasks:
            slow = tasks.create_task(server.raw(b"GET /v1/kv HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
            await waiting.wait()
            assert not server.node.store.versions._pins
            assert (await server("GET", "/v1/kv")).status == 503
            is_over.set()
            await slow
        monkeypatch.undo()
        assert (await server("GET", "/v1/kv")).status == 200

    run(scenario, filled(*(f"{number:04}" for number in range(100))))


@pytest.mark.parametrize(
    ("consistency", "barriers"), [("", 1), ("consistency=linearizable", 1), ("consistency=stale", 0)]
)
def test_a_range_asks_a_quorum_unless_it_may_be_stale(consistency: str, barriers: int) -> None:
    async def scenario(server: Server) -> None:
        before = server.node.barriers
        assert (await server("GET", f"/v1/kv?{consistency}")).status == 200
        assert server.node.barriers - before == barriers

    run(scenario, filled("a"))


def test_a_delete_without_keys_says_how_to_name_them() -> None:
    async def scenario(http: Server) -> None:
        for query in ("", "?", "?timeout_ms=5"):
            answer = await http("DELETE", f"/v1/kv{query}")
            assert (answer.status, answer.json["code"]) == (400, "invalid_request")
            assert all(name in answer.json["detail"] for name in ("key=KEY", "prefix=P", "start=A&end=B", "prefix64"))

    run(scenario)
