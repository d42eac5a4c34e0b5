"""The leader lets log time pass in the state while there are leases, and only then."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from kv.kv_support import apply, raise_to, store_at_level_4

from kvorum.errors import OverloadedError
from kvorum.kv.commands import (
    BatchCommand,
    LeaseGrant,
    LeaseGranted,
    LeaseRenew,
    LeaseRevoke,
    LeaseRevoked,
    Put,
    Txn,
    TxnResult,
    decode_batch,
)
from kvorum.kv.limits import LEASE_EXPIRY_MAX
from kvorum.kv.operations import LeasedPutOp
from kvorum.kv.store import Store
from kvorum.node.leader_proposals import LeaderProposals
from kvorum.node.leases import LeaseTicks
from kvorum.node.state import State
from kvorum.raft import Role
from kvorum.telemetry.counters import Counters

START_MS = 1_800_000_000_000
TTL_S = 10


def store_at_level_5() -> Store:
    """Return an empty store in which there may be leases."""
    store = store_at_level_4()
    apply(store, raise_to(5))
    return store


class Node:
    """A node that leads until a test says otherwise. Its log time passes as the test says."""

    def __init__(self) -> None:
        self.state = State(store_at_level_5())
        self.now_ms = START_MS
        self.counters = Counters()
        self.proposed: list[bytes] = []
        self.refusal: Exception | None = None
        self.raft = SimpleNamespace(
            role=Role.LEADER, is_transferring=False, current_term=self.state.store.applied_term, propose=self._propose
        )
        log_time = cast(Any, SimpleNamespace(now_ms=lambda: self.now_ms))
        self.leader_proposals = LeaderProposals(
            cast(Any, self.raft), self.state, log_time, cast(Any, SimpleNamespace(schedule=lambda: None))
        )
        self.ticks = LeaseTicks(self.state, log_time, self.leader_proposals, self.counters)

    def _propose(self, payloads: list[bytes]) -> tuple[int, int]:
        if self.refusal is not None:
            raise self.refusal
        self.proposed += payloads
        return self.state.store.applied_index + len(payloads), self.raft.current_term

    def apply(self, *commands: BatchCommand) -> Any:
        """Apply commands at the present log time; return the result of the last one."""
        return apply(self.state.store, *commands, time_ms=self.now_ms)[-1]

    def grant(self, lease: int, ttl_s: int = TTL_S, *keys: bytes) -> None:
        """Grant a lease and give it keys."""
        assert isinstance(self.apply(LeaseGrant(lease, ttl_s)), LeaseGranted)
        if keys:
            puts = tuple(LeasedPutOp(key, b"", lease=lease) for key in keys)
            assert isinstance(self.apply(Txn((), puts)), TxnResult)

    def tick_at(self, after_ms: int) -> bool:
        """Tick so long after the start; apply the tick that was proposed, if one was; tell whether."""
        self.now_ms = START_MS + after_ms
        self.ticks.tick()
        if not self.proposed:
            return False
        [data] = self.proposed
        self.proposed.clear()
        batch = decode_batch(data)
        assert batch.commands == ()
        assert batch.time_ms == self.now_ms
        apply(self.state.store, time_ms=batch.time_ms)
        return True


def test_while_a_lease_exists_an_entry_carries_the_time_every_second() -> None:
    it = Node()
    it.grant(1)
    assert [after_ms for after_ms in range(0, 3001, 100) if it.tick_at(after_ms)] == [1000, 2000, 3000]


def test_a_write_that_carries_the_time_takes_the_place_of_a_tick() -> None:
    it = Node()
    it.grant(1)
    assert not it.tick_at(900)
    it.apply(Put(b"k", b"v"))
    assert not it.tick_at(1000)
    assert not it.tick_at(1899)
    assert it.tick_at(1900)


def test_no_tick_is_proposed_without_a_lease() -> None:
    it = Node()
    assert not it.tick_at(10_000)
    it.grant(1)
    it.apply(LeaseRevoke(1))
    assert not it.tick_at(20_000)


def test_a_lease_expires_with_a_tick_as_soon_as_its_time_is_over() -> None:
    it = Node()
    it.grant(1, TTL_S, b"k")
    it.now_ms = START_MS + 9900
    it.apply(Put(b"other", b"v"))
    assert not it.tick_at(9999)
    assert it.tick_at(10_000)
    assert len(it.state.store.leases) == 0
    assert it.state.store.get(b"k") is None


def test_what_one_entry_cannot_expire_goes_with_the_next_ticks_at_once() -> None:
    it = Node()
    for lease in range(1, 2 * LEASE_EXPIRY_MAX + 2):
        it.grant(lease)
    assert it.tick_at(10_000)
    assert len(it.state.store.leases) == LEASE_EXPIRY_MAX + 1
    assert it.tick_at(10_000)
    assert it.tick_at(10_000)
    assert len(it.state.store.leases) == 0


def test_one_tick_is_under_way_at_a_time() -> None:
    it = Node()
    it.grant(1)
    it.now_ms += 1000
    for _ in range(5):
        it.ticks.tick()
    assert len(it.proposed) == 1


def test_a_tick_that_cannot_be_proposed_is_proposed_later() -> None:
    it = Node()
    it.grant(1)
    it.refusal = OverloadedError("full")
    assert not it.tick_at(1000)
    it.refusal = None
    assert it.tick_at(1025)


@pytest.mark.parametrize("why_not", ["follows", "hands over", "has not applied what others proposed"])
def test_only_a_leader_that_knows_its_log_proposes_ticks(why_not: str) -> None:
    it = Node()
    it.grant(1)
    match why_not:
        case "follows":
            it.raft.role = Role.FOLLOWER
        case "hands over":
            it.raft.is_transferring = True
        case _:
            it.raft.current_term += 1
    assert not it.tick_at(20_000)
    assert len(it.state.store.leases) == 1, "a lease ends by an entry, and never by a node's own clock"


def test_the_leader_counts_what_becomes_of_leases() -> None:
    it = Node()
    it.ticks.tick()
    it.grant(1)
    it.grant(2)
    it.grant(3)
    it.apply(LeaseRenew(1), LeaseRenew(2))
    it.apply(LeaseRevoke(3))
    assert it.tick_at(10_000)
    it.ticks.tick()
    assert it.counters.lease_changes == {"granted": 3, "renewed": 2, "revoked": 1, "expired": 2}


def test_a_node_that_does_not_lead_counts_nothing_nor_does_a_leader_what_others_did_before() -> None:
    it = Node()
    it.raft.role = Role.FOLLOWER
    it.ticks.tick()
    it.grant(1)
    it.raft.role, it.raft.current_term = Role.LEADER, it.raft.current_term + 1
    it.ticks.tick()
    it.apply(LeaseRenew(1))
    it.raft.current_term = it.state.store.applied_term
    it.ticks.tick()
    assert not any(it.counters.lease_changes.values())
    assert isinstance(it.apply(LeaseRevoke(1)), LeaseRevoked)
    it.ticks.tick()
    assert it.counters.lease_changes == {"granted": 0, "renewed": 0, "revoked": 1, "expired": 0}


def test_a_state_that_was_replaced_is_looked_at_anew() -> None:
    it = Node()
    it.ticks.tick()
    it.grant(1)
    it.ticks.tick()
    it.state.replace(store_at_level_5())
    it.ticks.tick()
    assert it.counters.lease_changes["granted"] == 1
    assert not it.tick_at(20_000)
