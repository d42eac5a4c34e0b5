"""What the tests of the state machine share: strategies, small limits, and shorthands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from struct import pack, unpack_from
from unittest.mock import patch
from zlib import crc32

import hypothesis.strategies as st
from hypothesis import settings

from kvorum.kv.commands import (
    Batch,
    BatchCommand,
    Command,
    Compact,
    Delete,
    EndSession,
    Put,
    RaiseFeatureLevel,
    Result,
    SetQuota,
    encode_batch,
)
from kvorum.kv.limits import SESSION_IDLE_MS
from kvorum.kv.snapshot import Restorer
from kvorum.kv.store import Store
from kvorum.raft.membership import encode_configuration
from kvorum.raft.messages import Configuration, Entry, EntryKind, Member

WINDOW = 4
SESSIONS = 3
ENDED = 2

examples = settings(deadline=None, max_examples=150)

MEMBERS = ("n1@1", "n2@1", "n3@1")
CONFIGURATION = Configuration((Member("n1@1", True), Member("n2@1", True), Member("n3@1", False)))
CLUSTER_ID = "0123456789abcdef"

KEYS = [b"a", b"b", b"c", b"\x00\xff", b"k" * 1024]
CLIENTS = ["ann", "bob", "cid", "dan", "eve"]


def raise_to(level: int, *supporting: str, cluster_id: str = CLUSTER_ID) -> RaiseFeatureLevel:
    """Return the command that raises the level; these members (by default all) support it."""
    return RaiseFeatureLevel(level, dict.fromkeys(supporting or MEMBERS, level), cluster_id)


_keys = st.sampled_from(KEYS)
_values = st.binary(max_size=3)
_prev_revisions = st.one_of(st.just(-1), st.just(-1), st.integers(0, 12), st.sampled_from([-2, 2**63]))
_sessions = st.one_of(
    st.just(("", 0)),
    st.tuples(st.sampled_from(CLIENTS), st.integers(1, 3)),
    st.tuples(st.sampled_from(CLIENTS[:2]), st.integers(1, 14)),
)
_faulty: list[Command] = [
    Put(b"", b"v"),
    Put(b"k" * 1025, b"v"),
    Delete(b""),
    Put(b"a", b"v", -1, "x" * 65, 1),
    Put(b"a", b"v", -1, "ann", 0),
    Delete(b"a", -1, "new", -3),
]


@st.composite
def commands(draw: st.DrawFn) -> Command:
    """Commands that meet each other: few keys, few clients, low sequences; now and then an over-limit one."""
    if draw(st.integers(0, 15)) == 0:
        return draw(st.sampled_from(_faulty))
    client_id, sequence = draw(_sessions)
    key, prev_revision = draw(_keys), draw(_prev_revisions)
    if draw(st.integers(0, 2)):
        return Put(key, draw(_values), prev_revision, client_id, sequence)
    return Delete(key, prev_revision, client_id, sequence)


_times = st.one_of(st.integers(0, 100), st.integers(0, 6).map(lambda hours: hours * (SESSION_IDLE_MS + 1)))
batches = st.builds(Batch, _times, st.lists(commands(), max_size=8).map(tuple))

# No member supports level 6 here, so no state is raised to it.
raises = st.builds(
    RaiseFeatureLevel,
    st.integers(0, 6),
    st.dictionaries(st.sampled_from([*MEMBERS, "other@1"]), st.integers(1, 5)),
    st.sampled_from([CLUSTER_ID, "another", "", "c" * 65]),
)
_likely_raises = st.sampled_from([raise_to(2), raise_to(3), raise_to(4)])
compactions = st.builds(Compact, st.integers(0, 12))
ends = st.builds(EndSession, st.sampled_from([*CLIENTS, "", "x" * 65]))
quotas = st.builds(
    SetQuota,
    st.sampled_from([0, 1, 700, 1300, 2000, 4000, 2**63 - 1, 2**63]),
    st.sampled_from(["first", "configuration", "configuration", "operator", "nobody"]),
)
raising_batches = st.one_of(
    st.builds(Batch, _times, st.one_of(_likely_raises, raises).map(lambda command: (command,))),
    st.builds(Batch, _times, st.lists(st.one_of(commands(), raises), max_size=4).map(tuple)),
    st.builds(
        Batch, _times, st.lists(st.one_of(commands(), commands(), ends, quotas, compactions), max_size=8).map(tuple)
    ),
)
raised_before = st.sampled_from([(), (2,), (2, 3), (2, 3, 4), (2, 3, 4)]).map(
    lambda levels: [EntryKind.CONFIGURATION, *(Batch(0, (raise_to(level),)) for level in levels)] if levels else []
)
"""What a log begins with, so that short ones are at every level."""


@contextmanager
def small_sessions() -> Iterator[None]:
    """A window of 4, at most 3 sessions and 2 ended ones, and small quotas, so that short histories meet the bounds."""
    with ExitStack() as stack:
        stack.enter_context(patch("kvorum.kv.sessions._FORGOTTEN_AT_ONCE", 1))
        stack.enter_context(patch("kvorum.kv.sessions.SESSION_WINDOW", WINDOW))
        stack.enter_context(patch("kvorum.kv.store.QUOTA_BYTES_MIN", 1))
        for module in ("sessions", "snapshot"):
            stack.enter_context(patch(f"kvorum.kv.{module}.SESSIONS_MAX", SESSIONS))
            stack.enter_context(patch(f"kvorum.kv.{module}.SESSIONS_ENDED_MAX", ENDED))
        yield


def entry_of(index: int, batch: Batch, term: int = 1) -> Entry:
    """Return the log entry that carries a batch."""
    return Entry(index, term, EntryKind.COMMAND, encode_batch(batch.time_ms, batch.commands))


def configured(configuration: Configuration = CONFIGURATION, index: int = 1) -> Entry:
    """Return the log entry that carries a configuration."""
    return Entry(index, 1, EntryKind.CONFIGURATION, encode_configuration(configuration))


def store_at_level_2() -> Store:
    """Return an empty store whose level was raised: two entries."""
    store = Store()
    store.apply(configured())
    apply(store, raise_to(2))
    assert store.feature_level == 2
    return store


def store_at_level_3() -> Store:
    """Return an empty store whose level was raised twice: three entries."""
    store = store_at_level_2()
    apply(store, raise_to(3))
    assert store.feature_level == 3
    return store


def store_at_level_4() -> Store:
    """Return an empty store whose level was raised three times, as in a new cluster: four entries, revision 1."""
    store = store_at_level_3()
    apply(store, raise_to(4))
    assert store.feature_level == 4
    return store


def store_at_level_5() -> Store:
    """Return an empty store whose level was raised four times, as in a new cluster: five entries, revision 1."""
    store = store_at_level_4()
    apply(store, raise_to(5))
    assert store.feature_level == 5
    return store


def apply(store: Store, *commands: BatchCommand, time_ms: int = 0) -> list[Result]:
    """Apply commands as the next entry."""
    return store.apply(entry_of(store.applied_index + 1, Batch(time_ms, commands)))


def apply_batches(store: Store, batches: Sequence[Batch]) -> list[list[Result]]:
    """Apply batches as the next entries."""
    return [store.apply(entry_of(store.applied_index + 1, batch)) for batch in batches]


def snapshot_of(store: Store, max_keys: int = 1024, max_bytes: int = 1 << 18) -> bytes:
    """Return the snapshot of a store: equal bytes, equal state."""
    iterator = store.begin_snapshot()
    chunks = []
    while (chunk := iterator.next_chunk(max_keys, max_bytes)) is not None:
        chunks.append(chunk)
    iterator.close()
    return b"".join(chunks)


def restore(data: bytes, configuration: Configuration = CONFIGURATION) -> Store:
    """Return the store that a snapshot holds."""
    restorer = Restorer(configuration)
    restorer.feed(data)
    return restorer.finish()


def kept_versions(store: Store, keys: Sequence[bytes]) -> dict[bytes, int]:
    """Return how many older versions and tombstones memory keeps of each key that has some."""
    kept = {}
    for key in keys:
        newest = store.versions.records.get(key) or store.versions._tombstones.get(key)
        older = newest.older if newest is not None else None
        count = len(older) if isinstance(older, (tuple, list)) else int(older is not None)
        count += newest is not None and not newest.version
        if count:
            kept[key] = count
    return kept


def frames_of(data: bytes) -> list[bytes]:
    """Return the payloads of the frames."""
    payloads, start = [], 0
    while start < len(data):
        (length,) = unpack_from(">I", data, start)
        payloads.append(data[start + 8 : start + 8 + length])
        start += 8 + length
    return payloads


def framed(payloads: list[bytes]) -> bytes:
    """Return payloads as a chain of frames with correct checksums."""
    data, crc = b"", 0
    for payload in payloads:
        crc = crc32(payload, crc)
        data += pack(">II", len(payload), crc) + payload
    return data
