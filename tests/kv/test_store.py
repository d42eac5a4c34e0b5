"""The store's own rules, one by one."""

from __future__ import annotations

from kvorum.kv.commands import Command, CompareFailed, Delete, DeleteResult, Put, PutResult, encode_batch
from kvorum.kv.records import Record
from kvorum.kv.store import Store
from kvorum.raft.messages import Entry, EntryKind


def test_a_put_creates_then_changes_and_a_delete_ends_a_key() -> None:
    store = Store()
    commands: list[Command] = [Put(b"a", b"1"), Put(b"a", b"2"), Put(b"b", b"3", 0), Put(b"b", b"4", 0)]
    commands += [Delete(b"a"), Delete(b"a")]

    results = store.apply(Entry(1, 1, EntryKind.COMMAND, encode_batch(5, commands)))

    assert results == [
        PutResult(1, 1, 1, 1),
        PutResult(2, 1, 2, 2),
        PutResult(3, 3, 3, 1),
        CompareFailed(3, 3),
        DeleteResult(4, 1),
        DeleteResult(4, 0),
    ]
    assert store.get(b"a") is None
    assert store.get(b"b") == Record(b"b", b"3", 3, 3, 1)
    assert (store.revision, store.applied_index, store.applied_term, store.time_ms, len(store)) == (4, 1, 1, 5, 1)
