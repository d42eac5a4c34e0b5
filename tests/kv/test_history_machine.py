"""The history against the naive model: writes, compactions, reclaim in any slices, pins, snapshots and restores."""

from __future__ import annotations

from copy import deepcopy
from unittest.mock import patch

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from kv.kv_model import Model
from kv.kv_support import MEMBERS, apply, configured, kept_versions, raise_to, restore, snapshot_of

from kvorum.kv.commands import Batch, BatchCommand, Compact, Delete, Put
from kvorum.kv.records import Record
from kvorum.kv.snapshot_iterator import SnapshotIterator
from kvorum.kv.store import Store
from kvorum.kv.sweep import StateSweep
from kvorum.kv.versions import Pin

KEYS = [b"-", *(bytes([letter]) * (letter % 3 + 1) for letter in b"abcdefghi")]
_keys = st.sampled_from(KEYS)
_writes: st.SearchStrategy[BatchCommand] = st.one_of(
    st.builds(Put, _keys, st.binary(max_size=4)), st.builds(Put, _keys, st.binary(max_size=4)), st.builds(Delete, _keys)
)
_sizes = st.sampled_from([(1, 1 << 18), (2, 1 << 18), (3, 4), (100, 1 << 18)])


def _event(event: Record) -> tuple[int, bytes, bytes | None]:
    return event.mod_revision, event.key, event.value if event.version else None


class HistoryMachine(RuleBasedStateMachine):
    """Every rule changes the store and the model alike; the invariants compare what can be seen of them."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = [patch("kvorum.kv.keys.CHUNK_KEYS", 2), patch("kvorum.kv.event_log._DROPPED_MIN", 3)]
        for each in self.patches:
            each.start()
        self.store = Store()
        self.model = Model(1, 1, 1, 1)
        self.pins: list[Pin] = []
        self.iterator: SnapshotIterator | None = None
        self.sizes = (0, 0)
        self.chunks: list[bytes] = []
        self.begun = self.model
        self.sweep = StateSweep(self.store)

    def teardown(self) -> None:
        """Take back the small sizes."""
        for each in self.patches:
            each.stop()

    def apply(self, *commands: BatchCommand) -> None:
        """Apply commands to both."""
        assert apply(self.store, *commands) == self.model.apply(Batch(0, commands))

    @initialize(first=st.lists(_writes, max_size=4))
    def begin(self, first: list[BatchCommand]) -> None:
        """Begin with an old cluster, whose history begins with the raise of the level."""
        self.store.apply(configured())
        self.model.members = MEMBERS
        for level in (2, 3):
            self.apply(raise_to(level))
        self.apply(*first)
        iterator = self.store.begin_snapshot() if first else None
        self.apply(*first)
        self.store.reclaim(3)
        if iterator is not None:
            iterator.close()
        self.apply(raise_to(4))

    @rule(commands=st.lists(_writes, min_size=1, max_size=6))
    def write(self, commands: list[BatchCommand]) -> None:
        """Put and delete."""
        self.apply(*commands)

    @rule(back=st.integers(-1, 12))
    def compact(self, back: int) -> None:
        """Compact, or try to."""
        self.apply(Compact(max(self.model.revision - back, 0)))

    @rule(size=st.integers(0, 2000))
    def compact_to_free(self, size: int) -> None:
        """Free so much history, by the lowest floor that does."""
        floor, freed = self.store.revision_to_free(size), -self.store.history_bytes
        below = deepcopy(self.model)
        below.floor = floor - 1
        if floor > self.model.floor:
            assert self.model.history_bytes() - below.history_bytes() < size
            self.apply(Compact(floor))
        freed += self.store.history_bytes
        assert -freed >= size or floor == self.model.revision

    @rule(budget=st.integers(1, 5))
    def reclaim(self, budget: int) -> None:
        """Free some memory."""
        self.store.reclaim(budget)

    @precondition(lambda self: len(self.pins) < 3)
    @rule(back=st.integers(0, 12))
    def pin(self, back: int) -> None:
        """Begin to read in slices."""
        self.pins.append(self.store.pin(max(self.store.revision - back, self.store.floor)))

    @precondition(lambda self: self.pins)
    @rule(number=st.integers(0, 2))
    def release(self, number: int) -> None:
        """End to read."""
        self.pins.pop(number % len(self.pins)).release()

    @precondition(lambda self: self.iterator is None)
    @rule(sizes=_sizes)
    def begin_snapshot(self, sizes: tuple[int, int]) -> None:
        """Begin to write a snapshot."""
        self.iterator, self.chunks, self.sizes = self.store.begin_snapshot(), [], sizes
        self.begun = deepcopy(self.model)

    @precondition(lambda self: self.iterator is not None)
    @rule(steps=st.integers(1, 30))
    def go_on_with_the_snapshot(self, steps: int) -> None:
        """Write more of it; at its end, restore it."""
        assert self.iterator is not None
        for _ in range(steps):
            chunk = self.iterator.next_chunk(*self.sizes)
            if chunk is None:
                self.iterator.close()
                self.iterator = None
                restored = restore(b"".join(self.chunks), self.store.configuration)
                assert restored.mismatch is None
                assert restored.state_sum == self.begun.state_sum()
                check(restored, self.begun)
                assert snapshot_of(restored, *self.sizes) == b"".join(self.chunks)
                return
            self.chunks.append(chunk)

    @precondition(lambda self: self.iterator is None and not self.pins)
    @rule()
    def restart(self) -> None:
        """Go on with the store that a snapshot holds."""
        restored = restore(snapshot_of(self.store), self.store.configuration)
        assert (restored.digest, restored.applied_index) == (self.store.digest, self.store.applied_index)
        self.store = restored
        self.sweep = StateSweep(restored)

    @rule(keys=st.integers(1, 4))
    def sum(self, keys: int) -> None:
        """Sum some of the records."""
        assert self.sweep.step(max_keys=keys) is None

    @invariant()
    def everything_that_can_be_seen_is_the_models(self) -> None:
        """Compare."""
        if self.model.level == 4:
            check(self.store, self.model)
            for pin in self.pins:
                for key in KEYS:
                    assert self.store.versions.at(key, pin.revision) == self.model.get(key, pin.revision)

    @precondition(lambda self: self.iterator is None and not self.pins)
    @rule()
    def nothing_is_left_of_what_was_compacted(self) -> None:
        """Reclaim everything."""
        self.apply(Put(KEYS[0], b""), Compact(self.model.revision + 1))
        while self.store.reclaim(7):
            pass
        assert set(kept_versions(self.store, KEYS)) <= {KEYS[0]}
        assert len(self.store.versions.dead) == 0


def check(store: Store, model: Model) -> None:
    """Compare everything that can be seen of a store at level 4 with the model."""
    versions, floor, latest = store.versions, model.floor, model.revision
    assert (store.revision, store.floor, store.used_bytes) == (latest, floor, model.used())
    assert store.state_sum is None or store.state_sum == model.state_sum()
    events = model.events()
    assert (store.history_bytes, store.history_events) == (model.history_bytes(), len(events))
    for revision in range(floor, latest + 1):
        expected = {key: model.get(key, revision) for key in KEYS}
        assert {key: store.get(key, revision) for key in KEYS} == expected
        found = versions.events(versions.position(revision), 1000)
        assert [_event(event) for event in found] == [event for event in events if event[0] >= revision]
        existing = [key for key in KEYS if expected[key] is not None]
        for start, end, limit in ((b"", None, 3), (b"b", b"h", 100)):
            asked = [key for key in existing if key >= start and (end is None or key < end)]
            candidates = versions.keys_from(start, end, limit)
            assert candidates == sorted(set(candidates))
            if len(candidates) < limit:
                assert [key for key in candidates if versions.at(key, revision)] == asked
            backwards = versions.keys_before(start, end, 100)
            assert [key for key in backwards if versions.at(key, revision)] == asked[::-1]
            if revision == latest:
                assert versions.live.count(start, end) == len(asked)
    for event in versions.events(versions.position(floor), 1000):
        assert versions.previous(event) == model.get(event.key, event.mod_revision - 1)
    for key in KEYS:
        seen = [(revision, value) for revision, changed, value in events if changed == key]
        at_floor = model.get(key, floor)
        if at_floor is not None and at_floor.mod_revision < floor:
            seen = [(at_floor.mod_revision, at_floor.value), *seen]
        history = versions.history(key, 1000)
        assert [_event(each)[::2] for each in history] == seen[::-1]
        assert versions.history(key, 2) == history[:2]


TestHistory = HistoryMachine.TestCase
TestHistory.settings = settings(deadline=None, max_examples=100, stateful_step_count=40)
