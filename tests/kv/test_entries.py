"""Which entries the store takes, and what each does to its numbers."""

from __future__ import annotations

from hashlib import blake2b

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given
from kv.kv_support import CONFIGURATION, apply, entry_of, examples, snapshot_of

from kvorum.errors import InvariantViolatedError, VersionTooOldError
from kvorum.kv.commands import Batch, Put, PutResult, decode_batch, encode_batch
from kvorum.kv.store import Store
from kvorum.raft.membership import encode_configuration
from kvorum.raft.messages import Configuration, Entry, EntryKind


@pytest.mark.parametrize("kind", [EntryKind.NOOP, EntryKind.CONFIGURATION])
def test_an_entry_without_commands_moves_the_indexes_and_the_hash_only(kind: EntryKind) -> None:
    store = Store()
    apply(store, Put(b"a", b"1"), time_ms=9)
    state_hash = store.state_hash

    assert store.apply(Entry(2, 3, kind, encode_configuration(CONFIGURATION))) == []

    assert (store.applied_index, store.applied_term, store.revision, store.time_ms, len(store)) == (2, 3, 1, 9, 1)
    assert store.state_hash != state_hash


def test_the_log_time_never_goes_back() -> None:
    store = Store()

    for time_ms, expected in ((5, 5), (3, 5), (6, 6)):
        apply(store, time_ms=time_ms)
        assert store.time_ms == expected


def test_the_kind_of_an_entry_is_part_of_the_hash() -> None:
    first, second = Store(), Store()

    data = encode_configuration(CONFIGURATION)
    first.apply(Entry(1, 1, EntryKind.NOOP, data))
    second.apply(Entry(1, 1, EntryKind.CONFIGURATION, data))

    assert first.state_hash != second.state_hash


@pytest.mark.parametrize(("index", "term"), [(1, 2), (3, 2), (0, 2), (2, 1)])
def test_an_entry_out_of_order_is_refused_and_nothing_is_applied(index: int, term: int) -> None:
    store = Store()
    store.apply(Entry(1, 2, EntryKind.NOOP, b""))
    before = snapshot_of(store)

    with pytest.raises(InvariantViolatedError, match="does not follow"):
        store.apply(entry_of(index, Batch(7, (Put(b"a", b"1"),)), term))

    assert snapshot_of(store) == before


_valid = encode_batch(7, [Put(b"a", b"1"), Put(b"b", b"2", 0, "ann", 1)])


@examples
@given(st.one_of(st.binary(max_size=40), st.integers(0, len(_valid) - 1).map(lambda end: _valid[:end])))
def test_data_that_is_no_batch_ends_the_process_and_changes_nothing(data: bytes) -> None:
    store = Store()
    apply(store, Put(b"a", b"0"))
    before = snapshot_of(store)
    try:
        decode_batch(data)
    except msgspec.DecodeError:
        with pytest.raises(InvariantViolatedError, match="not a batch"):
            store.apply(Entry(2, 1, EntryKind.COMMAND, data))
        assert snapshot_of(store) == before
    else:
        store.apply(Entry(2, 1, EntryKind.COMMAND, data))


def test_a_client_id_that_is_not_utf8_is_no_batch() -> None:
    data = encode_batch(7, [Put(b"a", b"1", 0, "ann", 1)]).replace(b"ann", b"\xff\xfe\xfd")

    with pytest.raises(InvariantViolatedError, match="not a batch"):
        Store().apply(Entry(1, 1, EntryKind.COMMAND, data))


@pytest.mark.parametrize(
    "batch",
    [
        [7, [["p", b"a", b"1", -1, "", 0, "a field of a later version"]]],
        [7, [["d", b"a", -1, "", 0, "a field of a later version"]]],
        [7, [], "a field of a later version"],
        [7, [["txn", b"a"]]],
    ],
)
def test_what_a_later_version_wrote_is_refused_rather_than_half_applied(batch: list[object]) -> None:
    store = Store()

    with pytest.raises(VersionTooOldError, match=r"version .* knows: it has a .* start that version"):
        store.apply(Entry(1, 1, EntryKind.COMMAND, msgspec.msgpack.encode(batch)))

    assert store.applied_index == 0


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode(7),
        msgspec.msgpack.encode([7]),
        msgspec.msgpack.encode([7, b"p"]),
        msgspec.msgpack.encode(["7", [["txn"]]]),
        msgspec.msgpack.encode([7, [[]]]),
        msgspec.msgpack.encode([7, [[1, b"a"]]]),
        msgspec.msgpack.encode([7, ["txn"]]),
        msgspec.msgpack.encode([7, [["p", b"a"]]]),  # too few fields
        msgspec.msgpack.encode([7, [["p", 1, b"v", -1, "", 0]]]),  # a field of another type
        b"\x92\x07" + b"\x91" * 100_000,
    ],
)
def test_damaged_data_is_not_taken_for_a_later_versions(data: bytes) -> None:
    with pytest.raises(InvariantViolatedError, match="not a batch"):
        Store().apply(Entry(1, 1, EntryKind.COMMAND, data))


@pytest.mark.parametrize("data", [b"", b"\xc1", encode_configuration(Configuration())])
def test_a_configuration_that_is_none_ends_the_process_and_changes_nothing(data: bytes) -> None:
    store = Store()
    with pytest.raises(InvariantViolatedError, match="not a configuration"):
        store.apply(Entry(1, 1, EntryKind.CONFIGURATION, data))

    assert (store.applied_index, store.configuration) == (0, Configuration())


def test_the_state_hash_is_the_chain_that_its_docstring_describes() -> None:
    """Nodes of two versions compare their hashes during an upgrade: a change of the chain must be seen and gated."""
    store = Store()
    data = encode_batch(7, [Put(b"a", b"1")])

    assert store.apply(Entry(1, 5, EntryKind.COMMAND, data)) == [PutResult(1, 1, 1, 1)]

    fields = bytes(8) + (1).to_bytes(8) + (5).to_bytes(8) + b"\x00" + len(data).to_bytes(8)
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0xEDB88320 * (crc & 1)
    results = b"\x91\x95\xa1p\x01\x01\x01\x01"
    digest = blake2b(fields + (crc ^ 0xFFFFFFFF).to_bytes(4) + results, digest_size=8).digest()
    assert store.state_hash == int.from_bytes(digest)
