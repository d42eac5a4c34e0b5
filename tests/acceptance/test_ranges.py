"""Ranges on real processes: all pages of a range are one state, whoever is killed between them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from acceptance.processes import Cluster

from kvorum_client import Client
from kvorum_client.results import Page

KEYS = 60
PAGE = 7
WRITERS = 3
RANGES = 3
"""Each of them is read across the kill of a leader."""

Changes = dict[int, tuple[bytes, bytes | None]]
"""Revision -> the key that it changed, and its value; None: it was deleted."""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path) as cluster:
        yield cluster


def test_the_pages_of_a_range_are_one_state_across_kills_of_leaders_while_writers_go_on(cluster: Cluster) -> None:
    changes: Changes = {}

    async def write(kv: Client, writer: int, is_over: asyncio.Event) -> None:
        number = 0
        while not is_over.is_set():
            number += 1
            key = f"range/{(7 * number + writer) % (2 * KEYS):03}"
            if number % 3:
                result = await kv.put(key, f"{writer}:{number}")
                changes[result.revision] = (key.encode(), f"{writer}:{number}".encode())
            else:
                deleted = await kv.delete(key)
                if deleted.deleted:
                    changes[deleted.revision] = (key.encode(), None)
            await asyncio.sleep(0)

    async def read(kv: Client, *, reverse: bool) -> list[Page]:
        pages = [await kv.page(prefix="range/", limit=PAGE, reverse=reverse)]
        acknowledged = max(changes)
        leader = await asyncio.to_thread(cluster.leader)
        cluster.kill(leader)
        while cursor := pages[-1].cursor:
            pages.append(await kv.page(prefix="range/", limit=PAGE, reverse=reverse, cursor=cursor))
        cluster.start(leader)
        await asyncio.to_thread(cluster.settled)
        later = await kv.page(prefix="range/", limit=PAGE)
        assert later.revision >= acknowledged
        return pages

    async def scenario() -> list[list[Page]]:
        addresses = list(cluster.addresses.values())
        is_over = asyncio.Event()
        async with Client(addresses, timeout_s=30) as kv, Client(addresses, timeout_s=30) as reading:
            for number in range(KEYS):
                result = await kv.put(f"range/{number:03}", b"0")
                changes[result.revision] = (f"range/{number:03}".encode(), b"0")
            await kv.put("other", b"1")
            async with asyncio.TaskGroup() as tasks:
                for writer in range(WRITERS):
                    tasks.create_task(write(kv, writer, is_over))
                try:
                    return [await read(reading, reverse=bool(number % 2)) for number in range(RANGES)]
                finally:
                    is_over.set()

    for number, pages in enumerate(asyncio.run(scenario())):
        assert len(pages) > 1
        assert {page.revision for page in pages} == {pages[0].revision}
        expected = _state(changes, pages[0].revision)
        assert {page.count for page in pages} == {len(expected)}
        found = [(record.key, record.value, record.mod_revision) for page in pages for record in page.records]
        assert found == sorted(expected, reverse=bool(number % 2))


def _state(changes: Changes, revision: int) -> list[tuple[bytes, bytes, int]]:
    state: dict[bytes, tuple[bytes, bytes, int]] = {}
    for changed_at, (key, value) in sorted(changes.items()):
        if changed_at > revision:
            break
        if value is None:
            state.pop(key)
        else:
            state[key] = (key, value, changed_at)
    return list(state.values())
