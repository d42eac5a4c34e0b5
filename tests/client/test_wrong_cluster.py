"""A client keeps to one cluster: the one that it was told, or the first that answered."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from client.test_client import cluster, elect, run
from fronts.fake_node import CLUSTER, Server
from waiting import until

from kvorum.errors import NotServingError, OverloadedError
from kvorum.kv.commands import ClientCommand, Result
from kvorum_client import Client, OutcomeUnknownError, SyncClient, UnavailableError, WrongClusterError
from kvorum_client.transport import Answer, NoAnswerError

OURS, THEIRS = CLUSTER, "d" * 32


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the client from asking others who leads while a node is silent."""
    monkeypatch.setattr("kvorum_client.calls.SUSPECT_S", 1000.0)


@contextlib.asynccontextmanager
async def two_clusters() -> AsyncIterator[tuple[list[Server], Server]]:
    """Yield two servers of our cluster, of which the first leads, and one of another cluster."""
    async with cluster(2) as ours, cluster(1) as theirs:
        theirs[0].node.cluster = THEIRS
        yield ours, theirs[0]


def test_a_client_keeps_to_the_cluster_that_answered_first() -> None:
    async def scenario() -> None:
        async with two_clusters() as (ours, other), Client([ours[1].url]) as kv:
            assert kv.cluster_id == ""
            await kv.put("a", "1")
            assert kv.cluster_id == OURS
            # The address of the leader leads to another cluster.
            ours[1].node.follow("n1", other.url)
            kv._router.leader = None
            with pytest.raises(UnavailableError, match=f"belongs to cluster {THEIRS}, and not to {OURS}"):
                await kv.put("a", "2", timeout_s=0.5)
            assert other.node.proposed == []
            elect(ours, 0)
            await kv.put("a", "3")
            assert other.node.proposed == []

    run(scenario)


def test_the_first_redirect_leads_nowhere_else_either() -> None:
    """The answer that redirects says which cluster is meant."""

    async def scenario() -> None:
        async with two_clusters() as (ours, other), Client([ours[1].url]) as kv:
            ours[1].node.follow("n1", other.url)
            with pytest.raises(UnavailableError):
                await kv.put("a", "1", timeout_s=0.5)
            assert other.node.proposed == []

    run(scenario)


def test_nodes_of_another_cluster_are_told_at_once_when_there_are_no_others() -> None:
    async def scenario() -> None:
        async with two_clusters() as (_, other):
            async with Client([other.url], cluster_id=OURS, timeout_s=1000.0) as kv:
                for call in (kv.put("a", "1"), kv.get("a"), kv.get("a", stale=True), kv.move_leader()):
                    with pytest.raises(WrongClusterError) as refused:
                        await call
                    assert (refused.value.status, refused.value.code) == (421, "wrong_cluster")
                    assert (refused.value.cluster_id, refused.value.expected) == (THEIRS, OURS)
            assert other.node.proposed == []
            assert other.node.calls == []

    run(scenario)


def test_streams_end_when_every_node_belongs_to_another_cluster() -> None:
    """As after a restore: they looked for a node of their cluster for ever."""

    async def scenario() -> None:
        async with cluster(2) as nodes:
            for node in nodes:
                node.node.cluster = THEIRS
            async with Client([each.url for each in nodes], cluster_id=OURS, timeout_s=1000.0) as kv:
                with pytest.raises(WrongClusterError) as refused:
                    await kv.watch("a").__aenter__()
                assert (refused.value.cluster_id, refused.value.expected) == (THEIRS, OURS)
                with pytest.raises(WrongClusterError):
                    await anext(kv.election("e").observe())
                with pytest.raises(WrongClusterError):
                    await kv.backup(lambda *_: None)

    run(scenario)


def test_a_watch_whose_nodes_were_restored_as_another_cluster_ends() -> None:
    async def scenario() -> None:
        async with (
            cluster(2) as nodes,
            Client([each.url for each in nodes], timeout_s=1000.0) as kv,
        ):
            for node in nodes:
                node.node.raise_feature_level()
            watch = await kv.watch("a").__aenter__()
            for node in nodes:
                node.node.cluster = THEIRS
                node.node.watches.end_all(NotServingError("the node is stopping"))
            with pytest.raises(WrongClusterError):
                await anext(watch)

    run(scenario)


def test_the_right_cluster_is_found_beside_another_one() -> None:
    async def scenario() -> None:
        async with two_clusters() as (ours, other):
            async with Client([other.url, ours[0].url], cluster_id=OURS) as kv:
                await kv.put("a", "1")
            assert other.node.proposed == []
            assert len(ours[0].node.proposed) == 1

    run(scenario)


def lose_first_answer(server: Server) -> None:
    """Let the node apply its first write, and answer so late that no client waits for it."""
    propose = server.node.propose

    async def late(command: ClientCommand, timeout_ms: int, address: str = "", **_: object) -> Result:
        result = await propose(command, timeout_ms, address)
        if len(server.node.proposed) == 1:
            await asyncio.sleep(1000.0)
        return result

    server.node.propose = late  # type: ignore[method-assign]


async def put_with_client(endpoints: list[str]) -> None:
    async with Client(endpoints, timeout_s=1.0) as kv:
        await kv.put("a", "1")


async def put_with_sync_client(endpoints: list[str]) -> None:
    def put() -> None:
        with SyncClient(endpoints, timeout_s=1.0) as kv:
            kv.put("a", "1")

    await asyncio.to_thread(put)


both_clients = pytest.mark.parametrize("put", [put_with_client, put_with_sync_client])


@both_clients
def test_the_first_write_whose_answer_is_lost_is_not_made_in_another_cluster(
    put: Callable[[list[str]], Awaitable[None]],
) -> None:
    async def scenario() -> None:
        async with two_clusters() as (ours, other):
            lose_first_answer(ours[0])
            ours[0].node.leader = None
            with contextlib.suppress(OutcomeUnknownError):
                await put([ours[0].url, other.url])
            assert other.node.proposed == []
            assert ours[0].node.proposed
            assert ours[0].node.store.revision == 1

    run(scenario)


@both_clients
def test_the_first_write_whose_answer_is_lost_is_repeated_in_its_own_cluster(
    put: Callable[[list[str]], Awaitable[None]],
) -> None:
    async def scenario() -> None:
        async with two_clusters() as (ours, other):
            lose_first_answer(ours[0])
            await put([ours[0].url, other.url, ours[1].url])
            assert other.node.proposed == []
            assert len(ours[0].node.proposed) == 2
            assert ours[0].node.store.revision == 1, "the second one is the same write"

    run(scenario)


def test_a_client_asks_for_its_cluster_once_and_not_before_it_reads() -> None:
    async def scenario() -> None:
        async with two_clusters() as (ours, _):
            asked = ours[0].node.counters.requests
            async with Client([ours[0].url]) as kv:
                await kv.get("a")
                await kv.put("a", "1")
                assert asked["leader", 200] == 0
            async with Client([ours[0].url]) as kv:
                await kv.put("a", "2")
                await kv.put("a", "3")
                assert asked["leader", 200] == 1
            async with Client([ours[0].url], cluster_id=OURS) as kv:
                await kv.put("a", "4")
                assert asked["leader", 200] == 1

    run(scenario)


def test_a_node_that_is_silent_when_it_is_asked_for_its_cluster_gets_no_write() -> None:
    async def scenario() -> None:
        async with two_clusters() as (ours, other), Client([other.url, ours[0].url]) as kv:
            exchange = kv._transport.exchange

            async def cut(base: str, *arguments: Any) -> Answer:
                if base == other.url:
                    raise NoAnswerError(f"{base}: no answer in time")
                return await exchange(base, *arguments)

            kv._transport.exchange = cut  # type: ignore[assignment, method-assign]
            await kv.put("a", "1")
            assert kv.cluster_id == OURS
            assert not any(other.node.counters.requests.values())

    run(scenario)


def test_a_node_that_names_no_cluster_is_asked_once() -> None:
    """Nodes of version 0.1.0 name none."""

    async def scenario() -> None:
        async with cluster(1) as servers, Client([servers[0].url]) as kv:
            servers[0].node.cluster = ""
            await kv.put("a", "1")
            await kv.put("a", "2")
            assert servers[0].node.counters.requests["leader", 200] == 1
            assert kv.cluster_id == ""

    run(scenario)


def test_a_write_without_an_answer_from_a_node_that_names_no_cluster_is_made_in_no_other() -> None:
    async def scenario() -> None:
        async with two_clusters() as (ours, other):
            ours[0].node.cluster = ""
            lose_first_answer(ours[0])
            async with Client([ours[0].url, other.url], timeout_s=1.0) as kv:
                with pytest.raises(OutcomeUnknownError, match="may have been applied in another cluster"):
                    await kv.put("a", "1")
            assert other.node.proposed == []

    run(scenario)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("write", [lambda kv: kv.put("a", "1"), lambda kv: kv.move_leader()], ids=["put", "transfer"])
def test_a_write_that_another_cluster_did_before_the_first_answer_is_not_called_not_done(
    write: Callable[[Client], Awaitable[object]],
) -> None:
    """A write names no cluster to a node that names none when it is asked."""

    async def scenario() -> None:
        async with two_clusters() as (ours, other), Client([other.url, ours[0].url], timeout_s=40) as kv:
            other.node.cluster, other.node.gate = "", asyncio.Event()
            writing = asyncio.ensure_future(write(kv))
            await until("the other cluster has the write", lambda: other.node.timeouts_ms)
            other.node.cluster = THEIRS
            # Another call of the same client is answered by the other cluster first.
            kv._router.leader = ours[0].url
            await kv.get("a")
            assert kv.cluster_id == OURS
            other.node.gate.set()
            with pytest.raises(OutcomeUnknownError, match=f"may have been applied.*belongs to cluster {THEIRS}"):
                await writing
            assert (len(other.node.proposed), len(other.node.calls)) in {(1, 0), (0, 1)}
            assert (ours[0].node.proposed, ours[0].node.calls) == ([], [])

    run(scenario)


@pytest.mark.usefixtures("patient")
def test_a_write_that_another_cluster_refused_before_the_first_answer_is_made_in_the_clients_own() -> None:
    async def scenario() -> None:
        async with two_clusters() as (ours, other), Client([other.url, ours[0].url], timeout_s=40) as kv:
            other.node.cluster, other.node.gate = "", asyncio.Event()
            writing = asyncio.ensure_future(kv.put("a", "1"))
            await until("the other cluster has the write", lambda: other.node.timeouts_ms)
            other.node.cluster = THEIRS
            kv._router.leader = ours[0].url
            await kv.get("a")
            other.node.error = OverloadedError("too much is in progress")
            other.node.gate.set()
            await writing
            assert other.node.proposed == []
            assert len(ours[0].node.proposed) == 1

    run(scenario)


def test_one_node_can_be_asked_for_its_status_whatever_its_cluster() -> None:
    async def scenario() -> None:
        async with two_clusters() as (_, other), Client([other.url], cluster_id=OURS) as kv:
            assert (await kv.status(other.url)).cluster_id == THEIRS
            assert (await kv.health(other.url)).ready
            assert kv.cluster_id == OURS

    run(scenario)
