"""What callers are told when the leadership, the disk or the state goes away under their requests."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from time import monotonic

import pytest
from node.local_cluster import TIMEOUT_MS, LocalCluster, Put, running
from waiting import until

from kvorum.errors import NotServingError, OutcomeUnknownError, StorageError
from kvorum.kv.state_hash import StateDigest
from kvorum.node import Node
from kvorum.raft import Role
from kvorum.raft.messages import Message, RequestVoteResponse, TimeoutNow
from kvorum.status import Check

LONG_MS = 60_000


def test_a_membership_change_whose_entry_another_leader_replaced_is_not_reported_as_done(
    tmp_path: Path,
) -> None:
    """A paused leader wakes up: its term and its entry are gone."""

    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            old = await cluster.leader()
            first, second = cluster.others(old)
            cluster.isolate(old.config.name)
            removing = asyncio.create_task(old.remove_member(first.config.name, LONG_MS))
            await until("it is proposed", lambda: not old.raft.can_change_membership)
            index = old.raft.log.last_index
            new = await cluster.leader(among=[first.config.name, second.config.name])
            for number in range(5):
                await new.propose(Put(b"k%d" % number, b"v"), TIMEOUT_MS)
            cluster.heal()
            await until("another entry is committed there", lambda: old.raft.log.commit_index > index)

            with pytest.raises(OutcomeUnknownError):
                await removing
            assert first.raft.id in old.raft.configuration.voters()

    asyncio.run(scenario())


def test_a_leadership_that_left_and_did_not_arrive_is_unknown(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            leader = await cluster.leader()
            for node in cluster.nodes.values():
                _lose_votes(node)

            with pytest.raises(OutcomeUnknownError):
                await leader.transfer_leadership(None, 1000)
            assert leader.raft.role is not Role.LEADER

    asyncio.run(scenario())


def test_a_transfer_that_the_target_did_not_complete_in_time_is_unknown(tmp_path: Path) -> None:
    """The target may be paused: it campaigns when it wakes up and reads that it was told to."""

    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            leader = await cluster.settled()
            send = leader.peers.send

            def lossy(messages: Iterable[Message]) -> None:
                send([message for message in messages if not isinstance(message, TimeoutNow)])

            leader.peers.send = lossy  # type: ignore[method-assign]
            with pytest.raises(OutcomeUnknownError, match="did not take the leadership in time"):
                await leader.transfer_leadership(None, LONG_MS)
            assert leader.raft.role is Role.LEADER

    asyncio.run(scenario())


def _lose_votes(node: Node) -> None:
    send = node.peers.send

    def lossy(messages: Iterable[Message]) -> None:
        send([message for message in messages if not isinstance(message, RequestVoteResponse)])

    node.peers.send = lossy  # type: ignore[method-assign]


def test_a_node_that_was_elected_while_it_waited_to_leave_hands_over_as_well(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            leader = await cluster.leader()
            leaving, down = cluster.others(leader)
            await cluster.stop(down.config.name)
            draining = asyncio.create_task(leaving.drain(monotonic() + 60))
            await until("it waits", lambda: "and quorum is 2" in caplog.text)
            await leader.transfer_leadership(leaving.config.name, TIMEOUT_MS)
            assert leaving.raft.role is Role.LEADER
            await cluster.start(down.config.name)
            await asyncio.wait_for(draining, 30)

            assert leaving.raft.role is not Role.LEADER

    asyncio.run(scenario())


def test_a_node_that_leaves_stays_through_a_moment_in_which_nobody_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An election is such a moment; taking it for hopeless, the node would leave the others without a quorum."""

    async def scenario() -> None:
        async with running(tmp_path, election_timeout_ms=1500) as cluster:
            leader = await cluster.leader()
            leaving, down = cluster.others(leader)
            await cluster.stop(down.config.name)
            looks: list[Check] = []

            def not_now() -> list[Check]:
                looks.append(Check("leader", False, "an election"))
                return looks

            with monkeypatch.context() as patch:
                patch.setattr(leader.parts.report, "readiness", not_now)
                draining = asyncio.create_task(leaving.drain(monotonic() + 60))
                await until("it looks again and again, or leaves", lambda: len(looks) >= 3 or draining.done())
                assert not draining.done(), "it left"
            await until("it waits", lambda: "and quorum is 2" in caplog.text)
            await cluster.start(down.config.name)
            await asyncio.wait_for(draining, 30)

    asyncio.run(scenario())


def test_a_leader_without_a_quorum_does_not_wait_to_the_end_of_its_grace_for_writes_that_nobody_awaits(
    tmp_path: Path,
) -> None:
    """All are told to stop, and the leader is the last: what it has proposed can never be committed."""

    async def scenario() -> None:
        async with running(tmp_path, election_timeout_ms=2000) as cluster:
            leader = await cluster.leader()
            await cluster.stop(*(node.config.name for node in cluster.others(leader)))
            with pytest.raises(OutcomeUnknownError):
                await leader.propose(Put(b"a", b"1"), 300)
            assert leader.parts.proposals.pending == 1, "the test shows nothing"
            assert leader.raft.role is Role.LEADER

            await asyncio.wait_for(leader.drain(monotonic() + 60), 30)

    asyncio.run(scenario())


def test_a_node_that_must_end_answers_everybody_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            node = await cluster.leader()
            cluster.isolate(node.config.name)
            writing = asyncio.create_task(node.propose(Put(b"a", b"1"), LONG_MS))
            reading = asyncio.create_task(node.read_barrier(LONG_MS))
            await until("the write is proposed", lambda: node.parts.proposals._proposed)

            node.ports.supervisor.fail(StorageError("the disk is gone"))

            with pytest.raises(OutcomeUnknownError):
                await asyncio.wait_for(writing, 10)
            with pytest.raises(NotServingError):
                await asyncio.wait_for(reading, 10)
            for late in (node.propose(Put(b"a", b"2"), LONG_MS), node.read_barrier(LONG_MS)):
                with pytest.raises(NotServingError):
                    await asyncio.wait_for(late, 10)

    asyncio.run(scenario())


def test_what_waits_when_a_node_goes_into_quarantine_is_not_answered_from_its_state(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            leader = await cluster.leader()
            await cluster.put(b"a", b"1")
            await cluster.converge()
            hashes = await _cut_off_and_found_wrong(cluster, leader)
            writing = asyncio.create_task(leader.propose(Put(b"a", b"2"), LONG_MS))
            reading = asyncio.create_task(leader.read_barrier(LONG_MS))
            await until("the write is proposed", lambda: leader.parts.proposals._proposed)
            hashes.set()

            with pytest.raises(OutcomeUnknownError, match="state"):
                await asyncio.wait_for(writing, 10)
            with pytest.raises(NotServingError, match="state"):
                await asyncio.wait_for(reading, 10)
            with pytest.raises(NotServingError, match="state"):
                leader.check_serves()

    asyncio.run(scenario())


async def _cut_off_and_found_wrong(cluster: LocalCluster, node: Node) -> asyncio.Event:
    """Let the node find out that it is wrong when the returned event is set; nobody gives it a snapshot."""
    index, ours = node.store.applied_index, node.store.digest
    found = asyncio.Event()

    async def another(voter: str, index: int) -> StateDigest:
        await found.wait()
        return StateDigest(ours.version, ours.chain ^ 1)

    node.peers.state_hash = another  # type: ignore[assignment, method-assign]
    cluster.isolate(node.config.name)
    node.parts.integrity.investigate(index)
    await asyncio.sleep(0)
    return found
