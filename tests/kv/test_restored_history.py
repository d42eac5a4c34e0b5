"""Snapshots of feature level 4: what their frames are, and which of them are refused."""

from __future__ import annotations

from collections.abc import Sequence

import hypothesis.strategies as st
import pytest
from hypothesis import given
from kv.kv_support import (
    CONFIGURATION,
    apply,
    examples,
    framed,
    frames_of,
    kept_versions,
    restore,
    snapshot_of,
    store_at_level_3,
    store_at_level_4,
)

from kvorum.errors import StorageCorruptError, VersionTooOldError
from kvorum.kv.commands import Compact, Delete, Put, Txn
from kvorum.kv.frames import (
    BaseFrame,
    EndedSessionsFrame,
    EventsFrame,
    Features,
    Frame,
    FrameWriter,
    Header,
    HistoryFrame,
    QuotaFrame,
    RecordRow,
    RecordsFrame,
    Trailer,
    VersionRow,
)
from kvorum.kv.operations import PutOp
from kvorum.kv.records import Record
from kvorum.kv.snapshot import Restorer
from kvorum.kv.store import Store


def a_store() -> Store:
    """Return a store with floor 5, two keys below it and events of each kind from it on."""
    store = store_at_level_4()
    apply(store, Put(b"a", b"1"), Put(b"b", b"2"), Put(b"c", b"3"), Put(b"a", b"4"))
    apply(store, Delete(b"b"), Put(b"d", b"7"), Delete(b"d"), Put(b"b", b"9"), Compact(5))
    return store


SNAPSHOT = snapshot_of(a_store(), max_keys=2)

LEVEL_4 = bytes.fromhex(
    "0000001311a99c5e99a16802090601cf617c6048acfae194000300000000275fca62fe94a16604b0303132333435363738"
    "39616263646566c410fc8177ab6f8b7ed52f34cf9516dd3e68000000066ee11c1e94a1710000c2000000056e73fdef93a1"
    "7605050000001af6e1250092a1629296c40161c40131020201c296c40162c40132030301c20000000f217e605992a16291"
    "96c40163c40133040401c300000019d66f02b192a1779296c40161c40134020502c396c40162c400000600c200000019bf"
    "4ea02c92a1779296c40164c40137070701c296c40164c400000800c30000000fa7b0066292a1779196c40162c401390909"
    "01c300000005788ff8a393a165900000000005a45c33bf93a1740300"
)
"""A snapshot as version 0.4.0 writes it; every later version must read it."""


def verified(data: bytes) -> Store:
    """Read a snapshot without keeping its records."""
    restorer = Restorer(CONFIGURATION, keeps_records=False)
    restorer.feed(data)
    return restorer.finish()


def row(
    key: bytes, create: int, mod: int, version: int, *, value: bytes | None = None, is_latest: bool = True
) -> VersionRow:
    """Return a row; a tombstone if the version is 0."""
    return VersionRow(key, (b"v" if version else b"") if value is None else value, create, mod, version, is_latest)


def snapshot(*frames: Frame, keys: int, level: int = 4, revision: int = 9) -> list[Frame]:
    """Return a snapshot's frames around these."""
    header = Header(
        format=2, revision=revision, applied_index=3, applied_term=1, state_hash=7, time_ms=9, keys=keys, sessions=0
    )
    features = Features(level, "c", b"")
    return [
        header,
        features,
        QuotaFrame(0, 0, False),
        *frames,
        EndedSessionsFrame((), 0),
        Trailer(keys, 0),
    ]


def history(*events: VersionRow, base: Sequence[VersionRow] = (), keys: int = 1, floor: int = 5) -> list[Frame]:
    """Return a snapshot with this base and these events."""
    return snapshot(HistoryFrame(floor, len(events)), BaseFrame(tuple(base)), EventsFrame(events), keys=keys)


def written(frames: Sequence[Frame]) -> bytes:
    """Return the bytes of frames."""
    writer = FrameWriter()
    return b"".join(writer.encode(frame) for frame in frames)


A3 = row(b"a", 3, 4, 2)
A3_REPLACED = row(b"a", 3, 4, 2, is_latest=False)
A5_REPLACED = row(b"a", 3, 5, 3, is_latest=False)

WELL_FORMED = {
    "no history": snapshot(HistoryFrame(9, 0), keys=0),
    "a version below the floor": history(base=[A3]),
    "a version at the floor": history(row(b"a", 3, 5, 3), base=[A3_REPLACED]),
    "a version at the last revision": history(row(b"a", 9, 9, 1)),
    "a deletion": history(row(b"a", 0, 5, 0), base=[A3_REPLACED], keys=0),
    "a key created anew": history(row(b"a", 0, 5, 0, is_latest=False), row(b"a", 6, 6, 1), base=[A3_REPLACED]),
    "two keys at one revision": history(row(b"a", 6, 6, 1), row(b"b", 6, 6, 1), keys=2),
}
IMPOSSIBLE = {
    "no history frame": snapshot(keys=0),
    "two history frames": snapshot(HistoryFrame(9, 0), HistoryFrame(9, 0), keys=0),
    "a history below its level": snapshot(HistoryFrame(9, 0), keys=0, level=3),
    "versions that are not announced": snapshot(BaseFrame((A3,)), HistoryFrame(5, 0), keys=1),
    "events that are not announced": snapshot(EventsFrame((row(b"a", 6, 6, 1),)), HistoryFrame(5, 1), keys=1),
    "records without history": snapshot(HistoryFrame(5, 0), RecordsFrame((b"a",), (RecordRow(b"", 1, 1, 1),)), keys=1),
    "a floor above the revision": snapshot(HistoryFrame(10, 0), keys=0),
    "a version at the floor in the base": history(base=[row(b"a", 3, 5, 3)]),
    "a tombstone in the base": history(base=[row(b"a", 0, 4, 0)], keys=0),
    "keys of the base out of order": history(base=[row(b"b", 3, 3, 1), row(b"a", 4, 4, 1)], keys=2),
    "a key of the base twice": history(base=[A3, A3], keys=1),
    "a base after events": snapshot(HistoryFrame(5, 1), EventsFrame((row(b"b", 6, 6, 1),)), BaseFrame((A3,)), keys=2),
    "an event below the floor": history(row(b"a", 4, 4, 1)),
    "an event of the future": history(row(b"a", 10, 10, 1)),
    "events out of order": history(row(b"a", 7, 7, 1), row(b"b", 6, 6, 1), keys=2),
    "a key changed twice at one revision": history(A5_REPLACED, row(b"a", 3, 5, 4), base=[A3_REPLACED]),
    "a key deleted and created at one revision": history(
        row(b"a", 0, 5, 0, is_latest=False), row(b"a", 5, 5, 1), base=[A3_REPLACED]
    ),
    "a version left out": history(row(b"a", 3, 6, 4), base=[A3_REPLACED]),
    "another creation": history(row(b"a", 2, 5, 3), base=[A3_REPLACED]),
    "a new key that was changed": history(row(b"a", 5, 6, 2)),
    "a deletion of nothing": history(row(b"a", 0, 5, 0), keys=0),
    "a tombstone with a value": history(row(b"a", 0, 5, 0, value=b"v"), base=[A3_REPLACED], keys=0),
    "a tombstone that was created": history(row(b"a", 3, 5, 0), base=[A3_REPLACED], keys=0),
    "more versions than revisions": history(base=[row(b"a", 3, 4, 3)]),
    "a version that was not created": history(base=[row(b"a", 0, 4, 1)]),
    "fewer events than announced": snapshot(HistoryFrame(5, 2), EventsFrame((row(b"a", 6, 6, 1),)), keys=1),
    "more events than announced": snapshot(HistoryFrame(5, 0), EventsFrame((row(b"a", 6, 6, 1),)), keys=1),
    "fewer keys than announced": history(base=[A3], keys=2),
    "more keys than announced": history(base=[A3], keys=0),
    "a replaced version that is the latest": history(row(b"a", 3, 5, 3), base=[A3]),
    "a key whose latest version is not said to be that": history(
        row(b"a", 3, 5, 3), row(b"a", 0, 6, 0, is_latest=False), row(b"b", 7, 7, 1), base=[A3_REPLACED], keys=1
    ),
    "another version that is said to be the latest": history(A5_REPLACED, base=[A3]),
    "a latest version that is not said to be": history(base=[A3_REPLACED]),
}
NEEDS_RECORDS = {
    "a key changed twice at one revision",
    "a key deleted and created at one revision",
    "a version left out",
    "another creation",
    "a new key that was changed",
    "a deletion of nothing",
}
"""What only a reader can see that keeps the records."""


@pytest.mark.parametrize("name", WELL_FORMED)
def test_what_is_well_formed_is_restored(name: str) -> None:
    data = written(WELL_FORMED[name])
    store = restore(data)
    assert verified(data).state_sum == store.state_sum
    assert restore(snapshot_of(store)).digest == store.digest


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_what_can_not_be_is_refused(name: str) -> None:
    data = written(IMPOSSIBLE[name])
    with pytest.raises(StorageCorruptError):
        restore(data)
    if name not in NEEDS_RECORDS:
        with pytest.raises(StorageCorruptError):
            verified(data)


def test_the_bytes_of_a_snapshot_are_what_they_were() -> None:
    assert SNAPSHOT == LEVEL_4
    restored = restore(LEVEL_4)
    assert (restored.revision, restored.floor, restored.history_events) == (9, 5, 5)
    assert restored.get(b"b", 5) == Record(b"b", b"2", 3, 3, 1)
    assert snapshot_of(restored, max_keys=2) == LEVEL_4


def test_two_nodes_write_the_same_bytes_however_much_they_have_reclaimed() -> None:
    one, other = a_store(), a_store()
    for store in (one, other):
        apply(store, *(Put(b"t%d" % number, b"") for number in range(9)))
        apply(store, *(Delete(b"t%d" % number) for number in range(9)), Put(b"z", b""), Compact(27))
    other.reclaim(1000)
    assert len(one.versions.dead) > len(other.versions.dead)
    for max_keys in (1, 2, 3):
        assert snapshot_of(one, max_keys) == snapshot_of(other, max_keys)


def test_a_snapshot_is_the_state_at_its_beginning_whatever_is_written_and_compacted_meanwhile() -> None:
    store = a_store()
    iterator = store.begin_snapshot()
    chunks = [iterator.next_chunk(2)]
    while chunks[-1] is not None:
        apply(store, Put(b"a", b"x"), Put(b"e", b"x"), Delete(b"c"), Put(b"b", b"x"))
        apply(store, Compact(store.revision))
        store.reclaim(1000)
        chunks.append(iterator.next_chunk(2))
    iterator.close()
    assert b"".join(chunk for chunk in chunks if chunk) == SNAPSHOT


def test_memory_keeps_nothing_of_what_is_written_and_compacted_while_a_snapshot_is_written() -> None:
    store = a_store()
    iterator = store.begin_snapshot()
    before = kept_versions(store, [b"a", b"b", b"c", b"d", b"e"])
    for number in range(50):
        apply(store, Put(b"a", b"%d" % number), Put(b"e", b"x"), Delete(b"e"), Put(b"f", b"x"))
    apply(store, Delete(b"f"), Delete(b"c"), Put(b"a", b"last"), Compact(store.revision + 3))
    while store.reclaim(3) == 3:
        pass
    # Beside what the snapshot needs: what the event at the floor replaced, and the tombstone of what it needs.
    after = kept_versions(store, [b"a", b"b", b"c", b"d", b"e", b"f"])
    assert after == {**before, b"a": before[b"a"] + 2, b"c": 2}
    assert iterator.next_chunk() is not None
    iterator.close()
    while store.reclaim(3) == 3:
        pass
    assert kept_versions(store, [b"a", b"b", b"c", b"d", b"e", b"f"]) == {b"a": 1}


@pytest.mark.parametrize("level", [3, 4])
@pytest.mark.parametrize("keys", [1, 40], ids=["a revision for each", "one revision for many"])
def test_the_event_log_keeps_no_value_that_was_written_over_while_a_snapshot_is_written(level: int, keys: int) -> None:
    """An event that reclaim had gone by kept its value until the snapshot ended: 300 MiB of 300 puts of 1 MiB."""
    store = store_at_level_4() if level == 4 else store_at_level_3()
    iterator = store.begin_snapshot()
    names = [b"k%02d" % number for number in range(keys)]
    for number in range(20):
        puts = [Put(name, b"%d" % number) for name in names]
        if level == 4 and keys > 1:
            apply(store, Txn((), tuple(PutOp(put.key, put.value) for put in puts), ()))
        else:
            apply(store, *puts)
        if level == 4:
            apply(store, Compact(store.revision))
        store.reclaim(2 * keys)
    while store.reclaim(1000):
        pass
    # At the floor, what its event replaced stays, too.
    held = [event.value for event in store.versions._log._events if event.value]
    assert sorted(set(held)) == ([b"18", b"19"] if level == 4 else [b"19"])
    assert len(held) == keys * (level - 2)
    iterator.close()


def test_a_reader_of_an_older_revision_keeps_what_came_after_a_snapshot() -> None:
    store = a_store()
    pin = store.pin()
    iterator = store.begin_snapshot()
    apply(store, Put(b"a", b"10"), Put(b"a", b"11"), Put(b"a", b"12"), Compact(12))
    store.reclaim(100)
    events = store.versions.events(store.versions.position(pin.revision + 1), 9)
    assert [event.value for event in events] == [b"10", b"11", b"12"]
    assert store.versions.previous(events[1]) == events[0]
    iterator.close()


def test_a_step_visits_no_more_keys_than_it_was_asked_to() -> None:
    store = store_at_level_4()
    apply(store, *(Put(b"t%02d" % number, b"") for number in range(40)))
    apply(store, *(Delete(b"t%02d" % number) for number in range(40)), Put(b"z", b""), Compact(82))
    iterator = store.begin_snapshot()
    empty = 0
    while (chunk := iterator.next_chunk(4)) is not None:
        empty += not chunk
    assert empty >= 9
    iterator.close()


def test_what_memory_changed_is_found_when_a_snapshot_is_written_and_verified() -> None:
    store = a_store()
    assert verified(snapshot_of(store)).mismatch is None
    assert verified(snapshot_of(store)).state_sum == store.state_sum
    store.versions.records[b"c"].value = b"x"
    assert verified(snapshot_of(store)).mismatch is not None
    assert restore(snapshot_of(store)).mismatch is not None
    iterator = store.begin_snapshot()
    while iterator.next_chunk() is not None:
        pass
    assert iterator.mismatch is not None


_at = st.integers(0, 10_000)


@examples
@given(st.integers(0, 20), _at, st.sampled_from([b"", b"\x00", b"\x01", b"\x05", b"\xc2", b"\xc3", b"a", b"\xff"]))
def test_made_up_frames_with_correct_checksums_raise_nothing_else(number: int, at: int, what: bytes) -> None:
    payloads = frames_of(SNAPSHOT)
    payload = payloads[number % len(payloads)]
    at %= len(payload)
    payloads[number % len(payloads)] = payload[:at] + what + payload[at + 1 :]
    for read in (restore, verified):
        try:
            store = read(framed(payloads))
        except (StorageCorruptError, VersionTooOldError):
            continue
        if read is restore:
            assert restore(snapshot_of(store)).digest == store.digest
