"""The history of keys on real processes: it gives way before a quota is full, and outlives its leader."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from acceptance.processes import Cluster

from kvorum_client import Client, CompactedError

MIB = 1 << 20
QUOTA_BYTES = 4 * MIB
WRITERS = 4
OVERWRITES = 400
VALUE = bytes(8_000)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path, flags=("--quota-bytes", str(QUOTA_BYTES))) as cluster:
        yield cluster


def test_keys_that_are_overwritten_never_fill_the_quota(cluster: Cluster) -> None:
    """The data takes three quarters of the quota, and what is written, three times the quota."""

    async def overwrite(kv: Client, writer: int) -> None:
        for _ in range(OVERWRITES):
            await kv.put(f"k{writer}", VALUE)

    async def scenario() -> None:
        async with Client(list(cluster.addresses.values()), timeout_s=30) as kv:
            for number in range(3):
                await kv.put(f"data{number}", bytes(MIB - 1000))
            # A put without room would end with NoSpaceError.
            await asyncio.gather(*(overwrite(kv, writer) for writer in range(WRITERS)))
            status = await kv.status()
            assert status.history_bytes < status.used_bytes <= status.quota_bytes == QUOTA_BYTES
            assert 1 < status.floor <= status.revision
            with pytest.raises(CompactedError):
                await kv.get("k0", revision=2)

    asyncio.run(scenario())
    cluster.converge()


def test_the_past_is_read_on_every_node_while_leaders_are_killed(cluster: Cluster) -> None:
    async def scenario() -> None:
        async with Client(list(cluster.addresses.values()), timeout_s=30) as kv:
            written = {(await kv.put("k", b"%d" % number)).revision: b"%d" % number for number in range(20)}
            deleted = await kv.delete("k")
            for _ in range(2):
                leader = await asyncio.to_thread(cluster.leader)
                cluster.kill(leader)
                await asyncio.to_thread(cluster.leader)
                assert await _seen(kv, written) == written
                assert await kv.get("k", revision=deleted.revision) is None
                cluster.start(leader)
                await asyncio.to_thread(cluster.settled)
            floor = sorted(written)[7]
            await kv.compact(floor)
            await asyncio.to_thread(cluster.converge)
        for address in cluster.addresses.values():
            async with Client([address], timeout_s=30) as one:
                kept = {revision: value for revision, value in written.items() if revision >= floor}
                assert await _seen(one, kept) == kept
                with pytest.raises(CompactedError) as caught:
                    await one.get("k", revision=floor - 1, stale=True)
                assert caught.value.floor == floor

    asyncio.run(scenario())


async def _seen(kv: Client, written: dict[int, bytes]) -> dict[int, bytes | None]:
    records = {revision: await kv.get("k", revision=revision) for revision in written}
    return {revision: record.value if record else None for revision, record in records.items()}
