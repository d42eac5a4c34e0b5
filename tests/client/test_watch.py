"""Watches of the client and of ``kv``: no gap and no repetition, whatever ends a connection."""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import pytest
from client.test_client import run
from fronts.fake_node import FakeNode, Server, serving
from waiting import until

from kvorum.errors import NoLeaderError, NotServingError, RevisionCompactedError
from kvorum.fronts.http import watch as fronts_watch
from kvorum.fronts.http.server import _Connection
from kvorum_client import (
    Client,
    CompactedError,
    InvalidArgumentError,
    Put,
    RefusedError,
    SyncClient,
    UnavailableError,
    Watch,
    WatchEvent,
    calls,
    streams,
)
from kvorum_client import watch as watch_module
from kvorum_client.transport import DownloadInterruptedError, NotSentError, Transport
from kvorum_client.watch import AttemptEndedError


def with_nodes(scenario: Callable[[list[Server], Client], Awaitable[None]], count: int = 1) -> None:
    """Run the scenario with nodes that share one state, and a client of all of them."""

    async def main() -> None:
        nodes = [FakeNode() for _ in range(count)]
        nodes[0].raise_feature_level()
        for node in nodes[1:]:
            node.store = nodes[0].store
        async with serving(nodes[0]) as first:
            if count == 1:
                async with Client([first.url], timeout_s=4) as kv:
                    nodes[0].leader = ("n1", first.url)
                    await scenario([first], kv)
                return
            async with serving(nodes[1]) as second, Client([first.url, second.url], timeout_s=4) as kv:
                nodes[0].leader = ("n1", first.url)
                nodes[1].follow("n1", first.url)
                await scenario([first, second], kv)

    run(lambda: main())


async def take(watch: Watch, count: int) -> list[WatchEvent]:
    """Return the next events."""
    async with asyncio.timeout(10):
        return [await anext(watch) for _ in range(count)]


def advance(servers: list[Server]) -> None:
    """Let all nodes see what one of them applied."""
    for server in servers:
        server.node._advance_soon()


def test_events_are_typed_and_come_in_order() -> None:
    async def scenario(servers: list[Server], kv: Client) -> None:
        async with kv.watch(prefix="k", prev_value=True) as watch:
            await kv.put("k1", "one")
            await kv.put("other", "x")
            await kv.put("k1", b"\xff")
            await kv.delete("k1")
            await kv.put(b"k\xff", b"")
            assert await take(watch, 4) == [
                WatchEvent(True, b"k1", b"one", 2, 2, 1),
                WatchEvent(True, b"k1", b"\xff", 4, 2, 2, b"one"),
                WatchEvent(False, b"k1", b"", 5, prev_value=b"\xff"),
                WatchEvent(True, b"k\xff", b"", 6, 6, 1),
            ]
            assert watch.revision == 6
        assert [event.type for event in await take(kv.watch("k1", from_revision=2, only="delete"), 1)] == ["delete"]
        ranged = await take(kv.watch(start="k1", end="p", from_revision=1), 5)
        assert [event.mod_revision for event in ranged] == [2, 3, 4, 5, 6]

    with_nodes(scenario)


def test_a_watch_has_come_to_a_revision_when_all_events_of_it_were_returned() -> None:
    async def scenario(servers: list[Server], kv: Client) -> None:
        async with kv.watch(prefix="") as watch:
            await kv.put("before", "")
            for number in range(2):
                servers[0].node.set(b"k%d" % number, 0)
            await kv.delete_range(prefix="k")
            assert [event.mod_revision for event in await take(watch, 3)] == [2, 3, 4]
            seen = [((await take(watch, 1))[0].mod_revision, watch.revision) for _ in range(2)]
        assert seen == [(5, 4), (5, 5)]

    with_nodes(scenario)


def test_a_watch_that_was_entered_sees_every_write_that_begins_later() -> None:
    async def scenario(servers: list[Server], kv: Client) -> None:
        await kv.put("k", "before")
        async with kv.watch("k") as watch:
            assert watch.revision == 2
            await kv.put("k", "after")
            assert [event.value for event in await take(watch, 1)] == [b"after"]

    with_nodes(scenario)


@pytest.mark.parametrize("error", [NotServingError("stopping"), NoLeaderError("alone")])
def test_a_node_that_ends_a_watch_is_left_for_another_without_a_gap(error: NotServingError | NoLeaderError) -> None:
    async def scenario(servers: list[Server], kv: Client) -> None:
        resumed: list[tuple[int, str, bool]] = []
        async with kv.watch("k", on_resume=lambda *told: resumed.append((*told, kv.streams_from == began_at))) as watch:
            began_at = kv.streams_from
            assert began_at in [server.url for server in servers]
            await kv.put("k", "1")
            advance(servers)
            assert len(await take(watch, 1)) == 1
            for server in servers:
                server.node.watches.end_all(error)
            await kv.put("k", "2")
            advance(servers)
            await kv.put("k", "3")
            advance(servers)
            assert [event.value for event in await take(watch, 2)] == [b"2", b"3"]
        assert resumed == [(3, str(error), False)], "at the other node"

    with_nodes(scenario, 2)


def test_a_connection_that_breaks_in_a_line_is_resumed_from_the_revision_after_the_last_whole_line() -> None:
    async def scenario(servers: list[Server], kv: Client) -> None:
        async with kv.watch("k") as watch:
            for number in range(30):
                await kv.put("k", b"%d" % number * 1000)
                if number % 3 == 2:
                    feeds = [c.feed for c in _connections() if isinstance(c.feed, fronts_watch.Feed)]
                    for feed in feeds:
                        feed._write(b'{"revision":99,"ev')
                        feed.lost()
                    await asyncio.sleep(0)
            events = await take(watch, 30)
        assert [event.mod_revision for event in events] == list(range(2, 32))

    with_nodes(scenario)


def test_a_connection_that_breaks_within_a_revision_of_several_lines_repeats_no_event_of_it() -> None:
    def line(revision: int, keys: str, *, more: bool = False) -> bytes:
        events = [{"type": "put", "mod_revision": revision, "key": key, "value": ""} for key in keys]
        return json.dumps({"revision": revision, "events": events, "more": more}).encode() + b"\n"

    attempts = [
        [line(3, "x"), line(5, "ab", more=True), line(5, "c", more=True)],
        [line(5, "abcd", more=True), b'{"revision": 5, "ev'],
        [line(5, "a", more=True), line(5, "bcde"), line(6, "a", more=True), line(6, "b")],
    ]
    targets: list[str] = []

    async def connect(target: str, within_s: float) -> AsyncGenerator[bytes, None]:
        targets.append(target.partition("from_revision=")[2])
        for piece in attempts.pop(0):
            yield piece

    async def main() -> None:
        watch = Watch(connect, "/v1/watch?prefix=", 2, 1, 1, None)
        assert watch.revision == 1
        events = []
        for _ in range(8):
            events.append(await anext(watch))
            if len(events) == 5:
                assert watch.revision == 3  # The next one is not whole.
        assert b"".join(event.key for event in events) == b"xabcdeab"
        assert watch.revision == 6
        await watch.close()

    asyncio.run(main())
    assert targets == ["2&fragment=true", "4&fragment=true", "4&fragment=true"]


def test_a_node_of_an_older_version_that_knows_no_fragments_is_watched_without() -> None:
    targets: list[str] = []

    async def connect(target: str, within_s: float) -> AsyncGenerator[bytes, None]:
        targets.append(target)
        if "fragment" in target:
            raise RefusedError(400, "invalid_request", "unknown parameter 'fragment'; this path takes: key")
        for revision in (2, 3):
            yield (
                json.dumps(
                    {"revision": revision, "events": [{"type": "put", "mod_revision": revision, "key": "k"}]}
                ).encode()
                + b"\n"
            )

    async def main() -> None:
        watch = Watch(connect, "/v1/watch?key=k", 2, 1, 1, None)
        assert [event.mod_revision for event in await take(watch, 2)] == [2, 3]
        await watch.close()

    asyncio.run(main())
    assert targets[:2] == ["/v1/watch?key=k&from_revision=2&fragment=true", "/v1/watch?key=k&from_revision=2"]


def test_the_client_takes_revisions_that_are_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fronts_watch, "FRAGMENT_BYTES", 1500)
    monkeypatch.setattr(fronts_watch, "REVISION_BYTES_MAX", 1500)

    async def scenario(servers: list[Server], kv: Client) -> None:
        txn = kv.txn()
        for number in range(20):
            txn = txn.then(Put(f"k{number:02}", "v" * 1000))
        await txn.commit()
        events = await take(kv.watch(prefix="k", from_revision=2), 20)
        assert [event.key for event in events] == [b"k%02d" % number for number in range(20)]

    with_nodes(scenario)


def _connections() -> list[_Connection]:
    return [each for each in gc.get_objects() if isinstance(each, _Connection)]


def test_a_floor_that_has_passed_is_an_error_with_the_floor() -> None:
    async def scenario(servers: list[Server], kv: Client) -> None:
        for _ in range(4):
            await kv.put("k", "v")
        await kv.compact(4)
        with pytest.raises(CompactedError) as refused:
            await take(kv.watch("k", from_revision=3), 1)
        assert (refused.value.floor, refused.value.revision) == (4, 5)
        async with kv.watch("k", from_revision=4) as watch:
            await take(watch, 2)
            servers[0].node.watches.end_all(RevisionCompactedError(6, 8, 9))
            with pytest.raises(CompactedError) as ended:
                await take(watch, 1)
            assert (ended.value.floor, ended.value.revision) == (8, 9)

    with_nodes(scenario)


def test_a_call_that_is_cancelled_loses_nothing() -> None:
    async def scenario(servers: list[Server], kv: Client) -> None:
        async with kv.watch("k") as watch:
            for number in range(3):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.01):
                        await anext(watch)
                await kv.put("k", b"%d" % number)
                assert [event.value for event in await take(watch, 1)] == [b"%d" % number]

    with_nodes(scenario)


def test_a_watch_ends_with_its_client_and_its_connection_with_the_watch() -> None:
    async def scenario(servers: list[Server], kv: Client) -> None:
        hub = servers[0].node.watches.hub
        watch = kv.watch("k")
        async with watch:
            await until("it watches", lambda: hub.size == 1)
        await until("the node has no watcher", lambda: hub.size == 0)
        with pytest.raises(UnavailableError, match="closed"):
            await anext(watch)
        other = kv.watch("k")
        await other.__aenter__()
        waiting = asyncio.create_task(anext(other))
        await asyncio.sleep(0)
        await kv.close()
        with pytest.raises(UnavailableError, match="closed"):
            await waiting
        await other.close()

    with_nodes(scenario)


def test_a_cluster_without_watches_says_so_at_once() -> None:
    async def main() -> None:
        async with serving(FakeNode()) as server, Client([server.url], timeout_s=5) as kv:
            with pytest.raises(RefusedError, match="level 4") as refused:
                await take(kv.watch("k"), 1)
            assert refused.value.code == "feature_unavailable"

    run(lambda: main())


def test_a_watch_begins_in_time_or_not_at_all() -> None:
    async def main() -> None:
        async with Client(["127.0.0.1:1"], timeout_s=0.2) as kv:
            with pytest.raises(UnavailableError):
                await anext(kv.watch("k"))

    run(lambda: main())


@pytest.mark.parametrize(
    "arguments",
    [{}, {"key": "a", "prefix": "b"}, {"key": "a", "end": "b"}, {"key": 1}, {"key": "a", "only": "all"},
     {"key": "a", "from_revision": 0}, {"key": "a", "from_revision": -1}, {"key": "a", "timeout_s": 0}],
)  # fmt: skip
def test_a_watch_of_nonsense_is_refused_before_anything_is_sent(arguments: dict[str, object]) -> None:
    async def main() -> None:
        async with Client(["127.0.0.1:1"]) as kv:
            with pytest.raises(InvalidArgumentError):
                kv.watch(**arguments)  # type: ignore[arg-type]

    run(lambda: main())


def test_the_synchronous_client_watches_as_well() -> None:
    async def scenario(servers: list[Server], kv: Client) -> None:
        def watch() -> list[bytes]:
            with SyncClient([servers[0].url], timeout_s=4) as sync, sync.watch(prefix="") as events:
                assert events.revision == 1
                sync.put("a", "1")
                sync.put("b", "2")
                return [next(events).key, next(iter(events)).key]

        assert await asyncio.to_thread(watch) == [b"a", b"b"]

    with_nodes(scenario)


class Clock:
    """A clock that passes only when it is told to."""

    now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


def test_the_search_for_a_node_ends_in_time_whatever_the_first_attempt_took(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, within = Clock(), []
    monkeypatch.setattr(watch_module, "time", clock)

    async def connect(target: str, within_s: float) -> AsyncGenerator[bytes, None]:
        within.append(within_s)
        clock.now_s += 6
        raise AttemptEndedError("no node")
        yield b""

    async def main() -> None:
        with pytest.raises(UnavailableError, match="no node"):
            await anext(Watch(connect, "/v1/watch?key=k", None, 10, None, None))

    asyncio.run(main())
    assert within == [10, 4]


def test_what_a_node_took_to_name_its_cluster_counts_towards_the_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(servers: list[Server], kv: Client) -> None:
        clock, asked = Clock(), []
        monkeypatch.setattr(calls, "time", clock)
        monkeypatch.setattr(streams, "time", clock)

        async def learn(self: Client, call: Any, base: str, timeout_s: float) -> bool:
            clock.now_s += timeout_s - 0.1
            return True

        async def download(self: Any, base: str, target: str, *_: object) -> AsyncGenerator[tuple[bytes, int], None]:
            asked.append(target)
            raise NotSentError("gone")
            yield b"", 0

        monkeypatch.setattr(Client, "_learn_cluster", learn)
        monkeypatch.setattr(Transport, "download", download)
        with pytest.raises(AttemptEndedError):
            await anext(kv._stream("/v1/watch?key=k", 4))
        [timeout_ms] = [target.rpartition("timeout_ms=")[2] for target in asked]
        assert int(timeout_ms) <= 90

    with_nodes(scenario)


def test_the_next_node_is_looked_for_in_time_however_long_a_stream_lasted(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(servers: list[Server], kv: Client) -> None:
        clock, within = Clock(), []
        monkeypatch.setattr(calls, "time", clock)
        monkeypatch.setattr(streams, "time", clock)

        async def download(self: Any, base: str, target: str, *_: object) -> AsyncGenerator[tuple[bytes, int], None]:
            yield b"\n", 0
            clock.now_s += 3600
            raise DownloadInterruptedError("gone")

        async def failed(base: str, within_s: float) -> None:
            within.append(within_s)

        monkeypatch.setattr(Transport, "download", download)
        monkeypatch.setattr(kv._router, "failed", failed)
        with pytest.raises(AttemptEndedError):
            async for _ in kv._stream("/v1/watch?key=k", 4):
                pass
        assert within == [kv._attempt_timeout_s]

    with_nodes(scenario)


# --- kv watch ---------------------------------------------------------------------------------------------------------


def test_kv_watch_prints_a_line_an_event_and_ends_cleanly_when_it_is_interrupted() -> None:
    async def scenario(servers: list[Server], kv: Client) -> None:
        await kv.put("k", "one")
        await kv.put("k", b"two\n")
        await kv.delete("k")

        def watch(*arguments: str) -> list[str]:
            command = [sys.executable, "-m", "kvorum_client.cli", "--endpoints", servers[0].url, "watch", *arguments]
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                assert process.stderr is not None
                lines = [process.stdout.readline() for _ in range(3)]
                process.send_signal(signal.SIGINT)
                assert process.wait(10) == 130
                assert process.stderr.read() == "kv: interrupted\n"
                return lines

        text = await asyncio.to_thread(watch, "k", "--from-revision", "2", "--prev-value")
        assert text == ["2 put k one\n", "3 put k two\\n (was one)\n", "4 delete k (was two\\n)\n"]
        lines = await asyncio.to_thread(watch, "--prefix", "", "--rev", "2", "-o", "json")
        assert [json.loads(line) for line in lines] == [
            {"type": "put", "mod_revision": 2, "key": "k", "create_revision": 2, "version": 1, "value": "one"},
            {"type": "put", "mod_revision": 3, "key": "k", "create_revision": 2, "version": 2, "value": "two\n"},
            {"type": "delete", "mod_revision": 4, "key": "k"},
        ]
        text = await asyncio.to_thread(watch, "--from", "j", "--to", "l", "--rev", "2")
        assert [line.split()[0] for line in text] == ["2", "3", "4"]

    with_nodes(scenario)


@pytest.mark.parametrize("arguments", [(), ("k", "--prefix", ""), ("k", "--to", "l"), ("--prefix", "a", "--from", "b")])
def test_kv_watch_is_of_one_key_a_prefix_or_a_range(arguments: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "kvorum_client.cli", "watch", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert "--from and --to" in done.stderr
