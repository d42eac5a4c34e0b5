"""Who proposes the quota on data, and when; and a put without room is refused before it reaches the log."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest
from kv.kv_support import apply, store_at_level_2, store_at_level_3

from kvorum.config import Config
from kvorum.errors import NoSpaceError, OverloadedError, SessionError
from kvorum.kv.commands import BatchCommand, Delete, EndSession, Put, SetQuota, decode_batch
from kvorum.kv.quota import CONFIGURATION, FIRST, OPERATOR
from kvorum.kv.store import Store
from kvorum.node.leader_proposals import LeaderProposals
from kvorum.node.proposals import Proposals
from kvorum.node.quota import QuotaProposals
from kvorum.node.runtime import SystemClock
from kvorum.node.state import State
from kvorum.raft import Role
from kvorum.telemetry.counters import Counters

MIB = 1024 * 1024


class Leading:
    """A leader that has applied an entry of its term, and whose proposals are applied when a test says so."""

    def __init__(self, store: Store, configured_bytes: int = 0, memory_bytes: int = 30 * MIB) -> None:
        self.state = State(store)
        self.proposed: list[bytes] = []
        self.refusal: Exception | None = None
        self.raft = SimpleNamespace(
            id="n1@1", leader="n1@1", role=Role.LEADER, is_transferring=False, current_term=1, propose=self._propose
        )
        self.quota = QuotaProposals(
            Config(quota_bytes=configured_bytes),
            memory_bytes,
            self.state,
            LeaderProposals(
                cast(Any, self.raft),
                self.state,
                cast(Any, SimpleNamespace(now_ms=lambda: 7)),
                cast(Any, SimpleNamespace(schedule=lambda: None)),
            ),
        )

    def _propose(self, payloads: list[bytes]) -> tuple[int, int]:
        if self.refusal is not None:
            raise self.refusal
        self.proposed += payloads
        return self.state.store.applied_index + len(payloads), self.raft.current_term

    def tick(self) -> list[BatchCommand]:
        """Let a tick pass; apply what was proposed in it, and return it."""
        self.quota.tick()
        commands = [command for data in self.proposed for command in decode_batch(data).commands]
        self.proposed.clear()
        for command in commands:
            apply(self.state.store, command)
        return commands


def test_the_first_leader_proposes_a_third_of_its_memory_once() -> None:
    it = Leading(store_at_level_3())
    assert it.tick() == [SetQuota(10 * MIB, FIRST)]
    assert it.tick() == []
    assert it.state.store.quota.limit_bytes == 10 * MIB


def test_a_configured_quota_is_proposed_instead_and_an_operators_stays() -> None:
    it = Leading(store_at_level_3(), 5 * MIB)
    assert it.tick() == [SetQuota(5 * MIB, CONFIGURATION)]
    apply(it.state.store, SetQuota(7 * MIB, OPERATOR))
    assert it.tick() == []
    assert Leading(it.state.store, 5 * MIB).tick() == []
    assert Leading(it.state.store).tick() == []
    assert Leading(it.state.store, 6 * MIB).tick() == [SetQuota(6 * MIB, CONFIGURATION)]


def test_below_its_feature_level_nobody_proposes_a_quota() -> None:
    assert Leading(store_at_level_2(), 5 * MIB).tick() == []


def test_only_a_leader_that_has_applied_an_entry_of_its_own_proposes_one() -> None:
    """Before that it does not know what the leaders before it have set."""
    it = Leading(store_at_level_3())
    it.raft.role = Role.FOLLOWER
    assert it.tick() == []
    it.raft.role, it.raft.current_term = Role.LEADER, 2
    assert it.tick() == []
    it.raft.current_term, it.raft.is_transferring = 1, True
    assert it.tick() == []
    it.raft.is_transferring = False
    assert len(it.tick()) == 1


def test_a_proposal_is_not_repeated_before_it_is_applied_and_a_refused_one_is() -> None:
    it = Leading(store_at_level_3())
    it.refusal = OverloadedError("too much")
    it.quota.tick()
    it.refusal = None
    it.quota.tick()
    it.quota.tick()
    assert len(it.proposed) == 1


def test_every_node_says_what_the_quota_is_and_when_puts_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    it = Leading(store_at_level_3())
    it.raft.role = Role.FOLLOWER
    with caplog.at_level(logging.INFO, "kvorum.cluster"):
        it.tick()
        assert caplog.messages == []
        apply(it.state.store, SetQuota(MIB, OPERATOR), Put(b"a", bytes(MIB)))
        it.tick()
        it.tick()
        apply(it.state.store, Delete(b"a"))
        it.tick()
    assert caplog.messages == [
        "the quota on data is 1048576 bytes, of which 1048865 are used",
        "no space: the data takes 1048865 of 1048576 bytes (the quota); "
        "puts are refused until it takes less than 996147",
        "puts are accepted again: the data takes 0 of 1048576 bytes",
    ]


def proposals(store: Store, counters: Counters) -> Proposals:
    """The writes of a leader whose disks have room."""
    return Proposals(
        cast(Any, SimpleNamespace(id="n1", leader="n1", is_transferring=False)),
        State(store),
        counters,
        100,
        1 << 20,
        SystemClock(),
        cast(Any, None),
        cast(Any, None),
        cast(Any, SimpleNamespace(check=lambda _: None)),
    )


def test_a_put_without_room_is_refused_before_it_reaches_the_log() -> None:
    async def scenario() -> None:
        store, counters = store_at_level_3(), Counters()
        writes = proposals(store, counters)
        put = Put(b"a", bytes(MIB), -1, "ann", 1)
        apply(store, SetQuota(MIB, OPERATOR), put)
        with pytest.raises(NoSpaceError):
            writes.submit(Put(b"b", b""), 60.0)
        assert (writes.pending, counters.proposals["refused"]) == (0, 1)
        for command in (put, Delete(b"a"), EndSession("ann"), SetQuota(2 * MIB, OPERATOR)):
            writes.submit(command, 60.0)
        assert writes.pending == 4

    asyncio.run(scenario())


def test_deletes_with_new_client_ids_do_not_fill_what_is_full_already() -> None:
    """Each opened a session; 2,500 of them took 2.4 times the quota, and nothing could be deleted any more."""

    async def scenario() -> None:
        store, counters = store_at_level_3(), Counters()
        writes = proposals(store, counters)
        apply(store, SetQuota(MIB, OPERATOR), Put(b"a", bytes(MIB), -1, "ann", 1))
        for number in range(10):
            with pytest.raises(SessionError):
                writes.submit(Delete(b"none", -1, f"new-{number}", 1), 60.0)
        assert (writes.pending, counters.proposals["refused"]) == (0, 10)
        for command in (Delete(b"none"), Delete(b"none", -1, "ann", 2)):
            writes.submit(command, 60.0)
        assert writes.pending == 2

    asyncio.run(scenario())
