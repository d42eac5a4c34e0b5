"""The client and ``kv``: ranges of keys, a page at a time, and one level of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest
from client.test_cli import Kv
from client.test_cli import run as run_cli
from client.test_client import run
from fronts.fake_node import FakeNode, Server, serving

from kvorum_client import Client, CommonPrefix, CompactedError, InvalidArgumentError, RefusedError, SyncClient

KEYS = [b"a/1", b"a/2", b"a/b/3", b"a/b/4", b"b", b"c\xff"]
"""Put at the revisions from 2 on, with their number as the value."""


def with_keys(scenario: Callable[[Server, Client], Awaitable[None]]) -> None:
    async def main() -> None:
        node = FakeNode()
        node.raise_feature_level()
        async with serving(node) as server, Client([server.url], timeout_s=2) as kv:
            node.leader = ("n1", server.url)
            for number, key in enumerate(KEYS):
                await kv.put(key, str(number))
            await scenario(server, kv)

    run(lambda: main())


def test_a_range_is_read_through_its_pages_at_the_revision_of_the_first() -> None:
    async def scenario(server: Server, kv: Client) -> None:
        found = []
        async for record in kv.range(page_limit=2):
            found.append((record.key, record.value, record.mod_revision, record.revision))
            await kv.put(b"a/0", "later")
            await kv.delete(b"c\xff")
        assert found == [(key, str(number).encode(), number + 2, 7) for number, key in enumerate(KEYS)]
        assert [record.key async for record in kv.range(prefix="a/b/")] == [b"a/b/3", b"a/b/4"]
        assert [record.key async for record in kv.range(start=b"a/2", end="b")] == [b"a/2", b"a/b/3", b"a/b/4"]
        assert [record.key async for record in kv.range(start="b", reverse=True, revision=7)] == [b"c\xff", b"b"]

    with_keys(scenario)


def test_a_page_says_what_it_is_of() -> None:
    async def scenario(server: Server, kv: Client) -> None:
        page = await kv.page(prefix="a/", limit=3, keys_only=True, sort="mod", reverse=True, stale=True)
        assert [(record.key, record.value) for record in page.records] == [
            (b"a/b/4", b""),
            (b"a/b/3", b""),
            (b"a/2", b""),
        ]
        assert (page.revision, page.count, page.prefixes) == (7, 4, ())
        assert page.cursor is not None and page.staleness_ms is not None
        last = await kv.page(prefix="a/", cursor=page.cursor, keys_only=True, sort="mod", reverse=True, stale=True)
        assert ([record.key for record in last.records], last.cursor) == ([b"a/1"], None)

    with_keys(scenario)


def test_a_level_has_its_keys_and_what_the_others_have_in_common() -> None:
    async def scenario(server: Server, kv: Client) -> None:
        top = await kv.page(delimiter="/")
        assert ([record.key for record in top.records], top.prefixes) == ([b"b", b"c\xff"], (CommonPrefix(b"a/", 4),))
        level = await kv.page(prefix="a/", delimiter=b"/")
        assert [record.key for record in level.records] == [b"a/1", b"a/2"]
        assert level.prefixes == (CommonPrefix(b"a/b/", 2),)

    with_keys(scenario)


def test_keys_are_counted_also_as_they_were() -> None:
    async def scenario(server: Server, kv: Client) -> None:
        await kv.delete("b")
        assert [await kv.count(), await kv.count(prefix="a/"), await kv.count(start="b")] == [5, 4, 1]
        assert [await kv.count(revision=3), await kv.count(revision=7, stale=True)] == [2, 6]

    with_keys(scenario)


def test_pages_whose_revision_was_compacted_say_so() -> None:
    async def scenario(server: Server, kv: Client) -> None:
        page = await kv.page(limit=1)
        await kv.put("b", "x")
        await kv.compact(8)
        with pytest.raises(CompactedError) as compacted:
            await kv.page(limit=1, cursor=page.cursor)
        assert compacted.value.floor == 8

    with_keys(scenario)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"prefix": "a", "start": "b"}, "not both"),
        ({"end": ""}, "end is empty"),
        ({"sort": "size"}, "sort is one of"),
        ({"delimiter": ""}, "the delimiter is empty"),
        ({"limit": 0}, "limit"),
        ({"prefix": 7}, "neither bytes nor text"),
    ],
)
def test_a_range_that_cannot_be_meant_is_refused_by_the_client(arguments: dict[str, object], told: str) -> None:
    async def scenario(server: Server, kv: Client) -> None:
        with pytest.raises(InvalidArgumentError, match=told):
            await kv.page(**arguments)  # type: ignore[arg-type]

    with_keys(scenario)


def test_a_cursor_of_another_range_is_refused() -> None:
    async def scenario(server: Server, kv: Client) -> None:
        cursor = (await kv.page(limit=1)).cursor
        with pytest.raises(RefusedError):
            await kv.page(prefix="a/", cursor=cursor)

    with_keys(scenario)


def test_the_synchronous_client_has_the_same() -> None:
    async def scenario(server: Server, kv: Client) -> None:
        def use() -> None:
            with SyncClient([server.url]) as sync:
                assert [record.key for record in sync.range(page_limit=4)] == KEYS
                assert sync.count(prefix="a/") == 4
                assert sync.page(delimiter="/").prefixes == (CommonPrefix(b"a/", 4),)

        await asyncio.to_thread(use)

    with_keys(scenario)


# kv.


async def _written(server: Server, kv: Kv) -> None:
    server.node.raise_feature_level()
    for arguments in (("a/1", "one"), ("a/2", "two\n"), ("b", "three")):
        assert await kv("put", *arguments) == 0


def test_kv_gets_a_range_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        await _written(server, kv)
        for arguments, printed in (
            (("--prefix", "a/"), "a/1 one\na/2 two\\n\n"),
            (("--prefix", "", "--keys-only", "--reverse"), "b\na/2\na/1\n"),
            (("--from", "a/2", "--to", "b"), "a/2 two\\n\n"),
            (("--prefix", "", "--count-only"), "3\n"),
            (("--prefix", "nothing"), ""),
            (("--prefix", "", "--revision", "2"), "a/1 one\n"),
        ):
            capsys.readouterr()
            assert await kv("get", *arguments) == 0
            assert capsys.readouterr().out == printed
        assert await kv("get", "--prefix", "a/", "--limit", "1", "-o", "json") == 0
        told = capsys.readouterr()
        assert json.loads(told.out) == {
            "key": "a/1", "value": "one", "create_revision": 2, "mod_revision": 2, "version": 1, "revision": 4,
        }  # fmt: skip
        assert told.err == "kv: 2 keys are in the range; the rest is left out (--limit)\n"
        assert await kv("get", "--prefix", "b", "-o", "table") == 0
        assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
            ["KEY", "VALUE", "MOD-REVISION", "VERSION", "LEASE"],
            ["b", "three", "4", "1", "-"],
        ]

    run_cli(scenario)


@pytest.mark.parametrize(
    "arguments", [(), ("k", "--prefix", "p"), ("k", "--limit", "1"), ("--prefix", "p", "--count-only", "--reverse")]
)
def test_kv_get_says_what_contradicts_itself(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        assert await kv("get", *arguments) == 2
        assert capsys.readouterr().err.startswith("kv: ")

    run_cli(scenario)


def test_kv_lists_one_level(capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        await _written(server, kv)
        capsys.readouterr()
        assert await kv("ls") == 0
        assert capsys.readouterr().out == "a/\nb\n"
        assert await kv("ls", "a/") == 0
        assert capsys.readouterr().out == "a/1\na/2\n"
        assert await kv("ls", "-o", "json") == 0
        assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [
            {"prefix": "a/", "count": 2},
            {"key": "b"},
        ]

    run_cli(scenario)
