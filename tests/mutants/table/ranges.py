"""Mutants of ranges: scans in slices and cursors."""

from __future__ import annotations

from mutants.mutant import Mutant

_ROWS = (
    (
        "A range at an old revision misses keys that are deleted by now.",
        "kv.scan:Scan._next_keys",
        "has_dead = latest != self.revision",
        "has_dead = False",
    ),
    (
        "The count of a range in the past has keys that were created since.",
        "kv.scan:_Changes.count",
        "self._born.count(start, end)",
        "0",
    ),
    (
        "The count of a range in the past lacks keys that were deleted since.",
        "kv.scan:_Changes.count",
        "self._gone.count(start, end)",
        "0",
    ),
    (
        "The page after a cursor lacks its first key.",
        "kv.scan:Scan._stop_before",
        "self._low = key",
        "self._low = key + bytes(1)",
    ),
    (
        "A page has no bound in bytes.",
        "kv.scan:Scan._take",
        "self._bytes + size_bytes > self._bytes_max",
        "False",
    ),
    ("A sorted range has no bound.", "kv.scan:Scan._begin", "keys > SORTED_KEYS_MAX", "False"),
    ("A cursor of another query is taken.", "kv.cursors:decode_cursor", "cursor.query != digest(query)", "False"),
    ("A damaged cursor is taken.", "kv.cursors:_decode", "checksum != _checksum(body)", "False"),
    (
        "What was counted of a store goes on to be counted of the next one.",
        "kv.scan:Scan.step",
        "versions is not self._versions",
        "self._versions is None",
    ),
)

MUTANTS = tuple(
    Mutant("range", fault, where, old, new, tests="tests/kv/test_ranges.py", simulated=False)
    for fault, where, old, new in _ROWS
)
