"""The node's own promises, on three real nodes in one process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from pathlib import Path

import pytest
from node.local_cluster import TIMEOUT_MS, LocalCluster, Put, change_in_memory, running
from waiting import until

from kvorum.errors import (
    MembershipRefusedError,
    NoLeaderError,
    NotLeaderError,
    NotServingError,
    OutcomeUnknownError,
    OverloadedError,
    PeerError,
    ReadTimeoutError,
    UnknownMemberError,
)
from kvorum.kv.commands import CompareFailed, PutResult
from kvorum.node import Node
from kvorum.raft import Role
from kvorum.transport import Hello


def test_a_put_is_read_everywhere(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            result = await cluster.put(b"a", b"1")
            assert result == PutResult(revision=2, create_revision=2, mod_revision=2, version=1)
            for node in cluster.nodes.values():
                await node.read_barrier(TIMEOUT_MS)
                record = node.store.get(b"a")
                assert record is not None
                assert record.value == b"1"

    asyncio.run(scenario())


def test_concurrent_writes_share_saves(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            leader = await cluster.leader()
            saves = leader.counters.saves
            writes = [leader.propose(Put(b"k%d" % n, b"v"), TIMEOUT_MS) for n in range(500)]
            results = await asyncio.gather(*writes)

            assert sorted(r.revision for r in results) == list(range(2, 502))
            assert leader.counters.saves - saves <= 10

    asyncio.run(scenario())


def test_a_follower_takes_no_write_and_says_who_does(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            leader = await cluster.leader()
            for follower in cluster.others(leader):
                with pytest.raises(NotLeaderError) as refused:
                    await follower.propose(Put(b"a", b"1"), TIMEOUT_MS)
                assert refused.value.leader == leader.raft.id

    asyncio.run(scenario())


def test_a_write_of_a_deposed_leader_is_unknown_and_a_read_there_is_not_stale(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, request_timeout_ms=2000) as cluster:
            old = await cluster.leader()
            await cluster.put(b"x", b"old")
            cluster.isolate(old.config.name)
            doubtful = asyncio.create_task(old.propose(Put(b"x", b"doubtful"), 1500))
            reading = asyncio.create_task(old.read_barrier(1500))
            new = await cluster.leader(among=[node.config.name for node in cluster.others(old)])
            await new.propose(Put(b"x", b"new"), TIMEOUT_MS)

            with pytest.raises((NoLeaderError, ReadTimeoutError)):
                await reading
            with pytest.raises(OutcomeUnknownError):
                await doubtful
            cluster.heal()
            await old.read_barrier(TIMEOUT_MS)
            record = old.store.get(b"x")
            assert record is not None
            assert record.value == b"new"
            await cluster.converge()

    asyncio.run(scenario())


def test_a_write_whose_entry_another_leader_replaced_is_unknown_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            old = await cluster.leader()
            cluster.isolate(old.config.name)
            doubtful = asyncio.create_task(old.propose(Put(b"x", b"doubtful"), 60_000))
            new = await cluster.leader(among=[node.config.name for node in cluster.others(old)])
            await new.propose(Put(b"x", b"new"), TIMEOUT_MS)
            cluster.heal()

            with pytest.raises(OutcomeUnknownError, match="replaced"):
                await asyncio.wait_for(doubtful, 20)

    asyncio.run(scenario())


def test_a_leader_that_hears_no_quorum_steps_down(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            leader = await cluster.leader()
            for other in cluster.others(leader):  # It still sends; nothing comes back.
                cluster.cut.add((other.config.name, leader.config.name))
            await until("it steps down", lambda: leader.raft.role is not Role.LEADER)

    asyncio.run(scenario())


def test_more_writes_than_may_wait_are_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, pending_max=10) as cluster:
            leader = await cluster.leader()
            writes = [leader.propose(Put(b"k", b"v"), TIMEOUT_MS) for _ in range(30)]
            results = await asyncio.gather(*writes, return_exceptions=True)

            assert sum(isinstance(result, PutResult) for result in results) == 10
            assert sum(isinstance(result, OverloadedError) for result in results) == 20
            assert isinstance(await leader.propose(Put(b"k", b"v"), TIMEOUT_MS), PutResult)

    asyncio.run(scenario())


def test_a_retry_is_applied_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            leader = await cluster.leader()
            command = Put(b"a", b"1", prev_revision=0, client_id="me", sequence=1)
            first = await leader.propose(command, TIMEOUT_MS)
            assert isinstance(first, PutResult)
            await leader.transfer_leadership(None, TIMEOUT_MS)
            again = await (await cluster.leader()).propose(command, TIMEOUT_MS)

            assert again == first
            other = await (await cluster.leader()).propose(Put(b"a", b"2", prev_revision=0), TIMEOUT_MS)
            assert isinstance(other, CompareFailed)

    asyncio.run(scenario())


def test_a_transfer_loses_no_write(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            old = await cluster.leader()
            writes = [asyncio.create_task(old.propose(Put(b"k%d" % n, b"v"), TIMEOUT_MS)) for n in range(50)]
            name = await old.transfer_leadership(None, TIMEOUT_MS)
            outcomes = await asyncio.gather(*writes, return_exceptions=True)

            assert name != old.config.name
            new = await cluster.leader()
            await new.read_barrier(TIMEOUT_MS)
            for number, outcome in enumerate(outcomes):
                there = new.store.get(b"k%d" % number) is not None
                assert there if isinstance(outcome, PutResult) else isinstance(outcome, NotLeaderError) and not there

    asyncio.run(scenario())


def test_the_log_stays_bounded_and_a_lagging_node_installs_a_snapshot(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, snapshot_entries=20, log_retain_entries=5) as cluster:
            leader = await cluster.leader()
            lagging = cluster.others(leader)[0].config.name
            await cluster.stop(lagging)
            for number in range(120):
                await leader.propose(Put(b"k%d" % (number % 10), b"%d" % number), TIMEOUT_MS)
            await until("the log was cut", lambda: leader.raft.log.first_index > 60)
            await cluster.start(lagging)
            await cluster.converge()

            assert cluster.nodes[lagging].counters.snapshots["install", "ok"] == 1
            assert leader.raft.log.last_index - leader.raft.log.first_index < 60
            names = [node.config.name for node in cluster.nodes.values()]
            hashes = {node.store.state_hash for node in cluster.nodes.values()}
            await cluster.stop(*names)
            await cluster.start(*names)
            # Until the new leader has committed, all may agree on the state of their snapshots.
            await (await cluster.leader()).read_barrier(TIMEOUT_MS)
            await cluster.converge()
            assert len(hashes) == 1
            record = cluster.nodes[lagging].store.get(b"k9")
            assert record is not None
            assert record.value == b"119"

    asyncio.run(scenario())


def test_a_wrong_state_is_quarantined_and_rebuilt(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            leader = await cluster.leader()
            await cluster.put(b"a", b"right")
            await cluster.converge()
            victim = cluster.others(leader)[0]
            go_on = _hold_rebuilding(victim)
            # What a stray bit in memory does: the value, and so everything that is computed from it.
            await change_in_memory(victim, b"a")
            victim.store.state_hash ^= 1
            await cluster.put(b"b", b"2")

            await until("quarantine", lambda: victim.quarantined)
            with pytest.raises(NotServingError, match="differs"):
                await victim.read_barrier(TIMEOUT_MS)
            go_on.set()
            await until("it is rebuilt", lambda: victim.quarantined is None)
            await cluster.converge()
            await victim.read_barrier(TIMEOUT_MS)
            rebuilt = victim.store.get(b"a")
            assert rebuilt is not None
            assert rebuilt.value == b"right"
            assert leader.quarantined is None

    asyncio.run(scenario())


def _hold_rebuilding(node: Node) -> asyncio.Event:
    """Let the node stay in quarantine until the returned event is set."""
    go_on = asyncio.Event()
    rebuild = node.parts.integrity._rebuild

    async def held(source: str) -> None:
        await go_on.wait()
        await rebuild(source)

    node.parts.integrity._rebuild = held  # type: ignore[method-assign]
    return go_on


def test_a_leader_with_a_wrong_state_is_found_out_by_the_others(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            leader = await cluster.leader()
            await cluster.put(b"a", b"right")
            leader.store.state_hash ^= 1
            await cluster.put(b"b", b"2")

            await until("the leader is rebuilt", lambda: _same(cluster))
            assert all(node.quarantined is None for node in cluster.others(leader))

    asyncio.run(scenario())


def _same(cluster: LocalCluster) -> bool:
    return len({node.store.state_hash for node in cluster.nodes.values()}) == 1


def test_a_member_is_removed_added_and_promoted(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            leader = await cluster.leader()
            gone = cluster.others(leader)[0]
            name, url, old = gone.config.name, gone.config.advertise_peer_url, gone.raft.id
            await leader.remove_member(name, TIMEOUT_MS)
            assert old not in leader.raft.configuration.voters()
            await cluster.put(b"a", b"without it")
            await cluster.stop(name)
            for path in sorted((tmp_path / name).rglob("*"), reverse=True):
                path.unlink() if path.is_file() else path.rmdir()
            await cluster.start(name)
            await leader.add_member(name, url, "", TIMEOUT_MS)
            new = cluster.nodes[name].raft.id
            assert leader.raft.configuration.learners() == (new,)
            await until("it caught up", lambda: leader.raft.status().progress[new].match_index > 3)
            await leader.promote_member(name, TIMEOUT_MS)

            assert set(leader.raft.configuration.voters()) == {node.raft.id for node in cluster.nodes.values()}
            await cluster.put(b"b", b"with it")
            await cluster.converge()

    asyncio.run(scenario())


def test_asking_a_new_member_who_it_is_counts_against_the_timeout(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, 1) as cluster:
            leader = await cluster.leader()
            asked: list[float] = []

            async def silent(url: str, timeout_s: float = 2.0) -> Hello:
                asked.append(timeout_s)
                raise PeerError("no answer")

            leader.peers.hello = silent  # type: ignore[method-assign]
            with pytest.raises(MembershipRefusedError):
                await leader.add_member("n2", "http://127.0.0.1:1", "", 50)
            assert len(asked) == 1
            assert 0 <= asked[0] <= 0.05

    asyncio.run(scenario())


def test_a_node_without_a_leader_says_that_it_does_not_know_whether_it_has_caught_up(tmp_path: Path) -> None:
    async def scenario() -> None:
        cluster = LocalCluster(tmp_path, 2)
        try:
            await cluster.start("n1")
            failed = {check.name: check.detail for check in cluster.nodes["n1"].readiness() if not check.ok}
        finally:
            await cluster.close()
        assert failed["caught-up"] == "no leader, so it is unknown whether this node has caught up"

    asyncio.run(scenario())


@pytest.mark.parametrize("operation", ["promote", "remove", "transfer"])
def test_an_unknown_member_is_named_by_the_leader_and_by_nobody_else(tmp_path: Path, operation: str) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            leader = await cluster.settled()

            def ask(node: Node) -> Awaitable[object]:
                match operation:
                    case "promote":
                        return node.promote_member("n9", TIMEOUT_MS)
                    case "remove":
                        return node.remove_member("n9", TIMEOUT_MS)
                    case _:
                        return node.transfer_leadership("n9", TIMEOUT_MS)

            with pytest.raises(UnknownMemberError, match='no member is named "n9"'):
                await ask(leader)
            # A member that was just added may not be in its log yet.
            with pytest.raises(NotLeaderError):
                await ask(cluster.others(leader)[0])

    asyncio.run(scenario())


def test_two_different_ideas_of_the_first_members_never_make_a_cluster(tmp_path: Path) -> None:
    async def scenario() -> None:
        cluster = LocalCluster(tmp_path, 2)
        try:
            await cluster.start("n1")
            cluster.ports["n3"] = 1  # n2 is told of a third member; n1 was not.
            await cluster.start("n2")
            for _ in range(100):
                await asyncio.sleep(0.01)
                assert not any(node.identity.cluster_id for node in cluster.nodes.values())
        finally:
            await cluster.close()

    asyncio.run(scenario())
