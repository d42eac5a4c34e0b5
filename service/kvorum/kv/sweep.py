"""Recomputing the sum of all records in the background, to find what memory has changed by itself."""

from __future__ import annotations

from kvorum.kv.state_hash import SLICE_BYTES, SLICE_KEYS, Mismatch
from kvorum.kv.store import Store


class StateSweep:
    """Sums a store's records slice by slice, pass after pass; a change between two slices does no harm.

    A pass visits the keys in order. Below feature level 2 there is no sum, and nothing to do.

    Attributes:
        passes: how many passes were completed.
        share: the part of all keys that the last step visited, from 0 to 1.
    """

    __slots__ = ("_has_begun", "_store", "passes", "share")

    def __init__(self, store: Store) -> None:
        self._store = store
        self._has_begun = False
        self.passes = 0
        self.share = 1.0

    @property
    def is_under_way(self) -> bool:
        """Whether a pass has begun and is not complete."""
        records = self._store.record_sum
        return self._has_begun and records is not None and records.sweep_cursor is not None

    def step(self, max_keys: int = SLICE_KEYS, max_bytes: int = SLICE_BYTES) -> Mismatch | None:
        """Visit the next records, and begin a pass if none is under way.

        Args:
            max_keys: at most so many keys.
            max_bytes: about so many bytes: the slice ends with the record that reaches this.

        Returns:
            What the end of a pass found to be wrong, once. None: nothing yet.
        """
        store = self._store
        records = store.record_sum
        if records is None:
            self.share = 1.0
            return None
        if not self._has_begun or records.sweep_cursor is None:
            # A pass of another sweep that was given up does not count.
            self._has_begun = True
            records.begin_sweep()
        cursor = records.sweep_cursor or b""
        keys = store.versions.keys_from(cursor + b"\0" if cursor else b"", None, max(max_keys, 1) + 1, has_dead=False)
        size = visited = 0
        for key in keys[: max(max_keys, 1)]:
            record = store.get(key)
            visited += 1
            if record is not None:
                size += len(key) + len(record.value)
            records.visit(key, record)
            if size >= max_bytes:
                break
        self.share = visited / len(store) if len(store) else 1.0
        if visited < len(keys):
            return None
        self.passes += 1
        expected, found = records.end_sweep()
        return None if expected == found else Mismatch(store.applied_index, expected, found)
