"""The store against the naive model, and against itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import given
from kv.kv_model import Model
from kv.kv_support import (
    CONFIGURATION,
    ENDED,
    KEYS,
    MEMBERS,
    SESSIONS,
    WINDOW,
    apply_batches,
    batches,
    entry_of,
    examples,
    raised_before,
    raising_batches,
    restore,
    small_sessions,
    snapshot_of,
)

from kvorum.kv.commands import Batch, Result
from kvorum.kv.limits import SESSION_IDLE_MS
from kvorum.kv.store import Store
from kvorum.kv.sweep import StateSweep
from kvorum.raft.membership import encode_configuration
from kvorum.raft.messages import Entry, EntryKind

NUMBERS = (
    "revision",
    "applied_index",
    "applied_term",
    "state_hash",
    "time_ms",
    "session_count",
    "used_bytes",
    "quota",
    "floor",
    "history_bytes",
    "history_events",
)


def apply_items(store: Store, items: list[Batch | EntryKind]) -> list[list[Result]]:
    """Apply batches and entries of other kinds as the next entries."""
    results = []
    for index, item in enumerate(items, store.applied_index + 1):
        if isinstance(item, Batch):
            results.append(store.apply(entry_of(index, item)))
        else:
            results.append(store.apply(Entry(index, 1, item, encode_configuration(CONFIGURATION))))
    return results


@examples
@given(st.lists(st.one_of(batches, st.sampled_from([EntryKind.NOOP, EntryKind.CONFIGURATION])), max_size=14))
def test_every_answer_and_every_record_is_the_models(log: list[Batch | EntryKind]) -> None:
    with small_sessions():
        store, model = Store(), Model(WINDOW, SESSIONS, SESSION_IDLE_MS, ENDED)
        for index, item in enumerate(log, 1):
            if isinstance(item, Batch):
                assert store.apply(entry_of(index, item)) == model.apply(item)
            else:
                assert store.apply(Entry(index, 1, item, encode_configuration(CONFIGURATION))) == []
            records = {key: model.get(key) for key in KEYS}
            assert {key: store.get(key) for key in KEYS} == records
            assert len(store) == sum(record is not None for record in records.values())
            assert (store.revision, store.time_ms) == (len(model.history), model.time_ms)
            assert (store.applied_index, store.session_count) == (index, len(model.sessions))


_items = st.one_of(batches, batches, raising_batches, st.sampled_from([EntryKind.NOOP, EntryKind.CONFIGURATION]))


@examples
@given(raised_before, st.lists(_items, max_size=16))
def test_every_answer_every_record_and_the_sum_are_the_models_at_every_level(
    first: list[Batch | EntryKind], log: list[Batch | EntryKind]
) -> None:
    log = first + log
    with small_sessions():
        store, model = Store(), Model(WINDOW, SESSIONS, SESSION_IDLE_MS, ENDED)
        sweep = StateSweep(store)
        for index, item in enumerate(log, 1):
            if isinstance(item, Batch):
                assert store.apply(entry_of(index, item)) == model.apply(item)
            else:
                assert store.apply(Entry(index, 1, item, encode_configuration(CONFIGURATION))) == []
                model.members = MEMBERS if item is EntryKind.CONFIGURATION else model.members
            assert {key: store.get(key) for key in KEYS} == {key: model.get(key) for key in KEYS}
            assert (store.feature_level, store.cluster_id) == (model.level, model.cluster_id)
            assert store.used_bytes == model.used()
            assert (store.revision, store.floor) == (model.revision, model.floor or model.revision)
            for revision in range(store.floor, store.revision):
                assert {key: store.get(key, revision) for key in KEYS} == {
                    key: model.get(key, revision) for key in KEYS
                }
            quota = store.quota
            assert (quota.limit_bytes, quota.configured_bytes, quota.is_full) == (
                model.quota,
                model.configured,
                model.is_full,
            )
            assert store.digest.version == (1 if model.level == 1 else 2)
            assert sweep.step(max_keys=1) is None
            if model.level == 1:
                assert store.state_sum is None
            elif store.state_sum is not None:
                assert store.state_sum == model.state_sum()
        while model.level > 1 and store.state_sum is None:
            assert sweep.step(max_keys=1) is None
        assert store.state_sum == (model.state_sum() if model.level > 1 else None)


@examples
@given(raised_before, st.lists(_items, max_size=8), st.lists(_items, max_size=8))
def test_a_restored_store_goes_on_as_the_first_at_every_level(
    first: list[Batch | EntryKind], past: list[Batch | EntryKind], future: list[Batch | EntryKind]
) -> None:
    with small_sessions():
        store = Store()
        apply_items(store, first + past)

        restored = restore(snapshot_of(store), store.configuration)
        if store.state_sum is None:
            # The first sums in its first sweep what the other summed when it was restored.
            StateSweep(store).step()

        for name in (*NUMBERS, "feature_level", "cluster_id", "configuration", "state_sum"):
            assert getattr(restored, name) == getattr(store, name)
        assert snapshot_of(restored) == snapshot_of(store)
        assert apply_items(restored, future) == apply_items(store, future)
        for name in ("state_hash", "digest", "feature_level"):
            assert getattr(restored, name) == getattr(store, name)


@examples
@given(st.lists(batches, max_size=8), st.lists(batches, max_size=8))
def test_a_restored_store_equals_the_first_and_has_the_same_future(past: list[Batch], future: list[Batch]) -> None:
    with small_sessions():
        store = Store()
        apply_batches(store, past)

        restored = restore(snapshot_of(store))

        for name in NUMBERS:
            assert getattr(restored, name) == getattr(store, name)
        assert {key: restored.get(key) for key in KEYS} == {key: store.get(key) for key in KEYS}
        assert snapshot_of(restored) == snapshot_of(store)
        assert apply_batches(restored, future) == apply_batches(store, future)
        assert restored.state_hash == store.state_hash
        assert snapshot_of(restored) == snapshot_of(store)


@examples
@given(st.lists(batches, min_size=1, max_size=5), st.data())
def test_the_state_hash_tells_any_two_different_logs_apart(log: list[Batch], data: st.DataObject) -> None:
    other = list(log)
    at = data.draw(st.integers(0, len(log) - 1))
    other[at] = data.draw(batches.filter(lambda batch: batch != log[at]))
    first, second = Store(), Store()

    apply_batches(first, log)
    apply_batches(second, other)

    assert first.state_hash != second.state_hash


_GOLDEN = """
from kvorum.kv.commands import Delete, Put
from kv.kv_support import apply, snapshot_of
from kvorum.kv.store import Store
from hashlib import sha256

store = Store()
for number in range(40):
    key = b"key-%d" % (number % 7)
    client = f"client-{number % 5}"
    apply(store, Put(key, b"v" * number, -1, client, number // 5 + 1), Delete(b"key-3"), Put(b"x", b"y", number),
          time_ms=1000 + number)
print(f"{store.state_hash:016x} {sha256(snapshot_of(store)).hexdigest()}")
"""


def _run_golden(hash_seed: str) -> str:
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root / "service"), str(root / "tests")])
    env = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", _GOLDEN], env=env, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.strip()


def test_the_state_does_not_depend_on_the_process() -> None:
    assert _run_golden("0") == _run_golden("1") == _run_golden("4242")
