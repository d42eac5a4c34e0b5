"""Recomputing the sum of all records in the background, to find what memory has changed by itself."""

from __future__ import annotations

from kvorum.kv.state_hash import Mismatch
from kvorum.kv.store import Store

SLICE_KEYS = 256
"""Keys visited in a step unless asked otherwise: less than a millisecond of work."""
SLICE_BYTES = 1024 * 1024
"""Bytes visited in a step unless asked otherwise: half a millisecond more."""


class StateSweep:
    """Sums a store's records slice by slice, pass after pass; a change between two slices does no harm.

    Costs a list of all keys while a pass is under way. Below feature level 2 there is no sum, and nothing to do.

    Attributes:
        passes: how many passes were completed.
        share: the part of all keys that the last step visited, from 0 to 1.
    """

    __slots__ = ("_keys", "_store", "_visited", "passes", "share")

    def __init__(self, store: Store) -> None:
        self._store = store
        self._keys: list[bytes] | None = None
        self._visited = 0
        self.passes = 0
        self.share = 1.0

    @property
    def is_under_way(self) -> bool:
        """Whether a pass has begun and is not complete."""
        return self._keys is not None

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
        if self._keys is None:
            self._keys = store.keys()
            self._visited = 0
            records.begin_sweep(store.revision)
        size, begin = 0, self._visited
        max_bytes = max(max_bytes, 1)
        end = min(self._visited + max(max_keys, 1), len(self._keys))
        while self._visited < end and size < max_bytes:
            key = self._keys[self._visited]
            self._visited += 1
            record = store.get(key)
            if record is not None:
                records.visit(key, record)
                size += len(key) + len(record.value)
        self.share = (self._visited - begin) / len(self._keys) if self._keys else 1.0
        if self._visited < len(self._keys):
            return None
        self._keys = None
        self.passes += 1
        expected, found = records.end_sweep()
        return None if expected == found else Mismatch(store.applied_index, expected, found)
