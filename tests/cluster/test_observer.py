"""What the leader sees of the members, by real nodes."""

from __future__ import annotations

import asyncio
from pathlib import Path

from node.local_cluster import running
from waiting import until

from kvorum.cluster.observer import Observer
from kvorum.cluster.reconcile import Health


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
