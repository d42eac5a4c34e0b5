"""Reading snapshots that are damaged, foreign, or made up: a typed error, and never half a store."""

from __future__ import annotations

from collections.abc import Sequence
from struct import pack

import hypothesis.strategies as st
import pytest
from hypothesis import given
from kv.kv_support import CONFIGURATION, apply, examples, framed, frames_of, restore, snapshot_of, store_at_level_3

from kvorum.errors import StorageCorruptError
from kvorum.kv.commands import CompareFailed, Delete, Put, SetQuota
from kvorum.kv.frames import (
    FRAME_BYTES_MAX,
    EndedSessionsFrame,
    Features,
    Frame,
    FrameWriter,
    Header,
    QuotaFrame,
    RecordRow,
    RecordsFrame,
    SessionsFrame,
    Trailer,
)
from kvorum.kv.limits import QUOTA_BYTES_MIN, SESSION_WINDOW
from kvorum.kv.quota import OPERATOR
from kvorum.kv.records import Record
from kvorum.kv.sessions import SessionRow
from kvorum.kv.snapshot import Restorer
from kvorum.kv.state_hash import Mismatch
from kvorum.kv.store import Store


def a_store() -> Store:
    store = Store()
    for number in range(6):
        key = b"key-%d" % number
        apply(store, Put(key, b"v" * number, -1, f"client-{number % 2}", number // 2 + 1), Delete(key, 1), time_ms=9)
    return store


SNAPSHOT = snapshot_of(a_store(), max_keys=2)


FORMAT_1 = bytes.fromhex(
    "0000001326a3000a99a16801030101cfac2a554f4d2ed4620901010000000fd10bb0e593a17291c401619194c401310101"
    "010000007c2e8717f892a1739194a3616e6e0309c46f000000000000000175fa7962010000000000000001000000000000"
    "000100000000000000010000000000000002f9462090020000000000000003000000000000000100000000000000000000"
    "0000000000039a499fe60300000000000000030000000000000000000000000000000000000005c240657593a1740101"
)
"""A snapshot as the first version wrote it; every later version must read it, and write it or raise FORMAT."""


def test_the_first_versions_snapshot_is_still_read_and_written() -> None:
    store = Store()
    commands = [Put(b"a", b"1", -1, "ann", 1), Put(b"b", b"2")]
    results = apply(store, *commands, Delete(b"b", -1, "ann", 2), Delete(b"b", 7, "ann", 3), time_ms=9)

    restored = restore(FORMAT_1)

    assert snapshot_of(restored) == snapshot_of(store) == FORMAT_1
    assert restored.get(b"a") == Record(b"a", b"1", 1, 1, 1)
    assert apply(restored, commands[0], Delete(b"b", 7, "ann", 3)) == [results[0], CompareFailed(3, 0)]


_at = st.integers(0, 10_000)
_mutations = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), _at, st.integers(0, 7)),
        st.tuples(st.just("set"), _at, st.integers(0, 255)),
        st.tuples(st.just("delete"), _at, st.integers(1, 9)),
        st.tuples(st.just("insert"), _at, st.binary(min_size=1, max_size=9)),
        st.tuples(st.just("repeat"), _at, st.integers(1, 40)),
        st.tuples(st.just("truncate"), _at, st.just(0)),
    ),
    min_size=1,
    max_size=3,
)


def mutated(data: bytes, mutations: list[tuple[str, int, int | bytes]]) -> bytes:
    out = bytearray(data)
    for kind, position, what in mutations:
        at = position % (len(out) + 1)
        if isinstance(what, bytes):
            out[at:at] = what
        elif kind == "flip" and at < len(out):
            out[at] ^= 1 << what
        elif kind == "set" and at < len(out):
            out[at] = what
        elif kind == "delete":
            del out[at : at + what]
        elif kind == "repeat":
            out[at:at] = out[at : at + what]
        elif kind == "truncate":
            del out[at:]
    return bytes(out)


@examples
@given(_mutations)
def test_mutated_bytes_are_refused_or_change_nothing(mutations: list[tuple[str, int, int | bytes]]) -> None:
    data = mutated(SNAPSHOT, mutations)
    try:
        store = restore(data)
    except StorageCorruptError:
        return
    assert snapshot_of(store, max_keys=2) == SNAPSHOT


@pytest.mark.parametrize("bit", range(8))
def test_no_flipped_bit_passes(bit: int) -> None:
    for at in range(len(SNAPSHOT)):
        data = bytearray(SNAPSHOT)
        data[at] ^= 1 << bit
        with pytest.raises(StorageCorruptError):
            restore(bytes(data))


def test_no_truncation_passes() -> None:
    for end in range(len(SNAPSHOT)):
        restorer = Restorer(CONFIGURATION)
        restorer.feed(SNAPSHOT[:end])
        with pytest.raises(StorageCorruptError, match="truncated"):
            restorer.finish()


@examples
@given(st.integers(0, 20), _mutations)
def test_made_up_frames_with_correct_checksums_raise_nothing_else(
    number: int, mutations: list[tuple[str, int, int | bytes]]
) -> None:
    payloads = frames_of(SNAPSHOT)
    at = number % len(payloads)
    payloads[at] = mutated(payloads[at], mutations)
    try:
        store = restore(framed(payloads))
    except StorageCorruptError:
        return
    assert restore(snapshot_of(store)).state_hash == store.state_hash


@examples
@given(st.binary(max_size=80))
def test_arbitrary_bytes_are_not_a_snapshot(data: bytes) -> None:
    for attempt in (data, framed([data]), SNAPSHOT + data[:1] + b"x"):
        with pytest.raises(StorageCorruptError):
            restore(attempt)


@pytest.mark.parametrize("order", ["0213456", "01123456", "023456", "1234560", "012346"])
def test_frames_out_of_place_break_the_chain(order: str) -> None:
    payloads = frames_of(SNAPSHOT)
    bounds = [0]
    for payload in payloads:
        bounds.append(bounds[-1] + 8 + len(payload))
    assert len(payloads) == 7

    with pytest.raises(StorageCorruptError, match="checksum"):
        restore(b"".join(SNAPSHOT[bounds[i] : bounds[i + 1]] for i in map(int, order)))


def test_a_frame_that_claims_too_much_is_refused_before_it_arrives() -> None:
    with pytest.raises(StorageCorruptError, match="claims"):
        Restorer(CONFIGURATION).feed(pack(">II", FRAME_BYTES_MAX + 1, 0))


def test_after_an_error_there_is_no_store() -> None:
    restorer = Restorer(CONFIGURATION)
    with pytest.raises(StorageCorruptError):
        restorer.feed(SNAPSHOT + b"too much" * 9)

    with pytest.raises(StorageCorruptError):
        restorer.feed(b"")
    with pytest.raises(StorageCorruptError):
        restorer.finish()


def test_a_frame_refused_once_is_refused_for_good_even_while_its_error_is_held() -> None:
    restorer = Restorer(CONFIGURATION)
    with pytest.raises(StorageCorruptError, match="two headers") as raised:
        restorer.feed(_written([_header(), _header(), _End]))

    with pytest.raises(StorageCorruptError, match="has failed"):
        restorer.feed(b"more")
    assert raised.value.__traceback__ is not None  # holds the reader and its view of the bytes


def test_a_store_is_handed_over_once() -> None:
    restorer = Restorer(CONFIGURATION)
    restorer.feed(SNAPSHOT)
    restorer.finish()

    with pytest.raises(StorageCorruptError):
        restorer.finish()


def _header(revision: int = 9, keys: int = 0, sessions: int = 0, format: int = 1) -> Header:
    return Header(
        format=format,
        revision=revision,
        applied_index=3,
        applied_term=1,
        state_hash=7,
        time_ms=9,
        keys=keys,
        sessions=sessions,
    )


def _features(level: int = 2, cluster_id: str = "c", state_sum: bytes = b"") -> Features:
    return Features(level, cluster_id, state_sum)


def _answer(sequence: int, kind: int = 3) -> bytes:
    return pack(">QIBQQQ", sequence, 5, kind, 1, 1, 0)


def _session(
    client_id: str = "ann", highest: int = 1, last_used_ms: int = 9, sequences: tuple[int, ...] = (1,)
) -> list[Frame]:
    row = SessionRow(client_id, highest, last_used_ms, b"".join(_answer(sequence) for sequence in sequences))
    return [_header(sessions=1), SessionsFrame((row,)), Trailer(0, 1)]


def _record(key: bytes = b"a", value: bytes = b"v", create: int = 1, mod: int = 2, version: int = 2) -> RecordsFrame:
    return RecordsFrame((key,), (RecordRow(value, create, mod, version),))


def _ended(*ended: tuple[str, int], more: int = 0) -> EndedSessionsFrame:
    return EndedSessionsFrame(ended, more)


def _level_3(*frames: Frame, sessions: int = 0) -> list[Frame]:
    return [_header(format=2, sessions=sessions), _features(3), QuotaFrame(0, 0, False), *frames, Trailer(0, sessions)]


_End = Trailer(0, 0)
WELL_FORMED: dict[str, Sequence[Frame]] = {
    "nothing in it": [_header(), _End],
    "a record": [_header(keys=1), _record(mod=9), Trailer(1, 0)],
    "a session": _session(),
    "format 2": [_header(format=2), _features(), _End],
    "format 2 with a sum": [_header(format=2), _features(state_sum=bytes(16)), _End],
    "ended sessions": _level_3(_ended(("a", 5), ("b", 5), more=1), _ended(("c", 9))),
    "a quota": [_header(format=2), _features(3), QuotaFrame(2**63 - 1, 5, is_full=True), _ended(), _End],
    "a window": _session(highest=SESSION_WINDOW + 1, sequences=(2, SESSION_WINDOW + 1)),
}
IMPOSSIBLE: dict[str, Sequence[Frame]] = {
    "no header": [_End],
    "two headers": [_header(), _header(), _End],
    "another format": [_header(format=3), _features(), _End],
    "no feature level": [_header(format=2), _End],
    "a feature level in format 1": [_header(), _features(), _End],
    "two feature levels": [_header(format=2), _features(), _features(), _End],
    "a feature level before the header": [_features(), _header(format=2), _End],
    "records before the feature level": [_header(format=2, keys=1), _record(), _features(), Trailer(1, 0)],
    "a feature level of format 1": [_header(format=2), _features(level=1), _End],
    "no cluster id": [_header(format=2), _features(cluster_id=""), _End],
    "a cluster id too long": [_header(format=2), _features(cluster_id="c" * 65), _End],
    "a sum of another size": [_header(format=2), _features(state_sum=b"123"), _End],
    "a trailer in the middle": [_header(), _End, _End],
    "a header after the trailer": [_header(), _End, _header()],
    "fewer records than keys": [_header(keys=2), RecordsFrame((b"a", b"b"), (RecordRow(b"", 1, 1, 1),)), Trailer(2, 0)],
    "more records than keys": [_header(keys=1), RecordsFrame((b"a",), (RecordRow(b"", 1, 1, 1),) * 2), Trailer(1, 0)],
    "fewer keys than announced": [_header(keys=2), _record(), Trailer(2, 0)],
    "fewer keys than the header says": [_header(keys=2), _record(), Trailer(1, 0)],
    "fewer keys than the trailer says": [_header(keys=1), _record(), Trailer(2, 0)],
    "a key twice": [_header(keys=2), _record(), _record(), Trailer(2, 0)],
    "a key twice in a frame": [
        _header(keys=2),
        RecordsFrame((b"a",) * 2, (RecordRow(b"", 1, 1, 1),) * 2),
        Trailer(2, 0),
    ],
    "an empty key": [_header(keys=1), _record(key=b""), Trailer(1, 0)],
    "a key too long": [_header(keys=1), _record(key=b"k" * 1025), Trailer(1, 0)],
    "a value too long": [_header(keys=1), _record(value=b"v" * (2**20 + 1)), Trailer(1, 0)],
    "a record from the future": [_header(keys=1), _record(mod=10), Trailer(1, 0)],
    "a record changed before it was created": [_header(keys=1), _record(create=3), Trailer(1, 0)],
    "a record of no revision": [_header(keys=1), _record(create=0), Trailer(1, 0)],
    "a record of no version": [_header(keys=1), _record(version=0), Trailer(1, 0)],
    "a session missing": [_header(sessions=1), _End],
    "a session twice": [_header(sessions=2), _session()[1], _session()[1], Trailer(0, 2)],
    "a session without a name": _session(client_id=""),
    "a session with too long a name": _session(client_id="x" * 65),
    "a session used in the future": _session(last_used_ms=10),
    "a session used before time": _session(last_used_ms=-1),
    "a session without answers": _session(sequences=()),
    "a session that never was": _session(highest=0, sequences=(0,)),
    "a session without its last answer": _session(highest=2),
    "a session beyond its highest": _session(highest=1, sequences=(1, 2)),
    "a session wider than its window": _session(highest=SESSION_WINDOW + 1, sequences=(1, SESSION_WINDOW + 1)),
    "a session out of order": _session(highest=3, sequences=(2, 1, 3)),
    "an answer to sequence 0": _session(highest=1, sequences=(0, 1)),
    "ended sessions below their level": [_header(format=2), _features(2), _ended(), _End],
    "ended sessions in format 1": [_header(), _ended(), _End],
    "no ended sessions": _level_3(),
    "fewer ended sessions than announced": _level_3(_ended(("a", 5), more=1)),
    "more ended sessions than announced": _level_3(_ended(("a", 5)), _ended(("b", 5))),
    "an announcement of ended sessions that changes": _level_3(_ended(("a", 5), more=1), _ended(("b", 5), more=1)),
    "too many ended sessions": _level_3(_ended(("a", 5), more=50_000)),
    "no ended session, and more of them": _level_3(_ended(more=1), _ended(("a", 5))),
    "an ended session without a name": _level_3(_ended(("", 5))),
    "an ended session with too long a name": _level_3(_ended(("x" * 65, 5))),
    "a session ended in the future": _level_3(_ended(("a", 10))),
    "a session ended before time": _level_3(_ended(("a", -1))),
    "ended sessions out of order": _level_3(_ended(("a", 5), ("b", 4))),
    "an ended session twice": _level_3(_ended(("a", 5), ("a", 5))),
    "an ended session that lives": _level_3(_session("a")[1], _ended(("a", 5)), sessions=1),
    "no quota": [_header(format=2), _features(3), _ended(), _End],
    "two quotas": _level_3(QuotaFrame(0, 0, False), _ended()),
    "a quota below its level": [_header(format=2), _features(2), QuotaFrame(0, 0, False), _End],
    "a quota in format 1": [_header(), QuotaFrame(0, 0, False), _End],
    "a quota too large": [_header(format=2), _features(3), QuotaFrame(2**63, 0, False), _ended(), _End],
    "a configured quota too large": [_header(format=2), _features(3), QuotaFrame(1, 2**63, False), _ended(), _End],
    "a quota that is used up and is none": [_header(format=2), _features(3), QuotaFrame(0, 0, True), _ended(), _End],
    "an answer twice": _session(highest=3, sequences=(1, 1, 3)),
}


def _written(frames: Sequence[Frame]) -> bytes:
    writer = FrameWriter()
    return b"".join(writer.encode(frame) for frame in frames)


@pytest.mark.parametrize("name", WELL_FORMED)
def test_what_is_well_formed_is_restored(name: str) -> None:
    store = restore(_written(WELL_FORMED[name]))

    assert (store.revision, store.applied_index, store.applied_term, store.state_hash, store.time_ms) == (9, 3, 1, 7, 9)


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_what_can_not_be_is_refused(name: str) -> None:
    with pytest.raises(StorageCorruptError):
        restore(_written(IMPOSSIBLE[name]))


def test_more_sessions_than_there_may_be_are_refused() -> None:
    rows = tuple(SessionRow(f"client-{i}", 1, 0, _answer(1)) for i in range(10_001))

    restore(_written([_header(sessions=10_000), SessionsFrame(rows[:-1]), Trailer(0, 10_000)]))
    with pytest.raises(StorageCorruptError):
        restore(_written([_header(sessions=10_001), SessionsFrame(rows), Trailer(0, 10_001)]))


@pytest.mark.parametrize("answers", [_answer(1, kind=0), _answer(1, kind=6), _answer(1)[:-1], _answer(1) + b"x"])
def test_what_is_no_answer_is_refused(answers: bytes) -> None:
    with pytest.raises(StorageCorruptError, match="session"):
        restore(_written([_header(sessions=1), SessionsFrame((SessionRow("ann", 1, 9, answers),)), Trailer(0, 1)]))


def test_a_name_that_is_not_utf8_is_malformed() -> None:
    payloads = [payload.replace(b"ann", b"\xff\xfe\xfd") for payload in frames_of(_written(_session()))]

    with pytest.raises(StorageCorruptError, match="malformed"):
        restore(framed(payloads))


def verified(data: bytes) -> Store:
    restorer = Restorer(CONFIGURATION, keeps_records=False)
    restorer.feed(data)
    return restorer.finish()


def test_a_snapshot_can_be_verified_without_keeping_its_records() -> None:
    store = store_at_level_3()
    apply(store, *(Put(b"k%d" % number, b"v") for number in range(5)))
    verdict = verified(snapshot_of(store))
    assert (len(verdict), verdict.applied_index, verdict.mismatch) == (0, store.applied_index, None)
    assert verdict.digest == store.digest
    with pytest.raises(StorageCorruptError, match="truncated"):
        verified(snapshot_of(store)[:-1])
    key, record = next(iter(store.versions.records.items()))
    store.versions.records[key] = Record(key, b"w", record.create_revision, record.mod_revision, record.version)
    assert verified(snapshot_of(store)).mismatch is not None


def test_a_store_that_is_given_up_leaves_its_numbers_and_no_data() -> None:
    store = store_at_level_3()
    apply(store, Put(b"k", b"v", client_id="c", sequence=1), SetQuota(QUOTA_BYTES_MIN, OPERATOR), time_ms=9)
    store.mismatch = Mismatch(store.applied_index, 1, 2)
    store.given_way = 3
    names = [name for name in Store.__slots__ if not name.startswith("_") and name not in ("versions", "leases")]
    numbers = {name: getattr(store, name) for name in names}
    assert [name for name in names if numbers[name] == getattr(Store(), name)] == [], "these would not be checked"
    left = store.give_up()
    assert (len(store), store.session_count, store.used_bytes) == (0, 0, 0)
    assert (len(left), left.session_count, left.used_bytes, left.get(b"k")) == (0, 0, 0, None)
    assert {name: getattr(left, name) for name in names} == numbers
