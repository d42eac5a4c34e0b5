"""The state hash of level 2: the chain over changes, the sum over records, and the sweep that checks the sum."""

from __future__ import annotations

from hashlib import blake2b
from zlib import crc32

import hypothesis.strategies as st
import pytest
from hypothesis import given
from kv.kv_support import (
    CLUSTER_ID,
    CONFIGURATION,
    KEYS,
    apply,
    apply_batches,
    batches,
    configured,
    examples,
    raise_to,
    restore,
    small_sessions,
    snapshot_of,
    store_at_level_2,
)

from kvorum.kv.commands import Batch, BatchCommand, Delete, FeatureLevelRaised, Put
from kvorum.kv.records import Record
from kvorum.kv.state_hash import SLICE_BYTES, SLICE_KEYS, Mismatch, StateDigest
from kvorum.kv.store import Store
from kvorum.kv.sweep import StateSweep
from kvorum.raft.messages import Configuration, Entry, EntryKind, Member


def flip(store: Store, key: bytes, **changes: object) -> None:
    """Change a record as a fault of the memory would: nobody is told."""
    old = store.get(key)
    assert old is not None
    fields = {name: getattr(old, name) for name in Record.__struct_fields__}
    store.versions.records[key] = Record(**{**fields, **changes})


def swept(sweep: StateSweep, max_keys: int = 256) -> Mismatch | None:
    """Run a pass to its end."""
    passes = sweep.passes
    while sweep.passes == passes:
        mismatch = sweep.step(max_keys)
    return mismatch


# --- The definition -------------------------------------------------------------------------------------------------


def _hash_of_record(key: bytes, record: Record, cluster_id: str = CLUSTER_ID) -> bytes:
    data = b"".join(n.to_bytes(8) for n in (record.create_revision, record.mod_revision, record.version))
    data += len(record.value).to_bytes(4) + crc32(record.value).to_bytes(4) + key
    return blake2b(data, digest_size=16, key=cluster_id.encode(), person=b"kvorum.record").digest()


def _chained(previous: int, index: int, term: int, kind: int, revision: int, time_ms: int, changes: bytes) -> int:
    data = b"".join(n.to_bytes(8) for n in (previous, index, term)) + bytes([kind])
    data += revision.to_bytes(8) + time_ms.to_bytes(8) + changes
    return int.from_bytes(blake2b(data, digest_size=8, person=b"kvorum.changes").digest())


def test_the_hash_of_level_2_is_what_its_docstrings_describe() -> None:
    """Nodes of all later versions compare it: a change of the definition needs a level of its own."""
    store = Store()
    store.apply(configured())
    state_hash = store.state_hash
    apply(store, raise_to(2), time_ms=5)
    state_hash = _chained(state_hash, 2, 1, 0, 0, 5, b"l" + (2).to_bytes(4))
    assert store.state_hash == state_hash

    apply(store, Put(b"a", b"1"), Put(b"b", b"2", -1, "ann", 1), Delete(b"a"), time_ms=7)
    changes = (
        b"p"
        + _hash_of_record(b"a", Record(b"a", b"1", 1, 1, 1))
        + b"p"
        + _hash_of_record(b"b", Record(b"b", b"2", 2, 2, 1))
    )
    answer = store._sessions.row("ann").answers
    changes += b"s" + (1).to_bytes(8) + (3).to_bytes(2) + b"ann" + bytes([len(answer)]) + answer
    changes += b"d" + (3).to_bytes(8) + (1).to_bytes(2) + b"a"
    state_hash = _chained(state_hash, 3, 1, 0, 3, 7, changes)
    assert store.state_hash == state_hash

    assert store.state_sum == int.from_bytes(_hash_of_record(b"b", Record(b"b", b"2", 2, 2, 1)))

    store.apply(configured(index=4))
    changes = b"c" + (3).to_bytes(4)
    for member in CONFIGURATION.members:
        changes += bytes([member.voter]) + (4).to_bytes(2) + member.id.encode()
    state_hash = _chained(state_hash, 4, 1, 2, 3, 7, changes)
    assert store.state_hash == state_hash

    store.apply(Entry(5, 3, EntryKind.NOOP, b""))
    assert store.state_hash == _chained(state_hash, 5, 3, 1, 3, 7, b"")


_BASE = (Put(b"a", b"1"), Put(b"b", b"2", -1, "ann", 1))
_OTHER_ENTRIES: dict[str, tuple[tuple[BatchCommand, ...], int]] = {
    "another value": ((Put(b"a", b"2"),), 9),
    "another key": ((Put(b"c", b"1"),), 9),
    "a deletion": ((Delete(b"a"),), 9),
    "another deletion": ((Delete(b"b"),), 9),
    "another time": ((Put(b"a", b"1"),), 10),
    "nothing": ((), 9),
    "twice": ((Put(b"a", b"1"), Put(b"a", b"1")), 9),
    "a session": ((Put(b"a", b"1", -1, "ann", 2),), 9),
    "another session": ((Put(b"a", b"1", -1, "bob", 1),), 9),
    "a later sequence": ((Put(b"a", b"1", -1, "ann", 3),), 9),
    "a retry": ((_BASE[1], Put(b"a", b"1")), 9),
    "a failed compare that a session remembers": ((Put(b"a", b"1", 7, "ann", 2), Put(b"a", b"1")), 9),
}


def test_every_change_changes_the_chain() -> None:
    hashes = {}
    for name, (commands, time_ms) in {"": ((Put(b"a", b"1"),), 9), **_OTHER_ENTRIES}.items():
        store = store_at_level_2()
        apply(store, *_BASE)
        apply(store, *commands, time_ms=time_ms)
        hashes[store.state_hash] = name

    assert len(hashes) == len(_OTHER_ENTRIES) + 1


def test_a_retry_and_a_refusal_that_use_a_session_equally_change_the_chain_equally() -> None:
    used = []
    for command in (_BASE[1], Put(b"a", b"1", -1, "ann", 999), Delete(b"b", -1, "ann", 1)):
        store = store_at_level_2()
        apply(store, *_BASE)
        apply(store, command, time_ms=9)
        used.append(store.state_hash)

    assert len(set(used)) == 1


def test_what_changes_nothing_does_not_change_the_chain() -> None:
    """It covers changes, not the encoding of what was asked or answered."""
    first, second = store_at_level_2(), store_at_level_2()

    apply(first, Put(b"a", b"1", 7), Delete(b"b"), Put(b"", b""), Put(b"a", b"1", -1, "ann", 2))
    apply(second)

    assert first.state_hash == second.state_hash


@pytest.mark.parametrize(
    "other",
    [
        Configuration(CONFIGURATION.members[:2]),
        Configuration((*CONFIGURATION.members[:2], Member("n3@1", True))),
        Configuration((*CONFIGURATION.members[:2], Member("n3@2", False))),
    ],
)
def test_another_configuration_changes_the_chain(other: Configuration) -> None:
    first, second = store_at_level_2(), store_at_level_2()

    first.apply(configured(index=3))
    second.apply(configured(other, 3))

    assert first.state_hash != second.state_hash


def test_an_evicted_session_changes_the_chain() -> None:
    with small_sessions():
        first, second = store_at_level_2(), store_at_level_2()
        for store, order in ((first, "abc"), (second, "bac")):
            for client in order:
                apply(store, Put(b"k", b"v", -1, client, 1))
            # From here on equal, but for what the next command does to the sessions.
            store.state_hash = 0
            apply(store, Put(b"k", b"v", -1, "d", 1), time_ms=2**40)

        assert first._sessions.row("b") and second._sessions.row("a")
        assert first.state_hash != second.state_hash


@examples
@given(st.lists(batches, max_size=8), st.integers(0, 8))
def test_nodes_that_restore_a_snapshot_have_the_hash_of_those_that_applied_everything(
    log: list[Batch], restored_after: int
) -> None:
    with small_sessions():
        first, second = store_at_level_2(), store_at_level_2()
        apply_batches(first, log)

        apply_batches(second, log[:restored_after])
        second = restore(snapshot_of(second))
        apply_batches(second, log[restored_after:])

        assert (first.state_hash, first.state_sum) == (second.state_hash, second.state_sum)
        assert snapshot_of(first) == snapshot_of(second)


@pytest.mark.parametrize(
    ("other", "contradicts"),
    [
        (StateDigest(2, 7, 9), False),
        (StateDigest(2, 8, 9), True),
        (StateDigest(2, 7, 8), True),
        (StateDigest(2, 7, None), False),
        (StateDigest(2, 8, None), True),
        (StateDigest(1, 8, None), False),
    ],
)
def test_digests_are_compared_as_far_as_both_have_them_and_by_one_definition(
    other: StateDigest, contradicts: bool
) -> None:
    ours = StateDigest(2, 7, 9)

    assert ours.contradicts(other) is other.contradicts(ours) is contradicts


def test_a_store_says_what_is_compared() -> None:
    store = Store()
    store.apply(configured())
    apply(store, *_many(SLICE_KEYS + 1))
    assert store.digest == StateDigest(1, store.state_hash)
    apply(store, raise_to(2))
    assert store.digest == StateDigest(2, store.state_hash)
    assert swept(StateSweep(store)) is None
    assert store.digest == StateDigest(2, store.state_hash, store.state_sum)


# --- The sum --------------------------------------------------------------------------------------------------------


def _many(keys: int, value: bytes = b"v") -> list[Put]:
    return [Put(b"%05d" % number, value) for number in range(keys)]


def _upgraded(*puts: Put) -> Store:
    """Return a state of level 2 that held these keys when it was raised."""
    store = Store()
    store.apply(configured())
    apply(store, *puts)
    assert apply(store, raise_to(2)) == [FeatureLevelRaised(len(puts), 2)]
    return store


def _sum_of(store: Store) -> int:
    hashes = [_hash_of_record(key, record) for key in store.versions.records if (record := store.get(key))]
    return sum(map(int.from_bytes, hashes)) % 2**128


@pytest.mark.parametrize("keys", [0, 1, SLICE_KEYS])
def test_the_sum_of_a_slice_counts_from_the_raise_on(keys: int) -> None:
    """Otherwise what memory changes before the first sweep is never found."""
    store = _upgraded(*_many(keys))
    assert store.state_sum == _sum_of(store)

    apply(store, Put(b"00000", b"w"), Put(b"new", b"v"))
    assert store.state_sum == _sum_of(store)


@pytest.mark.parametrize("puts", [_many(SLICE_KEYS + 1), _many(10, bytes(SLICE_BYTES // 10))], ids=["keys", "bytes"])
def test_the_sum_of_more_than_a_slice_counts_after_the_first_sweep(puts: list[Put]) -> None:
    store = _upgraded(*puts)
    sweep = StateSweep(store)
    for number in range(5):
        assert store.state_sum is None
        apply(store, Put(puts[number].key, b"w"), Put(puts[9 - number].key, b"x"), Put(b"new-%d" % number, b"v"))
        assert sweep.step(max_keys=2) is None
    assert sweep.step(max_keys=len(store) - 11) is None
    assert store.state_sum is None
    assert sweep.step(max_keys=1) is None  # the last key

    assert store.state_sum == _sum_of(store)


def test_a_snapshot_taken_before_the_sum_counts_carries_none_and_its_restore_counts() -> None:
    store = _upgraded(*_many(SLICE_KEYS + 1))

    restored = restore(snapshot_of(store))

    assert store.state_sum is None
    assert restored.state_sum == _sum_of(store)


def test_a_snapshot_of_a_state_that_memory_changed_is_restored_with_a_mismatch() -> None:
    store = store_at_level_2()
    apply(store, Put(b"a", b"1"), Put(b"b", b"2"))
    right = store.state_sum
    flip(store, b"b", value=b"3")

    restored = restore(snapshot_of(store))

    assert restored.state_sum is not None and right is not None
    assert restored.mismatch == Mismatch(3, right, restored.state_sum)
    assert restored.state_sum != right  # what the node holds, for the others to judge


@pytest.mark.parametrize("is_changed", [True, False])
def test_a_snapshot_says_at_its_end_whether_its_records_have_the_sum_that_it_carries(is_changed: bool) -> None:
    store = store_at_level_2()
    for number in range(20):
        apply(store, Put(b"%d" % number, b"v"))
    swept(StateSweep(store))
    right = store.state_sum
    if is_changed:
        flip(store, b"7", value=b"x")
    iterator = store.begin_snapshot()
    iterator.next_chunk(1)
    # What is applied meanwhile is no part of it.
    apply(store, Put(b"3", b"w"))
    while iterator.next_chunk(4) is not None:
        assert iterator.mismatch is None or iterator._done
    if is_changed:
        assert iterator.mismatch is not None
        assert (iterator.mismatch.index, iterator.mismatch.expected) == (iterator.header.applied_index, right)
    else:
        assert iterator.mismatch is None


def test_a_snapshot_of_a_sound_state_is_restored_without_a_mismatch() -> None:
    store = store_at_level_2()
    apply(store, Put(b"a", b"1"), Put(b"b", b"2"))

    restored = restore(snapshot_of(store))

    assert (restored.state_sum, restored.mismatch) == (store.state_sum, None)


def test_a_record_that_memory_changed_shows_in_the_sum_once_it_is_overwritten() -> None:
    first, second = store_at_level_2(), store_at_level_2()
    for store in (first, second):
        apply(store, Put(b"a", b"1"))
    flip(second, b"a", value=b"0")
    for store in (first, second):
        apply(store, Put(b"a", b"2"))

    assert first.get(b"a") == second.get(b"a")
    assert first.state_hash == second.state_hash
    assert first.state_sum != second.state_sum


def test_the_sum_depends_on_the_cluster_id_and_the_cluster_id_stays() -> None:
    sums = set()
    for cluster_id in ("one", "two"):
        store = Store()
        store.apply(configured())
        apply(store, raise_to(2, cluster_id=cluster_id))
        apply(store, Put(b"a", b"1"))
        assert store.cluster_id == restore(snapshot_of(store)).cluster_id == cluster_id
        sums.add(store.state_sum)

    assert len(sums) == 2


# --- The sweep ------------------------------------------------------------------------------------------------------


def test_below_level_2_there_is_nothing_to_sweep() -> None:
    store = Store()
    apply(store, Put(b"a", b"1"))
    sweep = StateSweep(store)

    assert sweep.step() is None
    assert (sweep.passes, sweep.is_under_way) == (0, False)


_steps = st.lists(st.one_of(batches, st.integers(1, 3)), max_size=20)


@examples
@given(st.lists(batches, max_size=6), _steps, st.booleans())
def test_a_sweep_of_a_sound_state_finds_nothing_whatever_is_applied_meanwhile(
    past: list[Batch], steps: list[Batch | int], after_a_restore: bool
) -> None:
    with small_sessions():
        store = store_at_level_2()
        apply_batches(store, past)
        if after_a_restore:
            store = restore(snapshot_of(store))
        sweep = StateSweep(store)

        for step in steps:
            if isinstance(step, Batch):
                apply_batches(store, [step])
            else:
                assert sweep.step(max_keys=step) is None
        assert swept(sweep, 1) is None
        assert swept(sweep, 1) is None


_flips = st.sampled_from([("value", b"other"), ("create_revision", 99), ("mod_revision", 99), ("version", 99)])


@examples
@given(st.lists(batches, max_size=6), _steps, _flips, st.data())
def test_a_record_that_memory_changed_is_found_within_a_pass_after_the_present_one(
    past: list[Batch], steps: list[Batch | int], change: tuple[str, object], data: st.DataObject
) -> None:
    with small_sessions():
        store = store_at_level_2()
        apply_batches(store, past)
        sweep = StateSweep(store)
        for step in steps:
            if isinstance(step, Batch):
                apply_batches(store, [step])
            else:
                assert sweep.step(max_keys=step) is None
        present = [key for key in KEYS if store.get(key) is not None]
        if not present:
            return
        before = store.state_sum
        flip(store, data.draw(st.sampled_from(present)), **dict([change]))

        mismatch = (swept(sweep, 1) if sweep.is_under_way else None) or swept(sweep, 1)

        assert mismatch is not None
        assert (mismatch.index, mismatch.expected) == (store.applied_index, before)
        assert mismatch.found == store.state_sum != before
        assert swept(sweep, 1) is None  # it is said once; the others are to judge


def test_a_lost_record_and_a_record_from_nowhere_are_found() -> None:
    store = store_at_level_2()
    apply(store, Put(b"a", b"1"), Put(b"b", b"2"))
    sweep = StateSweep(store)
    lost = store.versions.records.pop(b"a")
    assert swept(sweep) is not None

    store.versions.records[b"c"] = store.versions.records[b"a"] = lost
    store.versions.live.add(b"c")
    assert swept(sweep) is not None
    assert swept(sweep) is None


def test_a_step_is_bounded_in_keys_and_in_bytes_and_always_makes_progress() -> None:
    store = store_at_level_2()
    apply(store, *(Put(b"%02d" % number, b"v" * 98) for number in range(20)))
    sweep = StateSweep(store)

    sweep.step(max_keys=5)
    assert sweep.share == 5 / 20
    sweep.step(max_bytes=350)
    assert sweep.share == 4 / 20  # the fourth reaches 350 bytes
    sweep.step(max_keys=0, max_bytes=0)
    assert sweep.share == 1 / 20
    assert sweep.step() is None
    assert (sweep.passes, sweep.is_under_way) == (1, False)


def test_a_sweep_and_a_snapshot_do_not_disturb_each_other() -> None:
    store, untouched = store_at_level_2(), store_at_level_2()
    for each in (store, untouched):
        apply(each, *(Put(b"%d" % number, b"v") for number in range(9)))
    expected = snapshot_of(untouched, max_keys=1)
    sweep, iterator = StateSweep(store), store.begin_snapshot()

    chunks = []
    while (chunk := iterator.next_chunk(1)) is not None:
        chunks.append(chunk)
        assert sweep.step(max_keys=1) is None
        apply(store, Put(b"%d" % len(chunks), b"w"), Delete(b"%d" % (9 - len(chunks))))
    iterator.close()

    assert b"".join(chunks) == expected
    assert swept(sweep) is None


def test_a_new_sweep_begins_at_the_beginning_although_another_was_given_up() -> None:
    store = store_at_level_2()
    apply(store, *(Put(b"%d" % number, b"v") for number in range(9)))
    StateSweep(store).step(max_keys=5)
    flip(store, b"0", value=b"x")

    assert swept(StateSweep(store)) is not None
