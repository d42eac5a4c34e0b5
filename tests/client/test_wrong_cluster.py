"""A client keeps to one cluster: the one that it was told, or the first that answered."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from client.test_client import cluster, elect, run
from fronts.fake_node import Server
from waiting import until

from kvorum.errors import OverloadedError
from kvorum_client import Client, OutcomeUnknownError, UnavailableError, WrongClusterError

OURS, THEIRS = "c" * 32, "d" * 32


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the client from asking others who leads while a node is silent."""
    monkeypatch.setattr("kvorum_client.client.SUSPECT_S", 1000.0)


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
            with pytest.raises(UnavailableError, match=f"belongs to cluster {THEIRS}, and this client to {OURS}"):
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


def test_the_right_cluster_is_found_beside_another_one() -> None:
    async def scenario() -> None:
        async with two_clusters() as (ours, other):
            async with Client([other.url, ours[0].url], cluster_id=OURS) as kv:
                await kv.put("a", "1")
            assert other.node.proposed == []
            assert len(ours[0].node.proposed) == 1

    run(scenario)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("write", [lambda kv: kv.put("a", "1"), lambda kv: kv.move_leader()], ids=["put", "transfer"])
def test_a_write_that_another_cluster_did_before_the_first_answer_is_not_called_not_done(
    write: Callable[[Client], Awaitable[object]],
) -> None:
    """The first attempts name no cluster yet, so a node of any cluster does them."""

    async def scenario() -> None:
        async with two_clusters() as (ours, other), Client([other.url, ours[0].url], timeout_s=40) as kv:
            other.node.gate = asyncio.Event()
            writing = asyncio.ensure_future(write(kv))
            await until("the other cluster has the write", lambda: other.node.timeouts_ms)
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
            other.node.gate = asyncio.Event()
            writing = asyncio.ensure_future(kv.put("a", "1"))
            await until("the other cluster has the write", lambda: other.node.timeouts_ms)
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
