"""Writes that are handed over between real nodes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import msgspec
import pytest
from node.handover_support import PUT
from node.local_cluster import TIMEOUT_MS, LocalCluster, running
from waiting import until

from kvorum.errors import InvariantViolatedError, NotLeaderError, OutcomeUnknownError
from kvorum.kv.commands import Put, PutResult, QueuedCommand, Txn
from kvorum.kv.operations import PutOp
from kvorum.node import Node
from kvorum.node.handover_messages import Frame, decode_handover
from kvorum.raft.messages import HandOver, Message


def test_every_node_takes_every_write(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            leader = await cluster.leader()
            await leader.finalize(TIMEOUT_MS)
            await cluster.converge()
            for node in cluster.nodes.values():
                name = node.config.name.encode()
                writes: list[QueuedCommand] = [Put(b"%s-%d" % (name, each), b"v") for each in range(20)]
                results = await asyncio.gather(
                    *(node.propose(write, TIMEOUT_MS, hand_over=True) for write in writes),
                    node.propose(Txn((), (PutOp(name, b"t"),), ()), TIMEOUT_MS, hand_over=True),
                )
                assert node.store.get(b"%s-19" % name) is not None, "it has applied it itself"
                assert len({result.revision for result in results}) == len(results)
            follower = cluster.others(leader)[0]
            await follower.set_quota(64 << 20, TIMEOUT_MS, hand_over=True)
            assert follower.store.quota.limit_bytes == 64 << 20
            with pytest.raises(NotLeaderError):
                await follower.propose(PUT, TIMEOUT_MS)
            await cluster.converge()
            digests = {node.store.digest for node in cluster.nodes.values()}
            assert len(digests) == 1

    asyncio.run(scenario())


def test_an_error_while_a_refusal_is_sent_ends_the_process(tmp_path: Path) -> None:
    """What the event loop calls back would be swallowed by it: the answer is given in the driver's turn."""

    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            leader = await cluster.leader()
            await leader.finalize(TIMEOUT_MS)
            await cluster.converge()
            follower = cluster.others(leader)[0]
            await follower.propose(PUT, TIMEOUT_MS, hand_over=True)
            send = leader.peers.send

            def fail(messages: Iterable[Message]) -> None:
                messages = tuple(messages)
                if any(isinstance(message, HandOver) for message in messages):
                    raise ValueError("what nobody expects")
                send(messages)

            leader.peers.send = fail  # type: ignore[method-assign]
            follower.parts.handover.origin.submit(PUT, 1)
            leader.parts.proposals.flush = lambda: leader.parts.proposals.stop("no time")  # type: ignore[method-assign]
            follower.parts.turns.schedule()
            with pytest.raises(InvariantViolatedError, match="what nobody expects"):
                async with asyncio.timeout(10):
                    await leader.run()

    asyncio.run(scenario())


class Held:
    """Messages of one node to another that wait until the test lets them go."""

    def __init__(self, sender: Node, recipient: Node) -> None:
        self.frames: list[HandOver] = []
        """Those of the messages that carry a frame."""
        self.is_holding = True
        send, target = sender.peers.send, recipient.raft.id

        def hold(messages: Iterable[Message]) -> None:
            passed = []
            for message in messages:
                is_frame = isinstance(message, HandOver) and isinstance(decode_handover(message.data, ""), Frame)
                if isinstance(message, HandOver) and is_frame and self.is_holding and message.recipient == target:
                    self.frames.append(message)
                else:
                    passed.append(message)
            send(passed)

        sender.peers.send = hold  # type: ignore[method-assign]

    def has_numbers(self, count: int) -> bool:
        """Tell whether frames of so many numbers were sent."""
        said = (decode_handover(message.data, message.sender) for message in self.frames)
        return len({each.number for each in said if isinstance(each, Frame)}) >= count


async def raised(cluster: LocalCluster) -> tuple[Node, Node]:
    """Raise the feature level; return the leader and a follower whose origin is open."""
    leader = await cluster.leader()
    await leader.finalize(TIMEOUT_MS)
    await cluster.converge()
    follower = cluster.others(leader)[0]
    await follower.propose(Put(b"first", b"v"), TIMEOUT_MS, hand_over=True)
    await cluster.converge()
    return leader, follower


def test_a_snapshot_over_an_outstanding_frame_settles_it_and_its_outcome_is_unknown(tmp_path: Path) -> None:
    async def scenario() -> None:
        options = {"snapshot_entries": 10, "log_retain_entries": 1, "election_timeout_ms": 4000}
        async with running(tmp_path, **options) as cluster:
            leader, follower = await raised(cluster)
            # The follower is heard, and hears nothing: its frame is applied by the others.
            cluster.cut = {(other.config.name, follower.config.name) for other in cluster.others(follower)}
            asked = asyncio.create_task(follower.propose(PUT, TIMEOUT_MS, hand_over=True))
            await until("it is applied by the leader", lambda: leader.store.get(PUT.key) is not None)
            [number] = follower.parts.handover.origin.outstanding
            for each in range(40):
                await leader.propose(Put(b"other", b"%d" % each), TIMEOUT_MS)
            await until("the log is compacted", lambda: leader.raft.log.base_index > follower.raft.log.last_index)
            cluster.heal()
            with pytest.raises(OutcomeUnknownError, match="snapshot"):
                await asked
            assert follower.parts.handover.origin.outstanding == {}
            origin = follower.store.origins.find(follower.parts.handover.origin._nonce)
            assert origin is not None
            assert origin.is_applied(number)
            await follower.propose(Put(b"next", b"v"), TIMEOUT_MS, hand_over=True)
            await cluster.converge()
            assert [record.version for record in [follower.store.get(PUT.key)] if record] == [1], "applied once"

    asyncio.run(scenario())


def test_a_snapshot_without_the_outstanding_frame_lets_it_be_done_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        options = {"snapshot_entries": 10, "log_retain_entries": 1, "election_timeout_ms": 4000}
        async with running(tmp_path, **options) as cluster:
            leader, follower = await raised(cluster)
            held = Held(follower, leader)
            asked = asyncio.create_task(follower.propose(PUT, 4 * TIMEOUT_MS, hand_over=True))
            await until("it was sent", lambda: held.frames)
            cluster.cut = {(other.config.name, follower.config.name) for other in cluster.others(follower)}
            for each in range(40):
                await leader.propose(Put(b"other", b"%d" % each), TIMEOUT_MS)
            await until("the log is compacted", lambda: leader.raft.log.base_index > follower.raft.log.last_index)
            cluster.heal()
            held.is_holding = False
            result = await asked
            assert isinstance(result, PutResult)
            leader.parts.driver.on_messages(follower.raft.id, tuple(held.frames))
            await follower.propose(Put(b"next", b"v"), TIMEOUT_MS, hand_over=True)
            await cluster.converge()
            record = follower.store.get(PUT.key)
            assert record is not None
            assert (record.version, record.mod_revision) == (1, result.revision)

    asyncio.run(scenario())


def test_late_frames_of_a_node_that_was_restarted_are_not_taken_for_its_new_ones(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            leader, follower = await raised(cluster)
            name, id = follower.config.name, follower.raft.id
            held = Held(follower, leader)
            for number in (1, 2):
                follower.parts.handover.origin.submit(Put(b"late-%d" % number, b"v"), 60)
                follower.parts.turns.schedule()
                await until("it was sent", partial(held.has_numbers, number))
            before = follower.parts.handover.origin._nonce
            await cluster.stop(name)
            await cluster.start(name)
            await cluster.settled()
            follower = cluster.nodes[name]
            assert follower.raft.id == id
            for number in range(4):
                await follower.propose(Put(b"new-%d" % number, b"v"), TIMEOUT_MS, hand_over=True)
            assert follower.parts.handover.origin._nonce != before
            leader = await cluster.leader()
            late = [msgspec.structs.replace(each, term=leader.raft.current_term) for each in held.frames]
            leader.parts.driver.on_messages(id, tuple(late))
            for number in range(4, 8):
                await follower.propose(Put(b"new-%d" % number, b"v"), TIMEOUT_MS, hand_over=True)
            await cluster.converge()
            for node in cluster.nodes.values():
                assert node.store.get(b"late-1") is None
                assert all(record.version == 1 for record in node.store.versions.records.values())
                assert node.store.get(b"new-7") is not None

    asyncio.run(scenario())


def test_a_leader_that_loses_its_leadership_leaves_what_it_queued_to_the_next_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            leader, follower = await raised(cluster)
            flush, leader.parts.proposals.flush = leader.parts.proposals.flush, lambda: None  # type: ignore[method-assign]
            asked = []
            for number in range(50):
                asked.append(
                    asyncio.create_task(follower.propose(Put(b"q-%d" % number, b"v"), 4 * TIMEOUT_MS, hand_over=True))
                )
                await asyncio.sleep(0)
            await until("they are queued", lambda: len(leader.parts.handover.receiver._under_way) > 0)
            cluster.isolate(leader.config.name)
            await cluster.leader([other.config.name for other in cluster.others(leader)])
            leader.parts.proposals.flush = flush  # type: ignore[method-assign]
            results = await asyncio.gather(*asked)
            cluster.heal()
            await cluster.settled()
            await cluster.converge()
            await until("nothing is left at the old leader", lambda: not leader.parts.handover.receiver._under_way)
            assert leader.parts.proposals.pending == 0
            assert leader.parts.handover.receiver._bytes == 0
            assert len({result.revision for result in results}) == len(results)
            for number in range(50):
                record = leader.store.get(b"q-%d" % number)
                assert record is not None
                assert record.version == 1

    asyncio.run(scenario())


def test_a_caller_that_goes_leaves_nothing_behind(tmp_path: Path) -> None:
    """A client that hangs up cancels what waits for it, wherever its write is."""

    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            leader, follower = await raised(cluster)
            origin = follower.parts.handover.origin
            held = Held(follower, leader)
            sent = asyncio.create_task(follower.propose(Put(b"sent", b"v"), TIMEOUT_MS, hand_over=True))
            await until("it was sent", lambda: held.frames)
            queued = asyncio.create_task(follower.propose(Put(b"queued", b"v"), TIMEOUT_MS, hand_over=True))
            await asyncio.sleep(0)
            for task in (sent, queued):
                task.cancel()
            await asyncio.gather(sent, queued, return_exceptions=True)
            held.is_holding = False
            await until("the number is used up", lambda: not origin.outstanding)
            await follower.propose(Put(b"next", b"v"), TIMEOUT_MS, hand_over=True)
            await cluster.converge()
            assert (origin._pending, origin._outstanding_bytes, origin._queued_bytes) == (0, 0, 0)
            assert leader.store.get(b"queued") is None

    asyncio.run(scenario())
