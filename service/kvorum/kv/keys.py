"""A sorted set of keys: slices of it and counts, without an iterator per key."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from itertools import islice

CHUNK_KEYS = 512
"""Keys in a new chunk; a chunk of twice as many is divided."""
_SMALL_PARTS = 4
"""A chunk of fewer than one of so many parts of that is joined to a neighbor if both together are a new chunk."""


class Keys:
    """Keys in order, in chunks of 1 to 1,023.

    An insertion moves the keys of one chunk, and seldom the list of the chunks. Bounds: ``start`` is included, ``end``
    is not, and an ``end`` of None is no bound.

    Args:
        ordered: the first keys, ascending and distinct.
    """

    __slots__ = ("_chunks", "_firsts", "_size")

    def __init__(self, ordered: Sequence[bytes] = ()) -> None:
        self._chunks: list[list[bytes]] = []
        self._firsts: list[bytes] = []
        """For each chunk a key that is above those of the chunk before, and, but for the first, not above its own."""
        self._size = 0
        self.extend(ordered)

    def __len__(self) -> int:
        return self._size

    def __contains__(self, key: bytes) -> bool:
        number, offset = self._find(key)
        return number < len(self._chunks) and self._chunks[number][offset : offset + 1] == [key]

    def add(self, key: bytes) -> None:
        """Add a key that is not in the set."""
        chunks = self._chunks
        if not chunks:
            self.extend((key,))
            return
        number = max(bisect_right(self._firsts, key) - 1, 0)
        chunk = chunks[number]
        if key > chunk[-1]:
            chunk.append(key)
        else:
            insort(chunk, key)
        self._size += 1
        if len(chunk) >= 2 * CHUNK_KEYS:
            half = chunk[CHUNK_KEYS:]
            del chunk[CHUNK_KEYS:]
            chunks.insert(number + 1, half)
            self._firsts.insert(number + 1, half[0])

    def remove(self, key: bytes) -> None:
        """Remove a key that is in the set."""
        number, offset = self._find(key)
        chunk = self._chunks[number]
        del chunk[offset]
        self._size -= 1
        if len(chunk) < CHUNK_KEYS // _SMALL_PARTS or not chunk:
            self._join(number)

    def _join(self, number: int) -> None:
        """Join a chunk that has become small to the one before or behind it, or drop it if it is empty."""
        chunks = self._chunks
        for left in (number - 1, number):
            if 0 <= left < len(chunks) - 1 and len(chunks[left]) + len(chunks[left + 1]) <= CHUNK_KEYS:
                chunks[left] += chunks[left + 1]
                del chunks[left + 1], self._firsts[left + 1]
                return
        if not chunks[number]:
            del chunks[number], self._firsts[number]

    def extend(self, ordered: Sequence[bytes]) -> None:
        """Add keys, ascending and distinct, that are above all keys of the set."""
        start = 0
        if self._chunks:
            last = self._chunks[-1]
            start = max(CHUNK_KEYS - len(last), 0)
            last += ordered[:start]
        for offset in range(start, len(ordered), CHUNK_KEYS):
            chunk = list(ordered[offset : offset + CHUNK_KEYS])
            self._chunks.append(chunk)
            self._firsts.append(chunk[0])
        self._size += len(ordered)

    def ascending(self, start: bytes, end: bytes | None, limit: int) -> list[bytes]:
        """Return the first keys from ``start`` on and before ``end``, ascending, at most ``limit``."""
        number, offset = self._find(start)
        found: list[bytes] = []
        for chunk in islice(self._chunks, number, None):
            stop = min(offset + limit - len(found), len(chunk))
            if end is not None and chunk[stop - 1] >= end:
                found += chunk[offset : bisect_left(chunk, end, lo=offset)][: limit - len(found)]
                break
            found += chunk[offset:stop]
            if len(found) >= limit:
                break
            offset = 0
        return found

    def descending(self, start: bytes, end: bytes | None, limit: int) -> list[bytes]:
        """Return the last keys from ``start`` on and before ``end``, descending, at most ``limit``."""
        number, offset = self._end(end)
        found: list[bytes] = []
        while number >= 0 and len(found) < limit:
            chunk = self._chunks[number]
            first = max(offset - (limit - len(found)), 0)
            if chunk[first] < start:
                first = bisect_left(chunk, start, lo=first)
                number = 0
            found += chunk[first:offset][::-1]
            number -= 1
            offset = len(self._chunks[number]) if number >= 0 else 0
        return found

    def count(self, start: bytes, end: bytes | None) -> int:
        """Return how many keys there are from ``start`` on and before ``end``."""
        number, offset = self._find(start)
        last, stop = self._end(end)
        if last < number:
            return 0
        chunks = self._chunks
        if 2 * (last - number) <= len(chunks):
            return max(sum(map(len, chunks[number:last])) + stop - offset, 0)
        # The chunks outside are fewer.
        outside = sum(map(len, chunks[:number])) + sum(map(len, chunks[last:]))
        return self._size - outside + stop - offset

    def _find(self, key: bytes) -> tuple[int, int]:
        """Return the chunk where a key is or would be, and the offset in it of the first key that is not below."""
        number = max(bisect_right(self._firsts, key) - 1, 0)
        return number, bisect_left(self._chunks[number], key) if self._chunks else 0

    def _end(self, end: bytes | None) -> tuple[int, int]:
        """Return the chunk where a range ends, -1 if there is none, and the offset in it."""
        if not self._chunks:
            return -1, 0
        if end is None:
            return len(self._chunks) - 1, len(self._chunks[-1])
        return self._find(end)
