"""What a node says of itself and of the members."""

from __future__ import annotations

import asyncio
from pathlib import Path

from node.local_cluster import running
from waiting import until


def test_how_far_a_follower_lags_is_not_known_before_it_has_answered_the_new_leader(tmp_path: Path) -> None:
    """`kv status` showed the whole log as the lag of a follower in good health."""

    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            leader = await cluster.settled()
            await cluster.put(b"a", b"1")
            await cluster.converge()
            silent, other = (node.raft.id for node in cluster.others(leader))
            cluster.isolate(silent.partition("@")[0])
            await leader.transfer_leadership(other, 10_000)
            second = await cluster.leader([other.partition("@")[0]])
            lags = {member.id: member.lag for member in second.status().members}
            assert lags[silent] is None
            assert lags[other] == 0
            cluster.heal()

            def lag() -> int | None:
                return next(member.lag for member in second.status().members if member.id == silent)

            await until("it has answered", lambda: lag() == 0)

    asyncio.run(scenario())
