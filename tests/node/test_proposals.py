"""Writes that get no result: what was never proposed is refused for good, what was is unknown."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from node.local_cluster import TIMEOUT_MS, Put, running
from raft.harness import ELECTION, Server, append, leader, noop, pre_vote, vote

from kvorum.errors import NotServingError, OutcomeUnknownError, OverloadedError
from kvorum.kv.commands import PutResult
from kvorum.kv.store import Store
from kvorum.node.log_time import LogTime
from kvorum.node.proposals import Proposals
from kvorum.node.runtime import SystemClock
from kvorum.node.session_shares import SessionShares
from kvorum.node.state import State
from kvorum.telemetry.counters import Counters


def proposals(server: Server) -> Proposals:
    """The writes of a leader whose state has a time."""
    state, clock = State(Store()), SystemClock()
    state.store.time_ms = 7
    return Proposals(
        server.raft,
        state,
        Counters(),
        100,
        1 << 20,
        clock,
        LogTime(server.raft, state, clock, 25),
        SessionShares(state, clock),
        cast(Any, SimpleNamespace(check=lambda _: None)),
    )


def test_a_write_that_expires_in_the_queue_is_refused_and_never_done(tmp_path: Path) -> None:
    """Writes wait in the queue while the leadership is handed to a node that does not answer."""

    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            leader = await cluster.leader()
            target = cluster.others(leader)[0]
            cluster.isolate(target.config.name)
            leader.raft.transfer_leadership(target.raft.id)

            hasty = [leader.propose(Put(b"hasty-%d" % n, b"?"), timeout_ms=50) for n in range(100)]
            patient = leader.propose(Put(b"patient", b"1"), TIMEOUT_MS)
            *refused, done = await asyncio.gather(*hasty, patient, return_exceptions=True)

            assert {type(answer) for answer in refused} == {OverloadedError}
            assert isinstance(done, PutResult)
            cluster.heal()
            await cluster.converge()
            for node in cluster.nodes.values():
                assert node.store.revision == 2, "only the patient one was ever done"

    asyncio.run(scenario())


def test_a_write_that_expires_after_it_was_proposed_is_unknown(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            leader = await cluster.leader()
            cluster.isolate(leader.config.name)

            with pytest.raises(OutcomeUnknownError):
                await leader.propose(Put(b"a", b"1"), timeout_ms=200)

    asyncio.run(scenario())


def test_a_write_whose_place_is_taken_in_a_later_term_is_unknown_and_waits_no_more() -> None:
    """This node led, lost the end of its log to another leader, and leads again: an index is proposed twice."""

    async def scenario() -> None:
        server = leader("1", term=2, matched="bc")
        writes = proposals(server)
        lost = []
        for key in (b"3", b"4", b"5"):
            lost.append(writes.submit(Put(key, b"?"), 60.0))
            writes.flush()
        server.drain(append("b", "a", 3, (2, 2), [noop(3, 3)]))
        server.tick(ELECTION)
        server.drain(pre_vote("b", "a", 4))
        server.drain(vote("b", "a", 4))
        kept = writes.submit(Put(b"6", b"1"), 60.0)
        writes.flush()

        assert server.raft.log.last_index == 5, "the no-op took index 4, the new write index 5"
        with pytest.raises(OutcomeUnknownError):
            lost[2].result()
        assert not kept.done()
        assert writes.pending == 3, "two whose index is not settled yet, and the new one"

    asyncio.run(scenario())


def test_writes_wait_for_the_save_in_flight_while_an_earlier_one_waits_for_a_quorum() -> None:
    async def scenario() -> None:
        server = leader("1", term=2, matched="bc")
        writes = proposals(server)

        def put(key: bytes) -> int:
            writes.submit(Put(key, b"1"), 60.0)
            writes.flush()
            return server.raft.log.last_index

        first = put(b"1")
        assert (first, writes.is_holding_back) == (3, False)
        server.ready()
        assert put(b"2") == put(b"3") == first, "another entry would be saved no sooner"
        assert writes.is_holding_back
        server.save()
        writes.flush()
        assert put(b"4") == first + 2, "the second and the third share an entry; nothing is being saved"
        assert not writes.is_holding_back

    asyncio.run(scenario())


def test_a_save_in_flight_holds_no_write_back_if_no_other_waits_for_a_quorum() -> None:
    """A leader whose disk is slow commits by the disks of the others."""

    async def scenario() -> None:
        server = leader("1", term=2, matched="bc")
        writes = proposals(server)
        waiter = writes.submit(Put(b"1", b"1"), 60.0)
        writes.flush()
        index = server.raft.log.last_index
        server.ready()
        writes.applied(server.raft.log.slice(index, 1)[0], [PutResult(1, 1, 1, 1)])
        assert waiter.done()

        writes.submit(Put(b"2", b"1"), 60.0)
        writes.flush()
        assert server.raft.is_saving
        assert server.raft.log.last_index == index + 1

    asyncio.run(scenario())


def test_idle_is_when_the_last_caller_is_answered_or_gone() -> None:
    async def scenario() -> None:
        server = leader("1", term=2, matched="bc")
        writes = proposals(server)
        never_s = float("inf")
        assert writes.idle(never_s).done()
        first = writes.submit(Put(b"a", b"1"), 60.0)
        idle, late = writes.idle(never_s), writes.idle(0.0)
        assert late.done(), "its deadline has passed"
        writes.flush()
        gone = writes.submit(Put(b"b", b"1"), 60.0)
        gone.cancel()
        writes.expire()
        assert not idle.done()

        writes.applied(server.raft.log.slice(server.raft.log.last_index, 1)[0], [PutResult(1, 1, 1, 1)])
        assert first.done()
        assert idle.done()

        waiting = writes.submit(Put(b"c", b"1"), 60.0)
        idle = writes.idle(never_s)
        waiting.cancel()
        writes.expire()
        assert idle.done()

        stopped, idle = writes.submit(Put(b"d", b"1"), 60.0), writes.idle(never_s)
        writes.stop("the node stopped")
        assert idle.done()
        assert isinstance(stopped.exception(), NotServingError)

    asyncio.run(scenario())
