"""What the tests of the state machine share: strategies, small limits, and shorthands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import hypothesis.strategies as st
from hypothesis import settings

from kvorum.kv.commands import Batch, Command, Delete, Put, Result, encode_batch
from kvorum.kv.limits import SESSION_IDLE_MS
from kvorum.kv.snapshot import Restorer
from kvorum.kv.store import Store
from kvorum.raft.messages import Entry, EntryKind

WINDOW = 4
SESSIONS = 3

examples = settings(deadline=None, max_examples=150)

KEYS = [b"a", b"b", b"c", b"\x00\xff", b"k" * 1024]
CLIENTS = ["ann", "bob", "cid", "dan", "eve"]

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


@contextmanager
def small_sessions() -> Iterator[None]:
    """A window of 4 and at most 3 sessions, so that short histories meet the bounds."""
    with ExitStack() as stack:
        stack.enter_context(patch("kvorum.kv.sessions.SESSION_WINDOW", WINDOW))
        for module in ("sessions", "snapshot"):
            stack.enter_context(patch(f"kvorum.kv.{module}.SESSIONS_MAX", SESSIONS))
        yield


def entry_of(index: int, batch: Batch, term: int = 1) -> Entry:
    """Return the log entry that carries a batch."""
    return Entry(index, term, EntryKind.COMMAND, encode_batch(batch.time_ms, batch.commands))


def apply(store: Store, *commands: Command, time_ms: int = 0) -> list[Result]:
    """Apply commands as the next entry."""
    return store.apply(entry_of(store.applied_index + 1, Batch(time_ms, commands)))


def apply_batches(store: Store, batches: Sequence[Batch]) -> list[list[Result]]:
    """Apply batches as the next entries."""
    return [store.apply(entry_of(store.applied_index + 1, batch)) for batch in batches]


def snapshot_of(store: Store, max_keys: int = 1024, max_bytes: int = 1 << 18) -> bytes:
    """Return the snapshot of a store: equal bytes, equal state."""
    cut = store.begin_snapshot()
    chunks = []
    while (chunk := cut.next_chunk(max_keys, max_bytes)) is not None:
        chunks.append(chunk)
    cut.close()
    return b"".join(chunks)


def restore(data: bytes) -> Store:
    """Return the store that a snapshot holds."""
    restorer = Restorer()
    restorer.feed(data)
    return restorer.finish()
