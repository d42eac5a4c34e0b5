"""Leases in snapshots: what a restored one is, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

import msgspec
import pytest
from kv.kv_support import CONFIGURATION, apply, framed, frames_of, restore, snapshot_of
from kv.test_leases import NOW, granted, leased

from kvorum.errors import StorageCorruptError
from kvorum.kv.commands import Delete, LeaseGrant, LeaseRefused, LeaseRenew, LeaseRevoke, Put
from kvorum.kv.limits import LEASE_TTL_S_MAX
from kvorum.kv.snapshot import Restorer
from kvorum.kv.store import Store


def leases_of(store: Store) -> list[tuple[int, int, int, int]]:
    """Return the numbers of all leases, in the order of their grants."""
    return [(each.id, each.ttl_s, each.delay_s, each.deadline_ms) for each in store.leases]


def test_a_restored_lease_has_its_deadline_delay_and_keys() -> None:
    store = granted(LeaseGrant(1, 10, 3), LeaseGrant(-5, 20))
    apply(store, leased(1, b"b", b"a"), leased(-5, b"c"), Put(b"d", b""), time_ms=NOW)
    apply(store, LeaseRenew(1), Delete(b"c"), time_ms=NOW + 500)
    for restored in (restore(snapshot_of(store, 1)), restore(snapshot_of(store))):
        assert leases_of(restored) == [(1, 10, 3, NOW + 10_500), (-5, 20, 0, NOW + 20_000)]
        assert restored.leases.keys(1) == [b"a", b"b"]
        key = next(iter(restored.leases.get(1).keys))  # type: ignore[union-attr]
        assert key is restored.versions.records[key].key, "the bytes of a key are held once"
        found = restored.get(b"a")
        assert found is not None and found.lease == 1
        apply(restored, time_ms=NOW + 13_500)
        assert restored.get(b"a") is None and restored.leases.time_ms == NOW + 13_500


def test_a_snapshot_holds_the_leases_of_its_index_while_the_store_goes_on() -> None:
    store = granted(*(LeaseGrant(id, 10) for id in range(1, 6)))
    apply(store, leased(1, b"a"), leased(2, b"b"), leased(3, b"c"))
    before = leases_of(store)
    iterator = store.begin_snapshot()
    chunks = [iterator.next_chunk(1) or b"" for _ in range(4)]

    apply(store, LeaseRenew(1), LeaseRenew(4), LeaseRevoke(2), LeaseGrant(2, 60), LeaseGrant(9, 10), time_ms=NOW + 1)
    apply(store, leased(9, b"c"), LeaseRevoke(1), time_ms=NOW + 2)
    apply(store, time_ms=NOW + 10_000)
    while (chunk := iterator.next_chunk(1)) is not None:
        chunks.append(chunk)
    iterator.close()

    restored = restore(b"".join(chunks))
    assert (leases_of(restored), restored.mismatch) == (before, None)
    assert [restored.leases.keys(id) for id in range(1, 4)] == [[b"a"], [b"b"], [b"c"]]
    assert [each[0] for each in leases_of(store)] == [4, 2, 9]


def test_a_restored_lease_that_is_over_stays_over() -> None:
    store = granted(LeaseGrant(1, 10, 60))
    apply(store, time_ms=NOW + 10_000)
    restored = restore(snapshot_of(store))
    assert restored.leases.living(1) is None
    assert apply(restored, LeaseRenew(1)) == [LeaseRefused(1, "not_found")]


def _broken(change: Callable[[list[list[object]]], object]) -> bytes:
    store = granted(LeaseGrant(1, 10), LeaseGrant(2, 10, 60))
    apply(store, leased(1, b"b", b"a"), Put(b"a", b""), leased(2, b"c"), Delete(b"c"), time_ms=NOW)
    frames = [msgspec.msgpack.decode(payload) for payload in frames_of(snapshot_of(store))]
    change(frames)
    return framed([msgspec.msgpack.encode(frame) for frame in frames])


def _leases(frames: list[list[object]]) -> list[list[object]]:
    return frames[3][1]  # type: ignore[return-value]


def _events(frames: list[list[object]]) -> list[list[object]]:
    return next(frame for frame in frames if frame[0] == "lw")[1]  # type: ignore[return-value]


def _set(rows: list[list[object]], row: int, field: int, value: object) -> None:
    rows[row][field] = value


_BREAKAGES: dict[str, Callable[[list[list[object]]], object]] = {
    "no leases": lambda frames: frames.pop(3),
    "fewer than announced": lambda frames: _leases(frames).pop() and frames[3].__setitem__(2, 1),
    "more to come": lambda frames: frames[3].__setitem__(2, 1),
    "twice": lambda frames: frames.insert(4, frames[3]),
    "after the history": lambda frames: frames.append(frames.pop(3)),
    "one id twice": lambda frames: _leases(frames).append(_leases(frames)[0]),
    "no id": lambda frames: _set(_leases(frames), 1, 0, 0),
    "an id too large": lambda frames: _set(_leases(frames), 1, 0, 2**63),
    "a time to live too short": lambda frames: _set(_leases(frames), 0, 1, 1),
    "a time to live too long": lambda frames: _set(_leases(frames), 0, 1, LEASE_TTL_S_MAX + 1),
    "a negative delay": lambda frames: _set(_leases(frames), 0, 2, -1),
    "a delay too long": lambda frames: _set(_leases(frames), 0, 2, 61),
    "a negative deadline": lambda frames: _set(_leases(frames), 0, 3, -1),
    "a deadline too late": lambda frames: _set(_leases(frames), 0, 3, NOW + 10_001),
    "a deadline of another type": lambda frames: _set(_leases(frames), 0, 3, "1"),
    "a field too many": lambda frames: _leases(frames)[0].append(1),
    "a key of a lease that is not there": lambda frames: _set(_leases(frames), 0, 0, 3),
    "a version with an impossible lease": lambda frames: _set(_events(frames), 0, 6, 2**63),
    "a tombstone with a lease": lambda frames: _set(_events(frames), -1, 6, 1),
    "versions without their leases": lambda frames: [row.pop() for row in _events(frames)],
    "the frame of level 4": lambda frames: next(frame for frame in frames if frame[0] == "lw").__setitem__(0, "w"),
}


@pytest.mark.parametrize("keeps_records", [True, False])
@pytest.mark.parametrize("name", _BREAKAGES)
def test_a_snapshot_with_impossible_leases_is_refused(name: str, keeps_records: bool) -> None:
    def read(data: bytes) -> Store:
        restorer = Restorer(CONFIGURATION, keeps_records=keeps_records)
        restorer.feed(data)
        return restorer.finish()

    assert len(read(_broken(lambda frames: None)).leases) == 2
    with pytest.raises(StorageCorruptError):
        read(_broken(_BREAKAGES[name]))


@pytest.mark.parametrize("keeps_records", [True, False])
def test_a_snapshot_with_too_many_leases_or_keys_is_refused(keeps_records: bool) -> None:
    data = _broken(lambda frames: None)
    for name in ("snapshot.LEASES_MAX", "snapshot_versions.LEASE_KEYS_MAX"):
        restorer = Restorer(CONFIGURATION, keeps_records=keeps_records)
        with patch(f"kvorum.kv.{name}", 0), pytest.raises(StorageCorruptError):
            restorer.feed(data)


def test_a_snapshot_of_level_4_that_has_leases_is_refused() -> None:
    def lower(frames: list[list[object]]) -> None:
        frames[1][1] = 4

    with pytest.raises(StorageCorruptError, match="leases at a level"):
        restore(_broken(lower))

    def without(frames: list[list[object]]) -> None:
        lower(frames)
        del frames[3]

    with pytest.raises(StorageCorruptError, match="another feature level"):
        restore(_broken(without))


def test_a_store_that_is_given_up_has_no_leases() -> None:
    store = granted(LeaseGrant(1, 10))
    apply(store, leased(1, b"a"))
    left = store.give_up()
    assert (len(store.leases), len(left.leases), left.used_bytes) == (0, 0, 0)
