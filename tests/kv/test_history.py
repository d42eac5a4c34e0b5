"""Old versions: what can be read, what a compaction forgets, and what it counts."""

from __future__ import annotations

import gc

import pytest
from kv.kv_support import apply, kept_versions, raise_to, restore, snapshot_of, store_at_level_3, store_at_level_4

from kvorum.errors import RevisionCompactedError, RevisionInFutureError
from kvorum.kv.commands import (
    Compact,
    Compacted,
    CompactRefused,
    Delete,
    DeleteResult,
    FeatureLevelRaised,
    Put,
    PutResult,
    SessionRefused,
)
from kvorum.kv.limits import TOMBSTONE_OVERHEAD_BYTES, VERSION_OVERHEAD_BYTES
from kvorum.kv.records import Record
from kvorum.kv.store import Store
from kvorum.kv.versions import TUPLE_VERSIONS_MAX

A1 = Record(b"a", b"1", 2, 2, 1)
A2 = Record(b"a", b"22", 2, 3, 2)
A4 = Record(b"a", b"4444", 5, 5, 1)


def written() -> Store:
    """Return a store with the history a=1 at revision 2, a=22 at 3, a deleted at 4, a=4444 at 5."""
    store = store_at_level_4()
    results = apply(store, Put(b"a", b"1"), Put(b"a", b"22"), Delete(b"a"), Put(b"a", b"4444"))
    assert results == [PutResult(2, 2, 2, 1), PutResult(3, 2, 3, 2), DeleteResult(4, 1), PutResult(5, 5, 5, 1)]
    return store


def test_history_begins_with_a_revision_that_the_raise_takes() -> None:
    store = store_at_level_3()
    apply(store, Put(b"a", b"1"), Put(b"a", b"2"))
    assert (store.revision, store.floor, store.history_events) == (2, 2, 0)

    assert apply(store, raise_to(4)) == [FeatureLevelRaised(3, 4)]

    assert (store.revision, store.floor) == (3, 3)
    with pytest.raises(RevisionCompactedError):
        store.get(b"a", 2)
    apply(store, Put(b"a", b"3"))
    assert store.get(b"a", 3) == Record(b"a", b"2", 1, 2, 2)


def test_a_new_clusters_first_write_is_revision_2() -> None:
    store = store_at_level_4()
    assert (store.revision, store.floor, store.used_bytes) == (1, 1, 0)
    assert apply(store, Put(b"a", b"1")) == [PutResult(2, 2, 2, 1)]


def test_history_goes_on_after_a_reader_has_let_go() -> None:
    store = store_at_level_4()
    store.pin().release()
    apply(store, Put(b"a", b"1"), Put(b"a", b"22"))
    assert store.get(b"a", 2) == A1


def test_every_version_since_the_floor_can_be_read() -> None:
    store = written()
    assert [store.get(b"a", revision) for revision in range(1, 6)] == [None, A1, A2, None, A4]
    assert store.get(b"a") == store.get(b"a", 0) == A4
    assert store.versions.history(b"a", 9) == [A4, Record(b"a", b"", 0, 4, 0), A2, A1]
    assert store.versions.history(b"a", 2) == [A4, Record(b"a", b"", 0, 4, 0)]


def test_a_revision_that_cannot_be_read_is_refused_with_what_to_do() -> None:
    store = written()
    apply(store, Compact(3))
    with pytest.raises(RevisionInFutureError) as future:
        store.get(b"a", 6)
    with pytest.raises(RevisionCompactedError) as compacted:
        store.get(b"a", 2)
    assert (compacted.value.floor, compacted.value.revision) == (3, 2)
    assert (compacted.value.code, future.value.code) == ("compacted", "future_revision")
    assert "history begins at revision 3; read the latest revision" in str(compacted.value)
    assert "the latest is 5" in str(future.value)


def test_below_level_4_only_the_latest_revision_can_be_read() -> None:
    store = store_at_level_3()
    apply(store, Put(b"a", b"1"), Put(b"a", b"2"))
    assert store.get(b"a", 2) == store.get(b"a")
    with pytest.raises(RevisionCompactedError):
        store.get(b"a", 1)
    with pytest.raises(RevisionInFutureError):
        store.get(b"a", 3)
    assert apply(store, Compact(1)) == [SessionRefused(2, "invalid")]
    assert (store.history_bytes, store.history_events, store.revision_to_free(1)) == (0, 0, 2)


def test_a_compaction_sets_the_floor_or_says_why_not() -> None:
    store = written()
    hashes = {store.state_hash}
    commands = [Compact(1), Compact(6), Compact(3), Compact(3), Compact(0), Compact(5)]
    results = []
    for command in commands:
        results += apply(store, command)
        hashes.add(store.state_hash)
    assert results == [
        CompactRefused(5, 1, "compacted"),
        CompactRefused(5, 1, "future"),
        Compacted(5, 3),
        CompactRefused(5, 3, "compacted"),
        CompactRefused(5, 3, "compacted"),
        Compacted(5, 5),
    ]
    assert len(hashes) == 7
    assert store.get(b"a", 5) == A4


def test_the_state_hash_tells_floors_apart() -> None:
    one, other = written(), written()
    apply(one, Compact(3))
    apply(other, Compact(4))
    assert one.state_hash != other.state_hash


def test_the_events_at_the_floor_stay_and_what_they_replaced() -> None:
    store = written()
    apply(store, Compact(4))
    assert 0 < store.reclaim(100) < 100
    assert store.reclaim(100) == 0

    deletion, creation = store.versions.events(store.versions.position(4), 9)
    assert (deletion, creation) == (Record(b"a", b"", 0, 4, 0), A4)
    assert store.versions.previous(deletion) == A2
    assert store.versions.previous(creation) is None
    assert store.versions.history(b"a", 9) == [A4, deletion]


def test_reclaim_frees_what_cannot_be_read_any_more_in_slices_of_any_size() -> None:
    store = written()
    apply(store, Delete(b"a"), Put(b"b", b"x"), Compact(6))
    assert kept_versions(store, [b"a"]) == {b"a": 5}
    while store.reclaim(1):
        assert store.get(b"a", 6) is None
    assert kept_versions(store, [b"a"]) == {b"a": 2}  # the deletion at the floor, and what it deleted
    apply(store, Compact(7))
    store.reclaim(100)
    assert kept_versions(store, [b"a"]) == {}
    assert len(store.versions.dead) == 0


def test_a_deletion_below_the_floor_leaves_nothing_although_the_key_exists_again() -> None:
    store = written()
    apply(store, Put(b"a", b"5"), Compact(5))
    store.reclaim(100)
    assert kept_versions(store, [b"a"]) == {b"a": 1}  # revision 5, which revision 6 replaced


def test_a_slice_that_ends_between_the_versions_of_a_key_is_gone_on_with() -> None:
    store = store_at_level_4()
    apply(store, Put(b"a", b"1"), Put(b"b", b"1"), Compact(3))
    store.reclaim(100)
    apply(store, Delete(b"a"), Put(b"a", b"2"), Compact(5))
    assert kept_versions(store, [b"a"]) == {b"a": 2}
    while store.reclaim(1):
        pass
    assert kept_versions(store, [b"a"]) == {}


def test_a_pin_holds_memory_and_not_the_floor() -> None:
    store = written()
    pin, later = store.pin(2), store.pin()
    apply(store, Put(b"a", b"6"), Compact(6))
    assert store.reclaim(100) == 0
    with pytest.raises(RevisionCompactedError):
        store.get(b"a", 2)
    assert store.versions.at(b"a", 2) == A1
    with pytest.raises(RevisionCompactedError):
        store.pin(5)

    pin.release()
    pin.release()
    assert 0 < store.reclaim(100) < 100
    assert store.versions.at(b"a", later.revision) == A4
    later.release()
    store.reclaim(100)
    assert kept_versions(store, [b"a"]) == {b"a": 1}


def test_history_counts_towards_what_is_used_until_it_is_compacted() -> None:
    store = store_at_level_4()
    apply(store, Put(b"a", b"1"))
    latest = store.used_bytes
    assert store.history_bytes == 0
    apply(store, Put(b"a", b"22"))
    assert store.history_bytes == 1 + 1 + VERSION_OVERHEAD_BYTES
    assert store.used_bytes == latest + 1 + store.history_bytes
    apply(store, Delete(b"a"))
    assert store.history_bytes == 2 + 3 + 2 * VERSION_OVERHEAD_BYTES + 1 + TOMBSTONE_OVERHEAD_BYTES
    assert store.used_bytes == store.history_bytes

    apply(store, Compact(4))
    # The deletion is at the floor, so it and what it deleted are still there.
    assert store.history_bytes == 3 + VERSION_OVERHEAD_BYTES + 1 + TOMBSTONE_OVERHEAD_BYTES
    apply(store, Put(b"b", b"1"), Compact(5))
    assert (store.history_bytes, store.history_events) == (0, 1)


def test_the_floor_that_frees_enough_is_the_lowest_one() -> None:
    store = written()
    free = VERSION_OVERHEAD_BYTES + 2
    assert [store.revision_to_free(size) for size in (0, 1, free, free + 1)] == [1, 4, 4, 5]
    assert store.revision_to_free(10**9) == 5
    apply(store, Compact(store.revision_to_free(free)))
    assert store.history_bytes == 3 + VERSION_OVERHEAD_BYTES + 1 + TOMBSTONE_OVERHEAD_BYTES


def test_a_restored_backup_answers_no_revision_of_the_old_cluster() -> None:
    store = written()
    store.bump_revision(1000)
    store = restore(snapshot_of(store))
    assert (store.revision, store.floor, store.history_events) == (1005, 1005, 0)
    assert store.get(b"a", 1005) == store.get(b"a") == A4
    for revision in range(1, 1005, 50):
        with pytest.raises(RevisionCompactedError):
            store.get(b"a", revision)
    assert apply(store, Put(b"a", b"5"))[0].revision == 1006

    below = store_at_level_3()
    apply(below, Put(b"a", b"1"))
    below.bump_revision(1000)
    assert (below.revision, below.versions.floor) == (1001, 0)


def test_the_garbage_collector_does_not_look_at_the_versions_of_a_key_again() -> None:
    store = store_at_level_4()
    for number in range(TUPLE_VERSIONS_MAX + 1):
        apply(store, Put(b"a", b"%d" % number))
    older = store.versions.records[b"a"].older
    assert isinstance(older, tuple) and len(older) == TUPLE_VERSIONS_MAX
    gc.collect(0)
    assert not gc.is_tracked(older)


def test_an_overwrite_of_a_key_with_many_versions_copies_none_of_them() -> None:
    store = store_at_level_4()
    for number in range(TUPLE_VERSIONS_MAX + 2):
        apply(store, Put(b"a", b"%d" % number))
    older = store.versions.records[b"a"].older
    apply(store, Put(b"a", b"last"))
    assert store.versions.records[b"a"].older is older
    assert [store.get(b"a", revision) is not None for revision in (1, 2, store.revision)] == [False, True, True]


def test_a_compaction_leaves_a_tuple_of_few_versions() -> None:
    store = store_at_level_4()
    for number in range(2 * TUPLE_VERSIONS_MAX):
        apply(store, Put(b"a", b"%d" % number))
    apply(store, Compact(store.revision - 5))
    store.reclaim(10_000)
    older = store.versions.records[b"a"].older
    assert isinstance(older, tuple) and len(older) == 6  # what is visible below the floor, too
