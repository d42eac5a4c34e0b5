"""The client and ``kv``: reads of the past, the history of a key, and compactions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest
from client.test_cli import Kv
from client.test_cli import run as run_cli
from client.test_client import cluster, run
from fronts.fake_node import FakeNode, Server, serving

from kvorum.errors import OutcomeUnknownError as ServerOutcomeUnknown
from kvorum.kv.commands import Compacted as ServerCompacted
from kvorum.kv.commands import CompactRefused
from kvorum_client import (
    Client,
    Compacted,
    CompactedError,
    FutureRevisionError,
    KeyVersion,
    OutcomeUnknownError,
    RefusedError,
    SyncClient,
)


def at_level_4(scenario: Callable[[Server, Client], Awaitable[None]]) -> None:
    """Run the scenario with a server whose key ``k`` was put at revisions 2 and 3, and deleted at 4."""

    async def main() -> None:
        node = FakeNode()
        node.raise_feature_level()
        async with serving(node) as server, Client([server.url], timeout_s=2) as kv:
            node.leader = ("n1", server.url)
            await kv.put("k", "one")
            await kv.put("k", b"\xff")
            await kv.delete("k")
            await scenario(server, kv)

    run(lambda: main())


def test_a_key_is_read_as_it_was() -> None:
    async def scenario(server: Server, kv: Client) -> None:
        for revision, value in ((1, None), (2, b"one"), (3, b"\xff"), (4, None)):
            for stale in (False, True):
                record = await kv.get("k", revision=revision, stale=stale)
                assert (record.value if record else None) == value
        record = await kv.get("k", revision=3)
        assert record is not None
        assert (record.create_revision, record.mod_revision, record.version, record.revision) == (2, 3, 2, 4)

    at_level_4(scenario)


def test_the_history_of_a_key_is_read_a_page_at_a_time() -> None:
    async def scenario(server: Server, kv: Client) -> None:
        found = await kv.history("k")
        versions = (KeyVersion(b"", 0, 4, 0, True), KeyVersion(b"\xff", 2, 3, 2), KeyVersion(b"one", 2, 2, 1))
        assert (found.key, found.versions, found.revision, found.truncated) == (b"k", versions, 4, False)
        assert found.floor == server.node.store.floor
        page = await kv.history("k", limit=1, revision=3, stale=True)
        assert (page.versions, page.truncated) == (versions[1:2], True)
        assert (await kv.history("nothing")).versions == ()

    at_level_4(scenario)


def test_what_the_history_does_not_have_is_said_by_an_error_of_its_own() -> None:
    async def scenario(server: Server, kv: Client) -> None:
        assert await kv.compact(3) == Compacted(4, 3)
        with pytest.raises(CompactedError) as compacted:
            await kv.get("k", revision=2)
        assert (compacted.value.floor, compacted.value.revision, compacted.value.code) == (3, 4, "compacted")
        for call in (kv.get("k", revision=5), kv.history("k", revision=5), kv.compact(5)):
            with pytest.raises(FutureRevisionError) as early:
                await call
            assert (early.value.revision, early.value.status) == (4, 400)
        assert await kv.compact(2) == Compacted(4, 3), "it is done, and more"

    at_level_4(scenario)


def test_a_compaction_that_is_there_already_is_done() -> None:
    async def scenario(server: Server, kv: Client) -> None:
        assert await kv.compact(3) == await kv.compact(3) == Compacted(4, 3)

    at_level_4(scenario)


def test_a_compaction_whose_answer_is_lost_is_made_again_and_done() -> None:
    async def scenario(server: Server, kv: Client) -> None:
        node, compact = server.node, server.node.compact
        lost: list[int] = []

        async def lose(revision: int, timeout_ms: int, **_: object) -> ServerCompacted | CompactRefused:
            result = await compact(revision, timeout_ms)
            if not lost:
                lost.append(revision)
                raise ServerOutcomeUnknown("the answer is lost")
            return result

        node.compact = lose  # type: ignore[method-assign]
        assert await kv.compact(3) == Compacted(4, 3)
        assert (lost, node.store.floor) == ([3], 3)

    at_level_4(scenario)


def test_a_compaction_without_an_answer_until_the_deadline_is_unknown() -> None:
    async def scenario(server: Server, kv: Client) -> None:
        server.node.error = ServerOutcomeUnknown("lost the quorum")
        with pytest.raises(OutcomeUnknownError):
            await kv.compact(3, timeout_s=0.3)

    at_level_4(scenario)


def test_a_compaction_goes_to_the_leader() -> None:
    async def scenario() -> None:
        async with cluster() as servers, Client([servers[2].url]) as kv:
            servers[0].node.raise_feature_level()
            await kv.put("k", "v")
            assert (await kv.compact(2)).floor == 2
            assert servers[2].node.counters.compactions == {}
            assert servers[0].node.counters.compactions == {"request": 1}

    run(scenario)


def test_below_the_feature_level_the_refusal_says_which_is_needed() -> None:
    async def scenario() -> None:
        async with cluster(1) as servers, Client([servers[0].url]) as kv:
            await kv.put("k", "v")
            for call in (kv.get("k", revision=1), kv.history("k"), kv.compact(1)):
                with pytest.raises(RefusedError, match="needs feature level 4") as caught:
                    await call
                assert caught.value.code == "feature_unavailable"

    run(scenario)


def test_the_synchronous_client_has_the_same() -> None:
    async def scenario(server: Server, kv: Client) -> None:
        def use() -> None:
            with SyncClient([server.url]) as sync:
                record = sync.get("k", revision=2)
                assert record is not None and record.value == b"one"
                assert [version.deleted for version in sync.history("k", limit=2).versions] == [True, False]
                assert sync.compact(3) == Compacted(4, 3)

        await asyncio.to_thread(use)

    at_level_4(scenario)


# kv.


async def written(server: Server, kv: Kv) -> None:
    server.node.raise_feature_level()
    for arguments in (("put", "k", "one"), ("put", "k", "x" * 70 + "\x1b"), ("del", "k")):
        assert await kv(*arguments) == 0


def test_kv_shows_a_key_as_it_was(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        await written(server, kv)
        capsysbinary.readouterr()
        assert await kv("get", "k", "--revision", "2") == 0
        assert capsysbinary.readouterr().out == b"one"
        assert await kv("get", "k", "--revision", "4") == 1
        assert capsysbinary.readouterr().err == b"kv: no such key at revision 4: k\n"
        assert await kv("compact", "3") == 0
        capsysbinary.readouterr()
        assert await kv("get", "k", "--revision", "2") == 1
        assert b"compacted" in capsysbinary.readouterr().err
        assert await kv("get", "k", "--revision", "9") == 1

    run_cli(scenario)


def test_kv_shows_the_history_of_a_key(capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        await written(server, kv)
        capsys.readouterr()
        assert await kv("history", "k") == 0
        rows = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert rows == [
            ["MOD-REVISION", "CREATE-REVISION", "VERSION", "VALUE"],
            ["4", "-", "-", "(deleted)"],
            ["3", "2", "2", "x" * 57 + "..."],
            ["2", "2", "1", "one"],
        ]
        assert await kv("history", "k", "--limit", "1", "--revision", "3", "-o", "json") == 0
        printed = capsys.readouterr()
        told = json.loads(printed.out)
        assert (told["key"], told["revision"], told["truncated"]) == ("k", 4, True)
        assert told["versions"] == [{"mod_revision": 3, "create_revision": 2, "version": 2, "value": "x" * 70 + "\x1b"}]
        assert printed.err == "kv: older versions are left out; they begin at --revision 2\n"
        assert await kv("history", "nothing") == 1
        assert "no such key" in capsys.readouterr().err

    run_cli(scenario)


def test_kv_compacts_at_a_revision_or_keeps_so_many(capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        await written(server, kv)
        capsys.readouterr()
        assert await kv("compact", "--keep", "2") == 0
        assert capsys.readouterr().out == "the history begins at revision 3; the cluster is at revision 4\n"
        assert await kv("compact", "--keep", "10000") == 0
        assert capsys.readouterr().out == "the history begins at revision 3; the cluster is at revision 4\n"
        assert await kv("compact", "4", "-o", "json") == 0
        assert json.loads(capsys.readouterr().out) == {"revision": 4, "floor": 4}
        assert await kv("compact", "3") == 0
        assert capsys.readouterr().out == "the history begins at revision 4; the cluster is at revision 4\n"
        assert await kv("compact", "5") == 1
        assert server.node.store.floor == 4

    run_cli(scenario)


def test_kv_compact_says_that_a_cluster_below_level_4_keeps_no_history(capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        assert await kv("compact", "--keep", "5") == 1
        assert "feature level" in capsys.readouterr().err

    run_cli(scenario)


def test_the_status_shows_the_floor_and_the_size_of_the_history(capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        await written(server, kv)
        await kv("compact", "2")
        capsys.readouterr()
        await kv("status")
        heading, row, *_ = [line.split() for line in capsys.readouterr().out.splitlines()]
        cells = dict(zip(heading, row, strict=False))
        store = server.node.store
        assert (cells["REVISION"], cells["FLOOR"]) == ("4", "2")
        assert cells["HISTORY"] == f"{store.history_events}/{store.history_bytes}B"
        assert store.history_bytes > 0

    run_cli(scenario)
