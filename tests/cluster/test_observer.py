"""What the leader sees of the members, by real nodes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cluster.test_removal import Pods
from node.local_cluster import running
from waiting import until

from kvorum.cluster import observer as observer_module
from kvorum.cluster.observer import Observer
from kvorum.cluster.reconcile import Health, MembershipSpec
from kvorum.transport import Hello


def test_a_new_leader_knows_of_nobodys_health_before_it_has_heard(tmp_path: Path) -> None:
    """Of one that is down, it knows so after an election timeout; until then it must not count on it either."""

    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            await cluster.put(b"a", b"1")
            await cluster.converge()
            old = await cluster.leader()
            heir, gone = cluster.others(old)
            await cluster.stop(gone.config.name)
            observer = Observer(heir)

            def health() -> Health | None:
                view = observer.membership_view(None)
                return view.health[gone.raft.id] if view is not None else None

            await old.transfer_leadership(heir.config.name, 5000)
            first = await until("the new leader has a view", health)
            assert (first.healthy, first.silent) == (False, False)

            await until("it knows who is silent", lambda: (seen := health()) is not None and seen.silent)
            view = observer.membership_view(None)
            assert view is not None
            assert view.health[old.raft.id].healthy
            assert not view.health[gone.raft.id].healthy

    asyncio.run(scenario())


def test_who_does_not_lead_has_no_view(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            leader = await cluster.leader()
            assert Observer(leader).membership_view(None) is not None
            assert all(Observer(other).membership_view(None) is None for other in cluster.others(leader))
            leader.stopping = True
            assert Observer(leader).membership_view(None) is None

    asyncio.run(scenario())


def test_only_a_node_of_this_cluster_or_of_none_counts_as_the_member_that_came_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with running(tmp_path, size=2) as cluster:
            leader = await cluster.leader()
            (other,) = cluster.others(leader)

            async def seen(**changes: Any) -> set[str]:
                async def hello(url: str, timeout_s: float = 2.0) -> Hello:
                    return msgspec.structs.replace(other.hello(), **changes)

                monkeypatch.setattr(leader.peers, "hello", hello)
                observer = Observer(leader)
                await observer.look()
                view = observer.membership_view(None)
                assert view is not None
                return set(view.observed)

            assert await seen() == {other.config.name}
            assert await seen(cluster_id="", empty=True) == {other.config.name}
            assert await seen(cluster_id="d" * 32) == set()
            assert await seen(token="another") == set()
            assert await seen(name="another") == set()
            monkeypatch.setattr(observer_module, "OBSERVATION_VALID_S", 0.0)
            assert await seen() == set(), "what was answered once counts for ever"

    asyncio.run(scenario())


def test_the_successor_of_a_surplus_leader_stays_and_answers(tmp_path: Path) -> None:
    async def scenario() -> None:
        cluster = Pods(tmp_path, 3, MembershipSpec.stateful_set("kv", 3))
        try:
            await cluster.start(*cluster.names)
            first = await cluster.settled()
            leader = cluster.nodes["kv-2"]
            await first.transfer_leadership("kv-2", 5000)
            await until("it leads", lambda: leader.raft.can_change_membership)
            observer, kv_0, kv_1 = Observer(leader), cluster.nodes["kv-0"].raft.id, cluster.nodes["kv-1"].raft.id

            def successor(replicas: int) -> str | None:
                view = observer.membership_view(MembershipSpec.stateful_set("kv", replicas))
                assert view is not None
                return view.successor

            assert successor(1) == kv_0
            assert successor(2) in (kv_0, kv_1)
            await cluster.stop("kv-0")
            await until("it is known not to answer", lambda: successor(1) is None)
            assert successor(2) == kv_1
        finally:
            await cluster.close()

    asyncio.run(scenario())
