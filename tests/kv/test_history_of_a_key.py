"""The versions of one key, and the history that gives way when the data comes near its quota."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given
from kv.kv_support import apply, examples, store_at_level_3, store_at_level_4

from kvorum.errors import RevisionCompactedError, RevisionInFutureError
from kvorum.kv.commands import Compact, Delete, NoSpace, Put, PutResult, SetQuota, Txn
from kvorum.kv.operations import DeleteRangeOp
from kvorum.kv.quota import OPERATOR, resume_bytes
from kvorum.kv.store import Store

MIB = 1024 * 1024
LARGE = bytes(65536)

Step = tuple[str, bytes, int]
steps = st.lists(
    st.tuples(st.sampled_from(["put", "put", "put", "delete", "compact", "reclaim"]), st.sampled_from([b"a", b"b"]),
              st.integers(1, 12)),
    max_size=40,
)  # fmt: skip


class Naive:
    """All that was ever written, in a list, and the floor."""

    def __init__(self) -> None:
        self.revision = self.floor = 1
        self.written: list[tuple[int, bytes, bytes | None]] = []

    def change(self, key: bytes, value: bytes | None) -> None:
        if value is None and not self.exists(key):
            return
        self.revision += 1
        self.written.append((self.revision, key, value))

    def exists(self, key: bytes) -> bool:
        values = [value for _, each, value in self.written if each == key]
        return bool(values) and values[-1] is not None

    def history(self, key: bytes, limit: int, revision: int) -> list[tuple[int, bytes | None]]:
        found = []
        for at, each, value in reversed(self.written):
            if each != key or at > revision:
                continue
            if value is not None or at >= self.floor:
                found.append((at, value))
            if at <= self.floor:
                break
        return found[:limit]


@examples
@given(steps, st.integers(1, 4))
def test_the_versions_of_a_key_are_those_of_a_naive_list(taken: list[Step], limit: int) -> None:
    store, naive = store_at_level_4(), Naive()
    for number, (kind, key, amount) in enumerate(taken):
        if kind == "put":
            apply(store, Put(key, b"%d" % number))
            naive.change(key, b"%d" % number)
        elif kind == "delete":
            apply(store, Delete(key))
            naive.change(key, None)
        elif kind == "compact" and naive.floor < naive.revision:
            naive.floor = min(naive.floor + amount, naive.revision)
            apply(store, Compact(naive.floor))
        elif kind == "reclaim":
            store.reclaim(amount)
        for name in (b"a", b"b"):
            for revision in range(naive.floor, naive.revision + 1):
                found = store.history(name, limit, revision)
                seen = [(each.mod_revision, each.value if each.version else None) for each in found]
                assert seen == naive.history(name, limit, revision)
            assert store.history(name, limit) == store.history(name, limit, naive.revision)


def test_a_history_is_asked_for_at_a_revision_that_can_be_read() -> None:
    store = store_at_level_4()
    apply(store, Put(b"a", b"1"), Put(b"a", b"2"), Compact(3))
    with pytest.raises(RevisionCompactedError) as compacted:
        store.history(b"a", 1, 2)
    assert compacted.value.facts == {"floor": 3, "revision": 3}
    with pytest.raises(RevisionInFutureError) as early:
        store.history(b"a", 1, 4)
    assert early.value.facts == {"revision": 3}


# The quota.


def with_quota(limit_bytes: int = MIB) -> Store:
    store = store_at_level_4()
    apply(store, SetQuota(limit_bytes, OPERATOR))
    return store


def test_a_key_that_is_overwritten_never_fills_the_quota() -> None:
    store = with_quota()
    for _ in range(100):
        assert isinstance(apply(store, Put(b"k", LARGE))[0], PutResult)
        assert store.used_bytes <= resume_bytes(MIB)
    assert store.floor > 80


def test_history_gives_way_as_far_as_needed_and_no_further() -> None:
    store = with_quota()
    while store.floor == 1:
        apply(store, Put(b"k", LARGE))
    assert store.floor == 4
    assert resume_bytes(MIB) - 2 * len(LARGE) < store.used_bytes <= resume_bytes(MIB)
    assert store.get(b"k", 4) is not None
    with pytest.raises(RevisionCompactedError):
        store.get(b"k", 3)


def test_a_delete_makes_room_as_soon_as_it_is_done() -> None:
    store = with_quota()
    for number in range(16):
        apply(store, Put(b"k%d" % number, LARGE))
    assert isinstance(apply(store, Put(b"k0", b""))[0], NoSpace)
    apply(store, Delete(b"k0"))
    assert isinstance(apply(store, Put(b"k0", b""))[0], PutResult)


def test_what_the_last_change_replaced_fills_no_quota() -> None:
    """The events at the floor stay, and what they replaced: that cannot give way, and is not held against anybody."""
    store = with_quota()
    for _ in range(3):
        assert isinstance(apply(store, Put(b"k", bytes(MIB * 9 // 10)))[0], PutResult)
    assert store.history_bytes > MIB * 9 // 10
    assert not store.quota.is_full


def test_what_only_the_next_write_can_free_near_the_quota_is_not_shown_as_used() -> None:
    store = with_quota()
    for number in range(16):
        apply(store, Put(b"k%d" % number, LARGE))
    operation = DeleteRangeOp(b"k", b"l")
    apply(store, Txn((), (operation,), ()))
    assert (len(store), store.floor) == (0, store.revision)
    assert store.used_bytes > MIB
    assert (store.counted_bytes, store.counted_history_bytes) == (store.kept_bytes, 0)
    apply(store, Put(b"k", b""))
    assert store.used_bytes == store.counted_bytes < resume_bytes(MIB)


def test_history_that_need_not_give_way_is_shown_as_used() -> None:
    store = with_quota()
    for _ in range(3):
        apply(store, Put(b"k", LARGE))
    apply(store, Compact(store.revision))
    assert store.floor == store.revision
    assert store.counted_history_bytes == store.history_bytes > len(LARGE)
    assert store.counted_bytes == store.used_bytes


def test_giving_way_depends_on_the_entries_alone_and_is_part_of_the_hash() -> None:
    slow, quick, other = with_quota(), with_quota(), with_quota()
    for _ in range(30):
        for store in (slow, quick, other):
            apply(store, Put(b"k", LARGE))
        quick.reclaim(1000)
    assert slow.digest == quick.digest == other.digest
    assert slow.floor == quick.floor > 1
    other.versions.set_floor(other.floor + 2)  # So the next entry need not move it.
    for store in (slow, other):
        apply(store, Put(b"k", LARGE))
    assert slow.digest != other.digest


def test_below_its_feature_level_there_is_no_history_and_none_counts() -> None:
    store = store_at_level_3()
    apply(store, SetQuota(MIB, OPERATOR))
    for _ in range(30):
        assert isinstance(apply(store, Put(b"k", LARGE))[0], PutResult)
    assert (store.history_bytes, store.used_bytes) == (0, store.kept_bytes)
