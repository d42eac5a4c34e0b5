"""Many calls at once: a client has a bounded number of them in progress, and the others wait for their turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from client.test_client import run
from fronts.fake_node import CLUSTER, FakeNode, client_id_of, make_config, serving
from waiting import until

from kvorum_client import Client, InvalidArgumentError, OutcomeUnknownError, SyncClient, UnavailableError
from kvorum_client.calls import CONCURRENT_CALLS_MAX
from kvorum_client.transport import Answer, Transport

PUT = b'{"revision": 1, "create_revision": 1, "mod_revision": 1, "version": 1}'


class CountingTransport:
    """Answers every request when its gate is open, and counts how many are under way."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.under_way = 0
        self.most = 0
        self.done = 0
        self.timeouts_s: list[float] = []

    async def exchange(
        self, transport: Transport, base: str, method: str, target: str, body: bytes, headers: object, timeout_s: float
    ) -> Answer:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        self.timeouts_s.append(timeout_s)
        try:
            await self.gate.wait()
        finally:
            self.under_way -= 1
        self.done += 1
        return Answer(200, {}, PUT)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Transport, "exchange", lambda *arguments: self.exchange(*arguments))


def test_no_more_calls_than_the_limit_are_in_progress_and_all_of_them_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        counting = CountingTransport()
        counting.install(monkeypatch)
        async with Client(["127.0.0.1:1"], timeout_s=20, concurrent_calls_max=7, cluster_id=CLUSTER) as kv:
            counting.gate.set()
            await kv.put("k", "v")
            counting.gate.clear()
            calls = [asyncio.create_task(kv.put("k", "v")) for _ in range(3000)]
            await until("7 calls are under way", lambda: counting.under_way == 7)
            counting.gate.set()
            await asyncio.gather(*calls)
            assert (counting.done, counting.most) == (3001, 7)

    run(scenario)


def test_an_attempt_has_its_whole_time_however_long_the_call_waited_for_its_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        counting = CountingTransport()
        counting.install(monkeypatch)
        async with Client(["127.0.0.1:1"], timeout_s=10, concurrent_calls_max=1, cluster_id=CLUSTER) as kv:
            first = asyncio.create_task(kv.put("k", "v"))
            await until("the first call is under way", lambda: counting.under_way == 1)
            second = asyncio.create_task(kv.put("k", "v"))
            with pytest.raises(UnavailableError):
                await kv.put("k", "v", timeout_s=0.01)
            assert counting.timeouts_s == [2.5], "a call that waits has begun an attempt"
            counting.gate.set()
            await asyncio.gather(first, second)
            assert counting.timeouts_s == [2.5, 2.5]

    run(scenario)


def test_a_call_whose_deadline_passes_in_the_queue_was_certainly_not_sent() -> None:
    async def scenario() -> None:
        async with serving() as server, Client([server.url], timeout_s=20, concurrent_calls_max=1) as kv:
            server.node.gate = asyncio.Event()
            holding = asyncio.create_task(kv.put("k", "v"))
            await until("the node has a request", lambda: bool(server.node.timeouts_ms))
            for call in (kv.put("k", "w", timeout_s=0.05), kv.get("k", timeout_s=0.05), kv.members(timeout_s=0.05)):
                with pytest.raises(UnavailableError, match="1 calls of this client are in progress already"):
                    await call
            server.node.gate.set()
            assert (await holding).revision == 1
            assert len(server.node.proposed) == 1

    run(scenario)


def test_writes_that_wait_for_a_quorum_do_not_hold_up_reads_that_any_node_answers() -> None:
    async def scenario() -> None:
        async with serving() as server, Client([server.url], timeout_s=20, concurrent_calls_max=2) as kv:
            await kv.put("k", "v")
            server.node.gate = asyncio.Event()
            writes = [asyncio.create_task(kv.put("k", "w")) for _ in range(5)]
            await until("two writes are in progress", lambda: len(server.node.timeouts_ms) == 3)
            record = await kv.get("k", stale=True, timeout_s=5)
            assert record is not None and record.value == b"v"
            server.node.gate.set()
            await asyncio.gather(*writes)

    run(scenario)


def test_a_cancelled_call_gives_its_turn_to_the_next() -> None:
    async def scenario() -> None:
        async with serving() as server, Client([server.url], timeout_s=20, concurrent_calls_max=1) as kv:
            server.node.gate = asyncio.Event()
            holding = asyncio.create_task(kv.put("k", "v"))
            waiting = [asyncio.create_task(kv.put("k", "w")) for _ in range(2)]
            await until("the node has a request", lambda: bool(server.node.timeouts_ms))
            for task in (waiting[0], holding):
                task.cancel()
            server.node.gate.set()
            assert (await asyncio.wait_for(waiting[1], 10)).revision >= 1
            assert await asyncio.gather(waiting[0], return_exceptions=True)

    run(scenario)


def test_closing_a_client_ends_the_calls_that_wait_for_their_turn() -> None:
    async def scenario() -> None:
        async with serving() as server:
            server.node.gate = asyncio.Event()
            kv = Client([server.url], timeout_s=20, concurrent_calls_max=1)
            calls = [asyncio.create_task(kv.put("k", "v")) for _ in range(5)]
            await until("the node has a request", lambda: bool(server.node.timeouts_ms))
            await kv.close()
            ends = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 5)
            assert [type(end) for end in ends] == [OutcomeUnknownError] + 4 * [UnavailableError]
            server.node.gate.set()

    run(scenario)


@pytest.mark.parametrize("make", [Client, SyncClient])
@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_the_callers_mistake(limit: int, make: Callable[..., object]) -> None:
    with pytest.raises(InvalidArgumentError, match="concurrent_calls_max"):
        make(["127.0.0.1:1"], concurrent_calls_max=limit)


def test_thousands_of_calls_at_once_are_all_done() -> None:
    async def scenario() -> None:
        async with (
            serving(FakeNode(make_config(connections_max=CONCURRENT_CALLS_MAX + 1))) as server,
            Client([server.url], timeout_s=25) as kv,
        ):
            await asyncio.gather(*(kv.put(f"k{number}", "v") for number in range(3000)))
            assert server.node.store.revision == 3000
            assert len({client_id_of(command) for command in server.node.proposed}) == 1

    run(scenario)
