"""Old versions and this one: at their levels equal states, hashes and snapshots; messages that both understand."""

from __future__ import annotations

from collections.abc import Iterator

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given, settings
from kv.kv_support import (
    CONFIGURATION,
    apply,
    batches,
    commands,
    compactions,
    configured,
    ends,
    entry_of,
    quotas,
    raise_to,
    restore,
    small_sessions,
    store_at_level_2,
    store_at_level_3,
    store_at_level_4,
    store_at_level_5,
)
from kv.kv_support import snapshot_of as snapshot_in_chunks
from versions.old import OldVersion, OldVersionError, old_version

from kvorum.kv.commands import Batch, Delete, FeatureLevelRefused, Put
from kvorum.kv.store import Store
from kvorum.raft.codec import decode, encode
from kvorum.raft.messages import Entry, EntryKind, Heartbeat

examples = settings(deadline=None, max_examples=100)
_logs = st.lists(st.one_of(batches, st.sampled_from([EntryKind.NOOP, EntryKind.CONFIGURATION])), max_size=14)


@pytest.fixture(scope="module")
def old() -> Iterator[OldVersion]:
    with old_version() as process:
        yield process


@pytest.fixture(scope="module")
def latest() -> Iterator[OldVersion]:
    """Version 0.4.0, which has no leases."""
    with old_version("0.4.0") as process:
        yield process


@pytest.fixture(scope="module")
def middle() -> Iterator[OldVersion]:
    """Version 0.3.0, which keeps no history."""
    with old_version("0.3.0") as process:
        yield process


def entries_of(log: list[Batch | EntryKind], first: int = 1) -> list[Entry]:
    """Return the entries of a log."""
    entries = []
    for index, item in enumerate(log, first):
        if isinstance(item, Batch):
            entries.append(entry_of(index, item))
        elif item is EntryKind.CONFIGURATION:
            entries.append(configured(CONFIGURATION, index))
        else:
            entries.append(Entry(index, 1, item, b""))
    return entries


def builtins(entries: list[Entry]) -> list[list[object]]:
    return [[entry.index, entry.term, int(entry.kind), entry.data] for entry in entries]


def outcome(store: Store, entry: Entry) -> list[object]:
    """Apply an entry as the old version does it; from level 2 on the state hash does not cover the results."""
    results = store.apply(entry)
    return [store.state_hash, msgspec.msgpack.encode(results)]


def snapshot_of(store: Store) -> bytes:
    return snapshot_in_chunks(store, max_keys=2)


@examples
@given(_logs, _logs)
def test_below_level_2_both_versions_have_equal_results_hashes_and_snapshots(
    old: OldVersion, past: list[Batch | EntryKind], future: list[Batch | EntryKind]
) -> None:
    """The past from nothing, the future from each other's snapshot."""
    with small_sessions():
        store = Store()
        entries = entries_of(past)
        outcomes = [outcome(store, entry) for entry in entries]
        ours = snapshot_of(store)
        their_outcomes, theirs = old.apply(b"", builtins(entries), small=True)
        assert (their_outcomes, theirs) == (outcomes, ours)

        store = restore(theirs)
        entries = entries_of(future, len(past) + 1)
        outcomes = [outcome(store, entry) for entry in entries]

        assert old.apply(ours, builtins(entries), small=True) == (outcomes, snapshot_of(store))


_level_3 = st.builds(
    Batch, st.integers(0, 9), st.lists(st.one_of(commands(), commands(), ends, quotas), max_size=8).map(tuple)
)
_logs_of_level_3 = st.lists(
    st.one_of(_level_3, _level_3, st.sampled_from([EntryKind.NOOP, EntryKind.CONFIGURATION])), max_size=10
)


@examples
@given(st.integers(1, 3), _logs_of_level_3, _logs_of_level_3)
def test_below_the_level_of_the_history_both_versions_have_equal_results_hashes_and_snapshots(
    middle: OldVersion, level: int, past: list[Batch | EntryKind], future: list[Batch | EntryKind]
) -> None:
    """The past from nothing, the future from each other's snapshot; the level is raised on the way."""
    raises: list[Batch | EntryKind] = [Batch(0, (raise_to(each),)) for each in range(2, level + 1)]
    log = [EntryKind.CONFIGURATION, *raises[:1], *past, *raises[1:]]
    members = msgspec.to_builtins(CONFIGURATION)
    with small_sessions():
        store = Store()
        outcomes = [outcome(store, entry) for entry in entries_of(log)]
        ours = snapshot_of(store)
        assert middle.apply(b"", builtins(entries_of(log)), small=True) == (outcomes, ours)

        store = restore(ours)
        entries = entries_of(future, len(log) + 1)
        outcomes = [outcome(store, entry) for entry in entries]
        assert store.feature_level == level

        assert middle.apply(ours, builtins(entries), members, small=True) == (outcomes, snapshot_of(store))


def test_the_version_before_says_that_a_snapshot_with_history_needs_a_newer_one(middle: OldVersion) -> None:
    members = msgspec.to_builtins(CONFIGURATION)
    assert middle.apply(snapshot_of(store_at_level_3()), [], members, small=False)[0] == []
    with pytest.raises(OldVersionError, match="VersionTooOldError: the snapshot has feature level 4"):
        middle.apply(snapshot_of(store_at_level_4()), [], members, small=False)


_level_4 = st.builds(
    Batch,
    st.integers(0, 9),
    st.lists(st.one_of(commands(), commands(), ends, quotas, compactions), max_size=8).map(tuple),
)
_logs_of_level_4 = st.lists(
    st.one_of(_level_4, _level_4, st.sampled_from([EntryKind.NOOP, EntryKind.CONFIGURATION])), max_size=10
)


@examples
@given(st.integers(1, 4), _logs_of_level_4, _logs_of_level_4)
def test_below_the_level_of_leases_both_versions_have_equal_results_hashes_and_snapshots(
    latest: OldVersion, level: int, past: list[Batch | EntryKind], future: list[Batch | EntryKind]
) -> None:
    """As below the level of the history."""
    raises: list[Batch | EntryKind] = [Batch(0, (raise_to(each),)) for each in range(2, level + 1)]
    log = [EntryKind.CONFIGURATION, *raises[:2], *past, *raises[2:]]
    members = msgspec.to_builtins(CONFIGURATION)
    with small_sessions():
        store = Store()
        outcomes = [outcome(store, entry) for entry in entries_of(log)]
        ours = snapshot_of(store)
        assert latest.apply(b"", builtins(entries_of(log)), small=True) == (outcomes, ours)

        store = restore(ours)
        entries = entries_of(future, len(log) + 1)
        outcomes = [outcome(store, entry) for entry in entries]
        assert store.feature_level == level

        assert latest.apply(ours, builtins(entries), members, small=True) == (outcomes, snapshot_of(store))


def test_version_0_4_0_says_that_a_snapshot_with_leases_needs_a_newer_one(latest: OldVersion) -> None:
    members = msgspec.to_builtins(CONFIGURATION)
    with pytest.raises(OldVersionError, match="VersionTooOldError: the snapshot has feature level 5"):
        latest.apply(snapshot_of(store_at_level_5()), [], members, small=False)


def test_a_refused_raise_ends_the_old_version_too(old: OldVersion) -> None:
    """So nobody proposes one that will be refused: a log that holds it cannot be rolled back any more."""
    store = Store()
    store.apply(configured())
    assert isinstance(apply(store, raise_to(2, "n1@1"))[0], FeatureLevelRefused)

    log = [configured(), entry_of(2, Batch(0, (raise_to(2, "n1@1"),)))]
    with pytest.raises(OldVersionError, match="InvariantViolated: the committed entry 2 is not a batch"):
        old.apply(b"", builtins(log), small=False)


def test_after_the_raise_the_old_version_refuses_the_log_and_the_snapshot(old: OldVersion) -> None:
    store = store_at_level_2()
    apply(store, Put(b"a", b"1"), Delete(b"a"))

    with pytest.raises(OldVersionError, match="InvariantViolated: the committed entry 2 is not a batch"):
        old.apply(b"", builtins([configured(), entry_of(2, Batch(0, (raise_to(2),)))]), small=False)
    with pytest.raises(OldVersionError, match="StorageCorrupt: the snapshot's format is 2; this version reads 1"):
        old.apply(snapshot_of(store), [], small=False)


def _heartbeat(**more: object) -> Heartbeat:
    return msgspec.structs.replace(
        Heartbeat(
            term=3, sender="n1@1", recipient="n2@1", commit_index=4, round=5, state_index=4, state_hash=2**64 - 1
        ),
        **more,
    )


def test_the_old_version_reads_a_heartbeat_and_skips_its_new_fields(old: OldVersion) -> None:
    for heartbeat in (_heartbeat(), _heartbeat(state_hash_version=2, state_sum=bytes(range(16)))):
        understood = old.decode(encode([heartbeat]))

        assert decode(understood) == (_heartbeat(),)
        assert msgspec.msgpack.decode(understood)[0] == ["hb", 3, "n1@1", "n2@1", 4, 5, 4, 2**64 - 1]


def test_a_heartbeat_of_the_old_version_carries_a_hash_of_the_old_definition(old: OldVersion) -> None:
    [heartbeat] = decode(old.decode(encode([_heartbeat(state_hash_version=2)])))

    assert isinstance(heartbeat, Heartbeat)
    assert (heartbeat.state_hash_version, heartbeat.state_sum) == (1, b"")
