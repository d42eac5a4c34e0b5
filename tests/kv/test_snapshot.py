"""The iterator: the state of one moment, written while the store goes on."""

from __future__ import annotations

from collections.abc import Callable

import hypothesis.strategies as st
import pytest
from hypothesis import given
from kv.kv_support import (
    CONFIGURATION,
    KEYS,
    SESSIONS,
    apply,
    apply_batches,
    batches,
    examples,
    kept_versions,
    restore,
    small_sessions,
    snapshot_of,
)

from kvorum.errors import InvariantViolatedError, StorageCorruptError
from kvorum.kv.commands import Batch, Delete, Put
from kvorum.kv.frames import FRAME_BYTES_MAX
from kvorum.kv.limits import SESSION_IDLE_MS, SESSION_WINDOW, VALUE_BYTES_MAX
from kvorum.kv.snapshot import Restorer
from kvorum.kv.store import Store

_steps = st.lists(st.one_of(batches, st.tuples(st.integers(1, 3), st.sampled_from([1, 4, 4096]))), max_size=16)


@examples
@given(st.lists(batches, max_size=6), _steps, st.booleans())
def test_a_cut_is_the_state_at_its_beginning_whatever_is_applied_meanwhile(
    past: list[Batch], steps: list[Batch | tuple[int, int]], after_a_restore: bool
) -> None:
    with small_sessions():
        store, untouched = Store(), Store()
        apply_batches(store, past)
        apply_batches(untouched, past)
        expected = snapshot_of(untouched)
        if after_a_restore:
            store = restore(expected)

        iterator = store.begin_snapshot()
        chunks: list[bytes | None] = []
        for step in steps:
            if isinstance(step, Batch):
                assert apply_batches(store, [step]) == apply_batches(untouched, [step])
            else:
                chunks.append(iterator.next_chunk(*step))
        while chunks[-1:] != [None]:
            chunks.append(iterator.next_chunk(1, 1))
        iterator.close()

        data = b"".join(chunk for chunk in chunks if chunk is not None)
        assert snapshot_of(restore(data)) == expected
        assert snapshot_of(store) == snapshot_of(untouched)


@examples
@given(st.lists(batches, max_size=6), st.lists(st.integers(1, 60), min_size=1))
def test_a_restore_does_not_depend_on_where_the_bytes_are_cut(past: list[Batch], sizes: list[int]) -> None:
    with small_sessions():
        store = Store()
        apply_batches(store, past)
        data = snapshot_of(store, max_keys=2)
        restorer = Restorer(CONFIGURATION)

        rest, turn = data, 0
        while rest:
            size = sizes[turn % len(sizes)]
            restorer.feed(rest[:size])
            rest, turn = rest[size:], turn + 1

        assert snapshot_of(restorer.finish(), max_keys=2) == data


def test_all_nodes_write_the_same_bytes_whatever_their_past() -> None:
    first, second = Store(), Store()
    past = [Batch(number, (Put(b"%d" % (number % 50), b"v", -1, f"client-{number % 9}", 1),)) for number in range(99)]
    past[30:30] = [Batch(30, (Delete(b"7"), Put(b"7", b"again")))]
    apply_batches(first, past)

    apply_batches(second, past[:40])
    second = restore(snapshot_of(second, max_keys=3))
    apply_batches(second, past[40:])

    assert snapshot_of(first) == snapshot_of(second)


def test_an_empty_store_has_a_snapshot() -> None:
    restored = restore(snapshot_of(Store()))

    assert (len(restored), restored.revision, restored.applied_index, restored.session_count) == (0, 0, 0, 0)


def test_revisions_go_on_after_a_restore_even_if_all_keys_are_gone() -> None:
    store = Store()
    apply(store, Put(b"a", b"1"), Delete(b"a"))

    restored = restore(snapshot_of(store))

    assert apply(restored, Put(b"a", b"2"))[0].revision == 3


def test_a_chunk_holds_no_more_than_was_asked_for() -> None:
    store = Store()
    apply(store, *(Put(b"%03d" % number, b"v" * 100) for number in range(100)))
    iterator = store.begin_snapshot()
    iterator.next_chunk()

    by_keys = iterator.next_chunk(max_keys=3)
    by_bytes = iterator.next_chunk(max_bytes=350)
    rest = iterator.next_chunk()

    assert by_keys is not None and by_keys.count(b"v" * 100) == 3
    assert by_bytes is not None and by_bytes.count(b"v" * 100) == 4  # the fourth reaches 350 bytes
    assert rest is not None and rest.count(b"v" * 100) == 93
    iterator.close()


def test_every_chunk_makes_progress_however_little_was_asked_for() -> None:
    store = Store()
    apply(store, *(Put(b"%d" % number, b"v") for number in range(3)))
    iterator = store.begin_snapshot()

    chunks = [iterator.next_chunk(max_keys=0, max_bytes=0) for _ in range(6)]
    iterator.close()

    assert [chunk is None for chunk in chunks] == [False] * 5 + [True]  # header, three records, trailer


def test_a_chunk_is_readable_however_much_was_asked_for() -> None:
    store = Store()
    for number in range(FRAME_BYTES_MAX // VALUE_BYTES_MAX + 1):
        apply(store, Put(b"%d" % number, b"v" * VALUE_BYTES_MAX))
    data = snapshot_of(store, max_keys=2**40, max_bytes=2**40)

    assert len(restore(data)) == len(store)


def test_a_chunk_of_sessions_is_bounded_by_their_answers() -> None:
    store = Store()
    for client in range(10):
        apply(store, *(Put(b"a", b"v", -1, f"client-{client}", sequence) for sequence in range(1, 101)))
    iterator = store.begin_snapshot()

    chunks = []
    while (chunk := iterator.next_chunk(max_keys=250)) is not None:
        chunks.append(chunk)
    iterator.close()

    assert [chunk.count(b"client-") for chunk in chunks] == [0, 0, 3, 3, 3, 1, 0]


def test_a_cut_holds_only_what_changed_and_lets_go_of_it() -> None:
    store = Store()
    apply(store, *(Put(b"%d" % number, b"v", -1, f"client-{number}", 1) for number in range(100)))
    iterator = store.begin_snapshot()

    for value in (b"1", b"2"):
        apply(store, Put(b"5", value), Put(b"new", value), Put(b"6", b"x", -1, "client-6", 2), Delete(b"7"))

    keys = [b"new", *(b"%d" % number for number in range(100))]
    assert len(iterator._preserved_sessions) == 1
    assert kept_versions(store, keys) == {b"5": 2, b"6": 1, b"7": 2, b"new": 1}
    while iterator.next_chunk() is not None:
        pass
    assert len(iterator._preserved_sessions) == 0
    iterator.close()
    store.reclaim(100)
    apply(store, Put(b"8", b"v", -1, "client-8", 2))
    assert kept_versions(store, keys) == {}
    assert store._sessions._preserved is None


def test_a_session_that_is_evicted_and_opened_again_meanwhile_is_written_as_it_was() -> None:
    with small_sessions():
        store = Store()
        apply(store, *(Put(b"a", b"v", -1, f"client-{number}", 1) for number in range(SESSIONS)))
        expected = snapshot_of(store)
        iterator = store.begin_snapshot()
        chunks = [iterator.next_chunk()]

        apply(store, Put(b"a", b"v", -1, "new", 1), time_ms=SESSION_IDLE_MS + 1)
        for sequence in (1, 2):
            apply(store, Put(b"a", b"w", -1, "client-0", sequence), time_ms=2 * SESSION_IDLE_MS + 2)

        while chunks[-1] is not None:
            chunks.append(iterator.next_chunk())
        iterator.close()
        assert b"".join(chunk for chunk in chunks if chunk is not None) == expected


def test_one_cut_at_a_time() -> None:
    store = Store()
    iterator = store.begin_snapshot()

    with pytest.raises(InvariantViolatedError, match="another"):
        store.begin_snapshot()

    iterator.close()
    store.begin_snapshot().close()


def test_a_cut_that_was_closed_early_can_not_pass_for_complete() -> None:
    store = Store()
    iterator = store.begin_snapshot()
    chunk = iterator.next_chunk()
    iterator.close()
    iterator.close()

    with pytest.raises(InvariantViolatedError, match="closed"):
        iterator.next_chunk()
    assert chunk is not None
    restorer = Restorer(CONFIGURATION)
    restorer.feed(chunk)
    with pytest.raises(StorageCorruptError, match="truncated"):
        restorer.finish()


def test_closing_an_old_cut_again_leaves_the_new_one_alone() -> None:
    store = Store()
    apply(store, Put(b"a", b"1", -1, "ann", 1))
    expected = snapshot_of(store)
    old = store.begin_snapshot()
    old.close()
    iterator = store.begin_snapshot()
    old.close()

    apply(store, Put(b"a", b"2", -1, "ann", 2))

    chunks = [chunk for chunk in (iterator.next_chunk() for _ in range(9)) if chunk is not None]
    iterator.close()
    assert b"".join(chunks) == expected


def _break(store: Store) -> None:
    store.versions.records[b"a"] = store.versions.records[b"b"]  # newer than the iterator, and not put aside


def _lose(store: Store) -> None:
    del store.versions.records[b"a"]


@pytest.mark.parametrize("harm", [_break, _lose])
def test_a_record_changed_behind_the_cut_is_noticed(harm: Callable[[Store], None]) -> None:
    store = Store()
    apply(store, Put(b"a", b"1"))
    iterator = store.begin_snapshot()
    apply(store, Put(b"b", b"2"))
    iterator.next_chunk()

    harm(store)

    with pytest.raises(InvariantViolatedError, match="under a snapshot"):
        iterator.next_chunk()


def test_every_key_and_a_full_window_survive() -> None:
    store = Store()
    sequences = range(1, SESSION_WINDOW + 100)
    apply(store, *(Put(KEYS[n % len(KEYS)], b"v" * n, -1, "ann", n) for n in sequences))

    restored = restore(snapshot_of(store, max_keys=1))

    assert snapshot_of(restored) == snapshot_of(store)
    assert {key: restored.get(key) for key in KEYS} == {key: store.get(key) for key in KEYS}
