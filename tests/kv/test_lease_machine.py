"""Leases against the naive model: grants, renewals, puts, time, snapshots and restores, and the raise in between."""

from __future__ import annotations

from unittest.mock import patch

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from kv.kv_support import apply, frames_of, raise_to, restore, snapshot_of, store_at_level_4
from kv.lease_model import LeaseModel, ModelLease, ModelRecord

from kvorum.kv.commands import BatchCommand, Delete, LeaseGrant, LeaseRenew, LeaseRevoke, Put, Txn
from kvorum.kv.limits import LEASE_KEY_OVERHEAD_BYTES, LEASE_OVERHEAD_BYTES
from kvorum.kv.operations import LeasedPutOp, PutOp
from kvorum.kv.records import Record
from kvorum.kv.snapshot_iterator import SnapshotIterator
from kvorum.kv.store import Store
from kvorum.kv.sweep import StateSweep

LEASES, KEYS, EXPIRY = 4, 3, 5
IDS = [1, 2, -3, 2**63 - 1, -(2**63)]
_keys = st.sampled_from([bytes([letter]) for letter in b"abcdefgh"])
_ids = st.sampled_from(IDS)
_puts = st.one_of(
    st.builds(PutOp, _keys, st.binary(max_size=2)),
    st.builds(LeasedPutOp, _keys, st.binary(max_size=2), lease=st.one_of(_ids, _ids, st.just(0))),
    st.builds(LeasedPutOp, _keys, st.binary(max_size=2), ignore_lease=st.just(True)),
)
_txns = st.lists(_puts, min_size=1, max_size=4, unique_by=lambda put: put.key).map(lambda puts: Txn((), tuple(puts)))
_commands: st.SearchStrategy[BatchCommand] = st.one_of(
    _txns,
    _txns,
    _txns,
    st.builds(LeaseGrant, _ids, st.integers(-1, 5), st.sampled_from([0, 0, 1, 3])),
    st.builds(LeaseGrant, _ids, st.integers(-1, 5), st.sampled_from([0, 0, 1, 3])),
    st.builds(LeaseRenew, _ids),
    st.builds(LeaseRevoke, _ids),
    st.builds(Put, _keys, st.binary(max_size=2)),
    st.builds(Delete, _keys),
)


def records_of(store: Store) -> dict[bytes, ModelRecord]:
    """Return the latest records as the model has them."""
    return {key: _record(record) for key, record in store.versions.records.items()}


def _record(record: Record) -> ModelRecord:
    return ModelRecord(record.value, record.create_revision, record.mod_revision, record.version, record.lease)


class LeaseMachine(RuleBasedStateMachine):
    """Every rule changes the store and the model alike; the invariants compare what can be seen of them."""

    def __init__(self) -> None:
        super().__init__()
        limits = {
            "leases.LEASES_MAX": LEASES,
            "snapshot.LEASES_MAX": LEASES,
            "leases.LEASE_KEYS_MAX": KEYS,
            "snapshot_versions.LEASE_KEYS_MAX": KEYS,
            "leases.LEASE_EXPIRY_MAX": EXPIRY,
            "leases._STALE_PLACES_MIN": 2,
        }
        self.patches = [patch(f"kvorum.kv.{name}", number) for name, number in limits.items()]
        for each in self.patches:
            each.start()
        self.store = store_at_level_4()
        self.model = LeaseModel(LEASES, KEYS, EXPIRY)
        self.time_ms = 0
        self.iterator: SnapshotIterator | None = None
        self.chunks: list[bytes] = []
        self.begun: tuple[dict[bytes, ModelRecord], list[tuple[int, ModelLease]], int] = ({}, [], 0)

    def teardown(self) -> None:
        """Take back the small limits."""
        for each in self.patches:
            each.stop()

    @initialize(commands=st.lists(_commands, max_size=3), is_raised=st.booleans())
    def begin(self, commands: list[BatchCommand], is_raised: bool) -> None:
        """Begin below the level, where everything about leases is refused, or at it."""
        self.write(commands, 0)
        if is_raised:
            self.raise_level()

    @precondition(lambda self: self.model.level == 4)
    @rule()
    def raise_level(self) -> None:
        """Raise the level."""
        apply(self.store, raise_to(5))
        self.model.level = 5

    @rule(commands=st.lists(_commands, max_size=6), passed_ms=st.sampled_from([0, 1, 1000, 2000, 2999, 9000, -5000]))
    def write(self, commands: list[BatchCommand], passed_ms: int) -> None:
        """Apply an entry some time after the last one; without commands it is a tick."""
        self.time_ms = max(self.time_ms + passed_ms, 0)
        results = apply(self.store, *commands, time_ms=self.time_ms)
        assert results == self.model.apply(self.time_ms, *commands)

    @precondition(lambda self: self.model.leases)
    @rule(off_ms=st.sampled_from([-1, 0]))
    def wait_until_due(self, off_ms: int) -> None:
        """Let the time come to when a lease is due, or just before."""
        self.time_ms = max((self.model.next_due_ms() or 0) + off_ms, 0)
        self.write([], 0)

    @rule(max_keys=st.sampled_from([1, 2, 100]))
    def restore(self, max_keys: int) -> None:
        """Go on with what a snapshot holds; the snapshot of that is the same."""
        if self.iterator is not None:
            self.iterator.close()
            self.iterator = None
        data = snapshot_of(self.store, max_keys)
        restored = restore(data)
        assert snapshot_of(restored, max_keys) == data
        assert restored.mismatch is None and restored.state_sum == self.store.state_sum
        assert restored.used_bytes == self.store.used_bytes
        self.store = restored

    @precondition(lambda self: self.iterator is None)
    @rule()
    def begin_snapshot(self) -> None:
        """Begin a snapshot, which goes on between entries."""
        self.iterator = self.store.begin_snapshot()
        self.chunks = []
        self.begun = (dict(self.model.records), list(self.model.leases.items()), self.model.level)

    @precondition(lambda self: self.iterator is not None)
    @rule(chunks=st.integers(1, 6))
    def go_on(self, chunks: int) -> None:
        """Write more of it; once it is complete, it holds what there was when it began."""
        assert self.iterator is not None
        for _ in range(chunks):
            chunk = self.iterator.next_chunk(2)
            if chunk is not None:
                self.chunks.append(chunk)
                continue
            self.iterator.close()
            self.iterator = None
            then = restore(b"".join(self.chunks))
            records, leases, level = self.begun
            assert records_of(then) == records
            assert then.feature_level == level and then.mismatch is None
            assert leases_of(then) == leases
            return

    @invariant()
    def is_as_the_model_says(self) -> None:
        """Compare everything."""
        store, model = self.store, self.model
        assert store.revision == model.revision
        assert records_of(store) == model.records
        assert leases_of(store) == list(model.leases.items())
        leases = store.leases
        assert len(leases) == len(model.leases)
        assert {id: leases.keys(id) for id in IDS} == {id: model.keys(id) for id in IDS}
        living = [id for id in IDS if id in model.leases and model.time_ms < model.leases[id].deadline_ms]
        assert [id for id in IDS if leases.living(id)] == living
        assert leases.next_due_ms() == model.next_due_ms()
        assert store.time_ms == model.time_ms == leases.time_ms
        attached = sum(record.lease != 0 for record in model.records.values())
        assert leases.used_bytes == LEASE_OVERHEAD_BYTES * len(leases) + LEASE_KEY_OVERHEAD_BYTES * attached
        assert len(leases._heap) <= 2 * len(leases) + 2 + 2

    @invariant()
    def the_past_is_as_it_was(self) -> None:
        """A read at an old revision shows the lease of that version."""
        for revision in list(self.model.history)[-3:]:
            for key, record in self.model.history[revision].items():
                found = self.store.get(key, revision)
                assert found is not None and _record(found) == record

    @invariant()
    def the_sum_covers_the_leases(self) -> None:
        """The sum kept up with each change is that of a sweep."""
        sweep = StateSweep(self.store)
        while not sweep.passes:
            assert sweep.step() is None


def leases_of(store: Store) -> list[tuple[int, ModelLease]]:
    """Return the leases as the model has them."""
    return [(each.id, ModelLease(each.ttl_s, each.delay_s, each.deadline_ms)) for each in store.leases]


def test_level_4_snapshots_know_nothing_of_leases() -> None:
    store = store_at_level_4()
    apply(store, Put(b"a", b"1"), Delete(b"a"), Put(b"b", b"2"))
    assert not any(frame[1:2] == b"\xa1" and frame[2:3] in b"l" for frame in frames_of(snapshot_of(store)))


TestLeases = LeaseMachine.TestCase
TestLeases.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
