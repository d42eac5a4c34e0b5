"""The feature level: what raises it, what it changes, and what a version does with a level that it does not know."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest
from kv.kv_support import (
    CLUSTER_ID,
    CONFIGURATION,
    MEMBERS,
    apply,
    configured,
    entry_of,
    framed,
    frames_of,
    raise_to,
    restore,
    snapshot_of,
    store_at_level_2,
    store_at_level_4,
)

import kvorum
from kvorum.errors import FeatureUnavailableError, VersionTooOldError
from kvorum.kv import features
from kvorum.kv.commands import (
    Batch,
    BatchCommand,
    Delete,
    FeatureLevelRaised,
    FeatureLevelRefused,
    Put,
    PutResult,
    RaiseFeatureLevel,
    encode_batch,
)
from kvorum.kv.features import HIGHEST_LEVEL, LEVELS, SUPPORTED_LEVELS, blockers, check_command_level
from kvorum.kv.frames import Features, FrameWriter, Header
from kvorum.kv.snapshot import Restorer
from kvorum.kv.store import Store
from kvorum.raft.messages import Configuration, Entry, EntryKind, Member


def test_the_levels_are_numbered_from_1_without_a_gap() -> None:
    assert tuple(range(1, len(LEVELS) + 1)) == SUPPORTED_LEVELS
    assert [level.version for level in LEVELS] == ["0.1.0", "0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0"]


def test_a_state_begins_at_level_1_and_keeps_it() -> None:
    store = Store()
    store.apply(configured())
    apply(store, Put(b"a", b"1"), Delete(b"a"))

    assert (store.feature_level, store.digest.version, store.state_sum, store.cluster_id) == (1, 1, None, "")
    assert restore(snapshot_of(store)).feature_level == 1


def test_a_raise_that_every_member_supports_is_in_force_from_the_next_entry_on() -> None:
    store = Store()
    store.apply(configured())
    apply(store, Put(b"a", b"1"))

    assert apply(store, raise_to(2)) == [FeatureLevelRaised(1, 2)]

    assert (store.feature_level, store.digest.version, store.cluster_id) == (2, 2, CLUSTER_ID)
    assert apply(store, Put(b"a", b"2")) == [PutResult(2, 1, 2, 2)]


_REFUSED: dict[str, tuple[RaiseFeatureLevel, str, tuple[str, ...]]] = {
    "the present level": (raise_to(1), "order", ()),
    "two levels at once": (raise_to(3), "order", ()),
    "a level below": (raise_to(0), "order", ()),
    "nobody has announced anything": (RaiseFeatureLevel(2, {}, CLUSTER_ID), "blocked", MEMBERS),
    "a voter is missing": (raise_to(2, "n1@1", "n3@1"), "blocked", ("n2@1",)),
    "a learner is missing": (raise_to(2, "n1@1", "n2@1"), "blocked", ("n3@1",)),
    "an earlier incarnation": (raise_to(2, "n1@1", "n2@1", "n3@0"), "blocked", ("n3@1",)),
    "a member supports less": (
        RaiseFeatureLevel(2, {"n1@1": 2, "n2@1": 1, "n3@1": 2}, CLUSTER_ID),
        "blocked",
        ("n2@1",),
    ),
    "no cluster id": (raise_to(2, cluster_id=""), "invalid", ()),
    "a cluster id too long": (raise_to(2, cluster_id="ü" * 33), "invalid", ()),
}


@pytest.mark.parametrize("name", _REFUSED)
def test_a_raise_is_refused_and_nothing_changes(name: str) -> None:
    command, reason, members = _REFUSED[name]
    store = Store()
    store.apply(configured())

    assert apply(store, command) == [FeatureLevelRefused(0, 1, reason, members)]

    assert (store.feature_level, store.digest.version, store.applied_index) == (1, 1, 2)


def test_a_raise_is_refused_while_the_members_are_unknown() -> None:
    assert apply(Store(), raise_to(2)) == [FeatureLevelRefused(0, 1, "members")]


@pytest.mark.parametrize("others", [(Put(b"a", b"1"),), (raise_to(2),)])
def test_a_raise_is_alone_in_its_entry_since_an_entry_is_applied_by_one_level(others: tuple[BatchCommand, ...]) -> None:
    store = Store()
    store.apply(configured())

    results = apply(store, raise_to(2), *others)

    assert results[0] == FeatureLevelRefused(0, 1, "invalid")
    assert store.feature_level == 1


def test_the_members_that_count_are_those_at_the_index_of_the_raise() -> None:
    store = Store()
    store.apply(configured())
    larger = Configuration((*CONFIGURATION.members, Member("n4@1", False)))
    store.apply(configured(larger, 2))
    assert apply(store, raise_to(2)) == [FeatureLevelRefused(0, 1, "blocked", ("n4@1",))]

    store.apply(configured(index=4))
    assert apply(store, raise_to(2)) == [FeatureLevelRaised(0, 2)]


def test_the_members_that_count_survive_a_snapshot() -> None:
    """They are in the file's description; without them a restored node would decide otherwise than the others."""
    store = Store()
    store.apply(configured())

    restored = restore(snapshot_of(store), store.configuration)

    assert apply(restored, raise_to(2, "n1@1")) == [FeatureLevelRefused(0, 1, "blocked", ("n2@1", "n3@1"))]
    assert apply(restored, raise_to(2)) == [FeatureLevelRaised(0, 2)]


def test_a_level_once_raised_stays() -> None:
    store = store_at_level_2()

    assert apply(store, raise_to(2)) == [FeatureLevelRefused(0, 2, "order")]
    assert apply(store, raise_to(1)) == [FeatureLevelRefused(0, 2, "order")]
    # A member that supports less changes nothing any more: it cannot start.
    store.apply(configured(Configuration((Member("n9@1", True),)), store.applied_index + 1))
    assert store.feature_level == 2
    assert restore(snapshot_of(store)).feature_level == 2


def test_a_raise_that_only_a_newer_version_supports_ends_the_process_and_changes_nothing() -> None:
    """Not a refusal: the members that support it raise it, and this one would go its own way."""
    store = store_at_level_4()
    for level in range(5, HIGHEST_LEVEL + 1):
        apply(store, raise_to(level))
    before = snapshot_of(store)

    with pytest.raises(VersionTooOldError, match=r"entry 7 has feature level 7, and version .* levels 1 to 6 only"):
        apply(store, raise_to(HIGHEST_LEVEL + 1))

    assert snapshot_of(store) == before


def test_whether_this_version_supports_a_level_does_not_change_a_refusal() -> None:
    store = store_at_level_4()
    for level in range(5, HIGHEST_LEVEL + 1):
        apply(store, raise_to(level))

    assert apply(store, raise_to(HIGHEST_LEVEL + 1, "n1@1")) == [
        FeatureLevelRefused(1, HIGHEST_LEVEL, "blocked", ("n2@1", "n3@1"))
    ]


def test_a_snapshot_of_a_later_level_says_which_version_to_start() -> None:
    """The frame that says the level may have more fields then, and what follows may be anything."""
    header = Header(format=2, revision=0, applied_index=3, applied_term=1, state_hash=7, time_ms=9, keys=1, sessions=0)
    frames = FrameWriter()
    data = frames.encode(header) + frames.encode(Features(HIGHEST_LEVEL + 1, "c", b""))
    restorer = Restorer(CONFIGURATION)

    with pytest.raises(VersionTooOldError) as raised:
        restorer.feed(data)

    assert str(raised.value) == (
        f"the snapshot has feature level 7, and version {kvorum.__version__} supports levels 1 to 6 only; "
        "start the newer version again: a raised level cannot be taken back"
    )


def test_a_later_version_may_say_more_beside_the_level() -> None:
    store = store_at_level_2()
    apply(store, Put(b"a", b"1"))
    payloads = frames_of(snapshot_of(store))
    payloads[1] = msgspec.msgpack.encode([*msgspec.msgpack.decode(payloads[1]), "more"])

    restored = restore(framed(payloads))

    assert (restored.feature_level, restored.state_sum) == (2, store.state_sum)


def test_only_a_level_above_1_changes_the_format_of_snapshots() -> None:
    store = Store()
    store.apply(configured())
    iterator = store.begin_snapshot()
    assert iterator.header.format == 1
    iterator.close()

    apply(store, raise_to(2))

    iterator = store.begin_snapshot()
    assert iterator.header.format == 2
    iterator.close()


def test_what_is_proposed_is_checked_against_the_level(monkeypatch: pytest.MonkeyPatch) -> None:
    for command in (Put(b"a", b"1"), Delete(b"a"), raise_to(2)):
        check_command_level(command, 1)
    monkeypatch.setattr(features, "_LEVELS_OF_COMMANDS", {Put: 1, Delete: 2})

    check_command_level(Put(b"a", b"1"), 1)
    check_command_level(Delete(b"a"), 2)
    with pytest.raises(FeatureUnavailableError, match=r"Delete needs feature level 2, .* version 0\.2\.0"):
        check_command_level(Delete(b"a"), 1)


def test_every_command_has_a_level_that_exists() -> None:
    assert set(features._LEVELS_OF_COMMANDS) == set(get_args(BatchCommand))
    assert set(features._LEVELS_OF_COMMANDS.values()) <= set(SUPPORTED_LEVELS)


def test_blockers_are_members_that_support_less_or_said_nothing() -> None:
    versions = {"n1@1": 2, "n2@1": 1, "gone@1": 0}

    assert blockers(1, CONFIGURATION, versions) == ("n3@1",)
    assert blockers(2, CONFIGURATION, versions) == ("n2@1", "n3@1")
    assert blockers(2, Configuration(), versions) == ()


def test_a_raise_survives_the_log() -> None:
    store = Store()
    store.apply(configured())
    data = encode_batch(7, [raise_to(2)])

    assert store.apply(Entry(2, 1, EntryKind.COMMAND, data)) == [FeatureLevelRaised(0, 2)]
    assert store.time_ms == 7
    assert entry_of(2, Batch(7, (raise_to(2),))).data == data
